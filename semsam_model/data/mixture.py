"""What a model is trained on: configs/data/NAME.yaml, unknown keys refused, read into one long row of samples.

sources:
  - name: coco                     # unique; the name in reports
    kind: coco                     # coco, panoptic, label_map, label_studio, sa1b, yolo, labelme, cvat, voc, synthetic
    path: train/coco.json          # relative to the root that the caller gives
    weight: 3                      # share of the photos shown; square root of their number when absent
    feeds: [masks, boxes, iou, object_names]
    turns: true                    # its photos have no up, as those of a microscope; may be absent
    added: added/coco.jsonl        # masks that a model added, see `data.added_masks`; may be absent
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from semsam_model.config import STRICT, Count, NonNegative, NonNegativeInt, Share, parse_config, read_yaml
from semsam_model.data.added_masks import ADDED_WEIGHT, with_added
from semsam_model.data.lazy_samples import LazySamples, chain, pack
from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.cvat import read_cvat
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.data.readers.id_maps import ENDINGS, read_label_map, read_panoptic
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.data.readers.labelme import read_labelme
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.readers.voc import read_voc
from semsam_model.data.readers.yolo import SPLITS, read_yolo
from semsam_model.data.samples import Dataset, Sample, Supervision, by_source
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import ConfigError, DataError
from semsam_model.types import Granularity

#: Settings of each kind, besides those that all have (`_COMMON`): those that it needs, and those that it may have.
_SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "coco": (("path",), ("images", "granularity", "names", "partial", "crowd", "colon")),
    "panoptic": (("path", "images"), ("masks", "names", "partial", "crowd")),
    "label_map": (("path", "images", "labels"), ("instances", "endings", "granularity", "names", "partial")),
    "label_studio": (("path", "images"), ("partial", "config")),
    "sa1b": (("path",), ()),
    "yolo": (("path",), ("splits", "granularity", "names", "partial")),
    "labelme": (("path",), ("granularity", "names", "partial")),
    "cvat": (("path",), ("images", "granularity", "names", "partial")),
    "voc": (("path",), ("granularity", "names", "partial")),
    "synthetic": (("count",), ("seed", "size")),
}
_COMMON = {"name", "kind", "feeds", "weight", "turns", "added_weight"}
#: Kinds whose photos may have masks in an overlay; those of sa1b lie beside the others, as packed.
OVERLAID = set(_SETTINGS) - {"sa1b", "synthetic"}
#: What `path` is, where it is no JSON.
_FORM = {"sa1b": "folder or tar", "label_map": "folder of PNGs", "label_studio": "JSON or folder of a target storage"}


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """One source of a mixture."""

    name: Annotated[str, Field(min_length=1)]
    kind: Literal[
        "coco", "panoptic", "label_map", "label_studio", "sa1b", "yolo", "labelme", "cvat", "voc", "synthetic"
    ]
    feeds: tuple[str, ...]
    """Losses that its annotations are good for: masks, boxes, iou, object_names, part_names"""
    path: str | None = None
    """The JSON or export; for sa1b the folder or tar, for label_map the folder of PNGs"""
    images: str | None = None
    """Where `file_name`s start; the JSON's own folder when absent (coco)"""
    masks: str | None = None
    """Folder of panoptic PNGs; beside the JSON, named as it, when absent"""
    weight: NonNegative | None = None
    """Share of the photos shown, beside the other sources' weights; square root of their number when absent"""
    turns: bool = False
    """Its photos have no up: training may turn them by right angles"""
    added: str | None = None
    """Overlay of masks that a model added, for training alone (every kind but sa1b and synthetic)"""
    added_weight: Share = ADDED_WEIGHT
    """Of added masks in the losses of masks, beside 1 of annotated ones; 0 leaves them out"""
    granularity: Granularity | None = None
    """Of annotations without one: object, part or region (coco, label_map)"""
    names: dict[str, str] = field(default_factory=dict)
    """The source's spelling of a label -> the label meant"""
    partial: bool = False
    """Not everything visible is annotated, on any photo"""
    crowd: Literal["single"] | None = None
    """What `iscrowd` marks is one thing, as in files of CVAT; several in one mask, and left out, when absent"""
    colon: Literal["part"] | None = None
    """A colon in a category's name stands between whole and part; only where the file has the whole when absent"""
    splits: tuple[Literal["train", "val", "test"], ...] = ()
    """Which of them; all when absent (yolo)"""
    config: str | None = None
    """The project's labeling config, where a task has several photos (label_studio)"""
    labels: tuple[str, ...] = ()
    """The names of the numbers 0, 1, 2, ..., "whole:part" for a part; "" for what is not annotated (label_map)"""
    instances: bool = False
    """Numbers from 1 are instances that all have the only name in `labels` (label_map)"""
    endings: tuple[str, ...] = ()
    """How file names of a map and of its photo end; .png and .jpg when absent (label_map)"""
    count: Count | None = None
    """Scenes (synthetic)"""
    size: Annotated[int, Field(ge=32, le=4096)] | None = None
    """Side of a scene, pixels; 256 when absent (synthetic)"""
    seed: NonNegativeInt | None = None
    """Of the scenes; 0 when absent (synthetic)"""

    def __post_init__(self) -> None:
        needed, optional = _SETTINGS[self.kind]
        given = {key for key, value in vars(self).items() if value not in (None, False, {}, ())}
        given -= _COMMON
        if self.kind in OVERLAID:
            given -= {"added"}
        if missing := [key for key in needed if key not in given]:
            raise ValueError(f"source {self.name!r}: a source of kind {self.kind} needs {missing[0]!r}")
        if idle := sorted(given - {*needed, *optional}):
            raise ValueError(
                f"source {self.name!r}: kind {self.kind} takes {', '.join((*needed, *optional))}, got {idle[0]!r}"
            )
        if self.instances and len(self.labels) != 1:
            raise ValueError(f"source {self.name!r}: labels: expected one name for instances, got {len(self.labels)}")
        if len(self.endings) not in (0, 2):
            raise ValueError(f"source {self.name!r}: endings: expected two, of the map and of the photo")
        try:
            Supervision.of(self.feeds)
        except ConfigError as error:
            raise ValueError(f"source {self.name!r}: {error}") from None


@dataclass(frozen=True, config=STRICT)
class MixtureConfig:
    """Sources, each with its own name."""

    sources: tuple[SourceConfig, ...]

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected sources with names of their own, got {', '.join(names) or 'none'}")


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Sources as read."""

    datasets: Mapping[str, Dataset]  #: by source name; the samples of one feed the same losses
    shares: Mapping[str, float]  #: how much of what is shown is of a source; any scale. As `SamplingConfig.sources`
    turning: frozenset[str] = frozenset()  #: sources whose photos have no up
    added_weights: Mapping[str, float] = field(
        default_factory=dict
    )  #: of added masks, by source; ADDED_WEIGHT elsewhere

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Mixture:
        """Of samples at hand: each source weighs the square root of its number of photos."""
        groups = by_source(samples)
        datasets = {source: Dataset(tuple(group), ()) for source, group in groups.items()}
        return cls(datasets, {source: len(group) ** 0.5 for source, group in groups.items()})

    def added_weight(self, source: str) -> float:
        """Of its masks that a model added, in the losses of masks."""
        return self.added_weights.get(source, ADDED_WEIGHT)

    @cached_property
    def samples(self) -> LazySamples:
        """All sources one after another."""
        return chain([dataset.samples for dataset in self.datasets.values()])

    @cached_property
    def named(self) -> LazySamples:
        """Those of the sources whose names are trained on; the others, which may be long, are left alone."""
        parts = [dataset.samples for dataset in self.datasets.values()]
        return chain([samples for samples in parts if samples[0].supervision.names])

    @property
    def skipped(self) -> list[str]:
        """What was left out and why, as far as it is known before photos are opened."""
        return [line for dataset in self.datasets.values() for line in dataset.skipped]


def read_mixture_config(path: Path) -> MixtureConfig:
    """Read a mixture's YAML file. Raises ConfigError."""
    return parse_config(MixtureConfig, read_yaml(path), str(path))


def read_mixture(
    config: MixtureConfig | Path, root: Path | None = None, *, evaluation: bool = False, added: bool = False
) -> Mixture:
    """Read a mixture; relative paths in it start at `root`, the current folder when None.

    evaluation: keep crowd regions and photos without any mask. added: with the masks that a model added, of sources
    that weigh them more than 0. Photos and masks are not opened. Raises ConfigError, and DataError when a source cannot
    be found, or holds nothing.
    """
    if isinstance(config, Path):
        config = read_mixture_config(config)
    datasets, shares = dict[str, Dataset](), dict[str, float]()
    for source in config.sources:
        dataset = _read(source, root or Path(), evaluation, added and source.added_weight > 0)
        if not dataset.samples:
            raise DataError(f"source {source.name!r}: no usable photo with a mask; {list(dataset.skipped[:3])}")
        datasets[source.name] = dataset
        shares[source.name] = len(dataset.samples) ** 0.5 if source.weight is None else source.weight
    if not any(shares.values()):
        raise ConfigError("mixture: expected a weight above 0, every one is 0")
    return Mixture(
        datasets,
        shares,
        frozenset(source.name for source in config.sources if source.turns),
        {source.name: source.added_weight for source in config.sources},
    )


def _read(source: SourceConfig, root: Path, evaluation: bool, added: bool) -> Dataset:
    name, supervision = source.name, Supervision.of(source.feeds)
    if source.kind == "synthetic":
        count, seed, side = source.count or 1, source.seed or 0, source.size or 256
        return Dataset(synthetic_samples(count, seed=seed, size=(side, side), source=name, supervision=supervision), ())
    path = root / str(source.path)
    if not path.exists():
        raise DataError(
            f"source {name!r}: {path} is not there; its {_FORM.get(source.kind, 'JSON')} belongs at "
            f"{source.path} under the folder given with --root"
        )
    images, masks = (None if folder is None else root / folder for folder in (source.images, source.masks))
    options = ReadOptions(
        source.granularity, source.names, source.partial, source.crowd or "group", source.colon, evaluation
    )
    match source.kind:
        case "sa1b":  # long, and not kept in memory
            return read_sa1b(path, source=name, supervision=supervision, added=added)
        case "coco":
            dataset = read_coco(path, images, source=name, supervision=supervision, options=options)
        case "panoptic":
            dataset = read_panoptic(path, images or root, masks, source=name, supervision=supervision, options=options)
        case "yolo":
            splits = source.splits or SPLITS
            dataset = read_yolo(path, splits=splits, source=name, supervision=supervision, options=options)
        case "labelme":
            dataset = read_labelme(path, source=name, supervision=supervision, options=options)
        case "cvat":
            dataset = read_cvat(path, images, source=name, supervision=supervision, options=options)
        case "voc":
            dataset = read_voc(path, source=name, supervision=supervision, options=options)
        case "label_studio":
            dataset = read_label_studio(
                path,
                images or root,
                source=name,
                supervision=supervision,
                partial=source.partial,
                config=root / source.config if source.config else None,
                evaluation=evaluation,
            )
        case _:
            dataset = read_label_map(
                path,
                images or root,
                source.labels,
                instances=source.instances,
                endings=source.endings or ENDINGS,
                source=name,
                supervision=supervision,
                options=options,
            )
    if added and source.added is not None:
        dataset = with_added(dataset, root / source.added, root)
    return replace(dataset, samples=pack(dataset.samples))
