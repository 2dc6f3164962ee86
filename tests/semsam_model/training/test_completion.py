"""What annotators left out is added by a model: sure, stable, distinct masks, the same in every run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.data.added_masks import AddedMask, read_lines
from semsam_model.data.mixture import read_mixture
from semsam_model.data.samples import CocoMask, Region
from semsam_model.errors import ConfigError
from semsam_model.masks.geometry import crop_mask, iou
from semsam_model.training.completion import CompletedSource, complete_mixture
from semsam_model.training.left_out import CompletionSettings, left_out
from semsam_model.types import Candidate
from tests.semsam_model.houses import write_source
from tests.semsam_model.masks.shapes import rectangle
from tests.semsam_model.networks import structured

SIZE = (40, 60)
#: Masks of a network that was never trained are not stable, and cut through each other.
ANYTHING = CompletionSettings(grid=4, least_iou=0.0, least_stability=0.0, most_iou=0.9, inside=0.0, most_area=1.0)


def candidate(mask: np.ndarray, predicted_iou: float = 0.9, stability: float = 0.9) -> Candidate:
    crop, bbox = crop_mask(mask)
    size = (mask.shape[0], mask.shape[1])
    return Candidate(1, 0, 1, predicted_iou, predicted_iou, stability, size, bbox, crop)


def box(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    return rectangle(y0, x0, y1, x1, SIZE)


def regions(masks: list[np.ndarray], *, box_only: bool = False) -> list[Region]:
    return [Region(CocoMask.of(mask), "object", None, box_only=box_only) for mask in masks]


def added(annotated: list[np.ndarray], *candidates: Candidate, box_only: bool = False) -> list[AddedMask]:
    return left_out(annotated, regions(annotated, box_only=box_only), candidates, CompletionSettings())


corners = st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(2, 40), st.integers(2, 60))
boxes = corners.map(lambda c: box(c[0], c[1], min(c[0] + c[2], 40), min(c[1] + c[3], 60)))
scores = st.sampled_from([0.5, 0.7, 0.9])


@given(st.lists(boxes, max_size=4), st.lists(st.tuples(boxes, scores, scores), max_size=12))
@settings(max_examples=150)
def test_nothing_that_is_annotated_or_unsure_is_added_and_nothing_twice(
    annotated: list[np.ndarray], proposed: list[tuple[np.ndarray, float, float]]
) -> None:
    wanted = CompletionSettings()
    found = left_out(annotated, regions(annotated), [candidate(*of) for of in proposed], wanted)
    known = list(annotated)
    for new in found:
        assert new.predicted_iou >= wanted.least_iou and new.stability >= wanted.least_stability
        assert all(iou(new.mask, other) <= wanted.most_iou for other in known)
        for other in known:
            shared, smaller = np.count_nonzero(new.mask & other), min(new.mask.sum(), other.sum())
            assert shared <= wanted.apart * smaller or shared >= wanted.inside * smaller, (
                "no border cuts through a mask"
            )
        known.append(new.mask)
    for new in found:
        assert (new.granularity == "part") is (new.parent is not None)
        if new.parent is not None:
            whole = known[new.parent]
            assert whole.sum() > new.mask.sum()
            assert np.count_nonzero(whole & new.mask) >= wanted.inside * new.mask.sum()


def test_a_mask_inside_others_is_a_part_of_the_smallest_of_them() -> None:
    person, head, eye, ball = box(0, 0, 40, 30), box(2, 5, 16, 20), box(5, 8, 9, 12), box(20, 40, 30, 50)
    found = added([person], candidate(eye, 0.7), candidate(ball, 0.8), candidate(head, 0.9))
    assert [(int(new.mask.sum()), new.granularity, new.parent) for new in found] == [
        (210, "part", 0),
        (100, "region", None),
        (16, "part", 1),
    ]


def test_a_mask_that_cuts_through_an_annotated_one_or_nearly_is_one_is_left_out() -> None:
    person = box(0, 0, 40, 30)
    assert added([person], candidate(box(0, 20, 40, 45))) == []
    assert added([person], candidate(box(2, 1, 40, 29))) == []
    (whole,) = added([box(0, 0, 20, 20)], candidate(person))
    assert whole.granularity == "region" and whole.parent is None, "what encloses an annotated mask is a region"


def test_a_filled_rectangle_stands_for_the_thing_in_it() -> None:
    ring = box(5, 5, 35, 35) & ~box(10, 10, 30, 30)
    assert iou(ring, box(4, 4, 36, 36)) <= 0.5
    assert added([box(4, 4, 36, 36)], candidate(ring), box_only=True) == []
    assert len(added([box(4, 4, 36, 36)], candidate(box(20, 30, 28, 50)), box_only=True)) == 1


def test_specks_and_the_whole_photo_are_left_out() -> None:
    assert added([], candidate(box(0, 0, 1, 2)), candidate(box(0, 0, 40, 59))) == []


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = read_model_config("tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    network = structured(config, seed=4)
    with torch.no_grad():
        [*_, bias] = network.decoder.iou_head.parameters()
        bias += 5
    save(path, network, config)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five photos marked partial, and two that are annotated completely; returns the mixture."""
    write_source(tmp_path, "houses", 5, partial=True)
    write_source(tmp_path, "known", 2)
    sources = [
        {"name": name, "kind": "coco", "path": f"{name}.json", "feeds": ["masks", "iou"]}
        for name in ("houses", "known")
    ]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"sources": sources}))
    return config


def complete(
    weights: Path, config: Path, out: Path, asked: CompletionSettings = ANYTHING, limit: int | None = None
) -> dict[str, CompletedSource]:
    network, version = load(weights)
    return complete_mixture(network, config, out, weights=str(version), root=config.parent, settings=asked, limit=limit)


def test_photos_marked_partial_get_masks_and_the_others_are_left_alone(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    done = complete(weights, data, tmp_path / "out")
    assert set(done) == {"houses"} and done["houses"].photos == 5 and done["houses"].masks > 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["houses.jsonl", "mixture.yaml"]
    head = next(read_lines(tmp_path / "out" / "houses.jsonl"))["settings"]
    assert head["weights"].startswith("tiny-") and head["least_iou"] == 0.0 and head["limit"] is None
    before = read_mixture(data, tmp_path)
    after = read_mixture(tmp_path / "out" / "mixture.yaml", tmp_path, added=True)
    new = 0
    for one, two in zip(before.samples, after.samples, strict=True):
        assert [region.added for region in two.regions[: len(one.regions)]] == [False] * len(one.regions)
        assert all(np.array_equal(a, b) for a, b in zip(one.masks(), two.masks(), strict=False))
        extra = two.regions[len(one.regions) :]
        assert all(region.added and region.name is None for region in extra)
        assert two.source == "houses" or not extra
        new += len(extra)
    assert new == done["houses"].masks


def test_two_runs_give_the_same_files(weights: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        complete(weights, data, tmp_path / name)
    one, two = ((tmp_path / name / "houses.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_run_killed_in_the_middle_goes_on_and_ends_as_if_unbroken(weights: Path, data: Path, tmp_path: Path) -> None:
    complete(weights, data, tmp_path / "whole")
    broken = tmp_path / "broken"
    command = [
        sys.executable,
        "-m",
        "tests.semsam_model.training.killed_completion",
        *map(str, (weights, data, broken)),
    ]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    part = broken / "houses.jsonl.part"
    assert len(part.read_bytes().splitlines()) == 3 and not (broken / "houses.jsonl").exists()
    with part.open("ab") as file:
        file.write(b'{"photo": "houses/2.pn')  # as a full disk or a lost machine leaves it
    complete(weights, data, broken)
    assert not part.exists()
    assert (broken / "houses.jsonl").read_bytes() == (tmp_path / "whole" / "houses.jsonl").read_bytes()


def test_a_folder_made_with_other_settings_or_for_other_photos_is_refused(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    complete(weights, data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"houses\.jsonl: made with grid 4, now it is 3"):
        complete(weights, data, tmp_path / "out", replace(ANYTHING, grid=3))
    with pytest.raises(ConfigError, match="made with limit None, now it is 2"):
        complete(weights, data, tmp_path / "out", limit=2)
    content = json.loads((tmp_path / "houses.json").read_text())
    content["images"] = content["images"][1:]
    (tmp_path / "houses.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"made for other photos, with houses/0\.png"):
        complete(weights, data, tmp_path / "out")


def test_a_photo_that_cannot_be_read_is_named_and_gets_nothing(weights: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "houses" / "1.png").write_bytes(b"torn")
    done = complete(weights, data, tmp_path / "out")["houses"]
    assert done.photos == 5 and len(done.skipped) == 1 and "1.png" in done.skipped[0]


def test_a_mixture_without_partial_photos_is_refused(weights: Path, data: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(data.read_text())
    content["sources"] = content["sources"][1:]
    data.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="expected photos marked partial"):
        complete(weights, data, tmp_path / "out")


def test_more_processes_change_nothing(weights: Path, data: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        complete(weights, data, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    network, version = load(weights)
    complete_mixture(network, data, tmp_path / "two", weights=str(version), root=tmp_path, settings=ANYTHING, workers=2)
    one, two = ((tmp_path / name / "houses.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
