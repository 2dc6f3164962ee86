"""Random views of a photo and its masks."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.training.batches import augment
from semsam_model.training.config import SamplingConfig
from tests.semsam_model.houses import FILL


@given(st.integers(0, 10_000), st.sampled_from([(40, 70), (70, 40), (32, 32)]))
@settings(max_examples=25, deadline=None)
def test_masks_move_with_the_photo(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    y, x = rng.integers(0, 15, 2)
    mask[y : y + 16, x : x + 14] = True
    image = np.where(mask[..., None], np.uint8(250), np.uint8(5)).repeat(3, 2)
    photo, (moved,) = augment(image, [mask], 64, SamplingConfig(jitter=0), FILL, rng)
    seen = photo[..., 0] > 128
    # The photo is shrunk by area and the mask by interpolation: they may differ along the outline only.
    levels, around = np.pad(moved, 1, mode="edge").view(np.uint8), np.ones((3, 3), np.uint8)
    outline = (cv2.dilate(levels, around) != cv2.erode(levels, around))[1:-1, 1:-1]
    assert not (seen ^ moved)[~outline].any()
    scale_limits = 64 / max(shape) * np.array([0.6, 1.6])
    assert moved.sum() <= mask.sum() * (scale_limits[1] + 0.1) ** 2
