"""Fine-tuning a tiny network on synthetic scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.samples import Annotation, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import DataError, Stopped, TrainingError
from semsam_model.finetuning.config import TRAINED, FineTuneConfig
from semsam_model.finetuning.loop import fine_tune
from semsam_model.network.model import SemanticSAM
from semsam_model.training.config import LossConfig, SamplingConfig, SimulatedCorrectionsConfig
from tests.semsam_model.networks import structured

CONFIG = FineTuneConfig(
    steps=6,
    batch=1,
    size=96,
    views=2,
    warmup=1,
    scenes=2,
    ranker_photos=0,
    save_every=2,
    sampling=SamplingConfig(prompts=3),
    loss=LossConfig(points=32, match_points=32),
)
SAMPLES = list(synthetic_samples(3, seed=8, size=(64, 64), source="project"))


@pytest.fixture
def model() -> SemanticSAM:
    return structured(read_model_config("tiny"))


@pytest.mark.parametrize("learn", ["heads", "decoder", "everything"])
def test_only_what_is_to_learn_changes_and_the_parent_never_does(
    model: SemanticSAM, tmp_path: Path, learn: str
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = dataclasses.replace(CONFIG, learn=learn, steps=2)
    tuned = fine_tune(model, SAMPLES, config, tmp_path)
    changed = {name for name, value in tuned.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(TRAINED[learn]) for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model: SemanticSAM, tmp_path: Path) -> None:
    whole = fine_tune(model, SAMPLES, CONFIG, tmp_path / "whole")
    steps: list[int] = []
    with pytest.raises(Stopped, match="at step 3 of 6"):
        fine_tune(model, SAMPLES, CONFIG, tmp_path / "parts", on_step=steps.append, should_stop=lambda: steps[-1] == 3)
    assert steps == [0, 1, 2, 3]
    rest = fine_tune(model, SAMPLES, CONFIG, tmp_path / "parts", on_step=steps.append)
    assert steps[4:] == [3, 4, 5]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_run_is_stopped_between_the_photos_of_the_ranker_too(model: SemanticSAM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=1, ranker_photos=2)
    asked: list[int] = []

    def after_the_second_photo() -> bool:
        asked.append(len(asked))
        return len(asked) == config.steps + 2

    with pytest.raises(Stopped, match="ranker"):
        fine_tune(model, SAMPLES, config, tmp_path, should_stop=after_the_second_photo)
    assert len(asked) == 3
    assert fine_tune(model, SAMPLES, config, tmp_path).model.ranker is not None


@pytest.mark.slow
def test_a_saved_state_of_other_settings_or_a_torn_one_is_begun_anew(model: SemanticSAM, tmp_path: Path) -> None:
    steps: list[int] = []
    fine_tune(model, SAMPLES, dataclasses.replace(CONFIG, steps=2), tmp_path)
    again = dataclasses.replace(CONFIG, steps=2, lr=1e-5)
    fine_tune(model, SAMPLES, again, tmp_path, on_step=steps.append)
    (tmp_path / "finetune.pt").write_bytes(b"torn")
    fine_tune(model, SAMPLES, again, tmp_path, on_step=steps.append)
    assert steps == [0, 1, 0, 1]


def test_further_clicks_are_learned_where_the_model_takes_them_and_rounds_are_asked_for(tmp_path: Path) -> None:
    model = structured(dataclasses.replace(read_model_config("tiny"), corrections=True))
    before = model.state_dict()["decoder.correction_embed"].clone()
    for prompts in (0, 2):
        config = dataclasses.replace(CONFIG, steps=2, rounds=SimulatedCorrectionsConfig(prompts=prompts, clicks=2))
        tuned = fine_tune(model, SAMPLES, config, tmp_path / str(prompts))
        assert torch.equal(tuned.model.state_dict()["decoder.correction_embed"], before) == (prompts == 0)


def test_the_loss_falls(model: SemanticSAM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=25, lr=3e-3, views=1, replay_share=0.0, save_every=50)
    short = fine_tune(model, SAMPLES[:1], dataclasses.replace(config, steps=1), tmp_path / "short")
    long = fine_tune(model, SAMPLES[:1], config, tmp_path / "long")
    assert long.loss < 0.9 * short.loss


def test_views_beyond_the_memory_given_are_made_again_with_the_same_result(model: SemanticSAM, tmp_path: Path) -> None:
    kept = fine_tune(model, SAMPLES, CONFIG, tmp_path / "kept")
    again = fine_tune(model, SAMPLES, dataclasses.replace(CONFIG, cache_bytes=0), tmp_path / "again")
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in kept.model.state_dict().items())


def test_a_loss_that_is_no_number_stops_the_run(model: SemanticSAM, tmp_path: Path) -> None:
    with torch.no_grad():
        model.decoder.content.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"step 0: .*nan"):
        fine_tune(model, SAMPLES, CONFIG, tmp_path)


def test_nothing_to_learn_from_is_refused(model: SemanticSAM, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one photo"):
        fine_tune(model, [], CONFIG, tmp_path)
    bare = Sample(SAMPLES[0].photo, "project", Annotation(64, 64, ()))
    with pytest.raises(DataError, match="expected regions"):
        fine_tune(model, [bare], CONFIG, tmp_path)
