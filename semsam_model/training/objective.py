"""A batch -> its loss, in one call, so that DistributedDataParallel can stand around it.

What is drawn on the way depends on an image's own seed, and on its batch's number where a number serves all images. So
an image costs the same in whichever process, and beside whichever others, it is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from semsam_model.data.vocabulary import NO_LABEL, NameTable
from semsam_model.network.decoder import LayerOutput, PromptDecoder
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.batches import Batch
from semsam_model.training.config import TrainConfig
from semsam_model.training.distributed import Processes
from semsam_model.training.losses.masks import LossOutput, RandomPoints, training_loss, uniform_points
from semsam_model.training.losses.names import name_loss
from semsam_model.training.losses.object_queries import generic_loss, with_names
from semsam_model.training.replay import Earlier, Looked
from semsam_model.training.simulated_corrections import correct


class Objective(nn.Module):
    """Loss of first answers, of names once `name_table` is set, of corrected prompts where `rounds` asks for them, and
    of object queries where batches carry what they are held to.

    Under several processes the mean over the processes of `total`, and of its gradients, is that of all their images in
    one batch.
    """

    def __init__(self, model: SemanticSAM, config: TrainConfig, processes: Processes) -> None:
        super().__init__()
        self.model, self.config, self.processes = model, config, processes
        self.name_table: NameTable | None = None
        self.earlier = Earlier(config.reuse)

    def forward(self, batch: Batch) -> LossOutput:
        device = self.processes.device
        images = self.model.normalise(batch.images.to(device))
        random_points = [uniform_points(device, seed) for seed in batch.seeds]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bfloat16):
            learn = self._queries_alone if self.config.learn == "generic" else self._everything
            features, result = learn(images, batch, random_points)
            return self._with_generic(result, features, batch) if batch.generic else result

    def _everything(
        self, images: Tensor, batch: Batch, random_points: Sequence[RandomPoints]
    ) -> tuple[Features, LossOutput]:
        """Features for object queries, and the loss of clicks."""
        loss, rounds, share = self.config.loss, self.config.rounds, self.processes.mean
        batch = self._placed(batch)
        features = self.model.features(images)
        result, last = self._first_answers(self.model.decoder, features, batch, random_points)
        if rounds.prompts:
            boxes, kinds, targets = batch.boxes, batch.kinds, batch.targets
            count = int(np.random.default_rng(batch.number).integers(1, rounds.clicks + 1))
            rngs = [np.random.default_rng([seed, 1]) for seed in batch.seeds]
            again, held_to = correct(self.model, features, boxes, kinds, targets, last, rounds, count, rngs)
            corrected = training_loss(again, features.mask_features, held_to, loss, random_points, share)
            total = result.total + rounds.weight * corrected.total
            result = dataclasses.replace(result, total=total, corrected=corrected)
        return self.model.query_features(features) if batch.generic else features, result

    def _queries_alone(
        self, images: Tensor, batch: Batch, random_points: Sequence[RandomPoints]
    ) -> tuple[Features, LossOutput]:
        """Features for object queries; decoders of their own learn from the same clicks as those of clicks did."""
        assert self.model.generic is not None
        with torch.no_grad():
            if self.model.generic.decoder is None:
                return self.model.features(images), LossOutput(images.new_zeros(()), (), ())
            maps = self.model.maps(images)
        batch, features = self._placed(batch), self.model.own_query_features(maps)
        return features, self._first_answers(self.model.generic.decoder, features, batch, random_points)[0]

    def _placed(self, batch: Batch) -> Batch:
        """With prompts, and the masks that they may mean, where the network is."""
        device = self.processes.device
        boxes, kinds, targets = batch.boxes.to(device), batch.kinds.to(device), batch.targets.to(device)
        return dataclasses.replace(batch, boxes=boxes, kinds=kinds, targets=targets)

    def _first_answers(
        self, decoder: PromptDecoder, features: Features, batch: Batch, random_points: Sequence[RandomPoints]
    ) -> tuple[LossOutput, LayerOutput]:
        """The loss of first answers and their names, and what the last layer answered."""
        layers = decoder(features, batch.boxes, batch.kinds, all_layers=True)
        loss, share = self.config.loss, self.processes.mean
        result = training_loss(layers, features.mask_features, batch.targets, loss, random_points, share)
        if self.name_table is not None:
            result = self._with_names(self.name_table, result, features, layers[-1], batch)
        return result, layers[-1]

    def _with_names(
        self, table: NameTable, result: LossOutput, features: Features, last: LayerOutput, batch: Batch
    ) -> LossOutput:
        objects, parts, labels = [], [], []
        for image, match in enumerate(result.matches):
            rows = batch.labels[image].to(self.processes.device)[match.target]
            query, rows = match.query[rows != NO_LABEL], rows[rows != NO_LABEL]
            of_object, of_part = self.model.class_embeddings(features, last, image, query)
            objects.append(of_object)
            parts.append(of_part)
            labels.append(rows)
        of_objects, of_parts, scales = torch.cat(objects), torch.cat(parts), self.model.name_scales()
        names = name_loss(of_objects, of_parts, torch.cat(labels), table, scales, share=self.processes.mean)
        return dataclasses.replace(result, total=result.total + self.config.loss.names * names.total, names=names)

    def _with_generic(self, result: LossOutput, features: Features, batch: Batch) -> LossOutput:
        head = self.model.generic
        assert head is not None
        count = len(batch.generic)
        below = self.config.learn != "generic" or head.decoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and below):
            each = [features.only(image) for image in range(count)]
            seeds = self.model.seed_outputs(features.only(0, count), [head.tokens(one) for one in each])
            targets = [own.to(self.processes.device) for own in batch.generic]
            images = [Looked(*of_image) for of_image in zip(each, seeds, targets, strict=True)]
        images = self.earlier.beside(images, self.model, batch.seeds[0])
        outputs = [head(image.features, head.tokens(image.features), image.seeds) for image in images]
        wanted = [image.targets for image in images]
        loss = generic_loss(outputs, [image.features for image in images], wanted)
        if self.name_table is not None:
            scales, none = self.model.name_scales(), head.none
            loss = with_names(loss, outputs, wanted, self.name_table, scales, none, self.processes.mean)
        return dataclasses.replace(result, total=result.total + self.config.loss.generic * loss.total, generic=loss)
