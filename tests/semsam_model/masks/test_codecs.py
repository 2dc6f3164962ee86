"""Masks written elsewhere: read right, or refused with a reason."""

import base64
import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image
from pycocotools import mask as coco

from semsam_model.errors import DataError
from semsam_model.masks import codecs as mask_codecs

quick = settings(max_examples=60, deadline=None)


def brush(mask: np.ndarray) -> list[int]:
    return mask2rle(mask.astype(np.uint8) * 255)


def disc(height: int, width: int, cx: float, cy: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return np.hypot(x - cx, y - cy) < radius


@quick
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_half_transparent_brush_counts_from_alpha_128(alpha: np.ndarray) -> None:
    assert np.array_equal(mask_codecs.decode_brush_rle(mask2rle(alpha), alpha.shape), alpha >= 128)


@quick
@given(st.data())
def test_brush_decoder_agrees_with_the_sdk_on_literal_runs_and_other_run_sizes(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    sizes = data.draw(st.lists(st.integers(1, 16), min_size=4, max_size=4))
    total = 4 * height * width
    bits, left = f"{total:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in sizes), total
    while left:
        k = data.draw(st.integers(0, 3))
        count = data.draw(st.integers(1, min(left, 2 ** sizes[k])))
        repeated = data.draw(st.booleans())
        values = data.draw(st.binary(min_size=1 if repeated else count, max_size=1 if repeated else count))
        bits += f"{int(repeated)}{k:02b}{count - 1:0{sizes[k]}b}" + "".join(f"{v:08b}" for v in values)
        left -= count
    bits += "0" * (-len(bits) % 8)
    rle = list(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    expected = decode_rle(rle).reshape(height, width, 4)[..., 3] >= 128
    assert np.array_equal(mask_codecs.decode_brush_rle(rle, (height, width)), expected)


def test_brush_rle_of_another_size_is_refused_with_both_counts() -> None:
    with pytest.raises(DataError, match=r"expected 168 values for 6 x 7 pixels.*says 140"):
        mask_codecs.decode_brush_rle(brush(np.ones((5, 7), bool)), (7, 6))


@pytest.mark.parametrize("cut", [1, 3])
def test_brush_rle_that_ends_early_is_refused(cut: int) -> None:
    mask = disc(40, 41, 20, 20, 9)
    with pytest.raises(DataError, match="ends after"):
        mask_codecs.decode_brush_rle(brush(mask)[:-cut], mask.shape)


def test_brush_run_past_the_image_is_refused() -> None:
    rle = brush(np.ones((2, 2), bool))
    bits = "".join(f"{v:08b}" for v in rle)
    assert bits[53:60] == "1011111"  # the class for up to 16, count 16
    longer = bits[:53] + "110" + "11111111" + bits[60:]
    rle = [int(longer[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(longer), 8)]
    with pytest.raises(DataError, match="a run that ends at 256"):
        mask_codecs.decode_brush_rle(
            [int(longer[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(longer), 8)], (2, 2)
        )


garbage = st.none() | st.integers() | st.text() | st.lists(st.integers(-2, 300) | st.floats() | st.text(), max_size=20)


@quick
@given(garbage | st.lists(st.integers(0, 255), min_size=7, max_size=40))
def test_brush_decoder_never_raises_anything_but_data_error(rle: object) -> None:
    with pytest.raises(DataError):
        mask_codecs.decode_brush_rle(rle, (123, 457))  # type: ignore[arg-type]


@quick
@given(st.lists(st.integers(0, 255), max_size=30))
def test_brush_body_of_garbage_gives_a_mask_or_data_error(body: list[int]) -> None:
    head = brush(np.zeros((6, 7), bool))[:6]
    with contextlib.suppress(DataError):
        assert mask_codecs.decode_brush_rle(head + body, (6, 7)).shape == (6, 7)


def test_bitmask_reads_the_canvas_form_with_soft_borders() -> None:
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[1] = [(0, 0, 0, alpha) for alpha in (127, 128, 255, 0)]
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    expected = np.zeros((3, 4), bool)
    expected[1, 1:3] = True
    assert np.array_equal(mask_codecs.decode_bitmask(url, (3, 4)), expected)
    with pytest.raises(DataError, match=r"expected width, height \(3, 4\), got \(4, 3\)"):
        mask_codecs.decode_bitmask(url, (4, 3))
    with pytest.raises(DataError, match="cannot be read"):
        mask_codecs.decode_bitmask(url[:-30], (3, 4))


@pytest.mark.parametrize(
    "url", [None, 3, "", "http://x/y.png", mask_codecs.PNG_PREFIX + "***", mask_codecs.PNG_PREFIX + "R0lG"]
)
def test_a_malformed_bitmask_is_refused(url: object) -> None:
    with pytest.raises(DataError, match="imageDataURL"):
        mask_codecs.decode_bitmask(url, (3, 4))  # type: ignore[arg-type]


@quick
@given(st.text(max_size=12) | st.lists(st.integers(-3, 40), max_size=5) | st.none() | st.integers())
def test_coco_decoder_gives_a_filled_mask_or_data_error(counts: object) -> None:
    with contextlib.suppress(DataError):
        assert mask_codecs.decode_coco_rle({"size": [5, 7], "counts": counts}).shape == (5, 7)


def test_coco_runs_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(DataError, match="fill 35 pixels"):
        mask_codecs.decode_coco_rle({"size": [5, 7], "counts": ""})
    with pytest.raises(DataError, match=r"expected \[7, 5\], got \[5, 7\]"):
        mask_codecs.decode_coco_rle({"size": [5, 7], "counts": [35]}, (7, 5))


@pytest.mark.parametrize("rle", [None, [], {}, {"size": 3}, {"size": [1]}, {"size": [0, 5], "counts": []}])
def test_a_malformed_coco_rle_is_refused(rle: object) -> None:
    with pytest.raises(DataError, match=r"COCO RLE|size"):
        mask_codecs.decode_coco_rle(rle)  # type: ignore[arg-type]


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 0.98]))
def test_coco_text_is_read_as_pycocotools_reads_it(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    assert np.array_equal(mask_codecs.decode_coco_rle(text), mask)


@pytest.mark.parametrize("points", [[[1, 2, 3]], [[1, float("nan")]], [1, 2], [[1, 2], [3]], [["a", "b"]]])
def test_a_malformed_polygon_is_refused(points: list) -> None:
    with pytest.raises(DataError, match="polygon"):
        mask_codecs.decode_polygons([points], (5, 5))  # type: ignore[list-item]
