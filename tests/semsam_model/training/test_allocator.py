"""Memory of freed tensors stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
import torch
from semsam_model.training.allocator import keep_freed_memory

assert not {keep} or keep_freed_memory()
torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_large_tensor_after_another_needs_no_new_pages() -> None:
    kept, left = (
        int(subprocess.run([sys.executable, "-c", _FAULTS.format(keep=keep)], check=True, capture_output=True).stdout)
        for keep in (True, False)
    )
    assert kept < left / 3
