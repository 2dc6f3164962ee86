"""The plain state dicts that a training run writes: averaged, grafted together, packed into a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsam_model.checkpoints.checkpoint import (
    BESIDE,
    BORDERS,
    RANKER,
    REFINER,
    check_names_and_shapes,
    read_weights,
    save,
    with_tensors,
)
from semsam_model.checkpoints.header import Version
from semsam_model.config import ModelConfig
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.network.model import build_model

#: Prefix of the object queries' own decoders; what follows is the name that the click decoders' weights have.
OWN_DECODERS = "generic."


def average(first: Path, second: Path, share: float, path: Path, prefix: str = "") -> None:
    """Write (1 - share) * first + share * second, weight by weight, as a run writes weights.

    For two networks that were trained from the same one (Wortsman et al. 2022, "Model soups", section 2). Both files
    are a run's weights or packed ones; their rankers and refiners are left out. prefix: only tensors whose name starts
    with it are averaged, the others are those of `first`. Raises CheckpointError when a file cannot be read, the two
    are not of one network, or no name starts with the prefix; ConfigError for a share outside 0..1.
    """
    save_file(_averaged(first, second, share, prefix), path)


def blend(
    packed: Path, second: Path, share: float, path: Path, prefix: str = "", *, card: Mapping[str, Any] | None = None
) -> Version:
    """`average`, for a packed first file: what stands beside its network, and its card, stay.

    card: added to its card. Raises as `average`.
    """
    return with_tensors(packed, _averaged(packed, second, share, prefix), path, card=card)


def _averaged(first: Path, second: Path, share: float, prefix: str) -> dict[str, Tensor]:
    """The network of the first file; its weights whose names start with the prefix are averaged."""
    if not 0 <= share <= 1:
        raise ConfigError(f"share {share}: expected 0 (the first network) to 1 (the second)")
    ours, theirs = (read_network(file) for file in (first, second))
    check_names_and_shapes(second, ours, theirs, str(first))
    chosen = [name for name in ours if name.startswith(prefix)]
    if not chosen:
        raise CheckpointError(f"{first}: no weights begin with {prefix!r}; the first is {next(iter(ours))!r}")
    return ours | {name: ours[name].lerp(theirs[name], share) for name in chosen}


def graft(clicks: Path, queries: Path, config: ModelConfig, path: Path) -> None:
    """Write a network of `config`: the click decoders of the first file, the object queries of the second.

    The object queries bring their own decoders with them; where those of the second file were shared with its clicks,
    they are copied. Both files are a run's weights or packed ones; the result is written as a run writes weights.
    Raises CheckpointError when a file cannot be read or lacks what the config asks for, ConfigError for a config whose
    object queries have no decoders of their own.
    """
    if not (config.generic_queries and config.generic_decoder_layers):
        raise ConfigError(f"model config {config.name!r}: expected generic_queries and generic_decoder_layers above 0")
    expected = build_model(config).state_dict()
    ours, theirs = read_network(clicks), read_network(queries)
    of_clicks = {name: value for name, value in ours.items() if not name.startswith(OWN_DECODERS)}
    of_queries = {name: value for name, value in theirs.items() if name.startswith(OWN_DECODERS)}
    grafted = with_own_decoders(expected, of_clicks | of_queries, theirs)
    check_names_and_shapes(queries, expected, grafted, f"model config {config.name!r} with clicks of {clicks}")
    save_file(grafted, path)


def with_own_decoders(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], clicks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`found`, and for each expected weight of the object queries' own decoders that it lacks, that of the `clicks`."""
    copied = {
        name: clicks[name.removeprefix(OWN_DECODERS)]
        for name in expected
        if name.startswith(OWN_DECODERS) and name not in found and name.removeprefix(OWN_DECODERS) in clicks
    }
    return {**found, **copied}


def read_network(path: Path) -> dict[str, Tensor]:
    """Tensors of a run's weights or of packed ones, float32; the network alone. Raises CheckpointError."""
    apart = *BESIDE, REFINER
    return {name: value.float() for name, value in _read_tensors(path).items() if not name.startswith(apart)}


def read_refiner(path: Path) -> dict[str, Tensor]:
    """The state of a refiner: of its own training run, or from a weights file that has one. Raises CheckpointError."""
    tensors = _read_tensors(path)
    inside = {name.removeprefix(REFINER): value for name, value in tensors.items() if name.startswith(REFINER)}
    return {name: value.float() for name, value in (inside or tensors).items()}


def pack(
    run_weights: Path,
    config: ModelConfig,
    path: Path,
    *,
    card: Mapping[str, Any] | None = None,
    ranker_of: Path | None = None,
) -> Version:
    """Turn the network of a run's weights, or of packed ones, into a half-precision weights file of this config.

    ranker_of: weights file whose ranker (and learned cost of merging, if it has one) goes with it, for a run that did
    not change how clicks are answered. Raises CheckpointError when a file cannot be read, the weights do not fit the
    config, or there is no ranker.
    """
    tensors = read_network(run_weights)
    check_names_and_shapes(run_weights, build_model(config).state_dict(), tensors)
    if ranker_of is not None:
        _, _, beside = read_weights(ranker_of)
        fitted = {name: value for name, value in beside.items() if name.startswith((RANKER, BORDERS))}
        if not any(name.startswith(RANKER) for name in fitted):
            raise CheckpointError(f"{ranker_of}: holds no ranker; make one with `semsam train-ranker`")
        tensors |= fitted
    return save(path, tensors, config, card=card, half=True)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {exc}") from exc
