"""From a prompt to candidates in photo pixels, on the tiny network with random weights."""

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.errors import ImageError, PromptError
from semsam_model.inference.predict import predict_candidates, raw_levels
from semsam_model.network.model import ImageEmbedding, SemanticSAM, build_model
from semsam_model.types import Box, Candidate, Click, Prompt, level_tokens
from tests.semsam_model.networks import structured

SIZE = (101, 147)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(read_model_config("tiny"))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    return np.kron(coarse, np.ones((15, 17, 1), np.uint8))[: SIZE[0], : SIZE[1]]


@pytest.fixture(scope="module")
def embedding(model: SemanticSAM, rgb: np.ndarray) -> ImageEmbedding:
    return model.encode(rgb)


def same(a: list[Candidate], b: list[Candidate]) -> bool:
    return len(a) == len(b) and all(
        x.token == y.token and abs(x.predicted_iou - y.predicted_iou) < 1e-4 and (x.mask != y.mask).mean() < 1e-3
        for x, y in zip(a, b, strict=True)
    )


def test_raw_levels_are_six_with_every_level_and_token_once(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    levels = raw_levels(model, embedding, Prompt((Click(70, 50),)))
    assert sorted(c.level for c in levels) == [1, 2, 3, 4, 5, 6]
    assert all(level_tokens(6)[c.level - 1] == c.token for c in levels)
    assert [c.predicted_iou for c in levels] == sorted((c.predicted_iou for c in levels), reverse=True)


def test_raw_masks_equal_logits_upsampled_to_the_photo_and_thresholded(
    model: SemanticSAM, embedding: ImageEmbedding
) -> None:
    click = Click(33.3, 71.9)
    output = model.decode(embedding, [click])
    frame = embedding.frame
    h, w = frame.logits
    scale = [r / p for r, p in zip(frame.resized, frame.photo, strict=True)]
    y = ((torch.arange(SIZE[0]) + 0.5) * scale[0] / 4 - 0.5).clamp(0, h - 1)
    x = ((torch.arange(SIZE[1]) + 0.5) * scale[1] / 4 - 0.5).clamp(0, w - 1)
    grid = torch.stack(torch.broadcast_tensors(x[None] * 2 / (w - 1) - 1, y[:, None] * 2 / (h - 1) - 1), -1)
    expected = torch.nn.functional.grid_sample(output.logits[:, :, :h, :w], grid[None], align_corners=True)[0] > 0
    for c in raw_levels(model, embedding, Prompt((click,))):
        assert (torch.from_numpy(c.mask) != expected[c.token]).float().mean() < 1e-3


def test_a_click_gets_the_same_answer_alone_and_among_others(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    clicks = [Click(20, 20), Click(70, 50), Click(120, 90)]
    together = model.decode(embedding, clicks)
    for i, click in enumerate(clicks):
        alone = model.decode(embedding, [click])
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(together.predicted_iou[i], alone.predicted_iou[0], atol=1e-5, rtol=1e-4)


def test_wanted_tokens_equal_those_of_the_full_answer(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    every = model.decode(embedding, [Click(70, 50)])
    some = model.decode(embedding, [Click(70, 50)], tokens=[4, 1])
    torch.testing.assert_close(some.logits[0], every.logits[0][[4, 1]])
    assert some.tokens == (4, 1)


def test_class_embeddings_have_unit_length(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    output = model.decode(embedding, [Click(70, 50)])
    for vectors in (output.object_embedding, output.part_embedding):
        assert vectors.shape == (1, 6, 16)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(1, 6))


def test_answers_do_not_depend_on_what_was_encoded_or_asked_before(model: SemanticSAM, rgb: np.ndarray) -> None:
    prompt = Prompt((Click(70, 50),))
    first = predict_candidates(model, model.encode(rgb), prompt)
    other = model.encode(255 - rgb)
    predict_candidates(model, other, Prompt((Click(3, 3), Click(90, 9, positive=False))))
    assert same(first, predict_candidates(model, model.encode(rgb), prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((Click(70, 50),)),
        Prompt((Click(70, 50), Click(10, 90))),
        Prompt((Click(70, 50), Click(75, 60, positive=False))),
        Prompt((), (Box(20, 20, 90, 80),)),
        Prompt((Click(70, 50),), (Box(-5, -5, 400, 400),)),
        Prompt((Click(0, 0),)),
        Prompt((Click(147, 101),)),
    ],
)
def test_candidates_are_few_distinct_ranked_and_linked(
    model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt
) -> None:
    candidates = predict_candidates(model, embedding, prompt)
    assert 1 <= len(candidates) <= 6
    assert [c.rank for c in candidates] == list(range(1, len(candidates) + 1))
    for c in candidates:
        assert 0 <= c.score <= 1
        assert c.size == SIZE
        assert c.area == c.mask.sum() > 0
        x0, y0, x1, y1 = c.bbox
        assert c.crop.shape == (y1 - y0, x1 - x0)
        assert c.crop[0].any() and c.crop[-1].any() and c.crop[:, 0].any() and c.crop[:, -1].any()
        if c.parent is not None:
            parent = candidates[c.parent - 1]
            assert parent.area > c.area
            assert (c.mask & parent.mask).sum() >= 0.8 * c.area


def test_an_obeying_mask_is_first_whenever_one_exists(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    for x, y in [(20, 20), (100, 30), (60, 80)]:
        prompt = Prompt((Click(70, 50), Click(x, y, positive=False)))
        candidates = predict_candidates(model, embedding, prompt)
        obeys = [bool(c.mask[50, 70]) and not c.mask[y, x] for c in candidates]
        assert obeys == sorted(obeys, reverse=True)


@pytest.mark.parametrize("prompt", [Prompt((Click(148, 50),)), Prompt((), (Box(150, 10, 160, 20),))])
def test_a_prompt_outside_the_photo_is_refused_with_the_photos_size(
    model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt
) -> None:
    with pytest.raises(PromptError, match="147"):
        predict_candidates(model, embedding, prompt)


def test_a_prompt_needs_a_positive_click_or_a_box() -> None:
    with pytest.raises(PromptError, match="at least one positive click"):
        Prompt((Click(1, 1, positive=False),))


@pytest.mark.parametrize("values", [(float("nan"), 1), (1, float("inf"))])
def test_a_click_must_be_finite(values: tuple[float, float]) -> None:
    with pytest.raises(PromptError, match="finite"):
        Click(*values)


def test_an_array_that_is_no_rgb_photo_is_refused(model: SemanticSAM) -> None:
    with pytest.raises(ImageError, match="uint8 RGB"):
        model.encode(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(ImageError, match="uint8 RGB"):
        model.encode(np.zeros((8, 8, 3), np.float32))


def test_bfloat16_gives_nearly_the_same_masks(model: SemanticSAM, rgb: np.ndarray, embedding: ImageEmbedding) -> None:
    torch.manual_seed(3)
    half = build_model(read_model_config("tiny"))
    half.load_state_dict(model.state_dict())
    half = half.eval()
    half.backbone.to(torch.bfloat16)
    a = model.decode(embedding, [Click(70, 50)])
    b = half.decode(half.encode(rgb), [Click(70, 50)])
    assert ((a.logits > 0) == (b.logits > 0)).float().mean() > 0.97
    torch.testing.assert_close(a.predicted_iou, b.predicted_iou, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["mobile", "swin_l_many2one"])
def test_levels_of_other_variants_start_at_one(name: str) -> None:
    tokens = read_model_config(name).tokens
    assert sorted(level_tokens(tokens)) == list(range(tokens))
