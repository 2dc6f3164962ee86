"""Weights on disk: one safetensors file that carries its model config and a digest of its content.

    save(path, model, model.config)         -> Version
    model, version = load(path)             # strict names and shapes, digest verified
    model, version = load_model("mobile")   # what the service and the command line call

Nothing else is read at run time; published pickles go through `semsam_model.checkpoints.published` once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from semsam_model.checkpoints.header import EMBEDDED, FORMAT, Header, Version, find_weights, header_of, opened
from semsam_model.config import ModelConfig
from semsam_model.errors import CheckpointError
from semsam_model.files import atomic_write
from semsam_model.network.merge_cost import PLAIN, LearnedCost, PlainCost
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.network.query_calibration import QueryCalibration
from semsam_model.network.ranker import Ranker
from semsam_model.network.refiner import Refiner

REFINER = "refiner."  #: prefix of the refiner's tensors, which belong to the network's; a file may have none
#: Prefixes of what was fitted to the finished network: its ranker, the calibration of its object queries, its cost of
#: merging regions. A file may have none. They are stored in full precision.
RANKER, CALIBRATION, BORDERS = "ranker.", "query_calibration.", "borders."
BESIDE = (RANKER, CALIBRATION, BORDERS)
Fitted = Ranker | QueryCalibration | LearnedCost


def content_digest(tensors: Mapping[str, Tensor], config_json: str) -> str:
    """sha256 over the config text and every tensor's name, dtype, shape and bytes, in order of names."""
    digest = hashlib.sha256(f"{FORMAT}\0{config_json}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(
    path: Path,
    weights: SemanticSAM | Mapping[str, Tensor],
    config: ModelConfig,
    *,
    card: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Version:
    """Write a weights file; the old file, if any, stays whole until the new one is complete.

    A model's ranker, calibration and learned cost of merging go with it. half: store float16, these excepted. card:
    noted in the file as JSON (dates as text), not part of the digest.
    Raises CheckpointError for values that are not finite (after the cast), a card that is not a mapping, and when the
    file cannot be written.
    """
    if card is not None and not isinstance(card, Mapping):
        raise CheckpointError(f"{path}: not written, the card is {type(card).__name__}, expected a mapping")
    if isinstance(weights, SemanticSAM):
        state = weights.state_dict() | _tensors(RANKER, weights.ranker)
        state |= _tensors(CALIBRATION, weights.query_calibration)
        if isinstance(weights.merge_cost, LearnedCost):
            state |= _tensors(BORDERS, weights.merge_cost)
    else:
        state = dict(weights)
    dtype = torch.float16 if half else torch.float32
    tensors = {
        # clone: safetensors refuses tensors that share storage
        name: value.detach().to("cpu", torch.float32 if name.startswith(BESIDE) else dtype).contiguous().clone()
        for name, value in state.items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: not written, {name} holds values that are not finite as {tensor.dtype}")
    return _write(path, tensors, config, card)


def with_ranker(source: Path, ranker: Ranker, path: Path, *, card: Mapping[str, Any] | None = None) -> Version:
    """Write the weights of `source` with this ranker instead of its own; the network's tensors stay bit for bit.

    card: added to the source's card. Raises CheckpointError when a file cannot be read or written.
    """
    return _with(RANKER, source, ranker, path, card)


def with_tensors(
    source: Path, changed: Mapping[str, Tensor], path: Path, *, card: Mapping[str, Any] | None = None
) -> Version:
    """Write the weights of `source` with some of the network's tensors changed, in the type that they have there.

    All others stay bit for bit, as does what is stored beside the network. card: added to the source's card. Raises
    CheckpointError when a file cannot be read or written, or `source` has no tensor of such a name and shape.
    """
    header, network, beside = read_weights(source)
    expected = {name: network[name] for name in changed if name in network}
    check_names_and_shapes(source, expected, changed, "the changed tensors")
    new = {name: tensor.to(network[name].dtype).contiguous() for name, tensor in changed.items()}
    return _write(path, network | new | beside, header.config, header.card | dict(card or {}))


def with_query_calibration(
    source: Path, calibration: QueryCalibration, path: Path, *, card: Mapping[str, Any] | None = None
) -> Version:
    """As `with_ranker`, with this calibration of object queries instead of the file's own."""
    return _with(CALIBRATION, source, calibration, path, card)


def with_borders(source: Path, cost: LearnedCost, path: Path, *, card: Mapping[str, Any] | None = None) -> Version:
    """As `with_ranker`, with this cost of merging regions instead of the file's own."""
    return _with(BORDERS, source, cost, path, card)


def _with(prefix: str, source: Path, fitted: Fitted, path: Path, card: Mapping[str, Any] | None) -> Version:
    header, network, beside = read_weights(source)
    others = {name: tensor for name, tensor in beside.items() if not name.startswith(prefix)}
    return _write(path, network | others | _tensors(prefix, fitted), header.config, header.card | dict(card or {}))


def with_refiner(
    source: Path, refiner: Mapping[str, Tensor], path: Path, *, card: Mapping[str, Any] | None = None
) -> Version:
    """Write the weights of `source` with this refiner, the state of a `Refiner`, in half precision.

    All other tensors stay bit for bit. card: added to the source's card. Raises CheckpointError when a file cannot be
    read or written, or the state is not that of a refiner.
    """
    header, network, beside = read_weights(source)
    check_names_and_shapes(source, Refiner().state_dict(), refiner, "a refiner")
    kept = {name: tensor for name, tensor in (network | beside).items() if not name.startswith(REFINER)}
    new = {REFINER + name: tensor.half().contiguous() for name, tensor in refiner.items()}
    return _write(path, kept | new, header.config, header.card | dict(card or {}))


def _write(path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, card: Mapping[str, Any] | None) -> Version:
    config_json = json.dumps(config.to_dict(), sort_keys=True)
    version = Version(config.name, content_digest(tensors, config_json))
    metadata = {
        "format": FORMAT,
        "config": config_json,
        "digest": version.digest,
        "card": json.dumps(dict(card or {}), default=str),
    }
    try:
        with atomic_write(path, shared=True, sync=True) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(dict(tensors), temporary, metadata)
            # safetensors makes files that only their owner can read, and the service may be another user
            temporary.chmod(mode)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be written: {exc}") from exc
    return version


def load(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[SemanticSAM, Version]:
    """Read a weights file into a model in eval mode on `device`, its backbone in `dtype`.

    device: as torch takes it, or "auto": the GPU where there is one, else the CPU.

    Raises CheckpointError when the file is missing, cut short, not safetensors, not written by `save`, of a config
    that this release does not know, when a name or shape differs from what its config asks for, or when the content
    does not match its digest.
    """
    header, network, beside = read_weights(path)
    try:
        model = build_model(header.config)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{path}: its config does not describe a model that can be built: {exc}") from exc
    if any(name.startswith(REFINER) for name in network):
        model.refiner = Refiner()
    check_names_and_shapes(path, model.state_dict(), network)
    model.load_state_dict(network)
    model.ranker = _ranker(path, _named(beside, RANKER))
    model.query_calibration = _calibration(path, _named(beside, CALIBRATION))
    model.merge_cost = _merge_cost(path, _named(beside, BORDERS), header.config.width)
    model.backbone.to(dtype)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), header.version


def load_model(
    name: str = EMBEDDED,
    weights: Path | None = None,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[SemanticSAM, Version]:
    """Load the model called `name` from the file that `weights_path` chooses.

    Raises CheckpointError as `weights_path` and `load` do, and when the file holds another model than `name`.
    """
    path, _ = find_weights(name, weights, folder=folder)
    return load(path, device=device, dtype=dtype)


def read_weights(path: Path) -> tuple[Header, dict[str, Tensor], dict[str, Tensor]]:
    """Header, tensors of the network and those BESIDE it (none: {}) of a weights file, by their stored names.

    Raises CheckpointError when it cannot be read, or when its content does not match its digest.
    """
    with opened(path, "pt") as file:
        header = header_of(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
        digest = content_digest(tensors, file.metadata()["config"])
    if digest != header.version.digest:
        raise CheckpointError(
            f"{path}: the content's sha256 is {digest[:12]}..., expected {header.version.digest[:12]}...; "
            "the file was altered after it was written, fetch or convert it again"
        )
    beside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(BESIDE)}
    return header, tensors, beside


def _tensors(prefix: str, fitted: Fitted | None) -> dict[str, Tensor]:
    arrays = fitted.to_arrays() if fitted else {}
    return {prefix + name: torch.from_numpy(np.array(value, np.float32)) for name, value in arrays.items()}


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, np.ndarray]:
    """The reverse of `_tensors`."""
    return {n.removeprefix(prefix): tensor.float().numpy() for n, tensor in tensors.items() if n.startswith(prefix)}


def _calibration(path: Path, arrays: Mapping[str, np.ndarray]) -> QueryCalibration | None:
    try:
        return QueryCalibration.from_arrays(arrays) if arrays else None
    except ValueError as exc:
        raise CheckpointError(
            f"{path}: {exc}; it was made by another release, make it anew with `semsam calibrate-queries`"
        ) from exc


def _ranker(path: Path, arrays: Mapping[str, np.ndarray]) -> Ranker | None:
    try:
        return Ranker.from_arrays(arrays) if arrays else None
    except ValueError as exc:
        raise CheckpointError(
            f"{path}: {exc}; it was trained by another release, make it anew with `semsam train-ranker`"
        ) from exc


def _merge_cost(path: Path, arrays: Mapping[str, np.ndarray], channels: int) -> PlainCost | LearnedCost:
    try:
        return LearnedCost.from_arrays(arrays, channels) if arrays else PLAIN
    except ValueError as exc:
        raise CheckpointError(
            f"{path}: {exc}; it was trained by another release, make it anew with `semsam train-borders`"
        ) from exc


def check_names_and_shapes(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], of: str = "its own config"
) -> None:
    """Raises CheckpointError that lists tensors of `path` that are missing, unknown, of another shape, or no floats.

    of: what the expected names and shapes belong to, for the message.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems += [f"{name} holds {t.dtype}, expected floats" for name, t in found.items() if not t.is_floating_point()]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: does not fit {of}: {'; '.join(problems[:3])}{more}")
