"""Models of the transformers package that find what words name: their answers are the library's for the same pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semsam_model.engines.open_engine import open_concepts
from semsam_model.engines.photo import Preprocessing
from semsam_model.engines.roi_align import roi_align
from semsam_model.engines.transformers_concepts import Sam3Concepts
from semsam_model.engines.transformers_detectors import GroundingDinoConcepts, Owlv2Concepts
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.inference.concept_model import Found, Query
from semsam_model.types import Box
from tests.semsam_model.engines.tiny_concepts import FAMILIES, SIDE, written

RNG = np.random.default_rng(2)
RGB = np.kron(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))  # 64 x 48
TALL = np.kron(RNG.integers(0, 255, (15, 6, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))  # 60 x 150
TEXTS = ["cat", "red dog", "wheel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = written(family, tmp_path_factory.mktemp("concepts") / family)
        return made[family]

    return of


@pytest.fixture(scope="module")
def opened(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(family: str) -> Any:
        if family not in made:
            made[family] = open_concepts(f"transformers:{folder(family)}").model
        return made[family]

    return of


def whole(rgb: np.ndarray) -> tuple[int, int, int, int]:
    return 0, 0, rgb.shape[1], rgb.shape[0]


def by_score(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda each: -each.score)


def same_boxes(found: list[Found], boxes: Tensor, scores: Tensor, rgb: np.ndarray) -> None:
    """Equal, but for the part of a box that lies outside the photo."""
    height, width = rgb.shape[:2]
    order = torch.argsort(scores, descending=True, stable=True)
    wanted = boxes[order].clamp(min=0)
    wanted = torch.minimum(wanted, torch.tensor([width, height, width, height]))
    inside = (wanted[:, 2] > wanted[:, 0]) & (wanted[:, 3] > wanted[:, 1])
    found = by_score(found)
    assert [each.score for each in found] == pytest.approx(scores[order][inside].tolist(), abs=1e-5)
    ours = np.array([[each.box.x0, each.box.y0, each.box.x1, each.box.y1] for each in found])
    assert np.allclose(ours, wanted[inside], atol=1e-3)


@pytest.mark.parametrize("examples", [(), (Box(8, 8, 30, 26), Box(40, 4, 60, 44))])
def test_sam3_answers_as_the_librarys_model_and_post_processing(
    examples: tuple[Box, ...], opened: Callable[[str], Sam3Concepts]
) -> None:
    concepts = opened("sam3")
    for rgb in (RGB, TALL):
        height, width = rgb.shape[:2]
        answers = concepts.find(concepts.encode(rgb), [Query(text, examples) for text in TEXTS], 0.0)
        for text, found in zip(TEXTS, answers, strict=True):
            tokens = concepts._tokenizer(text, return_tensors="pt", padding="max_length", max_length=32)
            pixels = concepts._preprocessing.pixels(rgb, whole(rgb), 0)
            given = {}
            if examples:
                corners = torch.tensor(
                    [[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2, b.x1 - b.x0, b.y1 - b.y0] for b in examples]
                )
                cut = corners / torch.tensor([width, height, width, height])
                if rgb is TALL:  # the second leaves the photo by nothing, the first lies in it
                    cut = cut.clamp(max=1)
                given = {"input_boxes": cut[None], "input_boxes_labels": torch.ones(1, len(examples), dtype=torch.long)}
            with torch.no_grad():
                output = concepts._model(
                    pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **given
                )
            # the steps of its post_process_instance_segmentation, whose module needs torchvision
            scores = output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()
            masks = F.interpolate(output.pred_masks.sigmoid(), (height, width), mode="bilinear", align_corners=False)[0]
            boxes = output.pred_boxes[0] * torch.tensor([width, height, width, height])
            same_boxes(found, boxes, scores, rgb)
            order = torch.argsort(scores, descending=True, stable=True)
            for each, place in zip(by_score(found), order.tolist(), strict=True):
                assert each.logits is not None and each.frame is not None
                drawn = each.frame.enlarge(each.logits) > 0
                assert (drawn != (masks[place] > 0.5).numpy()).mean() <= 0.0005


def test_owlv2_answers_as_the_librarys_model_and_post_processing(opened: Callable[[str], Owlv2Concepts]) -> None:
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    concepts = opened("owlv2")
    for rgb in (RGB, TALL):
        answers = concepts.find(concepts.encode(rgb), [Query(text) for text in TEXTS], 0.0)
        for text, found in zip(TEXTS, answers, strict=True):
            tokens = concepts._tokenizer([text], return_tensors="pt", padding="max_length", max_length=16)
            pixels = concepts._preprocessing.pixels(rgb, whole(rgb), SIDE)
            with torch.no_grad():
                output = concepts._model(tokens.input_ids, pixels, tokens.attention_mask)
            (theirs,) = Owlv2ImageProcessorPil().post_process_object_detection(output, 0.0, [rgb.shape[:2]])
            same_boxes(found, theirs["boxes"], theirs["scores"], rgb)


@pytest.mark.parametrize("family", ["grounding_dino", "mm_grounding_dino"])
def test_grounding_dino_answers_as_the_librarys_model_and_post_processing(
    family: str, opened: Callable[[str], GroundingDinoConcepts]
) -> None:
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    concepts = opened(family)
    processor = transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), concepts._tokenizer)
    for rgb in (RGB, TALL):
        answers = concepts.find(concepts.encode(rgb), [Query(text) for text in TEXTS], 0.0)
        tokens = processor(text=[TEXTS], return_tensors="pt")
        with torch.no_grad():
            output = concepts._model(concepts._preprocessing.pixels(rgb, whole(rgb), 0), **tokens)
        ids = tokens.input_ids[0].tolist()
        for text, found in zip(TEXTS, answers, strict=True):
            # what of its scores is of this text: the library's is that of the surest token of all
            mine = [ids.index(number) for number in concepts._tokenizer(text, add_special_tokens=False).input_ids]
            output_of = type(output)(logits=output.logits[..., mine], pred_boxes=output.pred_boxes)
            (theirs,) = processor.post_process_grounded_object_detection(
                output_of, tokens.input_ids, 0.0, target_sizes=[rgb.shape[:2]]
            )
            same_boxes(found, theirs["boxes"], theirs["scores"], rgb)


def test_a_list_that_is_too_long_for_one_run_is_asked_in_several(
    opened: Callable[[str], GroundingDinoConcepts],
) -> None:
    concepts = opened("grounding_dino")
    concepts._model.config.max_text_len, before = 8, concepts._model.config.max_text_len
    try:
        assert list(concepts._runs(["Cat", "red dog", "wheel. of car?"])) == [["cat", "red dog"], ["wheel of car"]]
        assert len(concepts.find(concepts.encode(RGB), [Query(text) for text in TEXTS], 0.0)) == 3
    finally:
        concepts._model.config.max_text_len = before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_is_a_photo_of_its_own_and_half_precision_finds_nearly_the_same(
    family: str, folder: Callable[[str], Path], opened: Callable[[str], Any]
) -> None:
    concepts, window = opened(family), (8, 0, 56, 48)
    seen, alone = (
        concepts.find(look, [Query("cat")], 0.0)[0]
        for look in (concepts.encode(RGB, window), concepts.encode(np.ascontiguousarray(RGB[:, 8:56])))
    )
    for ours, theirs in zip(seen, alone, strict=True):
        assert ours.score == theirs.score and ours.box.x0 == pytest.approx(theirs.box.x0 + 8)
    half = open_concepts(f"transformers:{folder(family)}", dtype=torch.bfloat16)
    found = half.model.find(half.model.encode(RGB), [Query("cat", (Box(4, 4, 30, 30),))], 0.0)[0]
    assert half.nbytes < 0.6 * open_concepts(f"transformers:{folder(family)}").nbytes and found


def test_newer_folders_say_how_photos_are_prepared_in_a_file_of_the_whole_processor(tmp_path: Path) -> None:
    content = {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content, "target_size": 56}))
    assert Preprocessing.read(tmp_path, 1) == Preprocessing.of(content, 1)


def test_a_photo_is_prepared_as_the_librarys_own_processors_do() -> None:
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    for rgb in (RGB, TALL, RGB[:, :48]):
        for size in ({"shortest_edge": 40, "longest_edge": 71}, {"shortest_edge": 48, "longest_edge": 90}):
            theirs = GroundingDinoImageProcessorPil(size=size)(rgb, return_tensors="pt")["pixel_values"]
            ours = Preprocessing.of({"size": size}, SIDE).pixels(rgb, whole(rgb), 0)
            assert torch.allclose(ours, theirs, atol=1e-5)
        # OWLv2's blurs before it resizes: the same but for the filter
        content = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        theirs = Owlv2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, **content)(rgb, return_tensors="pt")
        ours = Preprocessing(SIDE, None, (0.5,) * 3, (0.5,) * 3, black=True).pixels(rgb, whole(rgb), SIDE)
        difference = (ours - theirs["pixel_values"]).abs()
        assert difference.mean() < 0.06


@given(
    st.tuples(st.floats(-3, 9), st.floats(-3, 9), st.floats(0, 12), st.floats(0, 12)),
    st.sampled_from([(1, 1), (7, 9), (3, 12)]),
)
def test_the_mean_in_parts_of_a_box_is_that_of_points_read_one_by_one(
    box: tuple[float, float, float, float], shape: tuple[int, int]
) -> None:
    cells = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, *shape))).float()
    x0, y0, w, h = box
    ours = roi_align(cells, [torch.tensor([[x0, y0, x0 + w, y0 + h]])], 3)[0]
    x0, y0, x1, y1 = np.float32([x0, y0, x0 + w, y0 + h])
    width, height = max(x1 - x0, np.float32(1)), max(y1 - y0, np.float32(1))
    nx, ny = (max(1, int(np.ceil(side / 3))) for side in (width, height))

    def read(y: float, x: float) -> np.ndarray:
        if not (-1 <= y <= shape[0] and -1 <= x <= shape[1]):
            return np.zeros(2)
        y, x = min(max(y, 0), shape[0] - 1), min(max(x, 0), shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, shape[0] - 1), min(left + 1, shape[1] - 1)
        a, b = y - top, x - left
        grid = cells[0].numpy()
        value: np.ndarray = (
            (1 - a) * (1 - b) * grid[:, top, left] + (1 - a) * b * grid[:, top, right]
            + a * (1 - b) * grid[:, bottom, left] + a * b * grid[:, bottom, right]
        )  # fmt: skip
        return value

    for row in range(3):
        for column in range(3):
            points = [
                read(y0 + (row + (i + 0.5) / ny) * height / 3, x0 + (column + (j + 0.5) / nx) * width / 3)
                for i in range(ny) for j in range(nx)
            ]  # fmt: skip
            assert np.allclose(ours[:, row, column], np.mean(points, 0), atol=2e-4)


def test_what_cannot_be_loaded_is_said_in_one_line(folder: Callable[[str], Path], tmp_path: Path) -> None:
    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (bare / name).write_bytes((folder("owlv2") / name).read_bytes())
    for spec, kind, words in (
        ("owlv2", ConfigError, "concepts 'owlv2': expected FAMILY:ARGUMENT"),
        ("json:x", ConfigError, "no function open_concepts"),
        (f"transformers:{tmp_path / 'none'}", CheckpointError, "concepts .*: cannot be loaded"),
        (f"transformers:{tmp_path}", CheckpointError, "of type vit, expected one of sam3"),
        (f"transformers:{bare}", CheckpointError, "its tokenizer cannot be loaded"),
    ):
        with pytest.raises(kind, match=words) as raised:
            open_concepts(spec)
        assert "\n" not in str(raised.value)
