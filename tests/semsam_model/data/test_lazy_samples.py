"""Long sequences of samples: packed, chained, sliced, and pickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from semsam_model.data.lazy_samples import LazySamples, chain, pack
from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.samples import Sample, Supervision
from tests.semsam_model.data.readers.files import PART, WHOLE, coco_file, sa1b_files


def test_packed_and_chained_samples_are_the_same_samples_also_in_a_worker(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "sa", 4)
    rows = [{"mask": WHOLE, "category_id": 1}, {"mask": PART, "category_id": 1}]
    coco = read_coco(
        coco_file(tmp_path / "coco", [{"id": 1, "name": "cup"}], rows), supervision=Supervision(iou=False)
    ).samples
    row = chain([pack(coco), read_sa1b(tmp_path / "sa").samples, pack([])])
    assert len(row) == 5
    for samples in (row, pickle.loads(pickle.dumps(row))):
        assert [sample.name for sample in samples[::-1]] == [sample.name for sample in row][::-1]
        assert not samples[0].supervision.iou and samples[-1].supervision.iou
        assert np.array_equal(samples[0].mask(1), PART)
        assert np.array_equal(samples[-1].image(), row[4].image())
        with pytest.raises(IndexError):
            samples[5]


def test_a_lazy_row_makes_a_sample_only_when_it_is_asked_for() -> None:
    made: list[int] = []
    sample = Sample(None, "s", lambda: pytest.fail("read"))  # type: ignore[arg-type]
    row = LazySamples(1000, lambda index: (made.append(index), sample)[1])
    assert row[-1] is sample and row[3:9:2][1] is sample
    assert made == [999, 5]
