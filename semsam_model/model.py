"""Semantic-SAM (Li et al. 2023): encode an image once, decode prompts many times.

    embedding = model.encode(rgb)                       # a value; the model keeps no image
    output = model.decode(embedding, [Click(x, y)])     # six masks a prompt

`encode` and `decode` work in inference mode on photo pixels; `features`, `prompt` and `mask_logits` are the same steps
on batches, with gradients, for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.decoder import LayerOutput, PromptDecoder
from semsam_model.deformable import Shapes
from semsam_model.mobilenet import MobileNetV2
from semsam_model.pixel_decoder import Features, PixelDecoder
from semsam_model.swin import Swin
from semsam_model.transforms import Frame
from semsam_model.types import Box, Click


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """Everything a later prompt needs to know about one photo."""

    frame: Frame
    mask_features: Tensor  #: (C, H/4, W/4) of the padded frame
    memory: Tensor  #: (S, C), strides 64, 32, 16, 8
    shapes: Shapes

    @property
    def nbytes(self) -> int:
        return self.mask_features.nbytes + self.memory.nbytes

    def to(self, device: torch.device | str) -> ImageEmbedding:
        return replace(self, mask_features=self.mask_features.to(device), memory=self.memory.to(device))


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """Answers to N prompts, each alone. Tensors are float32."""

    logits: Tensor  #: (N, len(tokens), H/4, W/4) of the padded frame
    tokens: tuple[int, ...]  #: which of the T level tokens `logits` holds, in order
    predicted_iou: Tensor  #: (N, T), raw: may leave 0..1
    boxes: Tensor  #: (N, T, 4) cx, cy, w, h, shares of the padded frame
    object_embedding: Tensor  #: (N, T, E), unit length
    part_embedding: Tensor  #: (N, T, E), unit length


class SemanticSAM(nn.Module):
    def __init__(self, config: ModelConfig, backbone: Swin | MobileNetV2) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pixel_decoder = PixelDecoder(
            backbone.channels, config.width, config.heads, config.points, config.encoder_layers, config.ffn
        )
        self.decoder = PromptDecoder(config)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    @property
    def click_box(self) -> float:
        return self.config.click_box

    # -- one photo, photo pixels, no gradients

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray) -> ImageEmbedding:
        """uint8 RGB (H, W, 3) -> ImageEmbedding on the model's device. Raises ImageError."""
        frame = Frame.of((rgb.shape[0], rgb.shape[1]), self.config)
        images = frame.image(rgb, self.config).to(self.pixel_mean.device)
        f = self.features(images.to(self.dtype))
        return ImageEmbedding(frame, f.mask_features[0], f.memory[0], f.shapes)

    @torch.inference_mode()
    def decode(
        self, embedding: ImageEmbedding, prompts: Sequence[Click | Box], tokens: Sequence[int] | None = None
    ) -> DecoderOutput:
        """Answer each prompt alone. tokens: the level tokens whose mask logits are wanted (all when None).

        Raises PromptError for a prompt outside the photo.
        """
        boxes, kinds = embedding.frame.prompts(prompts, self.config)
        device = embedding.memory.device
        features = Features(embedding.mask_features[None], embedding.memory[None], embedding.shapes)
        (last,) = self.decoder(features, boxes[None].to(device), kinds[None].to(device))
        wanted = tuple(range(self.config.tokens)) if tokens is None else tuple(tokens)
        logits = self.mask_logits(features, last.mask_embedding[:, :, list(wanted)])
        return DecoderOutput(
            logits=logits[0].float(),
            tokens=wanted,
            predicted_iou=last.predicted_iou[0].float(),
            boxes=last.boxes[0].float(),
            object_embedding=nn.functional.normalize(last.object_embedding[0].float(), dim=-1),
            part_embedding=nn.functional.normalize(last.part_embedding[0].float(), dim=-1),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.content.dtype

    # -- batches, model frame, with gradients

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> float32, mean and standard deviation of the config."""
        return (images.float() - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> Features:
        """(B, 3, H, W) normalised, H and W multiples of 32."""
        return self.pixel_decoder(self.backbone(images))

    def prompt(self, features: Features, boxes: Tensor, kinds: Tensor, all_layers: bool = False) -> list[LayerOutput]:
        """See PromptDecoder.forward."""
        return self.decoder(features, boxes, kinds, all_layers)

    def mask_logits(self, features: Features, mask_embedding: Tensor) -> Tensor:
        """mask_embedding (B, N, T, C) -> (B, N, T, H/4, W/4)."""
        b, n, t, c = mask_embedding.shape
        flat = mask_embedding.reshape(b, n * t, c) @ features.mask_features.flatten(2)
        return flat.view(b, n, t, *features.mask_features.shape[-2:])


def build_model(config: ModelConfig) -> SemanticSAM:
    """A freshly initialised network of the given shape."""
    backbone: Swin | MobileNetV2
    if config.backbone == "swin":
        backbone = Swin(config.swin_dim, config.swin_depths, config.swin_heads, config.swin_window, config.drop_path)
    else:
        backbone = MobileNetV2()
    return SemanticSAM(config, backbone)
