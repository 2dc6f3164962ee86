"""Semantic-SAM (Li et al. 2023): encode an image once, decode prompts many times.

    embedding = model.encode(rgb)                       # a value; the model keeps no image
    output = model.decode(embedding, [Click(x, y)])     # six masks a prompt

`encode` and `decode` work in inference mode on photo pixels; `features`, `decoder` and `mask_logits` are the same steps
on batches, with gradients, for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.errors import ConfigError
from semsam_model.network.decoder import ABSENT, NEGATIVE, POSITIVE, FurtherClicks, LayerOutput, PromptDecoder
from semsam_model.network.frame import CLICK, NOWHERE, Frame, Window
from semsam_model.network.merge_cost import PLAIN, LearnedCost, PlainCost
from semsam_model.network.mobilenet import MobileNetV2
from semsam_model.network.name_head import FIRST_SCALE, NameHead
from semsam_model.network.object_queries import ObjectQueryHead, ObjectQueryOutput, SeedOutput, choose_seeds
from semsam_model.network.pixel_decoder import Features, PixelDecoder, cell_centres
from semsam_model.network.query_calibration import QueryCalibration
from semsam_model.network.ranker import Ranker
from semsam_model.network.refiner import Refiner
from semsam_model.network.region_hierarchy import RegionHierarchy, region_hierarchy
from semsam_model.network.swin import Swin
from semsam_model.types import Box, Click


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What prompts need of one photo, or of a window of it."""

    frame: Frame
    features: Features  #: a batch of one; maps only as far as names and object queries need them
    #: uint8 (h, w, 3), the whole photo as resized: where the refiner or mirrored object queries look at it again
    pixels: np.ndarray | None = None
    #: Of a whole photo, where the config has `regions`; NumPy, on no device.
    hierarchy: RegionHierarchy | None = None

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + sum(part.nbytes for part in (self.pixels, self.hierarchy) if part is not None)

    def to(self, device: torch.device | str) -> ImageEmbedding:
        return replace(self, features=self.features.each(lambda tensor: tensor.to(device)))


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """The output for N prompts, which are independent of each other. Tensors are float32."""

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
        self.pixel_decoder = PixelDecoder(config, backbone.channels)
        self.decoder = PromptDecoder(config)
        self.name_head: NameHead | None = None
        if config.name_features:
            self.name_head = NameHead(backbone.channels[2:], config.width, config.text_dim)
        self.generic: ObjectQueryHead | None = None  #: named as in stored weights
        if config.generic_queries:
            self.generic = ObjectQueryHead(config, backbone.channels)
        self.refiner: Refiner | None = (
            None  #: corrects masks where further clicks are; trained apart, stored with the rest
        )
        self.ranker: Ranker | None = None  #: scores proposals; not a module, but stored with the weights
        self.query_calibration: QueryCalibration | None = None  #: what scores of queries are worth; stored likewise
        self.merge_cost: PlainCost | LearnedCost = PLAIN  #: of regions; no module either, stored where it was learned
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    # -- one photo, photo pixels, no gradients

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray, window: Window | None = None) -> ImageEmbedding:
        """uint8 RGB (H, W, 3), the whole photo -> ImageEmbedding on the model's device. Raises ImageError.

        window: encode this part of the photo alone, magnified.
        """
        frame = Frame.of((rgb.shape[0], rgb.shape[1]), self.config, window)
        return self.encode_resized(frame, frame.resize(rgb))

    @torch.inference_mode()
    def encode_resized(self, frame: Frame, resized: np.ndarray) -> ImageEmbedding:
        """`encode` from the output of `Frame.resize`, uint8 (h, w, 3)."""
        features = self.features(self._images(frame, resized))
        seen_again = frame.whole and (self.refiner is not None or self.config.generic_mirrored)
        hierarchy = self._hierarchy(frame, resized, features) if self.config.regions and frame.whole else None
        return ImageEmbedding(frame, features, resized if seen_again else None, hierarchy)

    def _hierarchy(self, frame: Frame, resized: np.ndarray, features: Features) -> RegionHierarchy:
        height, width = frame.logits
        mask_features = features.mask_features[0, :, :height, :width].float().cpu().numpy()
        return region_hierarchy(resized, self.merge_cost.features_of(mask_features), self.merge_cost)

    @torch.inference_mode()
    def query_features_of_resized(self, frame: Frame, resized: np.ndarray) -> Features:
        """`query_features` of what `encode_resized` gives, without computing what only clicks need."""
        images = self._images(frame, resized)
        if self.generic is None or self.generic.pixel_decoder is None:
            return self.query_features(self.features(images))
        return self.own_query_features(self.maps(images))

    def _images(self, frame: Frame, resized: np.ndarray) -> Tensor:
        return frame.normalised(resized, self.config).to(self.pixel_mean.device, self.dtype)

    @torch.inference_mode()
    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Sequence[Click | Box],
        tokens: Sequence[int] | None = None,
        further: Sequence[Sequence[Click]] | None = None,
    ) -> DecoderOutput:
        """Decode each prompt alone. tokens: the level tokens whose mask logits to return (None: all).

        further: for each prompt its other clicks; only where the config has `corrections`.
        Raises PromptError for a prompt outside the photo.
        """
        boxes, kinds = embedding.frame.prompts(prompts, self.config)
        features = embedding.features
        device = features.memory.device
        more = None if further is None else self._further_clicks(embedding.frame, further, device)
        (last,) = self.decoder(features, boxes[None].to(device), kinds[None].to(device), further=more)
        wanted = tuple(range(self.config.tokens)) if tokens is None else tuple(tokens)
        names = last.object_embedding[0], last.part_embedding[0]
        if self.name_head is None:
            logits = self.mask_logits(features, last.mask_embedding[:, :, list(wanted)])[0]
        else:  # it pools inside every token's mask
            every = self.mask_logits(features, last.mask_embedding)[0]
            names = self._add_pooled(names, features, 0, every)
            logits = every[:, list(wanted)]
        return DecoderOutput(
            logits=logits.float(),
            tokens=wanted,
            predicted_iou=last.predicted_iou[0].float(),
            boxes=last.boxes[0].float(),
            object_embedding=F.normalize(names[0].float(), dim=-1),
            part_embedding=F.normalize(names[1].float(), dim=-1),
        )

    def _further_clicks(
        self, frame: Frame, further: Sequence[Sequence[Click]], device: torch.device
    ) -> FurtherClicks | None:
        most = max(map(len, further), default=0)
        if not most:
            return None
        points = torch.zeros(1, len(further), most, 2)
        kinds = torch.full((1, len(further), most), ABSENT)
        for n, clicks in enumerate(further):
            if clicks:
                places, _ = frame.prompts(clicks, self.config)
                points[0, n, : len(clicks)] = places[:, :2]
                kinds[0, n, : len(clicks)] = torch.tensor([POSITIVE if c.positive else NEGATIVE for c in clicks])
        return FurtherClicks(points.to(device), kinds.to(device))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the backbone. Both decoders stay float32: in half precision their sampling points move."""
        return next(self.backbone.parameters()).dtype

    # -- batches, model frame, with gradients

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> float32, mean and standard deviation of the config."""
        return (images.float() - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> Features:
        """(B, 3, H, W) normalised, H and W multiples of 32."""
        maps = self.maps(images)
        return self._with_maps(self.pixel_decoder(self.pixel_decoder.project(maps), maps[0]), maps)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> backbone maps, float32 (B, C_i, h_i, w_i) at strides 4, 8, 16, 32."""
        return [m.float() for m in self.backbone(images)]

    def query_features(self, features: Features) -> Features:
        """The features that object queries attend to, from those of clicks: the same, or with
        `generic_decoder_layers` the output of their own pixel decoder. Raises ConfigError for a model without
        `generic_queries`.
        """
        if self.generic is None:
            raise ConfigError(f"model {self.config.name}: has no object queries; its config has generic_queries: 0")
        return features if self.generic.pixel_decoder is None else self.own_query_features(features.maps)

    def own_query_features(self, maps: Sequence[Tensor]) -> Features:
        """Only where the config has generic_decoder_layers. maps: four, see `maps`."""
        assert self.generic is not None and self.generic.pixel_decoder is not None
        return self._with_maps(self.generic.pixel_decoder(self.pixel_decoder.project(maps), maps[0]), maps)

    def _with_maps(self, features: Features, maps: Sequence[Tensor]) -> Features:
        read_again = () if self.name_head is None else maps[2:]
        own = self.generic is not None and self.generic.pixel_decoder is not None
        return replace(features, maps=tuple(maps if own else read_again))

    def class_embeddings(
        self, features: Features, output: LayerOutput, image: int, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries (n,), prompt * tokens + token, of one image of the batch -> two (n, E), objects and parts.

        Not normalised.
        """
        of_object = output.object_embedding[image].flatten(0, 1)[query]
        of_part = output.part_embedding[image].flatten(0, 1)[query]
        if self.name_head is None:
            return of_object, of_part
        logits = output.mask_embedding[image].flatten(0, 1)[query] @ features.mask_features[image].flatten(1)
        logits = logits.unflatten(1, features.mask_features.shape[-2:])
        return self._add_pooled((of_object, of_part), features, image, logits)

    def _add_pooled(
        self, names: tuple[Tensor, Tensor], features: Features, image: int, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class embeddings (..., E) of masks, with what the name head, if any, adds from their logits (..., h, w)."""
        if self.name_head is None:
            return names
        of_object, of_part = self.name_head(features, image, logits.flatten(0, -3))
        return names[0] + of_object.view_as(names[0]), names[1] + of_part.view_as(names[1])

    @torch.inference_mode()
    def pooled_names(self, embedding: ImageEmbedding, logits: np.ndarray) -> Tensor:
        """Masks (n, h, w) as logits at stride 4 of the unpadded frame -> (n, 2, E), unit length, for objects and for
        parts: what the name head, which must be there, reads inside them.
        """
        assert self.name_head is not None
        features = embedding.features
        height, width = features.mask_features.shape[-2:]
        beyond = (0, width - logits.shape[2], 0, height - logits.shape[1])
        whole = F.pad(torch.from_numpy(logits), beyond, value=NOWHERE).to(features.mask_features.device)
        return F.normalize(torch.stack(self.name_head(features, 0, whole), 1).float(), dim=-1)

    def object_queries(self, features: Features, image: int) -> ObjectQueryOutput:
        """The object queries of one image of the batch. features: of `query_features`."""
        assert self.generic is not None
        one = features.only(image)
        token_scores = self.generic.tokens(one)
        return self.generic(one, token_scores, *self.seed_outputs(one, [token_scores]))

    def seed_outputs(self, features: Features, token_scores: Sequence[Tensor]) -> list[SeedOutput]:
        """For each image of a batch, the decoded clicks at its seeds, which become its object queries.

        features: of `query_features`. Where queries share the decoders of clicks, the output has no gradient for the
        weights of object queries.
        """
        assert self.generic is not None
        count = self.generic.queries
        seeds = torch.stack([choose_seeds(scores.detach(), features.shapes, count) for scores in token_scores])
        boxes = F.pad(cell_centres(features.shapes, seeds.device)[seeds], (0, 2), value=self.config.click_box)
        decoder = self.decoder if self.generic.decoder is None else self.generic.decoder
        (decoded,) = decoder(features, boxes, torch.full_like(seeds, CLICK))
        every = self.mask_logits(features, decoded.mask_embedding).flatten(1, 2).float().unbind()
        parts = zip(*(getattr(decoded, field.name).split(1) for field in fields(decoded)), strict=True)
        found = []
        for image, (logits, own) in enumerate(zip(every, (LayerOutput(*part) for part in parts), strict=True)):
            names = own.object_embedding.flatten(0, 2), own.part_embedding.flatten(0, 2)
            found.append(SeedOutput(own, logits, self._add_pooled(names, features, image, logits)))
        return found

    def name_scales(self) -> Tensor:
        """(2,) factors of the cosines of objects and of parts in the softmax over labels."""
        return self.pixel_mean.new_full((2,), FIRST_SCALE) if self.name_head is None else self.name_head.scales()

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
