"""The figure and the clicks of validation photos in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.masks.clicker import innermost
from semsam_model.network.model import build_model
from semsam_model.training.probe import pick_probes, quick_oracle
from tests.semsam_model.houses import write_source


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("houses")
    write_source(folder, "houses", 2)
    return folder


def test_the_probe_clicks_the_innermost_pixel_inside_every_mask(data: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[:9, 4:13] = True
    mask[15, :] = True
    click = innermost(mask)
    assert (click.x, click.y) == (8.5, 4.5)
    probes = pick_probes(read_samples(data).samples, per_source=5)
    assert len(probes) == 2
    for probe in probes:
        for one, click in zip(probe.masks, probe.clicks, strict=True):
            assert one[int(click.y), int(click.x)]


def test_the_probe_figure_is_that_of_the_masks(data: Path) -> None:
    """A network whose every logit is positive marks the whole photo, so its IoU is the share of the wanted mask."""
    model = build_model(read_model_config("tiny")).eval()
    probes = pick_probes(read_samples(data).samples, per_source=5)
    with torch.no_grad():
        for last, value in ((model.decoder.mask_head.layers[-1], 1.0), (model.pixel_decoder.mask_features, 1.0)):
            last.weight.zero_()
            last.bias.fill_(value)
    oracle = quick_oracle(model, probes, 96)
    assert oracle.best == pytest.approx(np.mean([mask.mean() for p in probes for mask in p.masks]), abs=1e-6)
    assert oracle.first == pytest.approx(oracle.best)
