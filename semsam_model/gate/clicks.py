"""What the gate measures: every mask is clicked once, and predicted as the service predicts it, crops included.

`oracle`, `first` and `max` are those of `evaluation.one_click`; beside them which level was best, and the label that
the model gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semsam_model.data.samples import Region, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels
from semsam_model.evaluation.encoded_photos import encode_photos
from semsam_model.evaluation.one_click import click_targets
from semsam_model.inference.naming import label_scores
from semsam_model.inference.predict import expected_iou
from semsam_model.inference.zoom import crop_encoder
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import LabelSet, ShouldStop, never_stop, until_stopped

GUARD = 1_000_003  #: seed of the synthetic scenes of the guard set: never trained on


@dataclass(frozen=True)
class GateClick:
    """One click on one mask, by one model. IoU is 0..1."""

    photo: int  #: index among the samples
    region: int
    label: str | None
    oracle: float
    first: float
    max: float
    level: int  #: 1..6, that `oracle` is of
    #: Which label of its kind the model gives to that level; None where the label is not one of several.
    predicted_label: str | None = None

    @property
    def value(self) -> float:
        """What the gate compares, percent."""
        return 50 * (self.oracle + self.first)


def guard_samples(scenes: int) -> Sequence[Sample]:
    """The guard set: synthetic scenes that never change and that no fine-tuning trains on."""
    return synthetic_samples(scenes, seed=GUARD, source="guard")


def measure_clicks(
    model: SemanticSAM,
    samples: Sequence[Sample],
    encoder: TextEncoder | None = None,
    *,
    lists: Sequence[Sample] | None = None,
    should_stop: ShouldStop = never_stop,
) -> list[GateClick]:
    """Click every mask that is `clickable`. Photos and masks that cannot be read are left out.

    encoder: for names, compared with the labels of the same source and kind; lists: samples that those labels are taken
    from, when they are more than `samples`. should_stop: asked before each photo. Raises Stopped.
    """
    labels = None
    if encoder is not None and model.name_head is not None:
        labels = SourceLabels.of(samples if lists is None else lists, encoder, model.config.text_dim)
    clicks: list[GateClick] = []
    for photo in encode_photos(model, until_stopped(samples, should_stop), []):
        for index, ious in click_targets(model, photo, crop_encoder(model, photo.rgb)):
            label, among = _label_list(labels, photo.sample.source, photo.sample.regions[index])
            click = ious.measure(None if model.ranker is None else expected_iou(ious.proposals, model.ranker))
            level = ious.proposals.levels[click.best]
            embedding = ious.proposals.pairs[click.best][1].name_embedding
            predicted = None if among is None or embedding is None else label_scores(embedding, level, among)[0][0]
            found = GateClick(photo.number, index, label, click.oracle, click.first, click.max, level, predicted)
            clicks.append(found)
    return clicks


def _label_list(labels: SourceLabels | None, source: str, region: Region) -> tuple[str | None, LabelSet | None]:
    """A region's label as the list of its source and kind has it, and the list; None where it is not one of several."""
    row = NO_LABEL if labels is None else labels.vocabulary.row(source, region.granularity, region.name)
    if labels is None or row == NO_LABEL:
        return region.name, None
    _, head, label = labels.vocabulary.rows[row]
    return label, labels.of_source(source, (head,))
