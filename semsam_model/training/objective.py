"""The loss that a step minimises.

`PromptLoss` is what training and fine-tuning share: first predictions, their names, simulated corrections. `Objective`
turns a batch of training into its loss in one call, so that DistributedDataParallel can stand around it.

What is drawn on the way depends on an image's own seed, and on its batch's number where one number serves all images.
So the loss of an image is the same in whichever process, and beside whichever other images, it is trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from semsam_model.data.vocabulary import NO_LABEL, NameTable
from semsam_model.network.decoder import LayerOutput, PromptDecoder
from semsam_model.network.model import SemanticSAM
from semsam_model.network.object_queries import SeedOutput
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.batches import Batch
from semsam_model.training.config import LossConfig, ReplayConfig, SimulatedCorrectionsConfig, TrainConfig
from semsam_model.training.distributed import Distributed, ReduceMean, no_reduce
from semsam_model.training.losses.masks import LossOutput, RandomPoints, training_loss, uniform_points
from semsam_model.training.losses.names import NameLoss, name_loss
from semsam_model.training.losses.object_queries import ObjectQueryTargets, object_query_loss, with_names
from semsam_model.training.prompts import PromptBatch
from semsam_model.training.simulated_corrections import simulate_corrections


@dataclass(eq=False)
class PromptLoss:
    """Loss of the predictions for prompts: masks, boxes and IoU, names, and prompts with simulated corrections."""

    model: SemanticSAM
    config: LossConfig
    corrections: SimulatedCorrectionsConfig
    name_table: NameTable | None = None  #: names are learned once it is set
    reduce_mean: ReduceMean = no_reduce

    def __call__(
        self,
        features: Features,
        prompts: PromptBatch,
        rng: np.random.Generator,
        rngs: Sequence[np.random.Generator],
        random_points: Sequence[RandomPoints] | None = None,
    ) -> LossOutput:
        """Of first predictions and of corrected ones, where the config asks for corrections.

        rng: draws the number of clicks; rngs: of each image, draw its clicks. random_points: see `training_loss`.
        """
        result, last = self.first_predictions(self.model.decoder, features, prompts, random_points)
        if not self.corrections.prompts:
            return result
        count = int(rng.integers(1, self.corrections.clicks + 1))
        layers, targets = simulate_corrections(self.model, features, prompts, last, self.corrections, count, rngs)
        corrected = training_loss(layers, features.mask_features, targets, self.config, random_points, self.reduce_mean)
        total = result.total + self.corrections.weight * corrected.total
        return replace(result, total=total, corrected=corrected)

    def first_predictions(
        self,
        decoder: PromptDecoder,
        features: Features,
        prompts: PromptBatch,
        random_points: Sequence[RandomPoints] | None = None,
    ) -> tuple[LossOutput, LayerOutput]:
        """The loss of first predictions and their names, and the output of the last layer."""
        layers = decoder(features, prompts.boxes, prompts.kinds, all_layers=True)
        result = training_loss(
            layers, features.mask_features, prompts.targets, self.config, random_points, self.reduce_mean
        )
        if self.name_table is not None:
            names = self._names(self.name_table, result, features, layers[-1], prompts)
            result = replace(result, total=result.total + self.config.names * names.total, names=names)
        return result, layers[-1]

    def _names(
        self, table: NameTable, result: LossOutput, features: Features, last: LayerOutput, prompts: PromptBatch
    ) -> NameLoss:
        """Of the matched queries whose mask has a label."""
        objects, parts, labels = [], [], []
        for image, match in enumerate(result.matches):
            rows = prompts.labels[image][match.target]
            query, rows = match.query[rows != NO_LABEL], rows[rows != NO_LABEL]
            of_object, of_part = self.model.class_embeddings(features, last, image, query)
            objects.append(of_object)
            parts.append(of_part)
            labels.append(rows)
        of_objects, of_parts, scales = torch.cat(objects), torch.cat(parts), self.model.name_scales()
        return name_loss(of_objects, of_parts, torch.cat(labels), table, scales, reduce_mean=self.reduce_mean)


class Objective(nn.Module):
    """Loss of prompts, and of object queries where batches carry what they are held to.

    Under several processes the mean over the processes of `total`, and of its gradients, is that of all their images in
    one batch.
    """

    def __init__(self, model: SemanticSAM, config: TrainConfig, distributed: Distributed) -> None:
        super().__init__()
        self.model, self.config, self.device = model, config, distributed.device
        self.prompt_loss = PromptLoss(model, config.loss, config.rounds, reduce_mean=distributed.mean)
        self.replay = ReplayBuffer(config.reuse)
        self.autocast = config.bfloat16 and has_bfloat16(distributed.device)

    def forward(self, batch: Batch) -> LossOutput:
        images = self.model.normalise(batch.images.to(self.device))
        random_points = [uniform_points(self.device, seed) for seed in batch.seeds]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            compute = self._with_frozen_clicks if self.config.learn == "generic" else self._with_clicks
            features, result = compute(images, batch, random_points)
            return self._with_object_queries(result, features, batch) if batch.object_queries else result

    def _with_clicks(
        self, images: Tensor, batch: Batch, random_points: Sequence[RandomPoints]
    ) -> tuple[Features, LossOutput]:
        """Features for object queries, and the loss of prompts."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.learn != "decoder"):
            features = self.model.features(images)
        rng = np.random.default_rng(batch.number)
        rngs = [np.random.default_rng([seed, 1]) for seed in batch.seeds]
        result = self.prompt_loss(features, batch.prompts.to(self.device), rng, rngs, random_points)
        return self.model.query_features(features) if batch.object_queries else features, result

    def _with_frozen_clicks(
        self, images: Tensor, batch: Batch, random_points: Sequence[RandomPoints]
    ) -> tuple[Features, LossOutput]:
        """Features for object queries; decoders of their own learn from the same prompts as those of clicks did."""
        assert self.model.generic is not None
        with torch.no_grad():
            if self.model.generic.decoder is None:
                return self.model.features(images), LossOutput(images.new_zeros(()), (), ())
            maps = self.model.maps(images)
        features, prompts = self.model.own_query_features(maps), batch.prompts.to(self.device)
        decoder = self.model.generic.decoder
        return features, self.prompt_loss.first_predictions(decoder, features, prompts, random_points)[0]

    def _with_object_queries(self, result: LossOutput, features: Features, batch: Batch) -> LossOutput:
        head = self.model.generic
        assert head is not None
        count = len(batch.object_queries)
        trains_features = self.config.learn != "generic" or head.decoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains_features):
            each = [features.only(image) for image in range(count)]
            seeds = self.model.seed_outputs(features.only(0, count), [head.tokens(one) for one in each])
            targets = [of_image.to(self.device) for of_image in batch.object_queries]
            images = [EncodedImage(*of_image) for of_image in zip(each, seeds, targets, strict=True)]
        images = self.replay.with_earlier(images, self.model, batch.seeds[0])
        outputs = [head(image.features, head.tokens(image.features), image.seeds) for image in images]
        targets = [image.targets for image in images]
        loss = object_query_loss(outputs, [image.features for image in images], targets)
        table, reduce_mean = self.prompt_loss.name_table, self.prompt_loss.reduce_mean
        if table is not None:
            loss = with_names(loss, outputs, targets, table, self.model.name_scales(), head.none, reduce_mean)
        total = result.total + self.config.loss.generic * loss.total
        return replace(result, total=total, object_queries=loss)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is worth its name there. A processor without AVX-512 emulates it: a step of
    configs/train/mobile_decoders.yaml took twelve times as long as in float32 (AMD EPYC with AVX2).
    """
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image as object queries learn from it."""

    features: Features  #: a batch of one
    seeds: SeedOutput
    targets: ObjectQueryTargets


class ReplayBuffer:
    """Replay, where object queries are trained alone: an image is encoded once and trained on several times.

    Everything below the queries is frozen then, and takes most of the time of a step. Its outputs for the last images
    are kept, in half precision, and each step trains on some of them, drawn at random, beside the new ones.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._kept: deque[EncodedImage] = deque(maxlen=config.images)

    def with_earlier(self, new: Sequence[EncodedImage], model: SemanticSAM, seed: int) -> list[EncodedImage]:
        """The new images and, for each, `times` - 1 earlier ones while there are any; the new ones are kept."""
        more = (self.config.times - 1) * len(new)
        if not more:
            return list(new)
        rng = np.random.default_rng([seed, 3])
        chosen = rng.choice(len(self._kept), min(more, len(self._kept)), replace=False)
        again = [_restored(self._kept[i], model) for i in chosen]
        self._kept.extend(map(_halved, new))
        return [*new, *again]


def _halved(image: EncodedImage) -> EncodedImage:
    """In half precision, boxes apart; without backbone maps, and without mask logits, which are made again."""
    features = replace(image.features, maps=()).each(Tensor.half)
    decoded = replace(image.seeds.decoded.each(Tensor.half), boxes=image.seeds.decoded.boxes)
    of_object, of_part = image.seeds.names
    seeds = SeedOutput(decoded, torch.empty(0), (of_object.half(), of_part.half()))
    return EncodedImage(features, seeds, image.targets)


@torch.no_grad()
def _restored(kept: EncodedImage, model: SemanticSAM) -> EncodedImage:
    features, decoded = kept.features.each(Tensor.float), kept.seeds.decoded.each(Tensor.float)
    logits = model.mask_logits(features, decoded.mask_embedding).flatten(0, 2).float()
    of_object, of_part = kept.seeds.names
    return EncodedImage(features, SeedOutput(decoded, logits, (of_object.float(), of_part.float())), kept.targets)
