"""Masks that a model added are read where they are asked for, and stay marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from semsam_model.config import parse_config
from semsam_model.data.mixture import Mixture, MixtureConfig, read_mixture
from semsam_model.data.samples import Sample
from semsam_model.data.shards import pack_mixture
from semsam_model.errors import ConfigError, DataError
from tests.semsam_model.added import PATH, ROOF, read_houses, write_houses


def described(sample: Sample) -> list[tuple[str, str | None, int | None, bool]]:
    return [(region.granularity, region.name, region.parent, region.added) for region in sample.regions]


ANNOTATED = [("object", "house", None, False), ("part", "window", 0, False), ("part", "window", 0, False)]
ADDED = [("part", None, 0, True), ("region", None, None, True)]


def test_added_masks_come_after_those_annotated_and_only_where_they_are_asked_for(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    for sample in read_houses(tmp_path, added=False).samples:
        assert described(sample) == ANNOTATED
    for sample in read_houses(tmp_path).samples:
        assert described(sample) == ANNOTATED + ADDED and sample.partial
        for index, (top, bottom, left, right) in ((3, ROOF), (4, PATH)):
            expected = np.zeros((48, 64), bool)
            expected[top:bottom, left:right] = True
            assert np.array_equal(sample.mask(index), expected)


def test_a_weight_of_zero_leaves_them_out(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    for sample in read_houses(tmp_path, added_weight=0).samples:
        assert described(sample) == ANNOTATED


def test_marks_and_weight_survive_packing_and_what_is_packed_is_asked_for_too(tmp_path: Path) -> None:
    write_houses(tmp_path, 3)
    before = read_houses(tmp_path, added_weight=0.5)
    packed = pack_mixture(before, tmp_path / "out", shard_bytes=2**20)
    after = read_mixture(packed.mixture, tmp_path / "out", added=True)
    assert after.added_weight("houses") == before.added_weight("houses") == 0.5
    for one, two in zip(before.samples, after.samples, strict=True):
        assert described(one) == described(two) == ANNOTATED + ADDED
        assert all(np.array_equal(a, b) for a, b in zip(one.masks(), two.masks(), strict=True))
    for sample in read_mixture(packed.mixture, tmp_path / "out").samples:
        assert described(sample) == ANNOTATED
    again = pack_mixture(after, tmp_path / "again", shard_bytes=2**20)
    assert [path.read_bytes() for path in packed.shards] == [path.read_bytes() for path in again.shards]


def test_the_default_weight_is_a_quarter(tmp_path: Path) -> None:
    write_houses(tmp_path, 1)
    mixture = read_houses(tmp_path)
    assert mixture.added_weight("houses") == Mixture.of(mixture.samples).added_weight("houses") == 0.25
    packed = pack_mixture(mixture, tmp_path / "out", shard_bytes=2**20)
    assert "added_weight" not in yaml.safe_load(packed.mixture.read_text())["sources"][0]


def test_photos_annotated_anew_since_are_refused(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    overlay = tmp_path / "houses.jsonl"
    overlay.write_bytes(overlay.read_bytes().replace(b'"annotated": 3', b'"annotated": 2'))
    with pytest.raises(DataError, match=r"houses/0\.png: made beside 2 annotated masks, now there are 3"):
        read_houses(tmp_path)


def test_photos_that_are_no_longer_there_are_named(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    overlay = tmp_path / "houses.jsonl"
    overlay.write_bytes(overlay.read_bytes().replace(b"houses/1.png", b"houses/9.png"))
    mixture = read_houses(tmp_path)
    assert described(mixture.samples[1]) == ANNOTATED
    assert any("houses/9.png" in line for line in mixture.skipped)


@pytest.mark.parametrize(
    ("before", "after"), [(b"}\n", b"\n"), (b'"parent": 0', b'"parent": 7'), (b'"region"', b'"stuff"')]
)
def test_a_broken_overlay_is_named(tmp_path: Path, before: bytes, after: bytes) -> None:
    write_houses(tmp_path, 2)
    overlay = tmp_path / "houses.jsonl"
    overlay.write_bytes(overlay.read_bytes().replace(before, after))
    with pytest.raises(DataError, match=r"houses\.jsonl"):
        read_houses(tmp_path)


@pytest.mark.parametrize("source", [{"kind": "sa1b", "path": "packed"}, {"kind": "synthetic", "count": 3}])
def test_sources_whose_masks_lie_elsewhere_take_no_overlay(source: dict[str, Any]) -> None:
    given = {"sources": [{"name": "made", "feeds": ["masks"], "added": "made.jsonl", **source}]}
    with pytest.raises(ConfigError, match="got 'added'"):
        parse_config(MixtureConfig, given, "mixture")
