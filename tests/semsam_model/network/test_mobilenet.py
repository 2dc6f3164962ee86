"""Maps of the small backbone."""

import torch
import torch.nn.functional as F

from semsam_model.network.mobilenet import MobileNetV2


def test_the_maps_are_the_same_with_and_without_gradients_but_for_rounding() -> None:
    torch.manual_seed(0)
    backbone, images = MobileNetV2(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        found = backbone(images)
    for stride, ours, theirs in zip((4, 8, 16, 32), found, backbone(images), strict=True):
        assert ours.shape[2:] == (96 // stride, 64 // stride)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_photo_stays_as_it_was() -> None:
    images = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    MobileNetV2()(images)
    assert torch.equal(images, before)


@torch.no_grad()
def test_zeros_beside_a_photo_on_the_right_and_below_change_nothing_far_from_them() -> None:
    torch.manual_seed(0)
    backbone, images = MobileNetV2(), torch.randn(1, 3, 256, 256)
    alone, beside = backbone(images)[0], backbone(F.pad(images, (0, 32, 0, 32)))[0]
    torch.testing.assert_close(beside[..., :56, :56], alone[..., :56, :56], rtol=1e-4, atol=1e-6)
