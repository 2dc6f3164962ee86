"""Published Semantic-SAM checkpoints (.pth pickles of detectron2) -> our safetensors, every key accounted for.

    convert(Path("swint_only_sam_many2many.pth"), "swin_t", Path("swin_t.safetensors"))
    fetch("swin_t", Path("weights"))        # download, resumable, then convert

Their loader keeps what fits and only logs the rest, so a wrong file "loads". Here a key is loaded, tied, ignored with a
reason, or absent without harm; anything else is an error and nothing is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from semsam_model.checkpoints.checkpoint import save
from semsam_model.checkpoints.download import download, public_url
from semsam_model.checkpoints.header import PUBLISHED, SUFFIX, Version
from semsam_model.checkpoints.pickles import read_pickle
from semsam_model.config import ModelConfig, read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.network.model import build_model
from semsam_model.network.swin import relative_position_index

RELEASE_URL = "https://github.com/UX-Decoder/Semantic-SAM/releases/download/checkpoint/"
RELEASE_FILES = {"swin_t": "swint_only_sam_many2many.pth", "swin_l": "swinl_only_sam_many2many.pth"}
STATUSES = ("loaded", "tied", "ignored", "missing")
#: Our parameters that published training never changed, and why.
UNTRAINED = {
    "decoder.object_projection": "object class head: no gradient reached it, initial values",
    "decoder.part_projection": "part class head: no gradient reached it, initial values",
    "decoder.kind_embed[1]": "box prompts: training had no boxes; its code put clicks in this row, inference in row 0",
}

PREFIX = "model."  #: of every key in a published file
_HEAD = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."
LANG_MAPPER = PREDICTOR + "lang_mapper"
CONTENT = PREDICTOR + "label_enc.weight"  #: (2, width); only row 0 is used
EMPTY_WEIGHT = "criterion.empty_weight"
WINDOW_INDEX = ".attn.relative_position_index"  #: ending; a buffer computed from the window size
#: Ours -> theirs, first match wins. Tied names and the special rows are added in `published_names`.
_RENAMES = (
    ("pixel_decoder.level_embed", _HEAD + "transformer.level_embed"),
    ("pixel_decoder.layers.", _HEAD + "transformer.encoder.layers."),
    ("pixel_decoder.lateral.0.", _HEAD + "adapter_1."),
    ("pixel_decoder.lateral.1.", _HEAD + "adapter_1.norm."),
    ("pixel_decoder.fuse.0.", _HEAD + "layer_1."),
    ("pixel_decoder.fuse.1.", _HEAD + "layer_1.norm."),
    ("pixel_decoder.", _HEAD),
    ("decoder.layers.", PREDICTOR + "decoder.layers."),
    ("decoder.position_head.", PREDICTOR + "decoder.ref_point_head."),
    ("decoder.iou_head.", PREDICTOR + "iou_prediction_head."),
    ("decoder.mask_head.", PREDICTOR + "mask_embed."),
    ("decoder.level_tokens", PREDICTOR + "mask_tokens.weight"),
    # Row 0 is what published inference adds for clicks, row 1 for boxes; their training added row 1 for clicks.
    ("decoder.kind_embed", PREDICTOR + "pb_embedding.weight"),
    ("decoder.object_projection", PREDICTOR + "class_embed"),
    ("decoder.part_projection", PREDICTOR + "class_embed_part"),
    ("decoder.content", CONTENT),
    ("backbone.", "backbone."),
)
_REASONS = {
    "beside": "stands beside the weights: training state",
    "alias": "another name of the same values is there",
    "index": "computed from the window size",
    "lang_mapper": "for text queries that the release never builds",
    "empty_weight": "a buffer of the training loss",
}


@dataclass(frozen=True)
class Entry:
    """What was done with one published key."""

    key: str  #: as in the file
    status: str  #: one of STATUSES
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a conversion did. Prints as a table with rich."""

    path: Path  #: the file written
    version: Version
    sha256: str  #: of the checkpoint read
    entries: tuple[Entry, ...]  #: every key of the checkpoint, and harmless absences
    casts: tuple[tuple[str, str], ...]  #: keys that were not float32, and what they were

    @property
    def counts(self) -> dict[str, int]:
        """Entries by status: loaded, tied, ignored, missing."""
        found = Counter(entry.status for entry in self.entries)
        return {status: found[status] for status in STATUSES}

    def __rich__(self) -> Table:
        table = Table("", "keys", "", title=f"{self.version} in {self.path}")
        for status in STATUSES:
            notes = Counter(
                "equal to a loaded key" if status == "tied" else entry.note
                for entry in self.entries
                if entry.status == status
            )
            for note, count in notes.items():
                table.add_row(status, str(count), note)
        for dtype, count in Counter(dtype for _, dtype in self.casts).items():
            table.add_row("cast", str(count), f"{dtype} to float32")
        for name, why in UNTRAINED.items():
            table.add_row("untrained", "", f"{name}: {why}")
        return table


def convert(path_in: Path, model_name: str, path_out: Path, *, card: Mapping[str, Any] | None = None) -> Report:
    """Read a published checkpoint and write it as our weights file; nothing is written when anything is wrong.

    model_name: swin_t, swin_l, swin_l_many2one, or a model YAML file of the same design with other sizes.
    The file is read without running any code it may hold. Raises CheckpointError when it is missing, cut short, not a
    checkpoint, holds code, is another variant, or when a key is unknown, missing, of a wrong shape, not finite, or
    differs from the key it must equal; ConfigError for an unknown model name.
    """
    config = read_model_config(model_name)
    if config.backbone != "swin":
        raise CheckpointError(
            f"model {model_name}: no such published checkpoint, expected one of {', '.join(PUBLISHED)}"
        )
    state, beside = _model_state(path_in, read_pickle(path_in))
    _check_keys(path_in, config, state)
    weights, entries = _collect(path_in, config, state)
    sha256 = file_sha256(path_in)
    source = {"source": path_in.name, "source_sha256": sha256, "untrained": UNTRAINED}
    version = save(path_out, weights, config, card={**source, **(card or {})})
    casts = tuple(
        (PREFIX + key, str(value.dtype).removeprefix("torch."))
        for key, value in state.items()
        if value.is_floating_point() and value.dtype != torch.float32
    )
    return Report(path_out, version, sha256, (*entries, *beside), casts)


def fetch(
    model_name: str, out_dir: Path, *, url: str | None = None, sha256: str | None = None, progress: bool = True
) -> Report:
    """Download a released checkpoint into `out_dir`, continuing what an earlier call began, and convert it.

    Writes the checkpoint, its sha256 beside it, and MODEL_NAME.safetensors, whose card carries sha256 and address.
    A checkpoint that is already there with its sha256 is not downloaded again. sha256: refuse any other content.
    Raises CheckpointError as `download` and `convert` do.
    """
    if model_name not in RELEASE_FILES:
        raise CheckpointError(f"model {model_name}: no weights were published, expected {' or '.join(RELEASE_FILES)}")
    path = out_dir / RELEASE_FILES[model_name]
    note = path.with_name(path.name + ".sha256")
    url = url or RELEASE_URL + path.name
    if not (path.is_file() and note.is_file() and note.read_text("utf-8").split()[:1] == [file_sha256(path)]):
        download(url, path, progress=progress)
    found = file_sha256(path)
    if sha256 is not None and found != sha256.lower():
        path.unlink()
        raise CheckpointError(f"{public_url(url)}: sha256 {found}, expected {sha256}; the download was removed")
    report = convert(path, model_name, out_dir / f"{model_name}{SUFFIX}", card={"source_url": public_url(url)})
    note.write_text(f"{found}  {path.name}\n", "utf-8")
    return report


def published_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter -> its published names without `model.`; several names hold equal values."""
    with torch.device("meta"):
        ours = build_model(config).state_dict()
    layers = range(config.decoder_layers)
    boxes = [f"{PREDICTOR}bbox_embed.{i}." for i in layers]
    boxes += [f"{PREDICTOR}decoder.bbox_embed.{i}." for i in layers] + [f"{PREDICTOR}_bbox_embed."]
    norms = [f"{PREDICTOR}decoder_norm.", f"{PREDICTOR}decoder.norm."]
    names = {}
    for name in ours:
        for prefix, aliases in (("decoder.box_head.", boxes), ("decoder.norm.", norms)):
            if name.startswith(prefix):
                names[name] = tuple(alias + name.removeprefix(prefix) for alias in aliases)
        if name not in names:
            prefix, theirs = next(pair for pair in _RENAMES if name.startswith(pair[0]))
            names[name] = (theirs + name.removeprefix(prefix),)
    return names


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every key that the published code saves for this model, without `model.`, and its shape."""
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in build_model(config).state_dict().items()}
    shapes = {alias: ours[name] for name, aliases in published_names(config).items() for alias in aliases}
    shapes[CONTENT] = (2, config.width)
    shapes[LANG_MAPPER] = (config.text_dim, config.width)
    for stage, depth in enumerate(config.swin_depths):
        for block in range(depth):
            shapes[f"backbone.layers.{stage}.blocks.{block}{WINDOW_INDEX}"] = (config.swin_window**2,) * 2
    return shapes


def file_sha256(path: Path) -> str:
    """64 hex digits over the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_state(path: Path, content: Any) -> tuple[dict[str, Tensor], list[Entry]]:
    """The weights without `model.`, and what stood beside them."""
    beside: list[Entry] = []
    if isinstance(content, dict) and "model" in content:
        beside = [Entry(str(key), "ignored", _REASONS["beside"]) for key in content if key != "model"]
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    state = {}
    for key, value in content.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(f"{path}: {key} is {type(value).__name__}, expected a dense tensor")
        if not str(key).startswith(PREFIX):
            raise CheckpointError(
                f"{path}: key {key}: expected every name to begin with {PREFIX!r}, as published ones do"
            )
        state[key.removeprefix(PREFIX)] = value
    return state, beside


def _check_keys(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Right variant, no unknown key, right shapes and types, finite."""
    wanted, found = (config.swin_dim, config.tokens), _variant(state)
    if found is not None and found != wanted:
        known: dict[tuple[int, int], str] = {(c.swin_dim, c.tokens): c.name for c in map(read_model_config, PUBLISHED)}
        raise CheckpointError(
            f"{path}: looks like {known.get(found, 'no published variant')} "
            f"({found[0]} backbone channels, {found[1]} level tokens), "
            f"expected {config.name} ({wanted[0]} channels, {wanted[1]} tokens)"
        )
    expected = published_shapes(config)
    unknown = [key for key in state if key not in expected and key != EMPTY_WEIGHT]
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} keys that {config.name} does not have, first {unknown[0]}")
    for key, value in state.items():
        if key in expected and tuple(value.shape) != expected[key]:
            raise CheckpointError(f"{path}: {key} has shape {tuple(value.shape)}, expected {expected[key]}")
        if key.endswith(WINDOW_INDEX):
            if not torch.equal(value.long(), relative_position_index(config.swin_window)):
                raise CheckpointError(f"{path}: {key} is not the index of a window of {config.swin_window}")
        elif not value.is_floating_point():
            raise CheckpointError(f"{path}: {key} holds {value.dtype}, expected floats")
        elif not value.float().isfinite().all():
            raise CheckpointError(f"{path}: {key} holds values that are not finite; the training it is from diverged")


def _variant(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Backbone channels and level tokens, which tell the variants apart; None when the keys are not there."""
    stem, tokens = state.get("backbone.patch_embed.proj.weight"), state.get(PREDICTOR + "mask_tokens.weight")
    if stem is None or tokens is None or not stem.ndim or not tokens.ndim:
        return None
    return stem.shape[0], tokens.shape[0]


def _collect(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Entry]]:
    """Our weights, and the status of every key of `state`, which `_check_keys` has passed."""
    weights, entries = {}, []
    names = published_names(config)
    lost = [aliases[0] for aliases in names.values() if not any(alias in state for alias in aliases)]
    if lost:
        raise CheckpointError(
            f"{path}: {len(lost)} of {len(names)} parameters of {config.name} are missing, first {lost[0]}; "
            "the file is cut short or of another model"
        )
    for ours, aliases in names.items():
        first, *others = (alias for alias in aliases if alias in state)
        for other in others:
            if not torch.equal(state[first].float(), state[other].float()):
                raise CheckpointError(f"{path}: {other} differs from {first}, in published models they are one tensor")
        value = state[first].float()
        weights[ours] = value[0] if first == CONTENT else value
        entries.append(Entry(PREFIX + first, "loaded", "row 0; row 1 is never used" if first == CONTENT else ""))
        entries += [Entry(PREFIX + other, "tied", f"equal to {PREFIX}{first}") for other in others]
        entries += [Entry(PREFIX + alias, "missing", _REASONS["alias"]) for alias in aliases if alias not in state]
    taken = {entry.key for entry in entries}
    for key in published_shapes(config):
        if PREFIX + key not in taken:
            reason = _REASONS["index" if key.endswith(WINDOW_INDEX) else "lang_mapper"]
            status, note = ("ignored", reason) if key in state else ("missing", "not needed: " + reason)
            entries.append(Entry(PREFIX + key, status, note))
    if EMPTY_WEIGHT in state:
        entries.append(Entry(PREFIX + EMPTY_WEIGHT, "ignored", _REASONS["empty_weight"]))
    return weights, entries
