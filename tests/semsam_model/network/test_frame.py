from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.config import ModelConfig, read_model_config
from semsam_model.errors import ImageError, PromptError
from semsam_model.network.frame import BOX, CLICK, Frame
from semsam_model.types import Box, Click

TINY = read_model_config("tiny")  # long side 128
SHORT = replace(TINY, resize_side="short", resize_pixels=64)
PUBLISHED = read_model_config("swin_t")

sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))
configs = st.sampled_from([TINY, SHORT])


def full(frame: Frame, logits: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Frame.mask's crop put back into the photo."""
    crop, (x0, y0, x1, y1) = frame.mask(logits, threshold)
    mask = np.zeros(frame.photo, bool)
    mask[y0:y1, x0:x1] = crop
    return mask


def surface(frame: Frame, logits: np.ndarray) -> np.ndarray:
    """Logits at the centres of the photo's pixels, by torch's own bilinear sampler."""
    axes = []
    for axis, cells in enumerate(logits.shape):
        centre = (torch.arange(frame.photo[axis], dtype=torch.float64) + 0.5) * frame.resized[axis] / frame.photo[axis]
        axes.append(centre / (4 * cells) * 2 - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    image = torch.from_numpy(logits).double()[None, None]
    return F.grid_sample(image, torch.stack((x, y), -1)[None], padding_mode="border", align_corners=False)[0, 0].numpy()


def blobs(frame: Frame, seed: int) -> np.ndarray:
    """Smooth float32 logits over the padded frame, positive in places."""
    h, w = frame.padded[0] // 4, frame.padded[1] // 4
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(-0.3, 1, (1, 1, 2 + h // 5, 2 + w // 5))).float()
    return F.interpolate(coarse, (h, w), mode="bicubic")[0, 0].numpy()


@given(photo=sizes, config=configs, seed=st.integers(0, 99), threshold=st.sampled_from([0.0, 1.0, -1.0]))
@settings(max_examples=60, deadline=None)
def test_a_mask_is_the_bilinear_surface_thresholded_at_the_photos_pixels(
    photo: tuple[int, int], config: ModelConfig, seed: int, threshold: float
) -> None:
    if max(photo) > 32 * min(photo):
        return
    frame = Frame.of(photo, config)
    logits = blobs(frame, seed)
    expected = surface(frame, logits)
    decided = np.abs(expected - threshold) > 1e-4  # nearer than that, rounding decides
    np.testing.assert_array_equal(full(frame, logits, threshold)[decided], (expected > threshold)[decided])


@given(photo=sizes, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_masks_box_is_tight(photo: tuple[int, int], seed: int) -> None:
    frame = Frame.of(photo, replace(TINY, resize_pixels=256))
    crop, (x0, y0, x1, y1) = frame.mask(blobs(frame, seed))
    assert crop.shape == (y1 - y0, x1 - x0)
    assert 0 <= x0 <= x1 <= photo[1] and 0 <= y0 <= y1 <= photo[0]
    if crop.size:
        assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@pytest.mark.parametrize("photo", [(128, 97), (61, 128), (128, 128)], ids=str)
def test_a_photo_of_the_resized_size_gets_torchs_own_upsampling(photo: tuple[int, int]) -> None:
    frame = Frame.of(photo, TINY)
    assert frame.resized == photo
    logits = blobs(frame, 3)
    up = F.interpolate(torch.from_numpy(logits)[None, None], scale_factor=4, mode="bilinear", align_corners=False)[0, 0]
    expected = up.numpy()[: photo[0], : photo[1]]
    decided = np.abs(expected) > 1e-5
    np.testing.assert_array_equal(full(frame, logits)[decided], (expected > 0)[decided])


@pytest.mark.parametrize("config", [read_model_config("mobile"), PUBLISHED], ids=["long", "short"])
@pytest.mark.parametrize("photo", [(997, 1501), (333, 250), (77, 101), (1021, 641)], ids=str)
def test_a_disc_comes_back_where_it_was_drawn(photo: tuple[int, int], config: ModelConfig) -> None:
    height, width = photo
    frame = Frame.of(photo, config)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    side = min(photo)
    for cx, cy, radius in ((0.31 * width, 0.62 * height, 0.2 * side), (0.7 * width, 0.4 * height, 0.28 * side)):
        disc = np.hypot(x - cx, y - cy) < radius
        image = frame.image(np.repeat(np.uint8(255) * disc[..., None], 3, 2), config)
        pooled = F.avg_pool2d(image[:, :1], 4)[0, 0].numpy()  # what a perfect network could say at stride 4
        low, high = pooled.min(), pooled.max()
        mask = full(frame, pooled - (low + high) / 2)
        assert abs(x[mask].mean() - x[disc].mean()) < 0.5
        assert abs(y[mask].mean() - y[disc].mean()) < 0.5
        assert mask.sum() == pytest.approx(disc.sum(), rel=0.05)


@given(photo=sizes, config=configs, share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=60, deadline=None)
def test_a_click_maps_to_the_frame_and_back(
    photo: tuple[int, int], config: ModelConfig, share: tuple[float, float]
) -> None:
    if max(photo) > 32 * min(photo):
        return
    frame = Frame.of(photo, config)
    height, width = photo
    click = Click(share[0] * width, share[1] * height)
    boxes, kinds = frame.prompts([click], config)
    cx, cy, w, h = boxes[0].double().tolist()
    assert kinds.tolist() == [CLICK]
    assert cx * frame.padded[1] / frame.resized[1] * width == pytest.approx(click.x, abs=1e-6 * max(1000, width))
    assert cy * frame.padded[0] / frame.resized[0] * height == pytest.approx(click.y, abs=1e-6 * max(1000, height))
    assert w * frame.padded[1] / frame.resized[1] == pytest.approx(TINY.click_box)
    assert h * frame.padded[0] / frame.resized[0] == pytest.approx(TINY.click_box)


def test_a_click_lands_on_what_it_points_at() -> None:
    photo = (427, 640)
    frame = Frame.of(photo, PUBLISHED)
    rgb = np.zeros((*photo, 3), np.uint8)
    rgb[300:320, 500:530] = 255
    bright = frame.image(rgb, PUBLISHED)[0, 0]
    bright = bright - bright[: frame.resized[0], : frame.resized[1]].min()
    bright[frame.resized[0] :], bright[:, frame.resized[1] :] = 0, 0
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in frame.padded), indexing="ij")
    boxes, _ = frame.prompts([Click(515, 310)], PUBLISHED)
    assert float((bright * x).sum() / bright.sum()) == pytest.approx(float(boxes[0, 0]) * frame.padded[1], abs=0.5)
    assert float((bright * y).sum() / bright.sum()) == pytest.approx(float(boxes[0, 1]) * frame.padded[0], abs=0.5)


def test_boxes_are_clipped_to_the_photo_and_keep_their_order_among_clicks() -> None:
    frame = Frame.of((100, 200), TINY)
    assert frame.resized == frame.padded == (64, 128)
    boxes, kinds = frame.prompts([Box(-50, 20, 100, 60), Click(200, 100)], TINY)
    assert kinds.tolist() == [BOX, CLICK]
    torch.testing.assert_close(boxes[0], torch.tensor([0.25, 0.4, 0.5, 0.4]))
    torch.testing.assert_close(boxes[1, :2], torch.ones(2))


def test_no_prompts_are_no_rows() -> None:
    boxes, kinds = Frame.of((10, 10), TINY).prompts([], TINY)
    assert boxes.shape == (0, 4) and kinds.shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Click(201, 5), r"click \(201, 5\).*200 wide and 100 high"),
        (Click(5, -0.5), r"click \(5, -0.5\)"),
        (Box(200, 0, 300, 50), "box 200,0,300,50.*overlap the photo of 200x100"),
        (Box(-20, -20, -1, 50), "expected it to overlap"),
    ],
    ids=str,
)
def test_a_prompt_outside_the_photo_is_refused(prompt: Click | Box, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        Frame.of((100, 200), TINY).prompts([prompt], TINY)


def test_the_other_side_is_truncated_as_published_and_padding_reaches_the_next_32() -> None:
    frame = Frame.of((427, 640), PUBLISHED)
    assert (frame.resized, frame.padded) == ((640, 959), (640, 960))


@given(photo=sizes, config=configs)
@settings(max_examples=60, deadline=None)
def test_a_frame_keeps_the_aspect_and_pads_no_more_than_it_must(photo: tuple[int, int], config: ModelConfig) -> None:
    if max(photo) > 32 * min(photo):
        return
    frame = Frame.of(photo, config)
    for axis in (0, 1):
        assert frame.padded[axis] % 32 == 0
        assert 0 <= frame.padded[axis] - frame.resized[axis] < 32
        assert frame.logits[axis] * 4 >= frame.resized[axis] > (frame.logits[axis] - 1) * 4
    side = min if config is SHORT else max
    scale = side(frame.resized) / side(photo)
    for axis in (0, 1):
        assert -1 < frame.resized[axis] - photo[axis] * scale < 1


@pytest.mark.parametrize("photo", [(1, 32), (32, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("config", [TINY, SHORT], ids=["long", "short"])
def test_the_thinnest_photo_still_goes_through(photo: tuple[int, int], config: ModelConfig) -> None:
    frame = Frame.of(photo, config)
    image = frame.image(np.full((*photo, 3), 200, np.uint8), config)
    assert image.shape == (1, 3, *frame.padded) and image.isfinite().all()
    everything = np.ones((frame.padded[0] // 4, frame.padded[1] // 4), np.float32)
    assert full(frame, everything).all()


@pytest.mark.parametrize("photo", [(1, 33), (5000, 100), (0, 10), (10, 0)], ids=str)
def test_an_empty_or_too_thin_photo_is_refused(photo: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"photo of {photo[1]}x{photo[0]} pixels"):
        Frame.of(photo, SHORT)


def test_a_very_long_photo_keeps_one_pixel_where_the_long_side_is_fixed() -> None:
    assert Frame.of((10, 30_000), TINY).resized == (1, 128)


def test_padding_is_the_mean_colour() -> None:
    config = replace(SHORT, pixel_mean=(10.0, 20.0, 30.0))
    frame = Frame.of((64, 81), config)
    image = frame.image(np.broadcast_to(np.array([10, 20, 31], np.uint8), (64, 81, 3)).copy(), config)
    assert frame.padded == (64, 96)
    assert (image[:, :, :, 81:] == 0).all()
    assert (image[:, :2] == 0).all()
    torch.testing.assert_close(image[0, 2, :, :81], torch.full((64, 81), 1 / config.pixel_std[2]))


@pytest.mark.parametrize(
    "rgb",
    [np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3))],
    ids=["turned", "grey", "alpha", "floats"],
)
def test_pixels_of_another_shape_or_type_are_refused(rgb: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 RGB of shape \(4, 5, 3\)"):
        Frame.of((4, 5), TINY).image(rgb, TINY)


def test_logits_below_the_threshold_are_an_empty_mask() -> None:
    frame = Frame.of((50, 70), TINY)
    crop, box = frame.mask(np.full((24, 32), -1, np.float32))
    assert crop.shape == (0, 0) and box == (0, 0, 0, 0)


def test_logits_in_the_padding_alone_are_an_empty_mask() -> None:
    frame = Frame.of((97, 128), TINY)
    assert frame.padded == (128, 128)
    logits = np.full((32, 32), -1, np.float32)
    logits[28:] = 1
    crop, box = frame.mask(logits)
    assert crop.shape == (0, 0) and box == (0, 0, 0, 0)


@given(photo=sizes, config=configs, share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=60, deadline=None)
def test_the_cell_under_a_point_covers_it(
    photo: tuple[int, int], config: ModelConfig, share: tuple[float, float]
) -> None:
    if max(photo) > 32 * min(photo):
        return
    frame = Frame.of(photo, config)
    x, y = share[0] * photo[1], share[1] * photo[0]
    for cell, at, axis in zip(frame.cell_of(x, y), (y, x), (0, 1), strict=True):
        side = 4 * photo[axis] / frame.resized[axis]  # of a cell, in photo pixels
        assert 0 <= cell < frame.logits[axis]
        assert cell * side - 1e-6 <= at <= (cell + 1) * side + 1e-6
