"""Regions of a photo that do not overlap within a kind."""

import numpy as np

from semsam_model.inference.naming import Kind
from semsam_model.inference.preannotate import Region, apart
from semsam_model.types import Candidate


def square(rank: int, score: float, x0: int, x1: int, kind: Kind = "object") -> Region:
    crop = np.ones((40, x1 - x0), bool)
    return Region(Candidate(rank, 0, 1, score, score, 1.0, (60, 100), (x0, 10, x1, 50), crop), kind)


def test_of_two_masks_the_better_one_has_what_they_share_and_little_left_over_is_no_region() -> None:
    best, most, little = square(2, 0.9, 0, 40), square(1, 0.8, 30, 70), square(3, 0.5, 35, 75)
    kept = [region.candidate for region in apart([most, best, little], 0.6)]
    assert [(c.rank, c.bbox) for c in kept] == [(2, (0, 10, 40, 50)), (1, (40, 10, 70, 50))]


def test_an_object_and_a_part_that_are_nearly_the_same_are_one_region_the_surer_one() -> None:
    whole, pane = square(1, 0.8, 0, 40), square(2, 0.5, 20, 60)
    for share, stays in ((38, "one"), (30, "both")):  # IoU 0.95, 0.75
        for score, surer in ((0.9, "part"), (0.7, "object"), (0.8, "object")):
            part = square(1, score, 0, share, "part")
            expected = ["part", "object"] if surer == "part" else ["object", "part"]
            for given in ([part, whole], [whole, part]):
                kinds = [region.kind for region in apart(given, 0.6)]
                assert kinds == (expected if stays == "both" else [surer])
    # what is no region takes nothing from others of its kind
    kept = apart([square(1, 0.9, 0, 40, "part"), whole, pane], 0.6)
    assert [(r.kind, r.candidate.bbox) for r in kept] == [("part", (0, 10, 40, 50)), ("object", (20, 10, 60, 50))]
    # and what is compared is what is left of a mask: 0..50 without the better 40..80
    left = [square(1, 0.9, 40, 80), square(2, 0.8, 0, 50), square(1, 0.7, 0, 40, "part")]
    assert [r.candidate.bbox[::2] for r in apart(left, 0.6)] == [(40, 80), (0, 40)]
