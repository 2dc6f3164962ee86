"""Fitting the names of masks to a finished network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semsam_model.checkpoints.checkpoint import load, load_model, read_weights, save, with_tensors
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.data.vocabulary import NO_LABEL, NameTable, Vocabulary
from semsam_model.errors import CheckpointError, DataError
from semsam_model.network.model import SemanticSAM
from semsam_model.network.name_head import NameHead
from semsam_model.training.names import NamedMasks, NamedPhotos, collect_named_masks, fit

DIM, SAMPLES = 12, synthetic_samples(4, seed=4, size=(256, 256), source="made")
VOCABULARY = Vocabulary.of(SAMPLES)
LABELS = Vocabulary(tuple(("made", head, f"label {i}") for head in (0, 1) for i in range(4)), (10,) * 8)
VECTORS = torch.eye(DIM)[: len(LABELS.rows)]


def made_masks(seed: int, centres: np.ndarray, count: int = 200) -> NamedMasks:
    """Masks whose pooled features lie round a centre of their label; queries say nothing."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(LABELS.rows), size=count)
    pooled = centres[rows] + 0.5 * rng.normal(size=(count, centres.shape[1]))
    return NamedMasks(
        (0.1 * rng.normal(size=(count, 2, DIM))).astype(np.float16), pooled.astype(np.float16), rows.astype(np.int64)
    )


def right_labels(head: NameHead, masks: NamedMasks) -> float:
    """Share of masks whose best label, of their head's four, is the right one."""
    x = torch.from_numpy(masks.pooled).float()
    right = []
    for kind in range(2):
        embedding = torch.from_numpy(masks.queries[:, kind]).float() + head.projections[kind](x)
        logits = F.normalize(embedding, dim=-1) @ VECTORS[4 * kind : 4 * kind + 4].T
        of_kind = torch.from_numpy(masks.rows // 4 == kind)
        right.append((logits.argmax(1) + 4 * kind == torch.from_numpy(masks.rows))[of_kind])
    return float(torch.cat(right).float().mean())


def test_names_are_learned_from_what_lies_inside_masks_and_hold_for_others() -> None:
    torch.manual_seed(0)
    head = NameHead((8, 8), 8, DIM)
    width = head.projections[0][0].in_features  # type: ignore[index]
    centres = np.random.default_rng(1).normal(size=(len(LABELS.rows), width))
    table = NameTable.of(LABELS, VECTORS)
    changed = fit(head, made_masks(2, centres), table, steps=60)
    unseen = made_masks(3, centres)
    assert right_labels(head, unseen) < 0.6
    learned = NameHead((8, 8), 8, DIM)
    learned.load_state_dict(head.state_dict() | {n.removeprefix("name_head."): v for n, v in changed.items()})
    assert right_labels(learned, unseen) > 0.95
    again = fit(head, made_masks(2, centres), table, steps=60)
    assert all(torch.equal(value, again[name]) for name, value in changed.items())


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return load_model()[0]


@pytest.mark.slow
def test_masks_are_collected_alike_by_any_number_of_processes(model: SemanticSAM) -> None:
    photos: list[None] = []
    one, two = (
        collect_named_masks(model, SAMPLES, VOCABULARY, workers=n, on_photo=lambda: photos.append(None)) for n in (0, 2)
    )
    assert len(photos) == 2 * len(SAMPLES)
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_allclose(one.pooled, two.pooled, atol=1e-2)
    assert len(one.rows) > 4 and set(one.rows) <= set(range(len(VOCABULARY.rows)))
    assert one.queries.shape[1:] == (2, model.config.text_dim)


def test_a_photo_without_a_known_name_is_not_opened(model: SemanticSAM) -> None:
    class Unreadable:
        path, name = Path("none.png"), "none.png"

        def pixels(self) -> np.ndarray:
            raise AssertionError("opened")

    sample = dataclasses.replace(SAMPLES[0], photo=Unreadable(), source="another")
    assert VOCABULARY.row(sample.source, "object", sample.regions[0].name) == NO_LABEL
    assert NamedPhotos(model, [sample], VOCABULARY)[0] == []
    with pytest.raises(DataError, match="at least one mask with a label"):
        collect_named_masks(model, [sample], VOCABULARY)


def test_changed_tensors_replace_those_of_a_file_and_nothing_else(model: SemanticSAM, tmp_path: Path) -> None:
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save(before, model, model.config, half=True)
    name = "name_head.projections.0.2.bias"
    with_tensors(before, {name: torch.ones(model.config.text_dim)}, after, card={"names": {"photos": 3}})
    old, new = read_weights(before), read_weights(after)
    assert {n for n in old[1] if not torch.equal(old[1][n], new[1][n])} == {name}
    assert all(torch.equal(value, new[2][n]) for n, value in old[2].items()) and old[2].keys() == new[2].keys()
    assert (new[1][name] == 1).all() and new[1][name].dtype == torch.float16
    assert load(after)[0].name_head is not None and new[0].card["names"] == {"photos": 3}
    for wrong in ({"nothing": torch.ones(2)}, {name: torch.ones(2)}):
        with pytest.raises(CheckpointError, match="does not fit the changed tensors"):
            with_tensors(before, wrong, after)
