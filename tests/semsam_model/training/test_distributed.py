"""Two processes of torchrun train one network: together they do what one does with batches twice as large."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from semsam_model.config import config_root
from semsam_model.errors import ConfigError
from semsam_model.training.distributed import process_group
from semsam_model.training.loop import train
from tests.paths import ROOT
from tests.semsam_model.training.distributed_run import STEPS, config, photos

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    tiny = yaml.safe_load((config_root() / "model" / "tiny.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump(tiny | {"corrections": True}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, SCRIPT, folder / "model.yaml", folder], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("first", 1, 1e-5), ("whole", STEPS, 1e-2)])
def test_two_processes_equal_one_with_batches_twice_as_large(
    out: Path, name: str, steps: int, tolerance: float
) -> None:
    """After a step but for rounding. Adam then moves what has no gradient but rounding, and a choice may fall apart."""
    train(config(out / "model.yaml", 2, steps), photos(), out / f"alone_{name}", console=Console(quiet=True))
    alone, together = (torch.load(out / run / "state.pt", weights_only=True) for run in (f"alone_{name}", name))
    one, two = (
        torch.cat([state["exp_avg"].flatten() for _, state in sorted(run["optimizer"]["state"].items())])
        for run in (alone, together)
    )
    assert float((one - two).norm() / one.norm()) < tolerance
    apart = torch.cat([(alone["model"][key] - value).abs().flatten() for key, value in together["model"].items()])
    assert float((apart < 1e-6).double().mean()) > 0.98
    assert float(apart.max()) <= 2.1 * steps * 1e-5


@pytest.mark.slow
def test_a_run_that_one_process_was_told_to_stop_goes_on_exactly(out: Path) -> None:
    told = [(out / f"stopped_{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] == "interrupted 2" and STEPS > 2
    whole, parts = (load_file(out / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_both_and_its_batch_is_saved(out: Path) -> None:
    here, there = ((out / f"error_{rank}").read_text() for rank in range(2))
    assert "process 1" in here and "nan" in there and "made/" in there
    kept = torch.load(out / "broken" / "not_finite_1.pt", weights_only=True)
    assert kept["images"].shape == (1, 3, 96, 96) and len(kept["names"]) == len(kept["masks"]) == 1
    assert not (out / "broken" / "not_finite.pt").exists()


@pytest.mark.slow
def test_only_the_first_process_writes(out: Path) -> None:
    rows = (out / "whole" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 1


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(out: Path) -> None:
    """One that does aborts the process now and then, when the interpreter ends."""
    for rank in range(2):
        assert "gloo" not in (out / f"threads_{rank}").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_processes_that_ask_for_a_gpu_where_there_is_none_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for device, message in (("cuda", "this machine has no CUDA device; say cpu"), ("cuda:1", "say cuda")):
        with pytest.raises(ConfigError, match=message), process_group(device):
            pass
