import base64
import io
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from label_studio_sdk.converter.brush import mask2rle
from PIL import Image
from pycocotools import mask as coco

from backend import formats
from backend.errors import BackendError
from semsam_model.masks import codecs as mask_codecs
from tests.backend.masks import any_mask, blobs, disc

quick = settings(max_examples=60, deadline=None)


def brush(mask: np.ndarray) -> list[int]:
    return formats.encode_brush_rle(*formats.crop_mask(mask), mask.shape)


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
    assert np.array_equal(mask_codecs.decode_brush_rle(brush(mask), mask.shape), mask)


@quick
@given(any_mask | blobs())
def test_brush_rle_is_byte_for_byte_the_sdks_and_comes_back(mask: np.ndarray) -> None:
    rle = brush(mask)
    assert rle == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(mask_codecs.decode_brush_rle(rle, mask.shape), mask)


def test_a_crop_that_does_not_fit_its_bbox_is_refused() -> None:
    with pytest.raises(BackendError, match=r"expected bool \(2, 3\)"):
        formats.encode_brush_rle(np.ones((3, 2), bool), (0, 0, 3, 2), (9, 9))
    with pytest.raises(BackendError, match="inside a photo of 4 x 9"):
        formats.encode_coco_rle(np.ones((2, 3), bool), (2, 0, 5, 2), (9, 4))


@quick
@given(any_mask)
def test_the_bbox_is_tight_and_its_crop_pastes_back(mask: np.ndarray) -> None:
    crop, (x0, y0, x1, y1) = formats.crop_mask(mask)
    assert np.array_equal(formats.paste(crop, (x0, y0, x1, y1), mask.shape), mask)
    if mask.any():
        assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@quick
@given(any_mask | blobs())
def test_bitmask_comes_back_and_is_black_on_transparent(mask: np.ndarray) -> None:
    url = formats.encode_bitmask(*formats.crop_mask(mask), mask.shape)
    assert np.array_equal(mask_codecs.decode_bitmask(url, mask.shape), mask)
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    rgba = np.asarray(image.convert("RGBA"))
    assert (rgba[mask] == (0, 0, 0, 255)).all() and (rgba[~mask][:, 3] == 0).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
@quick
@given(any_mask | blobs())
def test_coco_rle_is_pycocotools_and_comes_back(mask: np.ndarray) -> None:
    rle = formats.encode_coco_rle(*formats.crop_mask(mask), mask.shape)
    assert np.array_equal(coco.decode(rle).astype(bool), mask)
    assert np.array_equal(mask_codecs.decode_coco_rle(rle, mask.shape), mask)
    runs = [0] * bool(mask[0, 0]) + [len(list(run)) for _, run in groupby(mask.T.ravel().tolist())]
    assert np.array_equal(mask_codecs.decode_coco_rle({"size": list(mask.shape), "counts": runs}), mask)
