"""To the default model, masks agree with the photos that they were drawn on, and not with others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.config import parse_config
from semsam_model.data.samples import Annotation, CocoMask, Region, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import ConfigError, Stopped
from semsam_model.gate.config import GateConfig
from semsam_model.gate.photo_agreement import PhotoAgreement, measure_agreement
from semsam_model.network.model import SemanticSAM

SCENES = synthetic_samples(5, seed=33, size=(128, 160), source="project")


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return load_model()[0]


def annotated(sample: Sample, masks: Sequence[np.ndarray]) -> Sample:
    """The photo with other masks, unnamed."""
    regions = tuple(Region(CocoMask.of(mask), "object", None) for mask in masks)
    return Sample(sample.photo, sample.source, Annotation(sample.width, sample.height, regions))


@cache
def drawn() -> list[list[np.ndarray]]:
    return [[scene.mask(i) for i in range(len(scene.regions))] for scene in SCENES]


@pytest.mark.slow
def test_masks_follow_the_photos_that_they_were_drawn_on(model: SemanticSAM) -> None:
    found = measure_agreement(model, list(SCENES), GateConfig())
    assert found.asked
    assert found.reason is None
    assert found.gain.low > 0
    assert found.own - found.elsewhere == pytest.approx(found.gain.mean)
    assert json.loads(json.dumps(found.to_dict()))["iou"] == [round(found.elsewhere, 2), round(found.own, 2)]


@pytest.mark.slow
def test_masks_that_belong_to_other_photos_do_not_whole_photos_or_each_mask_alone(model: SemanticSAM) -> None:
    masks = drawn()
    whole = [annotated(scene, masks[i - 2]) for i, scene in enumerate(SCENES)]
    pool = [mask for of_photo in masks for mask in of_photo]
    order = iter(np.random.default_rng(0).permutation(len(pool)).tolist())
    alone = [annotated(scene, [pool[next(order)] for _ in masks[i]]) for i, scene in enumerate(SCENES)]
    for mixed in (whole, alone):
        found = measure_agreement(model, mixed, GateConfig())
        assert found.asked
        assert found.reason is not None
        assert "do not follow their photos" in found.reason


@pytest.mark.slow
def test_nothing_is_asked_where_all_photos_bear_the_same_masks_nor_of_few_photos_nor_when_switched_off(
    model: SemanticSAM,
) -> None:
    still = [annotated(scene, drawn()[0]) for scene in SCENES]
    few = list(SCENES[:2])
    for samples, config in ((still, GateConfig()), (few, GateConfig()), (list(SCENES), GateConfig(pictures=0.0))):
        found = measure_agreement(model, samples, config)
        assert not found.asked
        assert found.reason is None
    assert found == PhotoAgreement(0, 0, 0.0, 0.0, found.gain, False, 0.0)


@pytest.mark.slow
def test_a_photo_that_cannot_be_read_is_passed_over(model: SemanticSAM) -> None:
    broken = Sample(SCENES[0].photo, "project", Annotation(7, 7, SCENES[0].regions))
    assert measure_agreement(model, [broken, *SCENES[1:3]], GateConfig()).photos == 2


def test_a_caller_that_stops_is_asked_before_each_photo(model: SemanticSAM) -> None:
    answers = iter([False, True])
    with pytest.raises(Stopped):
        measure_agreement(model, list(SCENES), GateConfig(), should_stop=lambda: next(answers))
    assert list(answers) == []


@pytest.mark.parametrize("pictures", [-0.5, 0.3, 1.0])
def test_a_confidence_that_is_none_is_refused(pictures: float) -> None:
    with pytest.raises(ConfigError, match="pictures"):
        parse_config(GateConfig, {"pictures": pictures}, "gate")
