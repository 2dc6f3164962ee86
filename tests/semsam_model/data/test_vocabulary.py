"""The label lists of training data."""

from __future__ import annotations

import numpy as np

from semsam_model.data.samples import CocoMask, Region
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels, Vocabulary

NOTHING = CocoMask({})
SAMPLES = synthetic_samples(3, seed=4, size=(96, 96), source="made")


def test_a_list_of_a_kind_that_a_source_does_not_have_is_empty() -> None:
    vocabulary = Vocabulary((("made", 0, "cat"), ("made", 0, "dog")), (3, 2))
    labels = SourceLabels(vocabulary, np.eye(2, 5, dtype=np.float32))
    parts = labels.of_source("made", (1,))
    assert parts.values == () and parts.kinds == () and parts.vectors.shape == (0, 5)
    assert labels.of_source("made", (0, 1)).values == ("cat", "dog")
    assert (
        labels.row("made", Region(NOTHING, "object", "Dog")) == 1
        and labels.row("made", Region(NOTHING, "part", "dog")) == NO_LABEL
    )


def test_lists_that_are_too_short_to_tell_anything_apart_are_left_out_unless_asked_for() -> None:
    whole = Vocabulary.of(SAMPLES, least=1)
    heads = {row[:2] for row in whole.rows}
    for least in range(1, 8):
        kept = Vocabulary.of(SAMPLES, least=least)
        assert set(kept.rows) <= set(whole.rows)
        for head in heads:
            count = sum(row[:2] == head for row in whole.rows)
            assert sum(row[:2] == head for row in kept.rows) == (count if count >= least else 0)
