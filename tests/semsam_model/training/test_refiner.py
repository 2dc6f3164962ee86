"""The refiner learns: from answers and made masks, step by step, and goes on exactly after a pause."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.data.mixture import Mixture
from semsam_model.errors import CheckpointError, DataError
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.proposals import predict_proposals
from semsam_model.network.mobilenet import MobileNetV2
from semsam_model.network.refiner import Refiner
from semsam_model.training.refiner import RefinerRun, RefinerSettings, new_refiner, refiner_loss, train_refiner
from semsam_model.training.refiner_answers import answer_files, collect_answers, drawn_samples, read_answers
from semsam_model.training.refiner_examples import Material
from semsam_model.types import Prompt
from tests.semsam_model.houses import rle, write_source
from tests.semsam_model.networks import structured


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("data")
    write_source(folder, "houses", 6)
    mixture = Mixture.of(read_samples(folder).samples)
    collect_answers(structured(read_model_config("tiny")), mixture, folder / "answers", photos=6)
    return Material(answer_files(folder / "answers"), mixture)


def made_run(out: Path, steps: int = 30) -> RefinerRun:
    backbone = {f"backbone.{name}": value for name, value in MobileNetV2().state_dict().items()}
    torch.manual_seed(0)
    return RefinerRun(new_refiner(backbone), RefinerSettings(steps, batch=2), out)


def test_answers_are_read_as_the_network_gave_them_and_are_made_once(material: Material, tmp_path: Path) -> None:
    model = structured(read_model_config("tiny"))
    parts = [collect_answers(model, material.mixture, tmp_path, photos=6, part=(i, 2)) for i in (0, 1)]
    assert parts == [3, 3] and collect_answers(model, material.mixture, tmp_path, photos=6) == 0
    for ours, theirs in zip(answer_files(tmp_path), material.answers, strict=True):
        a, b = read_answers(ours), read_answers(theirs)
        assert np.array_equal(a.logits, b.logits) and np.array_equal(a.masks, b.masks) and a.clicks == b.clicks
        assert all(mask[int(c.y), int(c.x)] for mask, c in zip(a.masks, a.clicks, strict=True))
        assert a.start(0, 0).shape == a.photo.shape[:2]


def test_answers_to_clicks_with_more_and_fewer_nested_regions_are_kept_together(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 4)
    model = structured(dataclasses.replace(read_model_config("tiny"), regions=6))
    collect_answers(model, Mixture.of(read_samples(tmp_path).samples), tmp_path / "answers", photos=4)
    for path in answer_files(tmp_path / "answers"):
        answers = read_answers(path)
        counts = [
            len(predict_proposals(model, model.encode(answers.photo), Prompt((click,)), CandidateOptions()).pairs)
            for click in answers.clicks
        ]
        assert answers.logits.shape[:2] == (len(counts), min(counts)) and max(counts) > 6


def test_every_sample_is_drawn_once(material: Material) -> None:
    names = [sample.name for sample in drawn_samples(material.mixture)]
    assert sorted(names) == sorted(sample.name for sample in material.mixture.samples)


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="semsam refiner-answers"):
        answer_files(tmp_path)
    (tmp_path / "1.npz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1\.npz"):
        read_answers(tmp_path / "1.npz")


@pytest.mark.parametrize("seed", range(8))
def test_an_example_holds_its_clicks_and_the_newest_is_where_the_mask_is_wrong(material: Material, seed: int) -> None:
    example = material.draw(np.random.default_rng(seed))
    for _ in range(3):
        newest = example.clicks[-1]
        at = int(newest.y), int(newest.x)
        assert newest.positive != (example.logits[at] > 0)
        count = len(example.clicks)
        example = example.corrected(np.where(example.wanted, 2, -2).astype(np.float32) * (seed % 2 or -1))
        if len(example.clicks) == count:
            break


def test_a_mask_of_the_whole_photo_is_corrected_too(material: Material, tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 1)
    height, width = 48, 64
    whole = {**content["annotations"][0], "segmentation": rle(np.ones((height, width), bool))}
    (tmp_path / "houses.json").write_text(json.dumps({**content, "annotations": [whole]}))
    of_whole = Material(material.answers, Mixture.of(read_samples(tmp_path).samples))
    drawn = [of_whole.draw(np.random.default_rng(seed)) for seed in range(30)]
    made = [example for example in drawn if example.wanted[20:108, 20:108].all()]
    assert made and all(example.clicks[-1].positive for example in made)


def test_the_loss_is_least_for_the_wanted_mask() -> None:
    wanted = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    right, wrong = refiner_loss(20 * wanted - 10, wanted), refiner_loss(10 - 20 * wanted, wanted)
    assert float(right) < 0.01 < 1 < float(wrong)


def test_training_corrects_what_it_was_shown(material: Material, tmp_path: Path) -> None:
    run = made_run(tmp_path)
    first = [run.train_step(material) for _ in range(5)]
    last = [run.train_step(material) for _ in range(20)][-5:]
    assert np.mean(last) < np.mean(first)


def test_a_run_that_was_paused_ends_as_one_that_was_not(material: Material, tmp_path: Path) -> None:
    through = made_run(tmp_path / "a", 3)
    assert train_refiner(through, material) == 3
    paused = made_run(tmp_path / "b", 3)
    paused.out.mkdir()
    paused.train_step(material)
    paused.save()
    again = made_run(tmp_path / "b", 3)
    again.load()
    assert train_refiner(again, material) == 3
    theirs = again.refiner.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in through.refiner.state_dict().items())


def test_a_run_starts_from_the_backbone_and_leaves_its_early_blocks_alone(material: Material, tmp_path: Path) -> None:
    torch.manual_seed(3)
    backbone = MobileNetV2()
    run = RefinerRun(
        new_refiner({f"backbone.{n}": v for n, v in backbone.state_dict().items()}),
        RefinerSettings(9, batch=1),
        tmp_path,
    )
    for _ in range(2):  # in the first step nothing is learned but the last layer, which was zero
        run.train_step(material)
    assert torch.equal(run.refiner.stem.weight, backbone.stem.weight)
    assert torch.equal(run.refiner.blocks[2].project.weight, backbone.blocks[2].project.weight)
    assert not torch.equal(run.refiner.blocks[3].project.weight, backbone.blocks[3].project.weight)


def test_what_is_no_run_or_no_such_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="earlier run"):
        made_run(tmp_path).load()
    (tmp_path / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="state of a refiner"):
        made_run(tmp_path).load()
    with pytest.raises(CheckpointError, match="MobileNetV2"):
        new_refiner({"backbone.x": torch.zeros(1)})


def test_a_refiner_is_small() -> None:
    assert sum(p.numel() for p in Refiner().parameters()) < 2_000_000
