"""`FAMILY:ARGUMENT` -> a mask engine, on a device, in a precision.

A family is a module with `open_engine(argument, device, dtype) -> OpenedEngine`: one of FAMILIES by its short name, any
other that Python can import by its own. Adding a family is one file and one line here. docs/run/engines.md has an
example.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from semsam_model.engines.opened import OpenedEngine
from semsam_model.errors import ConfigError

#: Short name -> module.
FAMILIES = {"transformers": "semsam_model.engines.transformers_sam"}


def open_engine(spec: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> OpenedEngine:
    """Raises ConfigError for a family that there is not, CheckpointError where its weights cannot be loaded."""
    family, separator, argument = spec.partition(":")
    if not separator or not argument:
        raise ConfigError(f"engine {spec!r}: expected FAMILY:ARGUMENT, for example transformers:facebook/sam-vit-base")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = _module(spec, family).open_engine(argument, torch.device(device), dtype)
    assert isinstance(opened, OpenedEngine)
    return opened


def _module(spec: str, family: str) -> Any:
    name = FAMILIES.get(family, family)
    try:
        module = importlib.import_module(name)
    except (ImportError, ValueError) as error:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"engine {spec!r}: there is no family {family!r} ({error}); expected {known}, or a module of Python"
        ) from None
    if not hasattr(module, "open_engine"):
        raise ConfigError(f"engine {spec!r}: module {name} has no function open_engine(argument, device, dtype)")
    return module
