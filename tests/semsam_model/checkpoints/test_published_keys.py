"""Our parameters have the names and shapes of the published checkpoints."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from semsam_model.checkpoints.published import published_names, published_shapes
from semsam_model.config import read_model_config
from tests.paths import FIXTURES

MANIFESTS = FIXTURES / "published_manifests.json.gz"


MASK_TOKENS = "sem_seg_head.predictor.mask_tokens.weight"


@pytest.mark.parametrize("name", ["swin_t", "swin_l"])
def test_every_published_key_and_shape_is_expected_and_no_other(name: str) -> None:
    manifest = json.loads(gzip.decompress(MANIFESTS.read_bytes()))[name]
    assert published_shapes(read_model_config(name)) == {key: tuple(shape) for key, shape in manifest.items()}


def test_three_token_models_differ_from_swin_l_in_the_tokens_alone() -> None:
    six, three = (published_shapes(read_model_config(name)) for name in ("swin_l", "swin_l_many2one"))
    assert {key for key in six if six[key] != three[key]} == {MASK_TOKENS}
    assert six.keys() == three.keys()


def test_no_published_key_belongs_to_two_parameters() -> None:
    aliases = [alias for names in published_names(read_model_config("swin_t")).values() for alias in names]
    assert len(set(aliases)) == len(aliases)
    assert Counter(map(len, published_names(read_model_config("swin_t")).values())) == {1: 517, 2: 2, 19: 6}
