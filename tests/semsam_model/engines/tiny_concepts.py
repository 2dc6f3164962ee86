"""Tiny models of the `transformers` package that find what words name, with random weights, as folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.semsam_model.engines.tiny_sams import save_random

MEAN_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "rescale_factor": 1 / 255}
SIDE = 56  #: of SAM 3's and OWLv2's input
CLS, SEP, STOP = 101, 102, 1012  #: Grounding DINO knows them by number
WORDS = ("cat", "dog", "wheel", "car", "red", "roof")


def tokenizer(kind: str) -> Any:
    """A tokenizer of single words, with the special tokens where each family has them."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": CLS, "[SEP]": SEP, ".": STOP}
    vocabulary |= {word: 200 + number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if "dino" in kind else [])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=names,
    )  # fmt: skip


def _clip_text(positions: int) -> dict[str, Any]:
    return {
        "vocab_size": 1100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "projection_dim": 16,
        "num_attention_heads": 2, "max_position_embeddings": positions, "eos_token_id": SEP, "bos_token_id": CLS,
    }  # fmt: skip


def _sam3() -> Any:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": SIDE,
    }  # fmt: skip
    maps = [[16, 16], [8, 8], [4, 4]]
    small = {"hidden_size": 32, "num_attention_heads": 2, "dropout": 0.0}
    detr = {**small, "num_layers": 1, "intermediate_size": 32}
    config = transformers.Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 32, "backbone_feature_sizes": maps},
        text_config={"model_type": "clip_text_model", **_clip_text(32)},
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config={**detr, "num_queries": 12},
        mask_decoder_config=small,
    )
    return transformers.Sam3Model(config)


def _owlv2() -> Any:
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Owlv2Config(text_config=_clip_text(16), vision_config=vision, projection_dim=32)
    return transformers.Owlv2ForObjectDetection(config)


def _dino(kind: str) -> Any:
    swin = {
        "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1], "window_size": 2, "out_indices": [2, 3, 4],
    }  # fmt: skip
    bert = {
        "model_type": "bert", "vocab_size": 1100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=swin, text_config=bert, num_queries=12, encoder_layers=1, decoder_layers=2, d_model=64,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


#: Family -> the model, and what its preprocessor_config.json says beside mean and deviation.
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sam3": (_sam3, {"size": {"height": SIDE, "width": SIDE}}),
    "owlv2": (_owlv2, {"size": {"height": SIDE, "width": SIDE}}),
    "grounding_dino": (lambda: _dino("GroundingDino"), {"size": {"shortest_edge": 48, "longest_edge": 80}}),
    "mm_grounding_dino": (lambda: _dino("MMGroundingDino"), {"size": {"shortest_edge": 48, "longest_edge": 80}}),
}


def written(family: str, folder: Path) -> Path:
    """A folder as SEMSAM_CONCEPTS=transformers:FOLDER takes it. Weights are large enough for answers that differ."""
    make, preprocessing = FAMILIES[family]
    save_random(make, 3, folder)
    tokenizer(family).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(MEAN_STD | preprocessing))
    return folder
