"""A mixture packed into tars is read back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semsam_model.config import parse_config
from semsam_model.data.mixture import Mixture, MixtureConfig, read_mixture
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.samples import Sample
from semsam_model.data.shards import pack_mixture
from semsam_model.errors import ConfigError, DataError
from tests.semsam_model.houses import write_source


def made(folder: Path, **house: Any) -> Mixture:
    sources = [
        {"name": "houses", "kind": "coco", "path": "houses.json", "feeds": ["masks", "part_names"], **house},
        {"name": "made", "kind": "synthetic", "count": 5, "size": 64, "weight": 7, "feeds": ["masks", "boxes"]},
    ]
    return read_mixture(parse_config(MixtureConfig, {"sources": sources}, "mixture"), folder)


def described(sample: Sample) -> list[tuple[str, str | None, str | None, int | None, bool]]:
    return [(r.granularity, r.name, r.whole, r.parent, r.box_only) for r in sample.regions]


def test_what_is_packed_is_read_back_pixel_for_pixel_with_all_that_is_known(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 4)
    content["categories"][1]["name"] = "house:window"
    (tmp_path / "houses.json").write_text(json.dumps(content))
    before = made(tmp_path, partial=True)
    assert described(before.samples[0])[1] == ("part", "window", "house", 0, False)
    packed = pack_mixture(before, tmp_path / "out", shard_bytes=2**20)
    assert packed.photos == 9 and packed.skipped == ()
    after = read_mixture(packed.mixture, tmp_path / "out")
    assert after.shares == before.shares and after.skipped == []
    for one, two in zip(before.samples, after.samples, strict=True):
        assert (one.source, one.supervision, one.partial, described(one)) == (
            two.source,
            two.supervision,
            two.partial,
            described(two),
        )
        assert np.array_equal(one.image(), two.image())
        assert all(np.array_equal(one.mask(index), two.mask(index)) for index in range(len(one.regions)))


def test_no_tar_is_larger_than_asked_for_and_a_photo_that_alone_is_larger_is_named(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 6)
    limit = 10240 + 22000
    packed = pack_mixture(made(tmp_path), tmp_path / "out", shard_bytes=limit)
    sizes = [path.stat().st_size for path in packed.shards]
    assert max(sizes) <= limit and len([p for p in packed.shards if p.parent.name == "houses"]) > 1
    assert len(read_mixture(packed.mixture, tmp_path / "out").samples) == packed.photos == 11
    with pytest.raises(DataError, match=r"houses.*at most 12000 bytes"):
        pack_mixture(made(tmp_path), tmp_path / "tight", shard_bytes=12000)


def test_photos_above_the_longest_side_are_made_smaller_with_their_masks(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2)
    before = made(tmp_path)
    packed = pack_mixture(before, tmp_path / "out", shard_bytes=2**20, longest_side=32)
    for one, two in zip(before.samples, read_mixture(packed.mixture, tmp_path / "out").samples, strict=True):
        assert max(two.image().shape[:2]) == 32 and described(one) == described(two)
        for index in range(len(two.regions)):
            assert two.mask(index).mean() == pytest.approx(one.mask(index).mean(), abs=0.06)


def test_a_broken_photo_is_left_out_and_named_and_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    (tmp_path / "houses" / "1.png").write_bytes(b"torn")
    packed = pack_mixture(made(tmp_path), tmp_path / "out", shard_bytes=2**20)
    assert packed.photos == 7 and "1.png" in packed.skipped[0]
    with pytest.raises(ConfigError, match="empty folder"):
        pack_mixture(made(tmp_path), tmp_path / "out", shard_bytes=2**20)


@pytest.mark.parametrize("wrong", [{"granularity": "whole"}, {"name": 3}, {"whole": 3}, {"parent": 5}, {"parent": "0"}])
def test_a_mask_that_is_described_wrongly_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_source(tmp_path, "houses", 1)
    segmentation = json.loads((tmp_path / "houses.json").read_text())["annotations"][0]["segmentation"]
    content = {"image": {"width": 64, "height": 48}, "annotations": [{"segmentation": segmentation, **wrong}]}
    (tmp_path / "houses" / "0.json").write_text(json.dumps(content))
    (sample,) = read_sa1b(tmp_path / "houses").samples
    with pytest.raises(DataError, match=r"0\.json"):
        _ = sample.regions


def test_shards_packed_again_keep_their_photos_byte_for_byte(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2)
    first = pack_mixture(made(tmp_path), tmp_path / "out", shard_bytes=2**20)
    again = pack_mixture(read_mixture(first.mixture, tmp_path / "out"), tmp_path / "again", shard_bytes=2**20)
    assert [path.read_bytes() for path in first.shards] == [path.read_bytes() for path in again.shards]
