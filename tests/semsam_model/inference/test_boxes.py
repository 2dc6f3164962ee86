"""What a box leaves of the proposals: on small masks drawn by hypothesis, and on sample photographs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.inference.boxes import BEYOND, within_boxes
from semsam_model.inference.candidates import CandidateOptions, PromptCells, Proposal
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.network.model import SemanticSAM
from semsam_model.types import Box, Prompt
from tests.paths import SAMPLES
from tests.semsam_model.inference.test_ranking import proposed, square

OPTIONS = CandidateOptions(min_region=0)
BOX = (4.0, 4.0, 16.0, 20.0)  #: x0, y0, x1, y1 of 32 x 24 cells
MASKS = st.lists(
    st.builds(square, st.integers(0, 5), st.integers(0, 20), st.integers(0, 28), st.integers(1, 24), st.just(0.5)),
    min_size=1,
    max_size=6,
    unique_by=lambda p: p.token,
)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_a_mask_keeps_what_lies_in_the_box_and_nothing_beyond_a_cell_around_it(masks: list[Proposal]) -> None:
    before = proposed(masks, PromptCells((), (), (BOX,)))
    after, scores = within_boxes(before, np.ones(len(masks), np.float32), OPTIONS)
    for (crop, old), (_, new), score in zip(before.pairs, after.pairs, scores, strict=True):
        x0, y0, x1, y1 = map(int, BOX)
        assert np.array_equal(new.cells[y0:y1, x0:x1], old.cells[y0:y1, x0:x1])
        assert not (new.cells & ~old.cells).any()
        around = np.zeros_like(new.cells)
        around[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = True
        assert not (new.cells & ~around).any()
        assert score == pytest.approx(1 - crop.prompt.outside(old))


@given(MASKS)
def test_without_a_box_or_with_a_click_outside_of_it_nothing_changes(masks: list[Proposal]) -> None:
    for prompt in (PromptCells(((1, 1),), (), ()), PromptCells(((22, 30),), (), (BOX,))):
        before, given_scores = proposed(masks, prompt), np.ones(len(masks), np.float32)
        after, scores = within_boxes(before, given_scores, OPTIONS)
        assert after is before and scores is given_scores


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return load_model("mobile")[0]


@pytest.mark.parametrize(
    ("photo", "box"),
    [
        ("cat", (0.20, 0.05, 0.75, 0.75)),  # of the head, while the cat fills the photo
        ("astronaut", (0.33, 0.08, 0.55, 0.36)),
        ("coffee", (0.27, 0.03, 0.70, 0.72)),
        ("rocket", (0.47, 0.10, 0.53, 0.85)),
    ],
)
def test_every_answer_to_a_box_on_a_sample_photo_lies_in_it(
    model: SemanticSAM, photo: str, box: tuple[float, ...]
) -> None:
    with Image.open(SAMPLES / f"{photo}.jpg") as opened:
        rgb = np.asarray(opened.convert("RGB"))
    height, width = rgb.shape[:2]
    asked = Box(box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    found = predict_candidates(model, model.encode(rgb), Prompt((), (asked,)), encode_crop=crop_encoder(model, rgb))
    assert found
    # a cell of the network's mask is a few pixels of the photo
    across, down = BEYOND * (asked.x1 - asked.x0) + 8, BEYOND * (asked.y1 - asked.y0) + 8
    for candidate in found:
        x0, y0, x1, y1 = candidate.bbox
        assert x0 >= asked.x0 - across and x1 <= asked.x1 + across
        assert y0 >= asked.y0 - down and y1 <= asked.y1 + down
    best = found[0].mask
    inside = best[round(asked.y0) : round(asked.y1), round(asked.x0) : round(asked.x1)].sum() / best.sum()
    assert inside > 0.8, "the best lies mostly inside"
