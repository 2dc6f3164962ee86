"""Masks as Label Studio and COCO write them: the same bytes and back; what is malformed is refused with a reason."""

import base64
import contextlib
import io
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image
from pycocotools import mask as coco

from semsam_model.errors import DataError
from semsam_model.masks.codecs import (
    PNG_PREFIX,
    decode_bitmask,
    decode_brush_rle,
    decode_coco_rle,
    encode_bitmask,
    encode_brush_rle,
    encode_coco_rle,
)
from semsam_model.masks.geometry import crop_mask
from tests.semsam_model.masks.shapes import any_mask, blobs, disc

quick = settings(max_examples=60, deadline=None)


def brush(mask: np.ndarray) -> list[int]:
    return encode_brush_rle(*crop_mask(mask), mask.shape)


SPECIAL = [
    np.zeros((1, 1), bool),
    np.ones((1, 1), bool),
    np.zeros((5, 7), bool),
    np.ones((5, 7), bool),
    np.ones((301, 333), bool),  # one run longer than a piece of 65536 values holds
    np.arange(7 * 300).reshape(7, 300) < 900,  # whole rows: one run over several lines
    np.arange(128 * 128).reshape(128, 128) < 128 * 128 // 2,
    disc(97, 131, 70.5, 40.5, 33),
]


@pytest.mark.parametrize("mask", SPECIAL)
def test_brush_rle_of_special_masks_is_byte_for_byte_the_sdks(mask: np.ndarray) -> None:
    assert brush(mask) == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(decode_brush_rle(brush(mask), mask.shape), mask)


@quick
@given(any_mask | blobs())
def test_brush_rle_is_byte_for_byte_the_sdks_and_comes_back(mask: np.ndarray) -> None:
    rle = brush(mask)
    assert rle == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(decode_brush_rle(rle, mask.shape), mask)


@quick
@given(any_mask | blobs())
def test_bitmask_comes_back_and_is_black_on_transparent(mask: np.ndarray) -> None:
    url = encode_bitmask(*crop_mask(mask), mask.shape)
    assert np.array_equal(decode_bitmask(url, mask.shape), mask)
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    rgba = np.asarray(image.convert("RGBA"))
    assert (rgba[mask] == (0, 0, 0, 255)).all() and (rgba[~mask][:, 3] == 0).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
@quick
@given(any_mask | blobs())
def test_coco_rle_is_pycocotools_and_comes_back(mask: np.ndarray) -> None:
    rle = encode_coco_rle(*crop_mask(mask), mask.shape)
    assert np.array_equal(coco.decode(rle).astype(bool), mask)
    assert np.array_equal(decode_coco_rle(rle, mask.shape), mask)
    runs = [0] * bool(mask[0, 0]) + [len(list(run)) for _, run in groupby(mask.T.ravel().tolist())]
    assert np.array_equal(decode_coco_rle({"size": list(mask.shape), "counts": runs}), mask)


@quick
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_half_transparent_brush_counts_from_alpha_128(alpha: np.ndarray) -> None:
    assert np.array_equal(decode_brush_rle(mask2rle(alpha), alpha.shape), alpha >= 128)


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
    assert np.array_equal(decode_brush_rle(rle, (height, width)), expected)


def test_brush_rle_of_another_size_is_refused_with_both_counts() -> None:
    with pytest.raises(DataError, match=r"expected 168 values for 6 x 7 pixels.*says 140"):
        decode_brush_rle(brush(np.ones((5, 7), bool)), (7, 6))


@pytest.mark.parametrize("cut", [1, 3])
def test_brush_rle_that_ends_early_is_refused(cut: int) -> None:
    mask = disc(40, 41, 20, 20, 9)
    with pytest.raises(DataError, match="ends after"):
        decode_brush_rle(brush(mask)[:-cut], mask.shape)


def test_brush_run_past_the_image_is_refused() -> None:
    rle = brush(np.ones((2, 2), bool))
    bits = "".join(f"{v:08b}" for v in rle)
    assert bits[53:60] == "1011111"  # the class for up to 16, count 16
    longer = bits[:53] + "110" + "11111111" + bits[60:]
    rle = [int(longer[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(longer), 8)]
    with pytest.raises(DataError, match="a run that ends at 256"):
        decode_brush_rle(rle, (2, 2))


garbage = st.none() | st.integers() | st.text() | st.lists(st.integers(-2, 300) | st.floats() | st.text(), max_size=20)


@quick
@given(garbage | st.lists(st.integers(0, 255), min_size=7, max_size=40))
def test_brush_decoder_never_raises_anything_but_data_error(rle: object) -> None:
    with pytest.raises(DataError):
        decode_brush_rle(rle, (123, 457))  # type: ignore[arg-type]


@quick
@given(st.lists(st.integers(0, 255), max_size=30))
def test_brush_body_of_garbage_gives_a_mask_or_data_error(body: list[int]) -> None:
    head = brush(np.zeros((6, 7), bool))[:6]
    with contextlib.suppress(DataError):
        assert decode_brush_rle(head + body, (6, 7)).shape == (6, 7)


def test_bitmask_reads_the_canvas_form_with_soft_borders() -> None:
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[1] = [(0, 0, 0, alpha) for alpha in (127, 128, 255, 0)]
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    expected = np.zeros((3, 4), bool)
    expected[1, 1:3] = True
    assert np.array_equal(decode_bitmask(url, (3, 4)), expected)
    with pytest.raises(DataError, match=r"expected width, height \(3, 4\), got \(4, 3\)"):
        decode_bitmask(url, (4, 3))
    with pytest.raises(DataError, match="cannot be read"):
        decode_bitmask(url[:-30], (3, 4))


@pytest.mark.parametrize("url", [None, 3, "", "http://x/y.png", PNG_PREFIX + "***", PNG_PREFIX + "R0lG"])
def test_a_malformed_bitmask_is_refused(url: object) -> None:
    with pytest.raises(DataError, match="imageDataURL"):
        decode_bitmask(url, (3, 4))  # type: ignore[arg-type]


@quick
@given(st.text(max_size=12) | st.lists(st.integers(-3, 40), max_size=5) | st.none() | st.integers())
def test_coco_decoder_gives_a_filled_mask_or_data_error(counts: object) -> None:
    with contextlib.suppress(DataError):
        assert decode_coco_rle({"size": [5, 7], "counts": counts}).shape == (5, 7)


def test_coco_runs_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(DataError, match="fill 35 pixels"):
        decode_coco_rle({"size": [5, 7], "counts": ""})
    with pytest.raises(DataError, match=r"expected \[7, 5\], got \[5, 7\]"):
        decode_coco_rle({"size": [5, 7], "counts": [35]}, (7, 5))


@pytest.mark.parametrize("rle", [None, [], {}, {"size": 3}, {"size": [1]}, {"size": [0, 5], "counts": []}])
def test_a_malformed_coco_rle_is_refused(rle: object) -> None:
    with pytest.raises(DataError, match=r"COCO RLE|size"):
        decode_coco_rle(rle)  # type: ignore[arg-type]


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 0.98]))
def test_coco_text_is_read_as_pycocotools_reads_it(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    assert np.array_equal(decode_coco_rle(text), mask)
