"""Pickles are read without running code: plain values and tensors, or a refusal with the reason."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from semsam_model.checkpoints.pickles import read_pickle
from semsam_model.checkpoints.published import convert
from semsam_model.errors import CheckpointError
from tests.semsam_model.checkpoints.conversions import (
    State,
    converted,
    refused,
    statuses,
)


def test_the_older_pickle_layout_is_taken(state: State, out: Path) -> None:
    pth = out.parent.parent / "old.pth"
    torch.save({"model": state}, pth, _use_new_zipfile_serialization=False)
    assert convert(pth, "tiny", out).version == converted({"model": state}, out).version


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numpy_scalars_of_a_scheduler_beside_the_weights_are_passed_over(
    module: str, state: State, out: Path, tmp_path: Path
) -> None:
    pth = tmp_path / "in.pth"
    numbers = [np.float64(1e-4), np.float32(2), np.int64(7), np.uint8(9), np.bool_(True), np.array(3.0, ">f8")[()]]
    content = {"model": state, "scheduler": {"base_lrs": numbers}}
    torch.save(content, pth, _use_new_zipfile_serialization=False)  # the layout without checksums
    named = re.sub(rb"numpy\._?core\.multiarray(?=\nscalar\n)", module.encode(), pth.read_bytes())
    assert module.encode() in named
    pth.write_bytes(named)
    report = convert(pth, "tiny", out)
    assert report.version == converted({"model": state}, out).version
    assert statuses(report)["scheduler"] == "ignored"


@pytest.mark.parametrize("number", [np.float64(1e-4), np.int8(-3), np.bool_(True), np.array(2.5, ">f4")[()]], ids=repr)
def test_numpy_scalars_are_read_with_their_value(number: Any, tmp_path: Path) -> None:
    torch.save({"number": number}, tmp_path / "in.pth")
    assert read_pickle(tmp_path / "in.pth") == {"number": number.item()}


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": [1]}, {"model": {}}, {}], ids=str)
def test_a_pickle_of_something_else_is_refused(content: Any, out: Path) -> None:
    assert "expected a dictionary of tensors, got " in refused(content, out)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.9999])
def test_a_checkpoint_cut_short_is_refused(share: float, zipped: bool, state: State, out: Path, tmp_path: Path) -> None:
    pth = tmp_path / "in.pth"
    torch.save({"model": state}, pth, _use_new_zipfile_serialization=zipped)
    whole = pth.read_bytes()
    pth.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"in\.pth: (cut short|not a PyTorch checkpoint, or damaged)"):
        convert(pth, "tiny", out)
    assert not out.exists()


def zip_of_nothing() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>Not Found</html>", b"\x80", b"\x00" * 5000, zip_of_nothing()]
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, out: Path, tmp_path: Path) -> None:
    pth = tmp_path / "in.pth"
    pth.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"in\.pth: not a PyTorch checkpoint, or damaged"):
        convert(pth, "tiny", out)


def test_safetensors_of_something_else_and_missing_files_are_refused(out: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"key a: expected every name to begin with 'model.'"):
        convert(tmp_path / "a.safetensors", "tiny", out)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        convert(tmp_path / "none.pth", "tiny", out)


class Attack:
    """Unpickling this calls open(path, 'w')."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "old", "plain", "plain, newer protocol"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    form: str, state: State, out: Path, tmp_path: Path
) -> None:
    pth, harm = tmp_path / "in.pth", tmp_path / "harm"
    content = {"extra": Attack(harm), "model": state}
    if form.startswith("plain"):
        pth.write_bytes(pickle.dumps(content, protocol=2 if form == "plain" else 5))
    else:
        torch.save(content, pth, _use_new_zipfile_serialization=form == "zip")
    words = (
        r"not a PyTorch" if form.endswith("protocol") else r"refused, its pickle asks for _?io\.open, which could run"
    )
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(pth, "tiny", out)
    assert not harm.exists() and not out.exists()
    assert "weights_only" not in str(caught.value)  # torch's own advice is to switch the check off
    pickle.loads(pickle.dumps(Attack(harm))).close()
    assert harm.exists(), "the attack of this test does nothing"


@pytest.mark.parametrize(
    ("extra", "asks"),
    [
        (np.dtype("O"), "numpy.dtype"),
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0], "numpy.dtype"),
        (np.datetime64("2024-01-01"), "numpy.dtype"),
        (np.ones(2), r"numpy\._core\.multiarray\._reconstruct"),
        (np.float64, r"numpy\.float64"),
    ],
    ids=["object type", "structured", "date", "array", "class"],
)
def test_numpy_beyond_plain_numbers_is_refused(extra: Any, asks: str, state: State, out: Path) -> None:
    assert re.search(f"refused, its pickle asks for {asks}", refused({"model": state, "extra": extra}, out))
