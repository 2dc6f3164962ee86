"""The C library takes the settings for memory of freed tensors."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import torch
from semsam_model.allocator import {setting}

print({setting}(), float(sum(torch.ones(1 << number).sum() for number in range(20))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("setting", ["keep_freed_memory", "return_freed_memory"])
def test_glibc_takes_the_settings_and_goes_on_allocating(setting: str) -> None:
    program = _PROGRAM.format(setting=setting)
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["True", str(float(2**20 - 1))]
