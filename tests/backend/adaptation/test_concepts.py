"""What annotators keep of what a concept model offered says what its scores are worth, and how a thing looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.adaptation.concepts import ENOUGH, examples_of, fit_worth
from backend.adaptation.learner import Learner
from backend.adaptation.lessons import switch_learning
from backend.corrections.archive import PhotoArchive
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.inference.preannotation import as_prediction
from backend.inference.predictor import Predictor
from backend.label_studio.label_config import LabelConfig
from backend.metrics import Metrics
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.checkpoints.header import Version
from semsam_model.config import read_model_config
from semsam_model.engines.opened import OpenedConcepts
from semsam_model.inference.preannotate import Region
from semsam_model.masks.geometry import crop_mask
from semsam_model.network.model import build_model
from semsam_model.types import Box, Candidate
from tests.backend.annotations import CONFIG, KEY, NOON, square
from tests.backend.corrections.test_inbox import receive
from tests.backend.corrections.test_prediction_outcomes import Studio, begun, geometry, renamed
from tests.backend.models import loaded
from tests.semsam_model.inference.test_concepts import Saying

VERSION = "owlv2-base-123456789abc"
SCORES = (0.2, 0.3, 0.4, 0.5)


def prediction(number: int, version: str = VERSION) -> dict[str, Any]:
    """Four objects with scores of a concept model."""
    regions = []
    for rank, score in enumerate(SCORES, start=1):
        mask = square(5 + 12 * (rank - 1), 5, 10)
        crop, bbox = crop_mask(mask)
        candidate = Candidate(rank, 0, 1, score, 0.9, 1.0, mask.shape, bbox, crop, concept_score=score)
        regions.append(Region(candidate, "object"))
    made = as_prediction(regions, LabelConfig.parse(CONFIG), f"{number:064x}", f"mobile-1@{version}")
    times = dict.fromkeys(("created_at", "updated_at"), NOON.isoformat())
    return made | {"id": number, "task": number, "project": KEY.project} | times


def judged(store: Store, count: int, kept: tuple[int, ...], first: int = 30, version: str = VERSION) -> None:
    """So many predictions, of each of which the annotator keeps these regions and deletes the others."""
    made = [prediction(first + i, version) for i in range(count)]
    for each in made:
        rows = [geometry(each)[i] for i in kept]
        receive(store, begun(each["id"], rows, parent=each["id"], task=each["id"]))
    judge_preannotated(store, Studio(*made), KEY)


def test_scores_are_worth_what_was_kept_once_there_are_enough(store: Store) -> None:
    judged(store, 5, kept=(0, 1, 2, 3))
    assert fit_worth(store, KEY, VERSION) is None
    judged(store, ENOUGH // 4 - 5, kept=(0, 1, 2, 3), first=60)
    trusted = fit_worth(store, KEY, VERSION)
    assert trusted is not None and trusted(np.array(SCORES)).min() > 0.75  # all were right, whatever they scored
    assert fit_worth(store, KEY, "owlv2-base-ffffffffffff") is None  # another model's scores say nothing
    # all that scored low was deleted since
    judged(store, 60, kept=(2, 3), first=100)
    wiser = fit_worth(store, KEY, VERSION)
    assert wiser is not None
    low, _, _, high = wiser(np.array(SCORES))
    assert low < 0.4 and high > 0.8


def test_a_region_with_another_label_was_worth_nothing(store: Store) -> None:
    made = [prediction(30 + i) for i in range(ENOUGH // 4)]
    for each in made:
        rows = [renamed(row, "another") for row in geometry(each)]
        receive(store, begun(each["id"], rows, parent=each["id"], task=each["id"]))
    judge_preannotated(store, Studio(*made), KEY)
    doubted = fit_worth(store, KEY, VERSION)
    assert doubted is not None and doubted(np.array(SCORES)).max() < 0.25


def test_accepted_regions_of_a_photo_are_examples_of_their_labels(store: Store) -> None:
    made = prediction(31)
    label = geometry(made)[0]["value"]["brushlabels"][0]
    first, second, *_ = geometry(made)
    receive(store, begun(5, [first, renamed(second, "another")], parent=31, task=31))
    size = square(0, 0, 1).shape
    height, width = size
    assert examples_of(store, KEY, 31, (height, width)) == {
        label: (Box(5, 5, 15, 15),),
        "another": (Box(17, 5, 27, 15),),
    }
    assert examples_of(store, KEY, 31, (height + 1, width)) == {} == examples_of(store, KEY, 32, (height, width))


def test_the_thread_that_learns_weighs_scores_unless_the_project_does_not_learn(store: Store, tmp_path: Path) -> None:
    judged(store, ENOUGH // 4, kept=(0, 1, 2, 3))
    network = build_model(read_model_config("tiny")).eval()
    version = Version(*VERSION.rsplit("-", 1))
    answering = replace(loaded(network, Version("tiny", "a" * 64)), concepts=OpenedConcepts(Saying({}), version, 0))
    predictor = Predictor(lambda: answering, cache_bytes=0, metrics=Metrics())
    predictor.start()
    predictor.ready()
    for enabled in (True, False):
        switch_learning(store, KEY, enabled)
        learner = Learner(store, PhotoArchive(tmp_path), predictor, Settings(data_dir=tmp_path))
        learner.start()
        try:
            assert learner.wait(60)
            assert (learner.worth(KEY, version) is not None) == enabled
            assert learner.worth(KEY, Version("another", "b" * 64)) is None
            assert learner.examples(KEY, 31, square(0, 0, 1).shape) and not learner.examples(KEY, 32, (1, 1))
        finally:
            learner.stop()
