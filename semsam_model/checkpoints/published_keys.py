"""What the published code calls our parameters, and the shapes that it saves."""

from __future__ import annotations

import torch

from semsam_model.config import ModelConfig
from semsam_model.network.model import build_model

PREFIX = "model."  #: of every key in a published file
_HEAD = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."
LANG_MAPPER = PREDICTOR + "lang_mapper"  #: for text queries that the release never builds
CONTENT = PREDICTOR + "label_enc.weight"  #: (2, width); only row 0 is used
EMPTY_WEIGHT = "criterion.empty_weight"
WINDOW_INDEX = ".attn.relative_position_index"  #: ending; a buffer computed from the window size
#: Ours -> theirs, first match wins. Tied names and the special rows are added in `published_names`.
_RENAMES = (
    ("pixel_decoder.level_embed", _HEAD + "transformer.level_embed"),
    ("pixel_decoder.layers.", _HEAD + "transformer.encoder.layers."),
    ("pixel_decoder.lateral.0.", _HEAD + "adapter_1."),
    ("pixel_decoder.lateral.1.", _HEAD + "adapter_1.norm."),
    ("pixel_decoder.fuse.0.", _HEAD + "layer_1."),
    ("pixel_decoder.fuse.1.", _HEAD + "layer_1.norm."),
    ("pixel_decoder.", _HEAD),
    ("decoder.layers.", PREDICTOR + "decoder.layers."),
    ("decoder.position_head.", PREDICTOR + "decoder.ref_point_head."),
    ("decoder.iou_head.", PREDICTOR + "iou_prediction_head."),
    ("decoder.mask_head.", PREDICTOR + "mask_embed."),
    ("decoder.level_tokens", PREDICTOR + "mask_tokens.weight"),
    # Row 0 is what published inference adds for clicks, row 1 for boxes; their training added row 1 for clicks.
    ("decoder.kind_embed", PREDICTOR + "pb_embedding.weight"),
    ("decoder.object_projection", PREDICTOR + "class_embed"),
    ("decoder.part_projection", PREDICTOR + "class_embed_part"),
    ("decoder.content", CONTENT),
    ("backbone.", "backbone."),
)


def published_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter -> its published names without `model.`; several names hold equal values."""
    with torch.device("meta"):
        ours = build_model(config).state_dict()
    layers = range(config.decoder_layers)
    boxes = [f"{PREDICTOR}bbox_embed.{i}." for i in layers]
    boxes += [f"{PREDICTOR}decoder.bbox_embed.{i}." for i in layers] + [f"{PREDICTOR}_bbox_embed."]
    norms = [f"{PREDICTOR}decoder_norm.", f"{PREDICTOR}decoder.norm."]
    names = {}
    for name in ours:
        for prefix, aliases in (("decoder.box_head.", boxes), ("decoder.norm.", norms)):
            if name.startswith(prefix):
                names[name] = tuple(alias + name.removeprefix(prefix) for alias in aliases)
        if name not in names:
            prefix, theirs = next(pair for pair in _RENAMES if name.startswith(pair[0]))
            names[name] = (theirs + name.removeprefix(prefix),)
    return names


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every key that the published code saves for this model, without `model.`, and its shape."""
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in build_model(config).state_dict().items()}
    shapes = {alias: ours[name] for name, aliases in published_names(config).items() for alias in aliases}
    shapes[CONTENT] = (2, config.width)
    shapes[LANG_MAPPER] = (config.text_dim, config.width)
    for stage, depth in enumerate(config.swin_depths):
        for block in range(depth):
            shapes[f"backbone.layers.{stage}.blocks.{block}{WINDOW_INDEX}"] = (config.swin_window**2,) * 2
    return shapes
