"""Models of the transformers package as engines: their masks are the library's, and they answer the whole loop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from semsam_model.engines.open_engine import open_engine
from semsam_model.engines.photo import Preprocessing
from semsam_model.engines.transformers_sam import TransformersSam
from semsam_model.errors import CheckpointError, ConfigError, ImageError, PromptError
from semsam_model.inference.engine import DescribedEngine
from semsam_model.inference.predict import predict_candidates
from semsam_model.types import Box, Click, Prompt
from tests.semsam_model.engines.tiny_sams import FAMILIES, SIDE, written
from tests.semsam_model.networks import QUERIES, structured

RNG = np.random.default_rng(2)
RGB = np.kron(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))  # 64 x 48
TALL = np.kron(RNG.integers(0, 255, (15, 6, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))  # 60 x 150


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = written(family, tmp_path_factory.mktemp("engines") / family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def opened(folders: Callable[[str], Path]) -> Callable[[str], TransformersSam]:
    made: dict[str, TransformersSam] = {}

    def engine(family: str) -> TransformersSam:
        if family not in made:
            found = open_engine(f"transformers:{folders(family)}").engine
            assert isinstance(found, TransformersSam)
            made[family] = found
        return made[family]

    return engine


def library_masks(
    engine: TransformersSam, rgb: np.ndarray, clicks: list[Click], box: Box | None, **more: Any
) -> tuple[np.ndarray, np.ndarray]:
    """bool (n, H, W) and scores, by the library's forward pass and the steps of its post_process_masks."""
    model, how = engine._model, engine._preprocessing
    height, width = rgb.shape[:2]
    h, w = how.size((height, width))
    pixels = how.pixels(rgb, (0, 0, width, height), engine._side)
    given: dict[str, Any] = {"pixel_values": pixels, **more}
    scale = torch.tensor([w / width, h / height])
    if clicks:
        given["input_points"] = (torch.tensor([[c.x, c.y] for c in clicks]) * scale)[None, None]
        given["input_labels"] = torch.tensor([[[int(c.positive) for c in clicks]]])
    if box is not None:
        corners = torch.tensor([[box.x0, box.y0], [box.x1, box.y1]])
        given["input_boxes"] = (corners * scale).reshape(1, 1, 4)
    with torch.no_grad():
        output = model(**given)
    logits = output.pred_masks[0]
    if how.longest is not None:  # SAM's way: to the padded input, without its padding, to the photo
        logits = F.interpolate(logits, (engine._side, engine._side), mode="bilinear", align_corners=False)[..., :h, :w]
    masks = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0] > 0
    return masks.numpy(), output.iou_scores[0, 0].numpy()


PROMPTS = [
    ([Click(20, 20)], None),
    ([Click(20, 20), Click(41, 30, positive=False)], None),
    ([], Box(5, 6, 40, 41)),
    ([Click(20, 20, positive=False)], Box(5, 6, 40, 41)),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_those_of_the_librarys_model_and_post_processing(
    family: str, opened: Callable[[str], TransformersSam]
) -> None:
    engine = opened(family)
    for rgb in (RGB, TALL):
        for clicks, box in PROMPTS:
            prompt = Prompt(tuple(clicks), () if box is None else (box,))
            (ours,) = engine.propose(engine.encode(rgb), [prompt])
            masks, scores = library_masks(engine, rgb, clicks, box)
            corrected = len(clicks) > 1 or (box is not None and bool(clicks))
            mine = ours[1:4] if corrected else ours[:3]
            assert np.allclose([p.predicted_iou for p in mine], scores, atol=1e-5)
            frame = engine.encode(rgb).frame
            for proposal, mask in zip(mine, masks, strict=True):
                drawn = np.zeros(rgb.shape[:2], bool)
                crop, (x0, y0, x1, y1) = frame.mask(proposal.logits)
                drawn[y0:y1, x0:x1] = crop
                exact = engine._preprocessing.longest is None or rgb is RGB
                # SAM enlarges in two steps where the photo is not of the input's size, and its padding has logits
                # too, which half a cell at the photo's edge is blended with
                edge = 2 if engine._preprocessing.longest is not None else 0
                differ = (drawn != mask)[: len(mask) - edge, : mask.shape[1] - edge]
                assert differ.mean() <= (0.0005 if exact else 0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_further_click_is_asked_with_the_mask_so_far(family: str, opened: Callable[[str], TransformersSam]) -> None:
    engine = opened(family)
    clicks = [Click(20, 20), Click(41, 30, positive=False)]
    embedding = engine.encode(RGB)
    (corrected, *_), (first, *others) = engine.propose(embedding, [Prompt(tuple(clicks)), Prompt((clicks[0],))])
    before = max([first, *others[:2]], key=lambda p: p.predicted_iou)
    with torch.no_grad():  # the padding's logits are not ours to see: taken from the library
        low = engine._model(
            image_embeddings=embedding.maps,
            **({} if embedding.intermediate is None else {"intermediate_embeddings": embedding.intermediate}),
            input_points=torch.tensor([[[[c * s for c, s in zip((20, 20), embedding.scale, strict=True)]]]]),
            input_labels=torch.tensor([[[1]]]),
        )
    best = int(low.iou_scores[0, 0].argmax())
    padded = low.pred_masks[0, 0, best].clamp(-32, 32)
    h, w = before.logits.shape
    assert np.allclose(before.logits, low.pred_masks[0, 0, best, :h, :w], atol=1e-4)
    masks, scores = library_masks(engine, RGB, clicks, None, input_masks=padded[None, None], multimask_output=False)
    assert np.allclose(corrected.predicted_iou, scores, atol=1e-4)
    frame = embedding.frame
    drawn = frame.enlarge(corrected.logits) > 0
    assert np.mean((drawn != masks[0])[:-2]) <= 0.001


def test_a_photo_is_prepared_as_the_librarys_own_processor_does() -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    content = FAMILIES["sam"][1]
    processor = SamImageProcessorPil(**content)
    how = Preprocessing.of(json.loads(processor.to_json_string()), SIDE)
    for rgb in (RGB, TALL):
        theirs = processor(rgb, return_tensors="pt")["pixel_values"]
        ours = how.pixels(rgb, (0, 0, rgb.shape[1], rgb.shape[0]), SIDE)
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_loop_answers_with_names_and_a_window_is_a_photo_of_its_own(
    family: str, opened: Callable[[str], TransformersSam]
) -> None:
    import dataclasses

    engine = opened(family)
    names = structured(dataclasses.replace(QUERIES, name_features=True))
    model = DescribedEngine(engine, names)
    embedding = model.encode(RGB)
    first = predict_candidates(model, embedding, Prompt((Click(20, 20),)))
    assert 1 <= len(first) <= 6 and all(c.name_embedding is not None for c in first)
    assert all(c.size == RGB.shape[:2] and 1 <= c.level <= 6 for c in first)
    window = (8, 0, 56, 48)
    cut = np.ascontiguousarray(RGB[:, 8:56])
    (seen,) = engine.propose(engine.encode(RGB, window), [Prompt((Click(28, 20),))])
    (alone,) = engine.propose(engine.encode(cut), [Prompt((Click(20, 20),))])
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(seen, alone, strict=True))
    with pytest.raises(PromptError, match="inside the photo"):
        predict_candidates(model, embedding, Prompt((Click(100, 20),)))


def test_half_precision_gives_nearly_the_same_masks(folders: Callable[[str], Path]) -> None:
    whole, half = (
        open_engine(f"transformers:{folders('sam2')}", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.nbytes < 0.6 * whole.nbytes and half.version != whole.version
    a, b = (next(iter(e.engine.propose(e.engine.encode(RGB), [Prompt((Click(20, 20),))]))) for e in (whole, half))
    for one, other in zip(a[:3], b[:3], strict=True):
        assert other.logits.dtype == np.float32 and np.mean(one.cells == other.cells) > 0.9


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    for spec, kind, words in (
        ("sam", ConfigError, "FAMILY:ARGUMENT"),
        ("nothing_of_ours:x", ConfigError, "transformers, or a module of Python"),
        ("json:x", ConfigError, "no function open_engine"),
        (f"transformers:{tmp_path}", CheckpointError, "cannot be loaded"),
    ):
        with pytest.raises(kind, match=words) as raised:
            open_engine(spec)
        assert "\n" not in str(raised.value)
    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of type vit, expected one of sam"):
        open_engine(f"transformers:{tmp_path}")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folders("sam") / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: cannot be read"):
        open_engine(f"transformers:{bare}")


def test_a_photo_that_is_a_thread_is_refused(opened: Callable[[str], TransformersSam]) -> None:
    with pytest.raises(ImageError, match="at most 32:1"):
        opened("sam").encode(np.zeros((1, 100, 3), np.uint8))
