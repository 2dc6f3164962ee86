"""Memory of freed tensors stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_KEEP = """
import torch
from semsam_model.training.allocator import keep_freed_memory

print(keep_freed_memory(), float(sum(torch.ones(1 << number).sum() for number in range(20))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_glibc_takes_the_settings_and_goes_on_allocating() -> None:
    said = subprocess.run([sys.executable, "-c", _KEEP], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["True", str(float(2**20 - 1))]
