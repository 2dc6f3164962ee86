"""Label texts -> vectors, with the real encoder."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from semsam_model.errors import TextEncoderError
from semsam_model.text_encoder import MINILM_SHA256, TextEncoder, normalise_label, packaged_encoder


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


def test_vectors_have_unit_length_and_do_not_depend_on_company_or_spelling(encoder: TextEncoder) -> None:
    together = encoder.embed(["front_left_door", "Sofa", "wheel"])
    assert together.shape == (3, 384) and together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    alone = TextEncoder().embed(["Front Left  Door"])
    assert torch.allclose(alone[0], together[0], atol=1e-5)


def test_words_for_the_same_thing_are_closer_than_words_for_different_things(encoder: TextEncoder) -> None:
    words = ["couch", "sofa", "car", "automobile", "person", "human"]
    close = encoder.embed(words) @ encoder.embed(words).T
    for first, second in pairwise(range(len(words))):
        if first % 2 == 0:
            others = [other for other in range(len(words)) if other not in (first, second)]
            assert close[first, second] > 0.2 + close[first, others].max()


def test_a_changed_encoder_is_refused_and_a_missing_one_named(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(packaged_encoder(), copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(TextEncoderError, match=f"expected sha256 {MINILM_SHA256}"):
        TextEncoder(copy, MINILM_SHA256).embed(["car"])
    with pytest.raises(TextEncoderError, match="expected the weights of the text encoder"):
        TextEncoder(tmp_path / "nowhere", MINILM_SHA256).embed(["car"])
    with pytest.raises(TextEncoderError, match="at least a word"):
        TextEncoder().embed(["car", " _ "])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Front_Left_Door", "front left door"),
        ("  T-Shirt ", "t-shirt"),
        ("wall-other-merged", "wall"),
        ("door-stuff", "door"),
        ("other", "other"),
    ],
)
def test_a_label_becomes_its_words(label: str, words: str) -> None:
    assert normalise_label(label) == words
    assert normalise_label(words) == words
