"""Whole photos against their annotation: what a perfect and an empty answer are worth, task by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semsam_model.config import read_model_config
from semsam_model.data.samples import Annotation, CocoMask, FederatedLabels, Region, Sample
from semsam_model.errors import ConfigError
from semsam_model.evaluation.labels import labels_of
from semsam_model.evaluation.photos import PhotoReport, evaluate_photos
from semsam_model.evaluation.tasks import TASKS
from semsam_model.inference.object_queries import ObjectQueries
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Label
from tests.semsam_model.networks import structured

Predict = Callable[[SemanticSAM, ImageEmbedding], ObjectQueries]
SIZE = 128
LABELS = {"house": 0, "grass": 1, "window": 2, "door": 3}


@dataclasses.dataclass(frozen=True)
class Painted:
    """A photo that is nowhere on a disk."""

    name: str = "painted.png"
    path: Path = Path("painted.png")

    def pixels(self) -> np.ndarray:
        return np.full((SIZE, SIZE, 3), 90, np.uint8)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


MASKS = {
    "house": rectangle(8, 8, 88, 72),
    "grass": rectangle(88, 0, 128, 128),
    "window": rectangle(16, 16, 40, 40),
    "door": rectangle(48, 32, 88, 60),
}
GRANULARITY = {"house": "object", "grass": "region", "window": "part", "door": "part", "pane": "part"}
PANE = rectangle(96, 16, 120, 40)  #: a second window, in the grass


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(dataclasses.replace(read_model_config("tiny"), generic_queries=4))


BARE = Sample(Painted(), "made", Annotation(SIZE, SIZE, ()))


def sample(**changes: object) -> Sample:
    regions = tuple(Region(CocoMask.of(mask), GRANULARITY[name], name) for name, mask in MASKS.items())
    return Sample(Painted(), "made", Annotation(SIZE, SIZE, regions, **changes))  # type: ignore[arg-type]


def embed(labels: object) -> np.ndarray:
    return np.eye(len(LABELS), dtype=np.float32)[[LABELS[label] for label in labels]]  # type: ignore[attr-defined]


def predicts(*names: str, called: dict[str, str] | None = None) -> Predict:
    """`predict_object_queries` that finds exactly the named masks."""

    def find(_: SemanticSAM, embedding: ImageEmbedding) -> ObjectQueries:
        h, w = embedding.frame.logits
        logits, kinds, vectors = [], [], []
        for name in names:
            cells = (MASKS | {"pane": PANE})[name].reshape(h, SIZE // h, w, SIZE // w).mean((1, 3))
            logits.append((cells * 20 - 10).astype(np.float32))
            place = ("object", "part", "region").index(GRANULARITY[name])
            kinds.append(np.eye(3, dtype=np.float32)[place] * 0.9)
            vectors.append(np.stack([embed([(called or {}).get(name, name)])[0] * 20] * 2))
        n = len(names)
        return ObjectQueries(
            np.stack(logits) if n else np.zeros((0, h, w), np.float32),
            np.array(kinds, np.float32).reshape(n, 3),
            np.array(vectors, np.float32).reshape(n, 2, len(LABELS)),
            np.full(2, 10, np.float32),
            np.zeros(n, int),
            np.full(n, 3),
            np.full(n, 0.9, np.float32),
        )

    return find


def figures(model: SemanticSAM, task: str, predict: Predict, *samples: Sample, **options: Any) -> dict[str, Any]:
    """Of these samples, of `sample()` without any."""
    return evaluate_photos(model, samples or [sample()], embed, task, predict=predict, **options).by_source["made"]


MAIN = {
    "instance": "ap50",
    "parts": "ap50",
    "semantic": "miou",
    "panoptic": "pq",
    "open-vocabulary": "giou",
    "everything": "ar100",
}


@pytest.mark.parametrize("task", TASKS)
def test_the_annotation_itself_scores_near_hundred_and_nothing_scores_zero(model: SemanticSAM, task: str) -> None:
    assert figures(model, task, predicts(*MASKS))[MAIN[task]] > 90
    assert figures(model, task, predicts())[MAIN[task]] == 0


def test_right_masks_under_wrong_names_are_wrong_where_names_count(model: SemanticSAM) -> None:
    swapped = predicts(*MASKS, called={"window": "door", "door": "window"})
    assert figures(model, "parts", swapped)["ap50"] == 0
    assert figures(model, "instance", swapped)["ap50"] == 100
    assert figures(model, "everything", swapped)["ar100"] > 90


def test_a_missing_part_costs_the_parts_alone(model: SemanticSAM) -> None:
    without_window = predicts("house", "grass", "door")
    assert figures(model, "parts", without_window)["ap50"] == pytest.approx(50)
    assert figures(model, "panoptic", without_window)["pq"] > 90


def windows(of_window: str | None, of_pane: str | None) -> Sample:
    """The house's window and the grass's pane, with the wholes that the data says."""
    regions = (
        Region(CocoMask.of(MASKS["window"]), "part", "window", whole=of_window),
        Region(CocoMask.of(PANE), "part", "window", whole=of_pane),
    )
    return Sample(Painted(), "made", Annotation(SIZE, SIZE, regions))


def test_a_part_on_the_wrong_whole_is_wrong_where_the_data_says_the_whole(model: SemanticSAM) -> None:
    every = predicts("house", "grass", "window", "pane", called={"pane": "window"})
    right, swapped, unsaid = (
        [figures(model, task, every, windows(*wholes)) for task in ("parts", "open-vocabulary")]
        for wholes in (("house", "grass"), ("grass", "house"), (None, None))
    )
    assert [part["labels"] for part, _ in (right, swapped, unsaid)] == [2, 2, 1]
    assert [part["ap50"] for part, _ in (right, swapped, unsaid)] == [100, 0, 100]
    assert [words["giou"] > 90 for _, words in (right, swapped, unsaid)] == [True, False, True]
    assert right[1]["n"] == 2 and swapped[1]["giou"] == 0 and swapped[1]["part_miou"] == 0 < right[1]["part_miou"]
    panes_alone = predicts("window", "pane", called={"pane": "window"})
    assert figures(model, "parts", panes_alone, windows("house", "grass"))["ap50"] == 0  # nothing holds them
    assert figures(model, "parts", panes_alone, windows(None, None))["ap50"] == 100


def test_a_part_that_training_had_on_another_whole_is_unseen(model: SemanticSAM) -> None:
    found, seen = predicts("house", "grass", "window"), [Label("part", "Window", "House")]
    got = figures(model, "open-vocabulary", found, windows("house", "grass"), seen=seen)
    assert got["giou_seen"] > 90 and got["giou_unseen"] == 0


def crowd(name: str) -> Sample:
    """The sample, with the region of this name a crowd."""
    whole = sample()
    regions = tuple(dataclasses.replace(r, crowd=r.name == name) for r in whole.regions)
    return Sample(whole.photo, "made", dataclasses.replace(whole.annotation, regions=regions))


def test_a_crowd_excuses_what_lies_in_it_and_a_bare_photo_excuses_nothing(model: SemanticSAM) -> None:
    def ap50(*samples: Sample) -> object:
        return figures(model, "parts", predicts(*MASKS), *samples)["ap50"]

    assert ap50(sample(), crowd("window")) == 100
    assert ap50(BARE, sample()) == pytest.approx(50, abs=1)  # half of what is found of each label is right
    assert ap50(crowd("window"), crowd("window")) == 100  # the door's; windows are all in crowds
    quality = figures(model, "panoptic", predicts(*MASKS), crowd("house"))
    assert quality["pq"] > 90 and quality["labels"] == 1


def test_labels_that_nobody_looked_for_on_a_photo_are_not_wrong_there(model: SemanticSAM) -> None:
    window, grass = Label("part", "window"), Label("region", "grass")
    door = next(region for region in sample().regions if region.name == "door")

    def ap50(*absent: Label) -> object:
        known = FederatedLabels(frozenset(absent), frozenset())
        first = Sample(Painted(), "made", Annotation(SIZE, SIZE, (door,), federated=known))
        return figures(model, "parts", predicts(*MASKS), first, sample())["ap50"]

    assert ap50(grass) == 100
    assert ap50(window) == pytest.approx(75, abs=1)  # doors are right, and half of the windows


def test_labels_that_training_had_are_told_from_others(model: SemanticSAM) -> None:
    found, whole = predicts("house", "grass", "window"), sample()
    trained = Sample(whole.photo, "made", dataclasses.replace(whole.annotation, regions=whole.regions[:3]))
    got = figures(model, "open-vocabulary", found, seen=labels_of([trained])["made"])
    assert got["giou_seen"] > 90 and got["giou_unseen"] == 0
    assert got["part_seen"] > 90 and got["part_unseen"] == 0 and got["part_harmonic"] == 0
    every = figures(model, "open-vocabulary", found, seen=labels_of([whole])["made"])
    assert every["giou_seen"] > 0 and every["giou_unseen"] is every["part_unseen"] is every["part_harmonic"] is None


def test_a_figure_that_a_source_lacks_enters_no_mean() -> None:
    rows = {"one": {"giou": 50.0, "giou_unseen": None}, "two": {"giou": 30.0, "giou_unseen": 10.0}}
    assert PhotoReport("open-vocabulary", rows, ()).means() == {"giou": 40.0}


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("everything", "open-vocabulary")])
def test_the_list_that_is_asked_does_not_depend_on_the_photos_that_are_looked_at(model: SemanticSAM, task: str) -> None:
    asked: list[tuple[str, ...]] = []

    def heard(labels: Sequence[str]) -> np.ndarray:
        asked.append(tuple(labels))
        return embed(labels)

    whole = sample()
    some = Sample(whole.photo, "made", dataclasses.replace(whole.annotation, regions=whole.regions[:3]))
    labels = labels_of([whole])
    found = [
        evaluate_photos(model, samples, heard, task, labels=labels, predict=predicts(*MASKS)).by_source["made"]
        for samples in ([some], [whole])
    ]
    assert asked == [("grass", "house", "door", "window")] * 2
    if task == "parts":
        assert [row["labels"] for row in found] == [2, 2]


def test_a_model_without_queries_and_photos_without_what_is_measured_are_refused(model: SemanticSAM) -> None:
    with pytest.raises(ConfigError, match="generic_queries"):
        evaluate_photos(structured(read_model_config("tiny")), [sample()], embed, "instance")
    bare = Sample(Painted(), "made", Annotation(SIZE, SIZE, (Region(CocoMask.of(MASKS["door"]), "object", None),)))
    with pytest.raises(ConfigError, match="parts with names"):
        evaluate_photos(model, [bare], embed, "parts")
    with pytest.raises(ConfigError, match="labels of training: only for the task open-vocabulary, got parts"):
        evaluate_photos(model, [sample()], embed, "parts", seen=())
    with pytest.raises(ConfigError, match="expected one of instance"):
        evaluate_photos(model, [bare], embed, "detection")
