"""`FAMILY:ARGUMENT` -> a mask engine or a concept model, on a device, in a precision.

A family is a module with `open_engine(argument, device, dtype) -> OpenedEngine`, or `open_concepts(...) ->
OpenedConcepts`: one of FAMILIES or CONCEPTS by its short name, any other that Python can import by its own. Adding a
family is one file and one line here. docs/run/engines.md has an example.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from semsam_model.engines.opened import OpenedConcepts, OpenedEngine
from semsam_model.errors import ConfigError

#: Short name -> module.
FAMILIES = {"transformers": "semsam_model.engines.transformers_sam"}
CONCEPTS = {"transformers": "semsam_model.engines.transformers_concepts"}


def open_engine(spec: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> OpenedEngine:
    """Raises ConfigError for a family that there is not, CheckpointError where its weights cannot be loaded."""
    opened = _open("engine", "open_engine", FAMILIES, spec, device, dtype)
    assert isinstance(opened, OpenedEngine)
    return opened


def open_concepts(spec: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> OpenedConcepts:
    """Raises as `open_engine`."""
    opened = _open("concepts", "open_concepts", CONCEPTS, spec, device, dtype)
    assert isinstance(opened, OpenedConcepts)
    return opened


def _open(
    what: str, function: str, families: dict[str, str], spec: str, device: torch.device | str, dtype: torch.dtype
) -> Any:
    family, separator, argument = spec.partition(":")
    if not separator or not argument:
        raise ConfigError(f"{what} {spec!r}: expected FAMILY:ARGUMENT, for example transformers:/models/weights")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = families.get(family, family)
    try:
        module = importlib.import_module(name)
    except (ImportError, ValueError) as error:
        known = ", ".join(families)
        raise ConfigError(
            f"{what} {spec!r}: there is no family {family!r} ({error}); expected {known}, or a module of Python"
        ) from None
    if not hasattr(module, function):
        raise ConfigError(f"{what} {spec!r}: module {name} has no function {function}(argument, device, dtype)")
    return getattr(module, function)(argument, torch.device(device), dtype)
