"""Label maps: a PNG of numbers for every photo, read as masks with names, wholes and what is missing named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semsam_model.config import parse_config
from semsam_model.data.mixture import MixtureConfig, read_mixture
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.data.readers.id_maps import read_label_map
from semsam_model.errors import ConfigError, DataError

SIZE = (16, 20)
NUMBERS = np.zeros(SIZE, np.uint8)
NUMBERS[2:8, 3:9], NUMBERS[8:14, 3:9], NUMBERS[2:14, 12:18] = 1, 2, 200
ANIMALS = ("", "Dog", "dog:head")


def written(folder: Path, image: Image.Image, ending: str = ".png", photo: str = ".jpg", name: str = "a/1") -> Path:
    for sub in ("maps", "photos"):
        (folder / sub / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / "maps" / f"{name}{ending}")
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / "photos" / f"{name}{photo}")
    return folder


def palette(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([(7 * value) % 256 for value in range(768)])
    image.putdata(numbers.ravel().tolist())
    return image


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(NUMBERS), Image.fromarray(NUMBERS.astype(np.uint16)), palette(NUMBERS)],
    ids=["8 bits", "16 bits", "palette"],
)
def test_each_number_with_a_name_is_a_mask_and_others_are_not_annotated(tmp_path: Path, image: Image.Image) -> None:
    written(tmp_path, image)
    dataset = read_label_map(
        tmp_path / "maps", tmp_path / "photos", ANIMALS, source="animals", options=ReadOptions(names={"Dog": "dog"})
    )
    (sample,) = pickle.loads(pickle.dumps(dataset.samples))
    assert [region.label for region in sample.regions] == [("object", "dog", None), ("part", "head", "dog")]
    for index, number in enumerate((1, 2)):
        assert np.array_equal(sample.mask(index), number == NUMBERS)
    assert sample.image().shape == (*SIZE, 3) and sample.name == "animals/1.jpg"
    assert dataset.photos == 1 and dataset.labels == {"animals": {("object", "dog", None), ("part", "head", "dog")}}


def test_instances_bear_one_name_and_are_found_by_the_endings_of_their_files(tmp_path: Path) -> None:
    written(tmp_path, Image.fromarray(NUMBERS), "_label.png", "_rgb.png")
    dataset = read_label_map(
        tmp_path / "maps", tmp_path / "photos", ("leaf",), instances=True, endings=("_label.png", "_rgb.png")
    )
    (sample,) = dataset.samples
    assert [region.label for region in sample.regions] == [("object", "leaf", None)] * 3
    assert sum(np.count_nonzero(sample.mask(i)) for i in range(3)) == np.count_nonzero(NUMBERS)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    written(tmp_path, Image.fromarray(NUMBERS))
    written(tmp_path, Image.fromarray(np.stack([NUMBERS] * 3, -1)), name="a/colours")
    written(tmp_path, Image.fromarray(NUMBERS), name="a/lost")
    written(tmp_path, Image.fromarray(NUMBERS), name="a/torn")
    (tmp_path / "photos" / "a" / "lost.jpg").unlink()
    (tmp_path / "maps" / "a" / "torn.png").write_bytes(b"torn")
    dataset = read_label_map(tmp_path / "maps", tmp_path / "photos", ANIMALS)
    assert dataset.photos == 4 and len(dataset.samples) == 3
    assert len(dataset.skipped) == 1 and "lost.jpg: no such photo" in dataset.skipped[0]
    for sample, why in zip(
        dataset.samples[1:], (r"colours\.png.*one channel, got one with 3", r"torn\.png"), strict=True
    ):
        with pytest.raises(DataError, match=why):
            _ = sample.regions
    for folders in (("nowhere", "photos"), ("maps", "nowhere")):
        with pytest.raises(DataError, match="nowhere: no such folder"):
            read_label_map(*(tmp_path / folder for folder in folders), ANIMALS)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "needs 'labels'"),
        ({"instances": True}, "one name for instances"),
        ({"endings": [".png"]}, "expected two"),
        ({"masks": "masks"}, "got 'masks'"),
    ],
)
def test_a_mixture_reads_maps_and_refuses_what_it_does_not_understand(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = {
        "name": "animals",
        "kind": "label_map",
        "path": "maps",
        "images": "photos",
        "feeds": ["masks"],
        "labels": ["", "dog", "dog:head"],
    }
    written(tmp_path, Image.fromarray(NUMBERS))
    (sample,) = read_mixture(parse_config(MixtureConfig, {"sources": [source]}, "mixture"), tmp_path).samples
    assert [region.name for region in sample.regions] == ["dog", "head"]
    with pytest.raises(ConfigError, match=message):
        parse_config(MixtureConfig, {"sources": [source | change]}, "mixture")
