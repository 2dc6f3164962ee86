"""SA-1B folders and tars: read photo by photo; what is broken is named, the rest is kept."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import SIZE, box_mask, described, sa1b_files


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=f"./{file.name}")
    return path


def test_a_tar_of_sa1b_reads_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "plain", 5)
    (tmp_path / "tars").mkdir()
    tar_of(tmp_path / "plain", tmp_path / "tars" / "sa_000000.tar")
    in_folder, in_tar = read_sa1b(tmp_path / "plain", source="sa"), read_sa1b(tmp_path / "tars", source="sa")
    assert in_folder.skipped == in_tar.skipped == ()
    assert len(in_folder.samples) == len(in_tar.samples) == 5
    for plain, packed in zip(in_folder.samples, in_tar.samples, strict=True):
        assert plain.name == packed.name
        assert described(plain) == described(packed) == [("region", None, None)] * 2
        assert np.array_equal(plain.image(), packed.image())
        for index in range(2):
            assert np.array_equal(plain.mask(index), packed.mask(index))
    assert np.array_equal(in_tar.samples[3].mask(0), box_mask(3, 1, 8, 9))


def test_what_is_broken_in_sa1b_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "a" / "inner", 5)
    inner = tmp_path / "a" / "inner"
    (inner / "sa_0.json").unlink()
    (inner / "sa_1.jpg").unlink()
    (inner / "sa_2.json").write_text('{"image": ')
    (inner / "sa_3.jpg").write_bytes(b"no picture")
    (tmp_path / "a" / "empty.tar").write_bytes(b"not a tar")
    dataset = read_sa1b(tmp_path / "a")
    skipped = "\n".join(dataset.skipped)
    assert len(dataset.skipped) == 3
    for part in ("sa_0.jpg", "sa_1.json", "empty.tar"):
        assert part in skipped
    assert [sample.photo.name for sample in dataset.samples] == ["sa_2.jpg", "sa_3.jpg", "sa_4.jpg"]
    with pytest.raises(DataError, match=r"sa_2\.json"):
        dataset.samples[0].image()
    with pytest.raises(DataError, match=r"sa_3\.jpg"):
        dataset.samples[1].image()
    assert dataset.samples[2].image().shape == (*SIZE, 3)
    with pytest.raises(DataError, match="found none"):
        read_sa1b(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.4, 0.5, 0.63, 0.95])
def test_of_a_torn_tar_the_photos_before_the_tear_are_read(tmp_path: Path, share: float) -> None:
    sa1b_files(tmp_path / "plain", 6)
    whole = tar_of(tmp_path / "plain", tmp_path / "whole.tar")
    content = whole.read_bytes()
    (tmp_path / "torn.tar").write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    dataset = read_sa1b(tmp_path / "torn.tar", source="whole")
    assert 0 < len(dataset.samples) < 6
    assert "torn.tar" in dataset.skipped[0]
    for torn, sound in zip(dataset.samples, read_sa1b(whole).samples, strict=False):
        assert torn.name == sound.name
        assert np.array_equal(torn.image(), sound.image())


_opened: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_hook)


@contextmanager
def opened_under(folder: Path) -> Iterator[list[str]]:
    """Files under a folder that Python opens while the block runs; the list is filled at its end."""
    global _opened
    found: list[str] = []
    _opened = []
    try:
        yield found
    finally:
        found += [name for name in _opened if name.startswith(str(folder)) and Path(name).is_file()]
        _opened = None


def test_sa1b_is_opened_photo_by_photo_when_asked_for(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "plain", 12)
    with opened_under(tmp_path) as opened:
        samples = read_sa1b(tmp_path / "plain").samples
        assert len({(sample.source, sample.name) for sample in samples}) == 12
    assert opened == []
    with opened_under(tmp_path) as opened:
        sample = samples[7]
        sample.image()
        masks = [sample.mask(index) for index in range(len(sample.regions))]
    assert len(masks) == 2
    assert sorted(Path(name).name for name in opened) == sorted([sample.photo.name, f"{sample.path.stem}.json"])
