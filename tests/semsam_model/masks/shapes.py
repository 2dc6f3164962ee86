"""Masks to test with."""

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

any_mask = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """Smooth masks with parts and holes, also cut off by the photo's edges."""
    height, width = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), draw(st.sampled_from([3.0, 5.0, 8.0])))
    return noise > np.quantile(noise, draw(st.sampled_from([0.2, 0.5, 0.8])))


def disc(height: int, width: int, cx: float, cy: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return np.hypot(x - cx, y - cy) < radius


def rectangle(y0: int, x0: int, y1: int, x1: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask
