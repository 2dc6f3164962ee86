"""Small networks with random weights that behave as trained ones in what a test looks at."""

import dataclasses

import torch

from semsam_model.config import ModelConfig, read_model_config
from semsam_model.network.model import SemanticSAM, build_model

#: The tiny model with object queries.
QUERIES = dataclasses.replace(read_model_config("tiny"), generic_queries=6, generic_layers=1)


def structured(config: ModelConfig, seed: int = 3) -> SemanticSAM:
    """Random weights, scaled so that masks have structure and the six levels differ."""
    torch.manual_seed(seed)
    network = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and name.startswith("decoder"):
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5 * 2)
    return network


def masks_nothing(network: SemanticSAM) -> SemanticSAM:
    """The same network, whose clicks select nothing."""
    logits = network.mask_logits
    network.mask_logits = lambda *given: -1 - logits(*given) * 0  # type: ignore[method-assign]
    return network
