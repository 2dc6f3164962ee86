"""PyTorch checkpoints of others, read without running code that they may hold."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semsam_model.errors import CheckpointError


class _NumberType:
    """Stands in for numpy.dtype in a pickle: a plain number's kind and byte order, nothing else."""

    def __init__(self, code: str, *_: object) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype of {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> Any:
    """Stands in for numpy's reconstruction of a scalar."""
    return np.frombuffer(data, kind.order + kind.code, count=1)[0].item()


#: Schedulers and optimizers keep numpy scalars beside the weights, whose pickles name these (the last two by the age of
#: numpy). numpy's own are not called: they would take any dtype, objects among them.
_NUMBERS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]


def read_pickle(path: Path) -> Any:
    """The content of a PyTorch checkpoint: tensors on the CPU and plain values; no code of the file is run.

    Raises CheckpointError when it is missing, cut short, damaged, or asks for anything that could run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    whole = zipfile.is_zipfile(path)
    try:
        with path.open("rb") as file:
            if not whole and file.read(4) == b"PK\x03\x04":
                raise CheckpointError(f"{path}: cut short, its end is missing; download it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the pickle's protocol before it reads or refuses it
            # mapped, so that optimizer state beside the weights is never read
            with torch.serialization.safe_globals(_NUMBERS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as exc:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(exc))
        if wanted is None:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from exc
        raise CheckpointError(
            f"{path}: refused, its pickle asks for {wanted[1]}, which could run code; expected tensors and plain "
            "values. If you trust where it is from, save its tensors alone there, and convert that file"
        ) from exc
    except Exception as exc:  # damaged bytes can fail anywhere in the reader
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged ({type(exc).__name__})") from exc
