"""Models of the `transformers` package: a folder, or the name of a repository on the hub, becomes one that answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from semsam_model.checkpoints.checkpoint import content_digest
from semsam_model.checkpoints.header import Version
from semsam_model.engines.photo import FILES, Preprocessing
from semsam_model.errors import CheckpointError
from semsam_model.text_encoder import LOADING


class Published(NamedTuple):
    """A model of the library with all that is needed to show it photos."""

    model: Any  #: in eval mode, on its device
    type: str  #: `model_type` of its config
    preprocessing: Preprocessing
    version: Version
    nbytes: int  #: memory of its weights


def read_published(
    what: str,
    argument: str,
    classes: Mapping[str, str],
    device: torch.device,
    dtype: torch.dtype,
    side: Callable[[Any], int],
) -> Published:
    """what: "engine", for messages. classes: `model_type` of a config.json -> the class to load. side: of the model's
    input, where the files do not say it. Raises CheckpointError.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(argument)
        name = classes.get(config.model_type)
        if name is None:
            raise CheckpointError(
                f"{what} {argument}: of type {config.model_type}, expected one of {', '.join(classes)}"
            )
        with LOADING:
            model = getattr(transformers, name).from_pretrained(argument, dtype=dtype).to(device).eval()
        folder = _folder(argument)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"{what} {argument}: cannot be loaded: {first_line(error)}") from None
    preprocessing = Preprocessing.read(folder, side(model))
    tensors = {key: tensor for key, tensor in model.state_dict().items() if tensor.numel()}
    digest = content_digest(tensors, f"{name} {preprocessing}")
    short = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(argument).name).strip("-") or config.model_type
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Published(model, config.model_type, preprocessing, Version(short, digest), nbytes)


def read_tokenizer(what: str, argument: str) -> Any:
    """Raises CheckpointError."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(argument)
        # where its files are missing the library makes one without words
        if not set(tokenizer("cat")["input_ids"]) - set(tokenizer.all_special_ids):
            raise ValueError("it knows no words; tokenizer.json comes with the weights")
        return tokenizer
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"{what} {argument}: its tokenizer cannot be loaded: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error of the library says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _folder(argument: str) -> Path:
    """Where its files lie; a hub name's in the hub's cache. Raises OSError."""
    if Path(argument).is_dir():
        return Path(argument)
    from transformers.utils import cached_file

    found = [cached_file(argument, name, _raise_exceptions_for_missing_entries=False) for name in FILES]
    return next((Path(str(path)).parent for path in found if path is not None), Path(argument))
