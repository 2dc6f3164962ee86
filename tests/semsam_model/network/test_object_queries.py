"""Object queries: what they are made of, what they are held to, and that clicks know nothing of them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.run_weights import pack
from semsam_model.config import ModelConfig, parse_config, read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.data.mixture import Mixture
from semsam_model.data.vocabulary import NameTable
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.evaluation.labels import LabelList
from semsam_model.inference.candidates import Proposal
from semsam_model.inference.object_queries import (
    ObjectQueries,
    candidates_by_word,
    predict_object_queries,
    queries_to_candidates,
    word_scores,
)
from semsam_model.inference.postprocess import NO_LABEL, PostprocessOptions, to_panoptic, to_semantic
from semsam_model.inference.preannotate import preannotate
from semsam_model.inference.text_prompt import by_clicks, by_queries, candidates_by_text, grid_proposals
from semsam_model.network.frame import Frame
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.network.object_queries import choose_seeds, distinct_proposals, query_logits
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import LossConfig, SamplingConfig, Stage, TrainConfig
from semsam_model.training.loop import train
from semsam_model.training.losses.object_queries import (
    BOXES,
    IOU,
    MASKS,
    ObjectQueryLoss,
    ObjectQueryTargets,
    at_logits,
    object_query_loss,
    token_targets,
    with_names,
)
from semsam_model.training.prompts import mask_boxes
from semsam_model.types import Candidate, Click, Label, LabelSet
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import structured

TINY = read_model_config("tiny")
GENERIC = dataclasses.replace(TINY, generic_queries=6, generic_layers=1)
SHAPES = ((1, 1), (2, 2), (4, 4), (8, 8))


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(GENERIC)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (200, 30, 30)
    return pixels


# ------------------------------------------------------------------------------------------------------- the queries


def test_seeds_are_local_maxima_before_anything_else() -> None:
    scores = torch.full((sum(h * w for h, w in SHAPES), 3), -9.0)
    fine = scores[-64:].view(8, 8, 3)
    fine[2, 2, 1], fine[2, 3, 1], fine[6, 6, 0] = 5.0, 4.0, 1.0
    seeds = choose_seeds(scores, SHAPES, 2).tolist()
    assert seeds == [21 + 2 * 8 + 2, 21 + 6 * 8 + 6]


def test_of_proposals_that_are_alike_the_best_remains_and_empty_ones_do_not() -> None:
    logits = torch.full((4, 8, 8), -1.0)
    logits[0, :4], logits[1, :4], logits[2, 4:] = 1.0, 1.0, 1.0
    scores = torch.tensor([[0.0, 0, 0], [0, 2.0, 0], [1.0, 0, 0], [9.0, 0, 0]])
    assert distinct_proposals(scores, logits.flatten(1), 10).tolist() == [1, 2]
    assert distinct_proposals(scores, logits.flatten(1), 1).tolist() == [1]


def test_an_untrained_query_is_the_click_that_proposed_it(model: SemanticSAM, photo: np.ndarray) -> None:
    embedding = model.encode(photo)
    queries = predict_object_queries(model, embedding)
    assert 1 <= len(queries.logits) <= GENERIC.generic_queries
    with torch.inference_mode():
        output = model.object_queries(embedding.features, 0)
    proposed = output.proposals.logits[output.chosen].numpy()
    assert np.allclose(queries.logits, proposed[:, : queries.logits.shape[1], : queries.logits.shape[2]], atol=1e-4)


def test_a_trusted_box_draws_itself_where_the_features_say_nothing(model: SemanticSAM, photo: np.ndarray) -> None:
    with torch.inference_mode():
        output = model.object_queries(model.encode(photo).features, 0)
    box = dataclasses.replace(
        output,
        mask_embedding=torch.zeros(1, GENERIC.width),
        boxes=torch.tensor([[0.5, 0.5, 0.5, 0.25]]),
        box_trust=torch.tensor([4.0]),
    )
    logits = query_logits(box, torch.ones(GENERIC.width, 16, 16))
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[6:10, 4:12] = True
    assert torch.equal(logits[0] > 0, wanted)
    assert logits.max() <= 4


def masks_nothing(network: SemanticSAM) -> SemanticSAM:
    """The same network, which selects nothing at any click."""
    logits = network.mask_logits
    network.mask_logits = lambda *given: -1 - logits(*given) * 0  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize("names", [False, True])
def test_a_photo_in_which_no_click_selects_anything_has_no_queries_and_every_reading_of_them_is_empty(
    photo: np.ndarray, names: bool
) -> None:
    blind = masks_nothing(structured(dataclasses.replace(GENERIC, name_features=names)))
    embedding = blind.encode(photo)
    queries, frame = predict_object_queries(blind, embedding), embedding.frame
    assert queries.logits.shape == (0, *frame.logits)
    width = blind.config.text_dim
    labels = LabelSet(("car", "wheel", "sky"), ("object", "part", None), np.eye(3, width, dtype=np.float32))
    for given in (None, labels):
        assert queries_to_candidates(queries, frame, given) == preannotate(blind, embedding, given) == []
    found = queries.classify(labels)
    assert (to_semantic(found, enlarge=frame.enlarge) == np.full(frame.photo, NO_LABEL)).all()
    ids, segments = to_panoptic(found, (0,), enlarge=frame.enlarge)
    assert (ids == np.zeros(frame.photo)).all() and segments == []
    asked = candidates_by_word(
        queries, frame, ("car", "wheel of car"), lambda words: np.eye(len(words), width, dtype=np.float32)
    )
    assert asked == {"car": [], "wheel of car": []}
    assert candidates_by_text(blind, embedding, labels, 0.5, labels) == []


def test_a_photo_without_queries_still_teaches_where_things_are() -> None:
    blind = masks_nothing(structured(dataclasses.replace(GENERIC, name_features=True))).train()
    features = blind.features(torch.randn(1, 3, 128, 128))
    output = blind.object_queries(features, 0)
    assert len(output.chosen) == 0
    wanted = targets((2, 20, 2, 20))
    named = dataclasses.replace(wanted, labels=torch.zeros(1, dtype=torch.long))
    loss = object_query_loss([output], [features], [named])
    zeros = torch.zeros(2, dtype=torch.long)
    table = NameTable(torch.eye(2, TINY.text_dim), zeros, zeros, torch.ones(2))
    loss = with_names(loss, [output], [named], table, blind.name_scales(), output.scores.new_zeros(2))
    loss.total.backward()
    figures = loss.figures()
    assert figures["tokens"] > 0 and figures["mask_bce"] == figures["mask_dice"] == figures["box"] == 0
    assert blind.generic is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in blind.generic.token_score.parameters())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in blind.parameters())


def test_a_model_without_queries_says_so(photo: np.ndarray) -> None:
    plain = build_model(TINY).eval()
    with pytest.raises(ConfigError, match="generic_queries: 0"):
        predict_object_queries(plain, plain.encode(photo))


def test_clicks_do_not_know_of_queries(model: SemanticSAM, photo: np.ndarray) -> None:
    plain = build_model(TINY).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("generic.")}
    plain.load_state_dict(state)
    ours, theirs = (m.decode(m.encode(photo), [Click(60, 40)]) for m in (model, plain))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.object_embedding, theirs.object_embedding)


@pytest.mark.parametrize("name", ["swin_t", "swin_l", "swin_l_many2one"])
def test_published_models_have_none(name: str) -> None:
    assert read_model_config(name).generic_queries == 0


def test_queries_go_through_a_weights_file(model: SemanticSAM, photo: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors", model, GENERIC)
    again, _ = load(tmp_path / "w.safetensors")
    ours, theirs = (predict_object_queries(m, m.encode(photo)) for m in (model, again))
    assert np.array_equal(ours.logits, theirs.logits)
    assert np.array_equal(ours.kinds, theirs.kinds)


# ------------------------------------------------------------------------------------------------------ read as masks


def invented() -> tuple[ObjectQueries, Frame]:
    """A car with a wheel, and a wheel that lies on the ground. Texts: car along x, wheel along y, moon against both."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 4:20, 4:28] = masks[1, 14:20, 6:12] = masks[2, 24:30, 20:26] = True
    kinds = np.array([[0.9, 0, 0], [0, 0.8, 0], [0, 0.8, 0]], np.float32)
    embeddings = np.zeros((3, 2, 3), np.float32)
    embeddings[0, :, 0] = embeddings[1:, :, 1] = 8
    logits = np.where(masks, 9.0, -9.0).astype(np.float32)
    queries = ObjectQueries(logits, kinds, embeddings, np.full(2, 3.0), np.array([3, 5, 5]), np.full(3, 0.8), 6)
    return queries, Frame((128, 128), (128, 128), (128, 128), (0, 0, 128, 128))


def embed(words: object) -> np.ndarray:
    vectors = {"car": (1, 0, 0), "wheel": (0, 1, 0), "moon": (0, 0, 1)}
    return np.array([vectors[str(word)] for word in words], np.float32)  # type: ignore[attr-defined]


def test_a_photo_becomes_named_candidates_with_parents() -> None:
    queries, frame = invented()
    labels = LabelSet(("car", "wheel", "moon"), ("object", "part", None), embed(["car", "wheel", "moon"]))
    found = queries_to_candidates(queries, frame, labels, options=PostprocessOptions(least=0.3))
    assert [c.label for c in found] == ["car", "wheel", "wheel"]
    assert [c.parent for c in found] == [None, 1, None]
    assert found[0].score == pytest.approx(0.9, abs=0.02)
    assert found[0].bbox == (16, 16, 112, 80)
    assert [c.label for c in queries_to_candidates(queries, frame, labels, "part", PostprocessOptions(least=0.3))] == [
        "wheel",
        "wheel",
    ]
    assert [c.label for c in queries_to_candidates(queries, frame)] == [None, None, None]


def test_a_part_of_a_whole_is_found_in_that_whole_alone() -> None:
    queries, frame = invented()
    found = candidates_by_word(
        queries, frame, ("wheel", "wheel of car", "car", "moon"), embed, PostprocessOptions(least=0.1)
    )
    assert [c.bbox[0] for c in found["car"]] == [16]
    assert len(found["wheel"]) == 2
    assert [c.bbox[:2] for c in found["wheel of car"]] == [(24, 56)]
    assert found["wheel of car"][0].score < found["wheel"][0].score
    assert found["moon"] == []


def test_a_label_that_names_its_whole_scores_as_the_words_do() -> None:
    queries, _ = invented()
    labels = LabelList.of({Label("part", "Wheel", "Car"), Label("object", "object")}, embed)
    assert [key.words for key in labels.keys] == ["wheel of car"]
    scores = labels.classify(queries, [0]).scores[:, 0]
    assert scores == pytest.approx(word_scores(queries, "wheel", "car", embed)) and scores[1] > 0.5 > 0.1 > scores[2]


def test_parts_of_two_wholes_differ_by_what_holds_them_and_labels_without_a_whole_score_as_ever() -> None:
    queries, _ = invented()
    apart = LabelList.of({Label("part", "wheel", "car"), Label("part", "wheel", "moon"), Label("part", "wheel")}, embed)
    anywhere, of_car, of_moon = (apart.classify(queries, [i]).scores[:, 0] for i in range(3))
    assert [key.whole for key in apart.keys] == [None, "car", "moon"]
    assert of_car[1] > 0.5 and of_moon[1] < 0.01 and anywhere[2] > 0.5 > of_car[2]
    plain = LabelList.of({Label("object", "car"), Label("part", "wheel"), Label("region", "moon")}, embed)
    names = ("car", "moon", "wheel")
    as_ever = queries.classify(LabelSet(names, ("object", "object", "part"), embed(names)))
    assert np.array_equal(plain.classify(queries, range(3)).scores, as_ever.scores)
    assert plain.stuff == {1}


def words(*values: str) -> LabelSet:
    return LabelSet(values, (None,) * len(values), embed(values))


def test_a_word_has_the_masks_that_it_fits_better_than_the_rest_of_the_list() -> None:
    queries, frame = invented()
    wheels = by_queries(queries, frame, words("wheel", "car"))
    assert [(c.label, c.bbox[:2]) for c in wheels] == [("wheel", (24, 56)), ("wheel", (80, 96))]
    alone = candidates_by_word(queries, frame, ["wheel"], embed)["wheel"]
    assert [c.score for c in wheels] == [c.score for c in alone[:2]]  # scores do not depend on the list
    assert by_queries(queries, frame, words("moon", "car", "wheel")) == []
    (of_car,) = by_queries(queries, frame, words("wheel", "car"), words("car", "wheel"))
    assert of_car.bbox[:2] == (24, 56)
    assert by_queries(queries, frame, words("wheel", "car"), words("moon", "car")) == []


def test_what_no_query_is_sure_of_is_looked_for_with_clicks(photo: np.ndarray) -> None:
    named, plain = (structured(dataclasses.replace(config, name_features=True)) for config in (GENERIC, TINY))
    assert named.generic is not None
    embedding = named.encode(photo)
    grid, frame, tokens = grid_proposals(named, embedding), embedding.frame, named.config.tokens
    vector = np.random.default_rng(0).normal(size=16).astype(np.float32)
    lists = [LabelSet(("a", "b"), (None, None), np.stack((v, -v))) for v in (vector, -vector)]
    for unsure in (True, False):
        if not unsure:
            with torch.no_grad():
                named.generic.query_score.layers[-1].get_parameter("bias").add_(6)
        queries = predict_object_queries(named, embedding)
        sure = [by_queries(queries, frame, labels) for labels in lists]
        assert any(sure) != unsure
        for labels, by_query in zip(lists, sure, strict=True):
            found = drawn(candidates_by_text(named, embedding, labels, 0.0))
            assert found == drawn(by_query or by_clicks(grid, frame, tokens, labels, 0.0))
    embedding = plain.encode(photo)
    for labels in lists:
        found = drawn(by_clicks(grid_proposals(plain, embedding), embedding.frame, tokens, labels, 0.0))
        assert drawn(candidates_by_text(plain, embedding, labels, 0.0)) == found


def test_clicks_find_a_part_only_inside_a_larger_whole() -> None:
    """A big mask named car, a small one named wheel in it, and one beside it."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 4:20, 4:28] = masks[1, 14:20, 6:12] = masks[2, 24:30, 20:26] = True
    names = embed(["car", "wheel", "wheel"])
    frame, grid = (
        invented()[1],
        [
            Proposal(np.where(mask, 9.0, -9.0).astype(np.float32), 3, 0.8, 1.0, name_embedding=np.stack((8 * n, 8 * n)))
            for mask, n in zip(masks, names, strict=True)
        ],
    )
    wheel, car = words("wheel", "car"), words("car", "wheel")
    assert {c.bbox[:2] for c in by_clicks(grid, frame, 6, wheel, 0.4)} == {(24, 56), (80, 96)}
    (of_car,) = by_clicks(grid, frame, 6, wheel, 0.4, car)
    assert of_car.bbox[:2] == (24, 56) and of_car.label == "wheel"
    assert by_clicks(grid, frame, 6, car, 0.4, wheel) == by_clicks(grid, frame, 6, car, 0.4, car) == []
    assert by_clicks(grid, frame, 6, words("moon", "car", "wheel"), 0.4) == []


def drawn(candidates: list[Candidate]) -> list[object]:
    return [(c.bbox, c.score, c.label, c.crop.tobytes()) for c in candidates]


# ---------------------------------------------------------------------------------------------------- what is learned


def targets(*spans: tuple[int, int, int, int], kinds: tuple[int, ...] | None = None) -> ObjectQueryTargets:
    masks = torch.zeros(len(spans), 32, 32, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, spans, strict=True):
        mask[top:bottom, left:right] = True
    count = len(spans)
    return ObjectQueryTargets(
        masks,
        torch.from_numpy(mask_boxes(masks.numpy())),
        torch.tensor(kinds or (0,) * count),
        torch.full((count,), -1),
        torch.ones(3, dtype=torch.bool),
        torch.ones(count, 3, dtype=torch.bool),
    )


def test_every_mask_has_a_middle_at_a_level_of_its_size() -> None:
    shapes = ((2, 2), (4, 4), (8, 8), (16, 16))
    wanted = targets((0, 31, 0, 31), (4, 6, 9, 11), (0, 12, 20, 32), kinds=(0, 1, 2))
    levels = token_targets(wanted.masks, wanted.kinds, shapes).split([4, 16, 64, 256])
    positive = [[int((level[:, kind] == 1).sum()) for level in levels] for kind in range(3)]
    assert positive[0][0] > 0
    assert positive[0][3] == 0
    assert positive[1][:3] == [0, 0, 0]
    assert positive[1][3] >= 1
    assert positive[2][1] > 0
    elsewhere = token_targets(wanted.masks, wanted.kinds, shapes)
    assert set(elsewhere.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_what_is_not_annotated_is_no_mistake_where_annotation_is_not_complete(model: SemanticSAM) -> None:
    images = torch.randn(1, 3, 128, 128)
    features = model.features(images)
    output = model.object_queries(features, 0)
    wanted = targets((2, 20, 2, 20))
    nothing_else = dataclasses.replace(wanted, complete=torch.zeros(3, dtype=torch.bool))
    sure = dataclasses.replace(output, token_scores=output.token_scores + 9)
    losses = [
        [float(object_query_loss([o], [features], [t]).tokens.detach()) for o in (output, sure)]
        for t in (wanted, nothing_else)
    ]
    assert losses[0][1] > losses[0][0]
    assert losses[1][1] < losses[1][0]


@pytest.mark.parametrize("column", [MASKS, BOXES, IOU])
def test_a_mask_that_feeds_no_loss_adds_nothing_to_it(model: SemanticSAM, column: int) -> None:
    features = model.features(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    output = model.object_queries(features, 0)
    leaves = [v.detach().requires_grad_() for v in (output.token_scores, output.proposals.scores, output.scores)]
    proposals = dataclasses.replace(output.proposals, scores=leaves[1])
    output = dataclasses.replace(output, token_scores=leaves[0], proposals=proposals, scores=leaves[2])
    logits = query_logits(output, features.mask_features[0]).detach() > 0
    wanted = dataclasses.replace(targets((2, 20, 2, 20), (0, 32, 0, 32)), masks=logits[:2])  # what queries really find
    wanted = dataclasses.replace(wanted, boxes=torch.from_numpy(mask_boxes(wanted.masks.numpy())))
    supervised = wanted.supervised.clone()
    supervised[:, column] = False
    dumb = dataclasses.replace(wanted, supervised=supervised, complete=wanted.complete & (column != IOU))

    def loss(*held_to: ObjectQueryTargets) -> ObjectQueryLoss:
        return object_query_loss([output] * len(held_to), [features] * len(held_to), held_to)

    terms = {MASKS: ("mask_bce", "mask_dice"), BOXES: ("box",), IOU: ("tokens", "proposals", "queries")}
    alone, both, silent = loss(wanted).figures(), loss(wanted, dumb).figures(), loss(dumb).figures()
    for other, names in terms.items():
        for name in names:
            assert alone[name] > 0
            assert silent[name] == (0 if other == column else alone[name])
            assert both[name] == pytest.approx((alone[name] + silent[name]) / 2, rel=1e-5)
    loss(dumb).total.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.any()) is (column != IOU) for leaf in leaves)


def test_what_looks_like_a_mask_without_a_score_is_neither_right_nor_wrong(model: SemanticSAM) -> None:
    features = model.features(torch.randn(1, 3, 128, 128))
    output = model.object_queries(features, 0)
    scores = output.token_scores.detach().requires_grad_()
    wanted = targets((0, 32, 0, 16), (4, 12, 20, 30))
    wanted.supervised[0, IOU] = False
    one = object_query_loss([dataclasses.replace(output, token_scores=scores)], [features], [wanted])
    one.tokens.backward()
    assert scores.grad is not None
    finest = scores.grad[-16 * 16 :, 0].view(16, 16)  # stride 8
    assert not finest[:, :8].any() and finest[:, 8:].all()


def test_a_frozen_network_gets_no_gradient_and_the_queries_all_of_it() -> None:
    network = structured(dataclasses.replace(GENERIC, generic_layers=1)).train()
    with torch.no_grad():
        features = network.features(torch.randn(1, 3, 128, 128))
    assert network.generic is not None
    scores = network.generic.tokens(features)
    with torch.no_grad():
        (seeds,) = network.seed_outputs(features, [scores])
    output = network.generic(features, scores, seeds)
    object_query_loss([output], [features], [targets((2, 20, 2, 20))]).total.backward()
    touched = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert touched >= {"generic"}
    assert "decoder" not in touched


def test_masks_at_stride_four_are_the_cells_mostly_covered() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4, :3] = masks[0, 4:, 4:6] = True
    assert at_logits(masks)[0].tolist() == [[True, False], [False, False]]


def test_batches_carry_every_mask_and_what_its_source_annotates(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2)
    mixture = Mixture.of(read_samples(tmp_path).samples)
    stages, config = [Stage(1, 64, 2)], SamplingConfig(prompts=1, scale_min=1, scale_max=1)
    made = TrainingBatches(mixture, stages, config, click_box=0.005, fill=(128.0,) * 3, seed=0, object_queries=True)[0]
    assert len(made.object_queries) == 2
    for one in made.object_queries:
        assert one.masks.shape == (3, 16, 16)
        assert one.kinds.tolist() == [0, 1, 1]
        assert one.complete.tolist() == [True, True, False]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def small(model: str, init: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        model=model,
        init=str(init),
        learn="generic",
        stages=(Stage(3, 96, 1),),
        sampling=SamplingConfig(prompts=1, scale_min=1, scale_max=1, flip=False),
        loss=LossConfig(generic=1.0),
        lr=3e-3,
        warmup=0,
        bfloat16=False,
        threads=1,
        workers=0,
        log_every=1,
        ema=0.5,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def written(config: ModelConfig, path: Path) -> str:
    import yaml

    path.write_text(yaml.safe_dump(config.to_dict()))
    return str(path)


def test_queries_learn_on_packed_weights_and_clicks_stay_bit_for_bit(tmp_path: Path) -> None:
    write_source(tmp_path / "data", "houses", 2)
    samples = read_samples(tmp_path / "data").samples
    start = tmp_path / "start.safetensors"
    save(start, structured(TINY), TINY, half=True)
    config = small(written(GENERIC, tmp_path / "model.yaml"), start)
    result = train(config, samples, tmp_path / "run", console=quiet())
    before, after = load_file(start), load_file(result.weights)
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("generic.")}
    for name, value in before.items():
        assert torch.equal(value.float(), after[name]), name
    rows = [line for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if "generic_tokens" in line]
    assert len(rows) == 3
    ranked = structured(TINY)
    ranked.ranker = Ranker(
        np.ones((len(FEATURES), 2), np.float32),
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        np.zeros((), np.float32),
    )
    save(tmp_path / "ranked.safetensors", ranked, TINY, half=True)
    pack(result.weights, GENERIC, tmp_path / "packed.safetensors", ranker_of=tmp_path / "ranked.safetensors")
    packed = load_file(tmp_path / "packed.safetensors")
    for name, value in load_file(tmp_path / "ranked.safetensors").items():
        assert torch.equal(value, packed[name]), name
    assert load(tmp_path / "packed.safetensors")[0].ranker is not None
    with pytest.raises(CheckpointError, match="holds no ranker"):
        pack(result.weights, GENERIC, tmp_path / "packed.safetensors", ranker_of=start)


def test_learning_queries_needs_a_model_with_them_and_weights_to_build_on(tmp_path: Path) -> None:
    run = {"model": "tiny", "stages": [{"steps": 1, "size": 64, "batch": 1}], "learn": "generic"}
    with pytest.raises(ConfigError, match="needs init"):
        parse_config(TrainConfig, run, "run.yaml")
    write_source(tmp_path / "data", "houses", 1)
    start = tmp_path / "start.safetensors"
    save(start, structured(TINY), TINY)
    with pytest.raises(ConfigError, match="set generic_queries"):
        train(small("tiny", start), read_samples(tmp_path / "data").samples, tmp_path / "run", console=quiet())
