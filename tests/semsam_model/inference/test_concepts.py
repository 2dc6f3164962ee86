"""What a concept model finds becomes regions: drawn, compared, parts in their objects, scores by their worth."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.inference.concept_model import Found, Query
from semsam_model.inference.concepts import ConceptSearch, concept_regions
from semsam_model.inference.engine import DescribedEngine
from semsam_model.inference.preannotate import RegionOptions
from semsam_model.inference.semantic_sam import SemanticSamEngine
from semsam_model.masks.geometry import iou
from semsam_model.network.frame import Frame, Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.query_calibration import Curve
from semsam_model.types import Box, Concept, LabelSet

RED, BLUE = Box(40, 60, 140, 120), Box(172, 52, 232, 132)  # two cars
WHEEL, LOOSE = Box(60, 96, 80, 116), Box(20, 12, 40, 32)  # one in the red car, one that lies about
CAR, VAN = Concept("car", ("car", "automobile")), Concept("van", ("van",))
WHEELS = Concept("wheel", ("wheel",), "part", (CAR,))


@dataclass
class Saying:
    """A concept model that says what it was told to, and notes what it was asked."""

    told: dict[str, list[tuple[Box, float]]]
    draws: bool = False
    least: float = 0.3
    takes_examples: bool = True
    asked: list[tuple[Window | None, Query]] = field(default_factory=list)

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> Any:
        return Looked(window, rgb.shape[:2])

    def find(self, look: Any, queries: Sequence[Query], least: float) -> list[list[Found]]:
        self.asked += [(look.window, query) for query in queries]
        return [[self._found(look, *each) for each in self.told.get(q.words, []) if each[1] >= least] for q in queries]

    def _found(self, look: Any, box: Box, score: float) -> Found:
        if not self.draws:
            return Found(box, score)
        height, width = look.photo
        frame = Frame((height, width), (height, width), (height, width), (0, 0, width, height))
        logits = np.full(frame.logits, -4.0, np.float32)
        logits[int(box.y0 // 4) : int(box.y1 // 4), int(box.x0 // 4) : int(box.x1 // 4)] = 4
        return Found(box, score, logits, frame)


@dataclass(frozen=True)
class Looked:
    window: Window | None
    photo: tuple[int, int]
    nbytes: int = 0


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    photo = np.full((160, 256, 3), 150, np.uint8)
    for box, colour in ((RED, (190, 40, 40)), (BLUE, (40, 60, 190)), (WHEEL, (20, 20, 20)), (LOOSE, (20, 20, 20))):
        photo[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = colour
    return photo


@pytest.fixture(scope="module")
def network() -> SemanticSAM:
    return load_model()[0]


@pytest.fixture(scope="module")
def embedding(network: SemanticSAM, rgb: np.ndarray) -> ImageEmbedding:
    return network.encode(rgb)


def search(concepts: Saying, rgb: np.ndarray, *asked: Concept, **more: Any) -> ConceptSearch:
    return ConceptSearch(concepts, lambda window: concepts.encode(rgb, window), asked, **more)


def of(box: Box, rgb: np.ndarray) -> np.ndarray:
    mask = np.zeros(rgb.shape[:2], bool)
    mask[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
    return mask


@pytest.mark.parametrize("draws", [False, True])
def test_boxes_are_drawn_by_the_engine_and_masks_are_kept_and_both_are_described(
    draws: bool, network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    told = {"car": [(RED, 0.8), (BLUE, 0.6), (LOOSE, 0.2)], "automobile": [(RED, 0.9)]}
    regions = concept_regions(network, embedding, search(Saying(told, draws), rgb, CAR))
    assert [(r.candidate.rank, r.candidate.label, r.candidate.score) for r in regions] == [
        (1, "car", 0.9),
        (2, "car", 0.6),
    ]
    for region, box in zip(regions, (RED, BLUE), strict=True):
        assert iou(region.candidate.mask, of(box, rgb)) > (0.99 if draws else 0.8)
        assert region.kind == "object" and region.candidate.name_embedding is not None
        assert region.candidate.concept_score == region.candidate.score and region.candidate.names[0][0] == "car"


def test_another_engine_draws_and_the_describer_names(
    network: SemanticSAM, rgb: np.ndarray, embedding: ImageEmbedding
) -> None:
    other, _ = load_model()
    both = DescribedEngine(SemanticSamEngine(other), network)
    told = Saying({"car": [(RED, 0.8)]})
    (alone,) = concept_regions(network, embedding, search(told, rgb, CAR))
    (seen,) = concept_regions(both, both.encode(rgb), search(told, rgb, CAR))
    assert np.array_equal(seen.candidate.mask, alone.candidate.mask) and seen.candidate.name_embedding is not None


def test_parts_are_looked_for_inside_their_objects_and_belong_to_them(
    network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    concepts = Saying({"car": [(RED, 0.8)], "van": [(BLUE, 0.7)], "wheel": [(WHEEL, 0.6), (LOOSE, 0.9)]}, draws=True)
    regions = concept_regions(network, embedding, search(concepts, rgb, WHEELS, CAR, VAN))
    labels = {region.candidate.label: region for region in regions}
    assert len(regions) == len(labels) == 3
    assert labels["wheel"].kind == "part" and labels["wheel"].candidate.parent == labels["car"].candidate.rank
    windows = {window for window, query in concepts.asked if query.words == "wheel"}
    assert windows == {(30, 54, 150, 126)}  # around the red car alone, with a margin


def test_objects_that_only_hold_parts_are_looked_for_and_not_offered(
    network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    told = {"car": [(RED, 0.8)], "wheel": [(WHEEL, 0.6)]}
    (wheel,) = concept_regions(network, embedding, search(Saying(told, draws=True), rgb, WHEELS))
    assert wheel.candidate.label == "wheel" and wheel.candidate.parent is None
    # what is offered loses no mask to it
    told |= {"van": [(RED, 0.5)]}
    van, wheel = concept_regions(network, embedding, search(Saying(told, draws=True), rgb, VAN, WHEELS))
    if van.kind == "part":
        van, wheel = wheel, van
    assert van.candidate.names == (("van", 0.5),) and wheel.candidate.parent == van.candidate.rank
    # a part without a whole is looked for anywhere
    (wheel,) = concept_regions(network, embedding, search(Saying(told, True), rgb, replace(WHEELS, wholes=())))
    assert wheel.kind == "part"


def test_of_labels_that_claim_one_mask_the_describer_says_which_fits_less(
    network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    concepts = Saying({"car": [(RED, 0.8)], "van": [(RED, 0.7)]}, draws=True)
    (sure,) = concept_regions(network, embedding, search(concepts, rgb, CAR, VAN))
    assert sure.candidate.names == (("car", 0.8), ("van", 0.7))
    direction = sure.candidate.name_embedding
    assert direction is not None
    unit = direction[0] / np.linalg.norm(direction[0])
    labels = LabelSet(("car", "van"), ("object", "object"), np.stack([-unit, unit]).astype(np.float32))
    (weighed,) = concept_regions(network, embedding, search(concepts, rgb, CAR, VAN), labels)
    assert weighed.candidate.label == "van" and weighed.candidate.score == pytest.approx(0.7)
    assert dict(weighed.candidate.names)["car"] < 0.4
    # nobody else claims it: the describer has no say
    (alone,) = concept_regions(network, embedding, search(concepts, rgb, CAR), labels)
    assert alone.candidate.names == (("car", 0.8),)


def test_scores_are_what_they_were_worth_and_that_says_what_is_offered(
    network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    told = {"car": [(RED, 0.4), (BLUE, 0.2)]}
    doubtful, trusted = Curve(1, 1, -2), Curve(1, 1, 2)
    asked = search(Saying(told, True), rgb, CAR, curve=doubtful)
    assert concept_regions(network, embedding, asked) == []
    regions = concept_regions(network, embedding, search(Saying(told, True), rgb, CAR, curve=trusted))
    assert [r.candidate.concept_score for r in regions] == [0.4, 0.2]
    assert [r.candidate.score for r in regions] == pytest.approx(trusted(np.array([0.4, 0.2])).tolist())
    every = concept_regions(network, embedding, asked, options=RegionOptions(least=0.01, most=1))
    assert len(every) == 1 and every[0].candidate.score < 0.1


def test_examples_go_with_the_words_of_their_label(
    network: SemanticSAM, embedding: ImageEmbedding, rgb: np.ndarray
) -> None:
    concepts = Saying({})
    assert concept_regions(network, embedding, search(concepts, rgb, CAR, VAN, examples={"car": (RED,)})) == []
    assert concepts.asked == [
        (None, Query("car", (RED,))), (None, Query("automobile", (RED,))), (None, Query("van", ()))
    ]  # fmt: skip
