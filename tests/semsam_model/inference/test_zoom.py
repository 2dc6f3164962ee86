"""A magnified crop of the photo: where it lies, what it may add, and that photo pixels stay photo pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.config import read_model_config
from semsam_model.errors import ImageError
from semsam_model.inference.candidates import CandidateOptions, CropPrediction, PromptCells, Proposal
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.proposals import predict_proposals, predict_proposals_batch
from semsam_model.inference.zoom import TINY, choose_crop, crop_encoder, without_truncated
from semsam_model.network.frame import Frame, Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Box, Click, Prompt
from tests.semsam_model.networks import structured

CONFIG = replace(read_model_config("tiny"), zoom=4.0, zoom_pixels=128)
PHOTO = (120, 200)
#: Random weights propose large masks; with this a magnified crop is predicted all the same.
ALWAYS = CandidateOptions(magnify_below=2.0)


def view(side: float, frame: Frame | None = None) -> CropPrediction:
    """One square answer; side as a share of the longer side of the map of cells."""
    frame = frame or Frame.of(PHOTO, CONFIG)
    cells = round(side * max(frame.logits))
    logits = np.full(frame.logits, -4, np.float32)
    logits[2 : 2 + cells, 2 : 2 + cells] = 4
    return CropPrediction(frame, PromptCells((), (), ()), (Proposal(logits, 0, 3, 0.5, 0.5),))


@given(st.floats(0, PHOTO[1]), st.floats(0, PHOTO[0]), st.sampled_from([0.04, 0.2, 0.5]))
@settings(max_examples=80, deadline=None)
def test_the_window_lies_in_the_photo_and_holds_the_click_well_inside(x: float, y: float, side: float) -> None:
    window = choose_crop(view(side), Prompt((Click(x, y),)), CONFIG.zoom, CandidateOptions())
    assert window is not None
    x0, y0, x1, y1 = window
    assert 0 <= x0 < x1 <= PHOTO[1] and 0 <= y0 < y1 <= PHOTO[0]
    share = CONFIG.zoom * (1.5 if side < TINY else 1)
    assert (x1 - x0, y1 - y0) == (round(PHOTO[1] / share), round(PHOTO[0] / share))
    for at, first, last, end in ((x, x0, x1, PHOTO[1]), (y, y0, y1, PHOTO[0])):
        margin = (last - first) / 4 - 1  # the border of the photo is the only thing that may be nearer
        assert at - first >= margin or first == 0
        assert last - at >= margin or last == end


def test_clicks_share_few_windows() -> None:
    windows = {
        choose_crop(view(0.2), Prompt((Click(x, y),)), CONFIG.zoom, CandidateOptions())
        for x in range(0, PHOTO[1] + 1, 5)
        for y in range(0, PHOTO[0] + 1, 5)
    }
    assert len(windows) == 7 * 7


def test_nothing_is_magnified_where_all_proposals_are_large_or_the_model_has_no_zoom() -> None:
    prompt = Prompt((Click(9, 9),))
    whole, limit = Frame.of((100, 100), CONFIG), CandidateOptions().magnify_below
    assert choose_crop(view(limit - 0.1, whole), prompt, CONFIG.zoom, CandidateOptions()) is not None
    assert choose_crop(view(limit + 0.1, whole), prompt, CONFIG.zoom, CandidateOptions()) is None
    assert choose_crop(view(0.1), prompt, 0, CandidateOptions()) is None


@pytest.mark.parametrize(
    ("prompt", "looked"),
    [
        (Prompt((Click(100, 60), Click(110, 70))), True),
        (Prompt((Click(100, 60), Click(190, 70))), False),
        (Prompt((Click(100, 60), Click(190, 70, positive=False))), True),
        (Prompt((), (Box(90, 50, 110, 65),)), True),
        (Prompt((), (Box(60, 50, 140, 65),)), False),
    ],
)
def test_the_window_shows_all_that_is_wanted_or_there_is_none(prompt: Prompt, looked: bool) -> None:
    assert (choose_crop(view(0.2), prompt, CONFIG.zoom, CandidateOptions()) is not None) == looked


@given(st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_a_proposal_that_the_window_cuts_off_is_left_out_unless_the_photo_ends_there(side: int) -> None:
    for window, edge in (((50, 30, 100, 60), False), ((0, 0, 200, 120), True)):
        frame = Frame.of(PHOTO, CONFIG, window)
        logits = np.full(frame.logits, -4, np.float32)
        logits[5:7, 5:7] = 4
        over = np.rot90(logits, side).copy()
        over[:1] = 4
        over = np.rot90(over, -side).copy()
        of = CropPrediction(frame, PromptCells((), (), ()), (Proposal(logits, 0, 3, 1, 1), Proposal(over, 1, 5, 1, 1)))
        assert len(without_truncated(of).proposals) == (2 if edge else 1)


windows = st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(20, 100), st.integers(20, 60)).map(
    lambda at: (at[0], at[1], at[0] + at[2], at[1] + at[3])
)


@given(windows, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_window_of_a_photo_is_a_photo_of_its_own_but_for_where_it_lies(window: Window, seed: int) -> None:
    x0, y0, x1, y1 = window
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 255, (*PHOTO, 3), np.uint8)
    part, alone = Frame.of(PHOTO, CONFIG, window), Frame.of((y1 - y0, x1 - x0), CONFIG)
    crop = np.ascontiguousarray(rgb[y0:y1, x0:x1])
    assert torch.equal(part.image(rgb, CONFIG), alone.image(crop, CONFIG))
    clicks = [(rng.uniform(x0, x1), rng.uniform(y0, y1)) for _ in range(3)]
    ours, _ = part.prompts([Click(x, y) for x, y in clicks], CONFIG)
    theirs, _ = alone.prompts([Click(x - x0, y - y0) for x, y in clicks], CONFIG)
    torch.testing.assert_close(ours, theirs)
    coarse = torch.from_numpy(rng.normal(-0.3, 1, (1, 1, 5, 5))).float()
    logits = F.interpolate(coarse, part.logits, mode="bicubic")[0, 0].numpy()
    mask, box = part.mask(logits)
    expected, at = alone.mask(logits)
    np.testing.assert_array_equal(mask, expected)
    assert not mask.size or box == (at[0] + x0, at[1] + y0, at[2] + x0, at[3] + y0)


@given(windows, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_logits_seen_from_another_frame_are_the_same_surface(window: Window, seed: int) -> None:
    """A plane is its own bilinear surface: at each cell's centre it must have the value of that photo point."""
    slope = np.random.default_rng(seed).uniform(-1, 1, 2)
    whole, part = Frame.of(PHOTO, CONFIG), Frame.of(PHOTO, CONFIG, window)

    def plane(frame: Frame) -> np.ndarray:
        y, x = (
            frame.window[1 - axis] + (np.arange(frame.logits[axis]) + 0.5) * 4 * frame.shown[axis] / frame.resized[axis]
            for axis in (0, 1)
        )
        return (slope[0] * y[:, None] + slope[1] * x[None]).astype(np.float32)

    moved, expected = whole.onto(plane(whole), part), plane(part)
    inner = np.ones(part.logits, bool)
    for axis in (0, 1):  # half a cell at the photo's border repeats the last cell
        cell = 4 * whole.shown[axis] / whole.resized[axis]
        centre = (
            part.window[1 - axis] + (np.arange(part.logits[axis]) + 0.5) * 4 * part.shown[axis] / part.resized[axis]
        )
        good = (centre >= cell / 2) & (centre <= PHOTO[axis] - cell)
        inner &= good[:, None] if axis == 0 else good[None]
    np.testing.assert_allclose(moved[inner], expected[inner], atol=0.35)  # taps are rounded to a 32nd of a cell


def test_a_window_beyond_the_photo_and_a_senseless_magnification_are_refused() -> None:
    with pytest.raises(ImageError, match="inside the photo of 200x120"):
        Frame.of(PHOTO, CONFIG, (150, 0, 201, 50))
    with pytest.raises(ValueError, match=r"zoom 0\.5: expected 0, or above 1"):
        replace(CONFIG, zoom=0.5)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(CONFIG)


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    return np.kron(coarse, np.ones((18, 23, 1), np.uint8))[: PHOTO[0], : PHOTO[1]]


@pytest.fixture(scope="module")
def embedding(model: SemanticSAM, rgb: np.ndarray) -> ImageEmbedding:
    return model.encode(rgb)


PROMPTS = [
    Prompt((Click(70, 50),)),
    Prompt((Click(71, 51),)),
    Prompt((Click(150, 90), Click(152, 95, positive=False), Click(10, 10, positive=False))),
    Prompt((), (Box(60, 40, 80, 60),)),
]


def test_prompts_in_a_batch_get_the_proposals_they_get_alone_and_windows_are_encoded_once(
    model: SemanticSAM, rgb: np.ndarray, embedding: ImageEmbedding
) -> None:
    asked: list[Window] = []

    def encode_crop(window: Window) -> ImageEmbedding:
        asked.append(window)
        return model.encode(rgb, window)

    together = predict_proposals_batch(model, embedding, PROMPTS, ALWAYS, encode_crop)
    assert len(asked) == len(set(asked))
    for prompt, proposals in zip(PROMPTS, together, strict=True):
        alone = predict_proposals(model, embedding, prompt, ALWAYS, crop_encoder(model, rgb))
        assert len(alone.crops) == len(proposals.crops) == 2
        for (_, a), (_, b) in zip(alone.pairs, proposals.pairs, strict=True):
            assert a.token == b.token
            np.testing.assert_allclose(a.logits, b.logits, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_candidates_with_a_magnified_crop_are_still_few_distinct_and_in_photo_pixels(
    model: SemanticSAM, rgb: np.ndarray, embedding: ImageEmbedding, prompt: Prompt
) -> None:
    proposals = predict_proposals(model, embedding, prompt, ALWAYS, crop_encoder(model, rgb))
    assert len(proposals.levels) == len(proposals.features) == len(proposals.intersections) == len(proposals.pairs)
    assert len(proposals.crops) == 2
    candidates = predict_candidates(model, embedding, prompt, ALWAYS, encode_crop=crop_encoder(model, rgb))
    assert 1 <= len(candidates) <= 6
    for i, c in enumerate(candidates):
        assert c.mask.shape == PHOTO and c.area == c.mask.sum() > 0
        assert 1 <= c.level <= 6
        if c.parent is not None:
            parent = candidates[c.parent - 1]
            assert parent.area > c.area and (c.mask & parent.mask).sum() >= 0.7 * c.area
        for other in candidates[:i]:
            assert (c.mask & other.mask).sum() / (c.mask | other.mask).sum() < 0.97
