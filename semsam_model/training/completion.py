"""Masks that annotators left out, added by a model: `semsam data complete`, the data engine of SAM at a small scale.

A photo that is marked partial shows more than what is annotated. Of the masks that the model finds there by itself
`left_out` chooses.

    OUT/SOURCE.jsonl      see `data.added_masks`; `.part` while it is written
    OUT/mixture.yaml      the sources with their overlays, to train from
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from semsam_model.config import read_yaml
from semsam_model.data.added_masks import (
    ENDING,
    photo_key,
    photo_line,
    read_lines,
    settings_line,
    skipped_line,
)
from semsam_model.data.folder import evenly_spaced
from semsam_model.data.mixture import OVERLAID, read_mixture, read_mixture_config
from semsam_model.data.samples import Sample
from semsam_model.errors import ConfigError, DataError
from semsam_model.files import named, write_bytes
from semsam_model.inference.automatic import AutomaticOptions, automatic_masks
from semsam_model.network.model import SemanticSAM
from semsam_model.training.left_out import CompletionSettings, left_out

#: A source and how many of its photos are left -> gives what is called after each.
Watch = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


class CompletedPhotos(TorchDataset[bytes]):
    """Number of a sample -> its line of the overlay, whichever process makes it."""

    def __init__(self, model: SemanticSAM, samples: Sequence[Sample], root: Path, settings: CompletionSettings) -> None:
        self.model, self.samples, self.root, self.settings = model, samples, root, settings

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, number: int) -> str:
        """What the overlay calls a photo."""
        return photo_key(self.samples[number], self.root)

    @torch.inference_mode()
    def __getitem__(self, number: int) -> bytes:
        sample, settings, key = self.samples[number], self.settings, self.key(number)
        try:
            rgb, masks = sample.image(), sample.masks()
        except DataError as exc:  # what is annotated must be known, or it would be added again
            return skipped_line(key, str(exc))
        options = AutomaticOptions(
            settings.grid, least_iou=settings.least_iou, least_stability=settings.least_stability
        )
        found = automatic_masks(self.model, self.model.encode(rgb), options)
        candidates = [
            mask.candidate for mask in found if mask.click is not None
        ]  # the network's own, not the hierarchy's
        return photo_line(key, len(masks), left_out(masks, sample.regions, candidates, settings))


@dataclass(frozen=True)
class CompletedSource:
    """What a source's overlay holds."""

    photos: int  #: marked partial, and looked at
    masks: int  #: added
    skipped: tuple[str, ...]  #: photos that cannot be read, and why


def complete_mixture(
    model: SemanticSAM,
    config: Path,
    out: Path,
    *,
    weights: str,
    root: Path | None = None,
    settings: CompletionSettings | None = None,
    limit: int | None = None,
    workers: int = 0,
    watch: Watch = lambda name, photos: nullcontext(lambda: None),
) -> dict[str, CompletedSource]:
    """Add masks to the photos of a mixture that are marked partial; goes on where it was stopped.

    weights: the version of `model`, which is written down. limit: at most so many photos a source, evenly spaced. The
    same of everything gives the same files, byte for byte. workers: processes that look at photos. watch: entered for
    each source with its name and how many photos are left; what it gives is called after each.
    Returns what each source with such photos has. Raises ConfigError when OUT holds what was made with other settings,
    or nothing is marked partial; DataError.
    """
    settings, root = settings or CompletionSettings(), root or Path()
    kinds = {source.name: source.kind for source in read_mixture_config(config).sources}
    done: dict[str, CompletedSource] = {}
    for name, dataset in read_mixture(config, root).datasets.items():
        if kinds[name] not in OVERLAID:
            continue
        samples = evenly_spaced([sample for sample in dataset.samples if sample.partial], limit)
        if samples:
            head = {"weights": weights, "limit": limit, **asdict(settings)}
            photos = CompletedPhotos(model, samples, root, settings)
            done[name] = _complete(photos, out / f"{name}{ENDING}", head, workers, watch, name)
    if not done:
        raise ConfigError(f"{config}: expected photos marked partial, every one is annotated completely")
    _write_mixture(config, out, root, done)
    return done


def _complete(
    photos: CompletedPhotos,
    path: Path,
    head: dict[str, Any],
    workers: int,
    watch: Watch,
    name: str,
) -> CompletedSource:
    """Write one overlay, unless it is there."""
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        _check(path, head, photos)
    else:
        begun = _whole_lines(part, head, photos)
        context = "spawn" if workers else None  # a fork would inherit threads of the arithmetic that are not there
        loader = DataLoader(
            photos,
            batch_size=None,
            sampler=range(begun, len(photos)),
            collate_fn=_as_is,
            num_workers=workers,
            multiprocessing_context=context,
        )
        with watch(name, len(photos) - begun) as on_photo, named(part), part.open("ab") as file:
            for line in loader:
                file.write(line)
                file.flush()
                on_photo()
            os.fsync(file.fileno())
        part.replace(path)
    _, *lines = read_lines(path)
    skipped = tuple(line["skipped"] for line in lines if "skipped" in line)
    return CompletedSource(len(lines), sum(len(line.get("masks", ())) for line in lines), skipped)


def _as_is(line: Any) -> Any:
    return line


def _whole_lines(part: Path, head: dict[str, Any], photos: CompletedPhotos) -> int:
    """How many photos an overlay in the making has; it begins with `head` then, and ends with a whole line."""
    if not part.exists():
        part.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(part, settings_line(head))
    with named(part), part.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    lines = content.count(b"\n")
    if not lines:  # killed before the first line was whole
        write_bytes(part, settings_line(head))
    _check(part, head, photos)
    return max(lines - 1, 0)


def _check(path: Path, head: dict[str, Any], photos: CompletedPhotos) -> None:
    """Raises ConfigError when a file was made with other settings, or for other photos."""
    first, *lines = read_lines(path)
    made = first.get("settings", {})
    other = sorted(key for key in made.keys() | head.keys() if made.get(key) != head.get(key))
    if other:
        key = other[0]
        raise ConfigError(f"{path}: made with {key} {made.get(key)}, now it is {head.get(key)}; use another --out")
    for number, line in enumerate(lines):
        if number >= len(photos) or line.get("photo") != photos.key(number):
            raise ConfigError(f"{path}: made for other photos, with {line.get('photo')}; use another --out")


def _write_mixture(config: Path, out: Path, root: Path, done: dict[str, CompletedSource]) -> None:
    """The mixture's own file with `added` for each source that has an overlay."""
    content = read_yaml(config)
    for source in content["sources"]:
        if source["name"] in done:
            path = (out / f"{source['name']}{ENDING}").resolve()
            inside = path.is_relative_to(root.resolve())
            source["added"] = (path.relative_to(root.resolve()) if inside else path).as_posix()
    write_bytes(out / "mixture.yaml", yaml.safe_dump(content, sort_keys=False).encode())
