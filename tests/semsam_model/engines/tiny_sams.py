"""Tiny models of the `transformers` package with random weights, made by its own config classes, as folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

SIDE = 64  #: of the input; SAM 3's patches of 14 make it 56
WIDTH = 32
PROMPTS = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
DECODER = {"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
LONGEST = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
MAPS = [[16, 16], [8, 8], [4, 4]]


class TinyBackboneConfig(transformers.PreTrainedConfig):
    """Stands in for EdgeTAM's backbone, which is in another package (timm)."""

    model_type = "tiny_pyramid"


class TinyBackbone(transformers.PreTrainedModel):
    """Four maps at strides 4 to 32, as timm gives them."""

    config_class = TinyBackboneConfig

    def __init__(self, config: TinyBackboneConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList([nn.Conv2d(3, c, s, s) for c, s in ((8, 4), (16, 8), (24, 16), (32, 32))])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=[stage(pixel_values) for stage in self.stages])  # type: ignore[arg-type]


transformers.AutoConfig.register("tiny_pyramid", TinyBackboneConfig)
transformers.AutoModel.register(TinyBackboneConfig, TinyBackbone)


def _sam(kind: str, **decoder: Any) -> Any:
    vision = {
        "hidden_size": 24, "output_channels": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": WIDTH // 2,
        "mlp_dim": 32, "initializer_range": 0.1,
    }  # fmt: skip
    of = {"vision_config": vision, "prompt_encoder_config": PROMPTS, "mask_decoder_config": {**DECODER, **decoder}}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**of))


def _sam2() -> Any:
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 24, 32],
        "num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [4, 4, 4, 2],
        "window_positional_embedding_background_size": [4, 4], "global_attention_blocks": [3],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [32, 24, 16, 8], "backbone_feature_sizes": MAPS,
        "fpn_hidden_size": WIDTH,
    }  # fmt: skip
    return transformers.Sam2Model(
        transformers.Sam2Config(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    )


def _edgetam() -> Any:
    vision = {
        "backbone_config": {"model_type": "tiny_pyramid"}, "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": MAPS, "fpn_hidden_size": WIDTH,
    }  # fmt: skip
    return transformers.EdgeTamModel(
        transformers.EdgeTamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    )


def _sam3_tracker() -> Any:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }  # fmt: skip
    vision = {"backbone_config": backbone, "fpn_hidden_size": WIDTH, "backbone_feature_sizes": MAPS}
    prompts = PROMPTS | {"image_size": 56, "patch_size": 14}
    return transformers.Sam3TrackerModel(
        transformers.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    )


#: Family -> the model, and what its preprocessor_config.json says beside mean and deviation.
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sam": (lambda: _sam("Sam"), LONGEST),
    "sam_hq": (lambda: _sam("SamHQ", vit_dim=24), LONGEST),
    "sam2": (_sam2, {"size": {"height": SIDE, "width": SIDE}}),
    "edgetam": (_edgetam, {"size": {"height": SIDE, "width": SIDE}}),
    "sam3_tracker": (_sam3_tracker, {"size": {"height": 56, "width": 56}}),
}


def save_random(make: Callable[[], Any], seed: int, folder: Path) -> None:
    """Weights large enough for answers that differ."""
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * max(1, parameter[0].numel()) ** -0.5 * 1.5)
    model.save_pretrained(folder)


def written(family: str, folder: Path) -> Path:
    """A folder as SEMSAM_ENGINE=transformers:FOLDER takes it. Weights are large enough for masks with structure."""
    make, preprocessing = FAMILIES[family]
    save_random(make, 5, folder)
    content = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(content | {"rescale_factor": 1 / 255} | preprocessing))
    return folder
