"""The learned order of candidates: on masks drawn by hand, and on the tiny network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.checkpoints.checkpoint import RANKER, load, save, with_ranker
from semsam_model.checkpoints.header import read_header
from semsam_model.config import read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.errors import CheckpointError, DataError, PromptError
from semsam_model.inference.boxes import within_boxes
from semsam_model.inference.candidates import CandidateOptions, CropPrediction, PromptCells, Proposal, obeyed
from semsam_model.inference.predict import predict_candidates, rank_candidates
from semsam_model.inference.proposals import Proposals
from semsam_model.inference.ranking import ranker_features
from semsam_model.network.frame import Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM, build_model
from semsam_model.network.pixel_decoder import Features
from semsam_model.network.ranker import ADDED, EVIDENCE, FEATURES, OF_PROPOSAL, Ranker
from semsam_model.training.ranker import fit, fit_ranker
from semsam_model.training.ranker_lists import KnownLabels, ProposalList
from semsam_model.types import LEVEL_TOKENS, Click, Kind, LabelSet, Prompt, PromptContext
from tests.semsam_model.houses import write_source

CONFIG = read_model_config("tiny")
SIZE = (24, 32)


def made_ranker(seed: int = 0) -> Ranker:
    rng = np.random.default_rng(seed)
    return Ranker(
        rng.normal(size=(len(FEATURES), 5)).astype(np.float32),
        rng.normal(size=5).astype(np.float32),
        rng.normal(size=5).astype(np.float32),
        np.array(0.1, np.float32),
    )


def square(token: int, y0: int, x0: int, side: int, predicted_iou: float = 0.5) -> Proposal:
    logits = np.full(SIZE, -4, np.float32)
    logits[y0 : y0 + side, x0 : x0 + side] = 4
    return Proposal(logits, token, LEVEL_TOKENS.index(token) + 1, predicted_iou, 0.9)


def proposed(proposals: Sequence[Proposal], prompt: PromptCells) -> Proposals:
    """Proposals on a photo of four pixels a cell."""
    frame = Frame.of((SIZE[0] * 4, SIZE[1] * 4), CONFIG)
    nothing = ImageEmbedding(frame, Features(torch.zeros(0), torch.zeros(0), ()))
    return Proposals(nothing, (CropPrediction(frame, prompt, tuple(proposals)),))


PROPOSALS = st.lists(
    st.builds(
        square,
        st.integers(0, 5),
        st.integers(0, 20),
        st.integers(0, 28),
        st.integers(0, 24),
        st.floats(-0.5, 1.5, width=32),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda p: p.token,
)
PROMPTS = st.builds(
    PromptCells,
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 31)), max_size=3).map(tuple),
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 31)), max_size=2).map(tuple),
    st.sampled_from([(), ((2.0, 3.0, 20.0, 18.5),)]),
)
WANTED = st.builds(
    PromptContext,
    st.sampled_from(["object", "part", None]),
    st.lists(st.integers(0, 30), min_size=6, max_size=6).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(PROPOSALS, PROMPTS, WANTED, st.randoms(use_true_random=False))
def test_scores_are_shares_and_do_not_depend_on_the_order_of_the_candidates(
    proposals: list[Proposal], prompt: PromptCells, wanted: PromptContext, random: object
) -> None:
    places = list(range(len(proposals)))
    random.shuffle(places)  # type: ignore[attr-defined]
    ranker = made_ranker()
    together = proposed(proposals, prompt)
    scores = ranker.scores(ranker_features(together.features, together.levels, wanted))
    assert ((scores >= 0) & (scores <= 1)).all()
    together = proposed([proposals[i] for i in places], prompt)
    shuffled = ranker.scores(ranker_features(together.features, together.levels, wanted))
    np.testing.assert_allclose(shuffled, scores[places], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(PROPOSALS, PROMPTS, st.integers(0, 50))
def test_no_score_lets_a_mask_pass_one_that_obeys_more_clicks(
    proposals: list[Proposal], prompt: PromptCells, seed: int
) -> None:
    """Every distinct mask is kept: those that obey fewer clicks, as cut off at a box, must come after."""
    options = CandidateOptions(most=len(proposals), least=len(proposals))
    proposals = [p for _, p in within_boxes(proposed(proposals, prompt), np.zeros(len(proposals)), options)[0].pairs]
    ranked = rank_candidates(proposed(proposals, prompt), options, made_ranker(seed), PromptContext("part"))
    obeys = {p.token: obeyed(p.cells, prompt.positives, prompt.negatives) for p in proposals}
    assert [obeys[c.token] for c in ranked] == sorted((obeys[c.token] for c in ranked), reverse=True)
    visible = [obeys[p.token] for p in proposals if p.cells.any()]
    assert [obeys[c.token] for c in ranked[:1]] == sorted(visible)[-1:]
    few = rank_candidates(proposed(proposals, prompt), CandidateOptions(), made_ranker(seed), PromptContext("part"))
    assert all(obeys[c.token] == max(visible) for c in few[2:]), "beyond the first two only what obeys most"


def test_what_a_row_says_about_nested_squares() -> None:
    proposals = [
        square(3, 0, 0, 24, 0.4),
        square(0, 4, 4, 12, 0.9),
        square(5, 6, 6, 6, 0.7),
        square(1, 0, 0, 0),
    ]
    rows = proposed(proposals, PromptCells(((8, 8),), ((20, 20),), ())).features
    of = {name: rows[:, i].tolist() for i, name in enumerate(OF_PROPOSAL)}
    assert of["level_1"] == [1, 0, 0, 0] and of["level_3"] == [0, 1, 0, 0] and of["level_6"] == [0, 0, 1, 0]
    assert of["obeys"] == [0.5, 1, 1, 0.5]
    assert of["larger"] == [0, 0.5, 1, 0]
    assert of["contains"] == [1, 0.5, 0, 0] and of["contained"] == [0, 0.5, 1, 0]
    assert of["to_parent"] == pytest.approx([0, np.log(4), np.log(4), 0])
    assert of["to_child"] == pytest.approx([np.log(4), np.log(4), 0, 0])
    assert of["agreement"] == pytest.approx([(1 / 4 + 1 / 16) / 2, (1 / 4 + 1 / 4) / 2, (1 / 16 + 1 / 4) / 2, 0])
    assert of["below_best"] == pytest.approx([0.5, 0, 0.2, 0.4])
    assert of["sides"] == [0.75, 0, 0, 0]
    assert of["fill"] == [1, 1, 1, 0]
    assert of["depth"] == pytest.approx([9 / 24, 5 / 12, 3 / 6, 0], rel=0.1)


def labelled(kinds: Sequence[Kind | None]) -> LabelSet:
    """Labels along the axes of a space of as many dimensions."""
    return LabelSet(tuple(f"label {i}" for i in range(len(kinds))), tuple(kinds), np.eye(len(kinds), dtype=np.float32))


def test_what_the_project_can_name_moves_the_order_and_only_for_a_ranker_that_reads_it() -> None:
    liked, other = (
        replace(square(token, 4, 4, side), name_embedding=np.array(heads, np.float32))
        for token, side, heads in ((0, 9, [[8, 0], [0, 0]]), (3, 20, [[0, 1], [0, 0]]))
    )
    together = proposed([other, liked], PromptCells(((6, 6),), (), ()))
    hidden = np.zeros((len(FEATURES), 1), np.float32)
    hidden[FEATURES.index("name_score")] = 1
    reads = Ranker(hidden, np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros((), np.float32))
    wanted = PromptContext(labels=labelled(["object", "object"]))
    assert [c.token for c in rank_candidates(together, CandidateOptions(), reads, wanted)] == [0, 3]
    assert len({c.score for c in rank_candidates(together, CandidateOptions(), reads, PromptContext())}) == 1
    deaf = replace(reads, hidden=np.zeros_like(hidden))
    assert len({c.score for c in rank_candidates(together, CandidateOptions(), deaf, wanted)}) == 1


def made_lists(seed: int, count: int = 150) -> list[ProposalList]:
    """Squares in squares: objects are meant at levels 1 to 3, "lid"s at level 6; predicted IoU is of no use."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(count):
        sides = sorted(rng.integers(3, 24, 6), reverse=True)
        proposals = [
            square(token, 0, 0, int(side), float(rng.uniform()))
            for token, side in zip(LEVEL_TOKENS, sides, strict=True)
        ]
        part, lid = rng.random() < 0.5, rng.random() < 0.5
        meant = (6 if lid else 4) if part else 2
        worth = np.array([(min(s, sides[meant - 1]) / max(s, sides[meant - 1])) ** 2 for s in sides], np.float32)
        rows = proposed(proposals, PromptCells(((1, 1),), (), ())).features
        granularity = "part" if part else "object"
        any_iou = np.array([1, 0.9, 0.5, 0.4, 0.3, 0.2], np.float32)
        lists.append(
            ProposalList(
                rows, (1, 2, 3, 4, 5, 6), worth, any_iou, "made", granularity, "lid" if part and lid else granularity
            )
        )
    return lists


def mean_worth(ranker: Ranker | None, lists: list[ProposalList], wanted: dict[str, PromptContext]) -> float:
    worth = []
    for entry in lists:
        rows = ranker_features(entry.rows, entry.levels, wanted[entry.name])
        scores = rows[:, FEATURES.index("predicted_iou")] if ranker is None else ranker.scores(rows)
        worth.append(float(entry.wanted_iou[scores.argmax()]))
    return float(np.mean(worth))


@pytest.mark.slow
def test_it_learns_what_is_meant_from_granularity_and_history_where_predicted_iou_is_of_no_use() -> None:
    ranker, unseen = fit(made_lists(0)), made_lists(1)
    told = {"object": PromptContext("object"), "part": PromptContext("part"), "lid": PromptContext("part")}
    history = told | {
        "part": PromptContext("part", (0, 0, 0, 20, 0, 0)),
        "lid": PromptContext("part", (0, 0, 0, 0, 0, 20)),
    }
    unknown = dict.fromkeys(told, PromptContext())
    by_predicted_iou = mean_worth(None, unseen, unknown)
    assert mean_worth(ranker, unseen, told) > by_predicted_iou + 0.1
    assert mean_worth(ranker, unseen, history) > mean_worth(ranker, unseen, told) + 0.05
    assert mean_worth(ranker, unseen, history) > 0.9


def test_it_learns_which_label_is_meant_where_nothing_else_tells() -> None:
    rng = np.random.default_rng(5)

    def lists(count: int) -> list[ProposalList]:
        made = []
        for entry in made_lists(int(rng.integers(1000)), count):
            meant = int(rng.integers(6))
            worth = np.array([1.0 if i == meant else 0.2 for i in range(6)], np.float32)
            named = np.zeros((6, len(EVIDENCE)), np.float32)
            named[:, :3] = np.stack((0.3 + 0.6 * (worth == 1), np.ones(6), np.full(6, 0.5)), 1)
            made.append(replace(entry, wanted_iou=worth, name="", labels=(KnownLabels("part", named, worth),)))
        return made

    ranker, unseen = fit(lists(150)), lists(40)
    worth = []
    for entry in unseen:
        scores = ranker.scores(ranker_features(entry.rows, entry.levels, PromptContext("part"), entry.labels[0].names))
        worth.append(entry.wanted_iou[scores.argmax()])
    assert np.mean(worth) > 0.95


@pytest.mark.slow
def test_scores_are_expected_iou_on_unseen_lists() -> None:
    ranker = fit(made_lists(0))
    errors = []
    for entry in made_lists(2):
        errors.append(ranker.scores(ranker_features(entry.rows, entry.levels)) - entry.any_iou)
    assert abs(np.mean(errors)) < 0.03
    assert np.abs(np.mean(errors, 0)).max() < 0.1  # level by level


def test_a_feature_that_never_changed_in_training_has_no_say() -> None:
    ranker = fit(made_lists(0, 20))
    assert not ranker.hidden[FEATURES.index("name_score")].any()
    assert ranker.hidden[FEATURES.index("log_area")].any()


@pytest.mark.slow
def test_the_same_seed_makes_the_same_ranker_and_nothing_to_learn_from_is_an_error() -> None:
    first, second, other = (fit(made_lists(0, 20), seed=seed).to_arrays() for seed in (1, 1, 2))
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    with pytest.raises(DataError, match="at least one annotated mask"):
        fit([])


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    torch.manual_seed(3)
    return build_model(CONFIG).eval()


@pytest.mark.slow
def test_a_network_gets_its_ranker_from_annotated_photos(model: SemanticSAM, tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    (tmp_path / "houses" / "1.png").write_bytes(b"broken")
    samples = read_samples(tmp_path).samples
    photos: list[None] = []
    rankers = [fit_ranker(model, samples, seed=4, workers=n, on_photo=lambda: photos.append(None)) for n in (0, 2)]
    assert len(photos) == 6
    assert (rankers[0].hidden == rankers[1].hidden).all()
    assert not rankers[0].hidden[FEATURES.index("name_score")].any()  # no text encoder, no say
    assert all(np.isfinite(value).all() for value in rankers[0].to_arrays().values())


def test_the_ranker_decides_order_and_score_and_without_one_predicted_iou_does(model: SemanticSAM) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    embedding, prompt = model.encode(rgb), Prompt((Click(40, 30),))
    plain = predict_candidates(model, embedding, prompt, CandidateOptions(same_iou=1))
    assert [c.predicted_iou for c in plain] == sorted((c.predicted_iou for c in plain), reverse=True)
    hidden = np.zeros((len(FEATURES), 1), np.float32)
    hidden[FEATURES.index("predicted_iou")] = -1
    model.ranker = Ranker(hidden, np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros((), np.float32))
    try:
        turned = predict_candidates(model, embedding, prompt, CandidateOptions(same_iou=1), PromptContext("object"))
    finally:
        model.ranker = None
    assert turned[0].predicted_iou == plain[-1].predicted_iou
    assert {c.predicted_iou for c in turned} == {c.predicted_iou for c in plain}
    assert turned[0].score == max(c.score for c in turned)
    assert turned[0].score == pytest.approx(1 / (1 + np.exp(np.tanh(turned[0].predicted_iou))), abs=1e-5)


def test_weights_come_back_with_their_ranker_and_without(model: SemanticSAM, tmp_path: Path) -> None:
    bare, ranked, again = (tmp_path / f"{name}.safetensors" for name in ("bare", "ranked", "again"))
    without = save(bare, model, CONFIG, card={"sources": ["houses"]}, half=True)
    assert load(bare)[0].ranker is None
    version = with_ranker(bare, made_ranker(), ranked, card={"ranker": "made"})
    assert version.digest != without.digest
    assert read_header(ranked).card == {"sources": ["houses"], "ranker": "made"}
    network, found = load(ranked, dtype=torch.bfloat16)
    assert found == version
    assert network.ranker is not None
    for name, value in made_ranker().to_arrays().items():
        assert (network.ranker.to_arrays()[name] == value).all()
    assert with_ranker(ranked, made_ranker(1), again) != version
    assert with_ranker(again, made_ranker(), again) == version
    network, _ = load(ranked)
    assert save(again, network, CONFIG, half=True) == version


def test_a_ranker_that_knows_less_gives_what_came_later_no_say() -> None:
    arrays = made_ranker().to_arrays()
    older = Ranker.from_arrays({name: v for name, v in arrays.items() if name.removeprefix("hidden.") not in ADDED})
    for name, value in older.to_arrays().items():
        np.testing.assert_array_equal(value, 0 if name.removeprefix("hidden.") in ADDED else arrays[name])


def test_a_ranker_of_another_release_is_refused_with_the_way_out(model: SemanticSAM, tmp_path: Path) -> None:
    tensors = {RANKER + name: torch.from_numpy(np.array(v)) for name, v in made_ranker().to_arrays().items()}
    path = tmp_path / "w.safetensors"
    for change, told in (
        ({RANKER + "hidden.age": torch.zeros(5)}, "hidden.age is unknown"),
        ({RANKER + "hidden.fill": None}, "hidden.fill is missing"),
        ({RANKER + "hidden.fill": torch.zeros(7)}, r"hidden.fill has shape \(7,\), expected \(5,\)"),
    ):
        state = {k: v for k, v in (model.state_dict() | tensors | change).items() if v is not None}
        save(path, state, CONFIG)
        with pytest.raises(CheckpointError, match=f"{told}.*semsam train-ranker"):
            load(path)


@pytest.mark.parametrize(
    "values",
    [{"granularity": "region"}, {"level_counts": (1, 2)}, {"level_counts": (0, 0, 0, 0, 0, -1)}, {"wanted": 0}],
)
def test_what_is_wanted_is_checked(values: dict) -> None:
    with pytest.raises(PromptError, match="expected"):
        PromptContext(**values)
