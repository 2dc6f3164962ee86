"""The loop over annotated photos: what it encodes, what it leaves out, and what it says of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from semsam_model.config import read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.data.samples import Annotation, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.evaluation.encoded_photos import encode_photos, large_targets
from semsam_model.network.model import SemanticSAM
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import structured


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(read_model_config("tiny"))


def test_a_photo_that_cannot_be_read_is_named_and_every_sample_is_counted(model: SemanticSAM, tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    samples = read_samples(tmp_path).samples
    samples[1].path.write_bytes(b"no photo")
    skipped, counted = list[str](), list[int]()
    photos = list(encode_photos(model, samples, skipped, on_photo=lambda: counted.append(1)))
    assert [photo.number for photo in photos] == [0, 2]
    assert [list(photo.targets) for photo in photos] == [[0, 1, 2]] * 2
    assert len(counted) == 3
    assert len(skipped) == 1 and "1.png" in skipped[0]


def test_a_photo_without_a_target_is_encoded_only_where_it_counts(model: SemanticSAM) -> None:
    (scene,) = synthetic_samples(1, seed=3, size=(64, 64))
    bare = Sample(scene.photo, "bare", Annotation(64, 64, ()))
    assert not list(encode_photos(model, [bare], []))
    (photo,) = encode_photos(model, [bare], [], without_targets=True)
    assert photo.targets == [] and photo.rgb.shape == (64, 64, 3)


def test_only_the_masks_that_are_asked_for_are_read(model: SemanticSAM, tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 1)
    samples = read_samples(tmp_path).samples
    (photo,) = encode_photos(model, samples, [], regions=lambda number, sample: [1], targets=large_targets)
    assert list(photo.masks) == photo.targets == [1]
