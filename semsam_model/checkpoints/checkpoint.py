"""Weights on disk: one safetensors file that carries its model config and a digest of its content.

    save(path, model, model.config)         -> Version
    model, version = load(path)             # strict names and shapes, digest verified
    model, version = load_model("mobile")   # what the service and the command line call

Nothing else is read at run time; published pickles go through `semsam_model.checkpoints.published` once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsam_model.checkpoints.header import (
    EMBEDDED as EMBEDDED,
)
from semsam_model.checkpoints.header import (
    FORMAT as FORMAT,
)
from semsam_model.checkpoints.header import (
    RELEASED as RELEASED,
)
from semsam_model.checkpoints.header import (
    SUFFIX as SUFFIX,
)
from semsam_model.checkpoints.header import (
    Header as Header,
)
from semsam_model.checkpoints.header import (
    Version as Version,
)
from semsam_model.checkpoints.header import (
    find_weights,
    header_of,
    opened,
)
from semsam_model.checkpoints.header import (
    read_header as read_header,
)
from semsam_model.checkpoints.header import (
    weights_path as weights_path,
)
from semsam_model.config import ModelConfig
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.network.ranker import Ranker

OWN_DECODERS = "generic."  #: prefix of the decoders of object queries, before the names that those of clicks have
RANKER = "ranker."  #: prefix of the tensors that order candidates; a file may have none


def content_digest(tensors: Mapping[str, Tensor], config_json: str) -> str:
    """sha256 over the config text and every tensor's name, dtype, shape and bytes, in order of names."""
    digest = hashlib.sha256(f"{FORMAT}\0{config_json}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(
    path: Path,
    weights: SemanticSAM | Mapping[str, Tensor],
    config: ModelConfig,
    *,
    card: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Version:
    """Write a weights file; the old file, if any, stays whole until the new one is complete.

    A model's ranker goes with it. half: store float16, the ranker excepted. card: noted in the file as JSON (dates as
    text), not part of the digest.
    Raises CheckpointError for values that are not finite (after the cast), a card that is not a mapping, and when the
    file cannot be written.
    """
    if card is not None and not isinstance(card, Mapping):
        raise CheckpointError(f"{path}: not written, the card is {type(card).__name__}, expected a mapping")
    if isinstance(weights, SemanticSAM):
        state = weights.state_dict() | _ranker_tensors(weights.ranker)
    else:
        state = dict(weights)
    dtype = torch.float16 if half else torch.float32
    tensors = {
        # clone: safetensors refuses tensors that share storage
        name: value.detach().to("cpu", torch.float32 if name.startswith(RANKER) else dtype).contiguous().clone()
        for name, value in state.items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: not written, {name} holds values that are not finite as {tensor.dtype}")
    return _write(path, tensors, config, card)


def with_ranker(source: Path, ranker: Ranker, path: Path, *, card: Mapping[str, Any] | None = None) -> Version:
    """Write the weights of `source` with this ranker in place of the one it has, if any; the network stays bit for bit.

    card: added to what the source's card says. Raises CheckpointError when a file cannot be read or written.
    """
    header, config_json, tensors = _read(source)
    _same_digest(source, header, content_digest(tensors, config_json))
    network = {name: tensor for name, tensor in tensors.items() if not name.startswith(RANKER)}
    return _write(path, network | _ranker_tensors(ranker), header.config, header.card | dict(card or {}))


def _write(path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, card: Mapping[str, Any] | None) -> Version:
    config_json = json.dumps(config.to_dict(), sort_keys=True)
    version = Version(config.name, content_digest(tensors, config_json))
    metadata = {
        "format": FORMAT,
        "config": config_json,
        "digest": version.digest,
        "card": json.dumps(dict(card or {}), default=str),
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, metadata)
        # safetensors makes files that only their owner can read, and the service may be another user
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be written: {exc}") from exc
    finally:
        temporary.unlink(missing_ok=True)
    return version


def average(first: Path, second: Path, share: float, path: Path, prefix: str = "") -> None:
    """Write (1 - share) of the first network and `share` of the second, weight by weight (Wortsman et al. 2022, "Model
    soups", section 2), for two that were trained from the same one; as a run writes weights, to be packed.

    Both are a run's weights or packed ones; an order of candidates belongs to neither and is left out. prefix: tensors
    with another beginning are the first's. Raises CheckpointError when a file cannot be read, the two are not of one
    network, or no tensor begins so; ConfigError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share {share}: expected 0 (the first network) to 1 (the second)")
    ours, theirs = (network_of(file) for file in (first, second))
    _same_names_and_shapes(second, ours, theirs, str(first))
    chosen = [name for name in ours if name.startswith(prefix)]
    if not chosen:
        raise CheckpointError(f"{first}: no weights begin with {prefix!r}; the first is {next(iter(ours))!r}")
    save_file(ours | {name: ours[name].lerp(theirs[name], share) for name in chosen}, path)


def graft(clicks: Path, queries: Path, config: ModelConfig, path: Path) -> None:
    """Write a network of `config`, which has generic_decoder_layers: clicks as in the first file, object queries and
    the decoders beneath them as in the second; as a run writes weights, to be trained on or packed.

    Both are a run's weights or packed ones. The queries of the second may have shared the decoders of its clicks.
    Raises CheckpointError when a file cannot be read or lacks what the config asks for, ConfigError for a config whose
    queries have no decoders of their own.
    """
    if not (config.generic_queries and config.generic_decoder_layers):
        raise ConfigError(f"model config {config.name!r}: expected generic_queries and generic_decoder_layers above 0")
    expected = build_model(config).state_dict()
    ours, theirs = network_of(clicks), network_of(queries)
    mine = {name: value for name, value in ours.items() if not name.startswith(OWN_DECODERS)}
    of_queries = {name: value for name, value in theirs.items() if name.startswith(OWN_DECODERS)}
    found = with_own_decoders(expected, mine | of_queries, theirs)
    _same_names_and_shapes(queries, expected, found, f"model config {config.name!r} with clicks of {clicks}")
    save_file(found, path)


def with_own_decoders(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], clicks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`found` and, where it lacks a weight of the decoders of object queries that is expected, that of clicks."""
    own = {
        name: clicks[name.removeprefix(OWN_DECODERS)]
        for name in expected
        if name.startswith(OWN_DECODERS) and name not in found and name.removeprefix(OWN_DECODERS) in clicks
    }
    return {**found, **own}


def network_of(path: Path) -> dict[str, Tensor]:
    """Tensors of a run's weights or of packed ones, float32, without the order of candidates."""
    return {name: value.float() for name, value in _tensors(path).items() if not name.startswith(RANKER)}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {exc}") from exc


def pack(
    run_weights: Path,
    config: ModelConfig,
    path: Path,
    *,
    card: Mapping[str, Any] | None = None,
    ranker_of: Path | None = None,
) -> Version:
    """Turn the plain state dict that a training run writes into a half-precision weights file.

    ranker_of: weights file whose order of candidates goes with it, for a run that left the clicks of that file as they
    were. Raises CheckpointError when a file cannot be read, the weights do not fit the config, or there is no ranker.
    """
    tensors = _tensors(run_weights)
    _same_names_and_shapes(run_weights, build_model(config).state_dict(), tensors)
    if ranker_of is not None:
        ranker = {name: value for name, value in _read(ranker_of)[2].items() if name.startswith(RANKER)}
        if not ranker:
            raise CheckpointError(f"{ranker_of}: holds no order of candidates; make one with `semsam train-ranker`")
        tensors |= ranker
    return save(path, tensors, config, card=card, half=True)


def load(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[SemanticSAM, Version]:
    """Read a weights file into a model in eval mode on `device`, its backbone in `dtype`.

    Raises CheckpointError when the file is missing, cut short, not safetensors, not written by `save`, of a config
    that this release does not know, when a name or shape differs from what its config asks for, or when the content
    does not match its digest.
    """
    header, config_json, tensors = _read(path)
    _same_digest(path, header, content_digest(tensors, config_json))
    try:
        model = build_model(header.config)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{path}: its config does not describe a model that can be built: {exc}") from exc
    network = {name: tensor for name, tensor in tensors.items() if not name.startswith(RANKER)}
    _same_names_and_shapes(path, model.state_dict(), network)
    model.load_state_dict(network)
    model.ranker = _ranker(path, tensors)
    model.backbone.to(dtype)
    return model.to(device).eval(), header.version


def load_default(
    *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[SemanticSAM, Version]:
    """The embedded model. Raises CheckpointError as `load` does."""
    return load(weights_path(EMBEDDED), device=device, dtype=dtype)


def load_model(
    name: str = EMBEDDED,
    weights: Path | None = None,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[SemanticSAM, Version]:
    """Load the model called `name` from the file that `weights_path` chooses.

    Raises CheckpointError as `weights_path` and `load` do, and when the file holds another model than `name`.
    """
    path, _ = find_weights(name, weights, folder=folder)
    return load(path, device=device, dtype=dtype)


def _read(path: Path) -> tuple[Header, str, dict[str, Tensor]]:
    with opened(path, "pt") as file:
        header = header_of(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
        return header, file.metadata()["config"], tensors


def _same_digest(path: Path, header: Header, digest: str) -> None:
    if digest != header.version.digest:
        raise CheckpointError(
            f"{path}: the content's sha256 is {digest[:12]}..., expected {header.version.digest[:12]}...; "
            "the file was altered after it was written, fetch or convert it again"
        )


def _ranker_tensors(ranker: Ranker | None) -> dict[str, Tensor]:
    arrays = ranker.to_arrays() if ranker else {}
    return {RANKER + name: torch.from_numpy(np.array(value, np.float32)) for name, value in arrays.items()}


def _ranker(path: Path, tensors: Mapping[str, Tensor]) -> Ranker | None:
    arrays = {n.removeprefix(RANKER): t.float().numpy() for n, t in tensors.items() if n.startswith(RANKER)}
    try:
        return Ranker.from_arrays(arrays) if arrays else None
    except ValueError as exc:
        raise CheckpointError(
            f"{path}: {exc}; it was trained by another release, make it anew with `semsam train-ranker`"
        ) from exc


def _same_names_and_shapes(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], of: str = "its own config"
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems += [f"{name} holds {t.dtype}, expected floats" for name, t in found.items() if not t.is_floating_point()]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: does not fit {of}: {'; '.join(problems[:3])}{more}")
