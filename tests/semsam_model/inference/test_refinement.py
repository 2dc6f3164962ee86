"""Further clicks correct the first mask: locally, obediently, the same way each time."""

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.refinement import contradicts, first_and_further, refine
from semsam_model.masks.geometry import crops_iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.refiner import Refiner
from semsam_model.types import Box, Candidate, Click, Prompt
from tests.semsam_model.networks import structured

SIZE = (101, 147)
RGB = np.kron(np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8), np.ones((15, 17, 1), np.uint8))[
    :101, :147
]
CLICKS = (Click(70, 50), Click(20, 80), Click(120, 20, False), Click(75.5, 40.5), Click(5, 5, False))


def restless_refiner(seed: int = 0) -> Refiner:
    """Random weights that change a lot."""
    torch.manual_seed(seed)
    refiner = Refiner().eval()
    with torch.no_grad():
        refiner.change.weight.normal_(0, 3)
    return refiner


@pytest.fixture(scope="module")
def plain() -> SemanticSAM:
    return structured(read_model_config("tiny"))


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    network = structured(read_model_config("tiny"))
    network.refiner = restless_refiner()
    return network


@pytest.fixture(scope="module")
def embedding(model: SemanticSAM) -> ImageEmbedding:
    return model.encode(RGB)


def disk(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = (axis + 0.5 for axis in np.ogrid[: size[0], : size[1]])
    return np.where(np.hypot(rows - y, columns - x) < radius, np.float32(3.3), np.float32(-3.3))


def same(a: list[Candidate], b: list[Candidate]) -> bool:
    return len(a) == len(b) and all(
        x.bbox == y.bbox
        and np.array_equal(x.crop, y.crop)
        and (x.rank, x.score, x.parent) == (y.rank, y.score, y.parent)
        for x, y in zip(a, b, strict=True)
    )


def test_one_click_and_one_box_are_answered_as_without_a_refiner(plain: SemanticSAM, model: SemanticSAM) -> None:
    for prompt in (Prompt(CLICKS[:1]), Prompt((), (Box(20, 20, 90, 80),))):
        ours, theirs = (predict_candidates(m, m.encode(RGB), prompt) for m in (model, plain))
        assert same(ours, theirs)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_first_candidate_obeys_all_clicks_and_the_others_differ_from_it(
    model: SemanticSAM, embedding: ImageEmbedding, count: int
) -> None:
    first, *others = predict_candidates(model, embedding, Prompt(CLICKS[:count]))
    assert all(first.mask[int(c.y), int(c.x)] == c.positive for c in CLICKS[:count])
    assert all(crops_iou(first.crop, first.bbox, c.crop, c.bbox) <= 0.9 for c in others)
    assert [c.rank for c in (first, *others)] == list(range(1, len(others) + 2))
    assert first.score >= max((c.score for c in others), default=0)


def test_clicks_beside_a_box_correct_the_mask_of_the_box(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    prompt = Prompt((Click(10, 90), Click(60, 60, False)), (Box(20, 20, 90, 80),))
    mask = predict_candidates(model, embedding, prompt)[0].mask
    assert mask[90, 10] and not mask[60, 60]


def test_the_same_prompt_gives_the_same_answer_and_a_photo_of_more_pixels_its_own_mask(model: SemanticSAM) -> None:
    prompt = Prompt(CLICKS[:3])
    assert same(*(predict_candidates(model, model.encode(RGB), prompt) for _ in range(2)))
    large = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    clicks = tuple(Click(4 * c.x, 4 * c.y, c.positive) for c in CLICKS)
    first = predict_candidates(model, model.encode(large), Prompt(clicks))[0]
    assert first.size == large.shape[:2]
    assert all(first.mask[int(c.y), int(c.x)] == c.positive for c in clicks)


def test_an_embedding_keeps_the_photo_only_for_a_refiner(plain: SemanticSAM, embedding: ImageEmbedding) -> None:
    without = plain.encode(RGB)
    assert without.pixels is None and embedding.pixels is not None
    assert embedding.nbytes == without.nbytes + embedding.pixels.nbytes
    assert embedding.to("cpu").pixels is embedding.pixels


def test_an_untrained_refiner_changes_nothing_but_what_a_click_demands() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (200, 300, 3), np.uint8)
    logits = disk((200, 300), 100, 100, 40)
    torch.manual_seed(0)
    obeyed = refine(Refiner().eval(), pixels, logits, [Click(100, 100), Click(110, 100)])
    assert np.array_equal(obeyed > 0, logits > 0)
    demanded = refine(Refiner().eval(), pixels, logits, [Click(100, 100), Click(250, 100)])
    changed = np.argwhere((demanded > 0) != (logits > 0))
    assert demanded[100, 250] > 0 and abs(changed - (100, 250)).max() <= 6


@pytest.mark.parametrize("seed", range(4))
def test_far_from_where_a_click_changed_something_every_bit_stays(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (300, 400, 3), np.uint8)
    logits = disk((300, 400), 100, 100, 40) + np.random.default_rng(seed).normal(0, 0.1, (300, 400)).astype(np.float32)
    after = refine(restless_refiner(seed), pixels, logits, [Click(100, 100), Click(130, 120)])
    outside = np.ones((300, 400), bool)
    outside[30:195, 25:190] = False  # what the square shows
    assert np.array_equal(after[outside], logits[outside])
    assert not np.array_equal(after, logits)


def test_only_a_negative_click_deep_in_the_mask_says_that_another_mask_is_meant() -> None:
    logits = disk((100, 200), 60, 50, 40)
    assert contradicts(logits, Click(60, 50, False)) and contradicts(logits, Click(75.5, 50, False))
    assert not contradicts(logits, Click(97, 50, False))  # near the border
    assert not contradicts(logits, Click(150, 50, False))  # outside
    assert not contradicts(logits, Click(60, 50))


def test_what_gives_the_first_mask_is_the_first_positive_click_or_the_boxes() -> None:
    a, b, c = Click(1, 1, False), Click(2, 2), Click(3, 3)
    assert first_and_further(Prompt((a, b, c))) == (Prompt((b,)), (a, c))
    box = Box(0, 0, 5, 5)
    assert first_and_further(Prompt((a, b), (box,))) == (Prompt((), (box,)), (a, b))
