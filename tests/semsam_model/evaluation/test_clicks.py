"""Figures of an evaluation, on cases small enough to check by hand: houses, and a network that sees them perfectly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from semsam_model.config import read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.data.samples import Sample
from semsam_model.data.vocabulary import SourceLabels
from semsam_model.errors import ConfigError
from semsam_model.evaluation.clicks import ClickReport, chosen_label, evaluate_clicks, known_kind, matched, only_object
from semsam_model.evaluation.clicks_report import Case, draw_cases, render_page, worst
from semsam_model.evaluation.clicks_summary import calibration, summarise
from semsam_model.evaluation.grabcut import grabcut
from semsam_model.evaluation.groups import SourceGroups
from semsam_model.evaluation.number_of_clicks import MAX_CLICKS, CorrectedMask, iou_after_clicks
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import iou
from semsam_model.network.model import DecoderOutput, ImageEmbedding, SemanticSAM, build_model
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import LEVEL_TOKENS, Click, Prompt, PromptContext
from tests.semsam_model.houses import write_source

WINDOW_IN_HOUSE = 100 * 14 * 12 / (40 * 48)  # percent IoU; the second window is 14 by 14
OTHER_WINDOW_IN_HOUSE = 100 * 14 * 14 / (40 * 48)
HOUSE_IN_PHOTO = 100 * 40 * 48 / (48 * 64)


def seer(samples: Sequence[Sample], ranker: Ranker | None = None) -> SemanticSAM:
    """Answers each click with the house at level 2, the window under it at level 5, the whole photo at level 1."""
    torch.manual_seed(0)
    network = build_model(read_model_config("tiny")).eval()
    network.ranker = ranker
    house, *windows = (samples[0].mask(i)[::2, ::2] for i in range(3))  # a cell is two pixels here
    predicted = torch.zeros(6)
    predicted[list(LEVEL_TOKENS)] = torch.tensor([0.1, 0.9, 0.2, 0.2, 0.8, 0.2])

    def decode(embedding: ImageEmbedding, prompts: Sequence[Click], further: object = None) -> DecoderOutput:
        logits = torch.full((len(prompts), 6, *embedding.features.mask_features.shape[-2:]), -5.0)
        logits[:, LEVEL_TOKENS[0]] = 5
        for n, click in enumerate(prompts):
            under = [w for w in windows if w[int(click.y) // 2, int(click.x) // 2]]
            for level, mask in [(2, house), *((5, w) for w in under)]:
                drawn = torch.from_numpy(np.where(mask, 5.0, -5.0)).float()
                logits[n, LEVEL_TOKENS[level - 1], : mask.shape[0], : mask.shape[1]] = drawn
        nothing = torch.zeros(len(prompts), 6, 4)
        return DecoderOutput(logits, tuple(range(6)), predicted.expand(len(prompts), 6), nothing, nothing, nothing)

    network.decode = decode  # type: ignore[method-assign, assignment]
    return network


@pytest.fixture
def samples(tmp_path: Path) -> Sequence[Sample]:
    write_source(tmp_path, "houses", 2)
    return read_samples(tmp_path).samples


def evaluate(samples: Sequence[Sample], ranker: Ranker | None = None, **options: int) -> ClickReport:
    return evaluate_clicks(seer(samples, ranker), samples, **options)


def test_the_only_object_of_a_photo_is_corrected_until_it_is_right(samples: Sequence[Sample]) -> None:
    assert [only_object(sample) for sample in samples] == [0, 0]
    content = summarise(evaluate(samples, one_object=1))["one_object"]
    assert content["by_source"] == {"houses": {"noc85": 1.0, "noc90": 1.0, "noc_n": 1}}
    assert content["mean_over_sources"] == {"noc85": 1.0, "noc90": 1.0}
    assert "one_object" not in summarise(evaluate(samples))


def test_one_click_a_mask_gives_the_figures_that_follow_from_the_masks(samples: Sequence[Sample]) -> None:
    report = evaluate(samples)
    row = summarise(report)["by_source"]["houses"]
    assert (row["n"], row["images"]) == (6, 2)
    assert row["oracle"] == 100
    assert row["first"] == 100  # the house is a right answer to a click on its window
    assert row["top1_given_kind"] == row["told"] == 100  # level 5 when a part is wanted
    assert row["named"] == 100  # no ranker: as top1_given_kind
    assert row["max"] == pytest.approx((100 + WINDOW_IN_HOUSE + OTHER_WINDOW_IN_HOUSE) / 3, abs=0.01)
    assert row["matched"] == 100
    assert row["level_accuracy"] == row["level_accuracy_given_kind"] == row["level_accuracy_told"] == 100
    assert row["calibration_error"] == pytest.approx(10)  # 0.9 predicted, 1 reached
    assert set(row["by_granularity"]) == {"object", "part"}
    assert row["by_granularity"]["part"]["n"] == 4
    baselines = summarise(report)["baselines"]
    assert baselines["largest"]["mean_over_sources"]["first"] == pytest.approx(HOUSE_IN_PHOTO)
    assert baselines["predicted_iou"]["mean_over_sources"] == {
        "first": 100,
        "top1_given_kind": 100,
        "told": 100,
    }
    assert "grabcut" not in baselines


def test_the_ranker_knows_the_wanted_kind(samples: Sequence[Sample]) -> None:
    hidden = np.zeros((len(FEATURES), 2), np.float32)
    hidden[FEATURES.index("level_2")] = (1, 0)
    hidden[FEATURES.index("level_5")] = hidden[FEATURES.index("wants_part")] = (0, 1)
    # the second unit tells a part where parts are wanted from the three other cases
    ranker = Ranker(hidden, np.array((0, -2), np.float32), np.array((1, 2), np.float32), np.array(0, np.float32))
    clicks = evaluate(samples, ranker).clicks
    assert [c.top1_given_kind for c in clicks] == [1] * 6
    assert all(c.first == 1 and c.first_is_best for c in clicks)
    silent = Ranker(hidden * 0, np.zeros(2, np.float32), np.zeros(2, np.float32), np.array(2, np.float32))
    scores = [c.first_score for c in evaluate(samples, silent).clicks]
    assert scores == pytest.approx([1 / (1 + np.exp(-2))] * 6)


@dataclass
class Words:
    """A text encoder for three words, each a direction of its own."""

    def embed(self, words: Sequence[str]) -> Tensor:
        return torch.eye(4)[[("house", "window", "door").index(word) for word in words]]


def test_what_named_knows_is_the_list_of_the_source_and_the_label_of_the_mask(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 1)
    content = write_source(tmp_path, "doors", 1)
    content["categories"].append({"id": 3, "name": "door"})
    content["annotations"][2]["category_id"] = 3
    (tmp_path / "doors.json").write_text(json.dumps(content))
    samples = read_samples(tmp_path).samples
    doors, houses = samples
    labels = SourceLabels.of(samples, cast(TextEncoder, Words()), 4)
    known = [chosen_label(labels, "doors", region) for region in doors.regions]
    assert [c.granularity for c in known] == ["object", "part", "part"]
    assert known[0].labels is None  # a list of one object label says nothing, see Vocabulary
    for context, word in zip(known[1:], ("window", "door"), strict=True):
        assert context.labels is not None and context.wanted is not None
        assert set(context.labels.values) == {"window", "door"}
        assert context.labels.values[context.wanted] == word
        assert context.labels.kinds[context.wanted] == "part"
    assert [chosen_label(labels, "houses", region) for region in houses.regions] == [
        known_kind(region.granularity) for region in houses.regions
    ]
    assert chosen_label(None, "doors", doors.regions[1]) == PromptContext("part")


def test_named_is_as_with_the_kind_given_where_a_source_has_one_label_of_a_kind(samples: Sequence[Sample]) -> None:
    rng = np.random.default_rng(0)
    ranker = Ranker(
        rng.normal(size=(len(FEATURES), 3)).astype(np.float32),
        np.zeros(3, np.float32),
        rng.normal(size=3).astype(np.float32),
        np.array(0, np.float32),
    )
    assert SourceLabels.of(samples, cast(TextEncoder, Words()), 4) is None
    assert all(c.named == c.top1_given_kind for c in evaluate(samples, ranker).clicks)


def test_of_a_photo_with_many_masks_the_same_few_are_drawn_in_every_run(samples: Sequence[Sample]) -> None:
    every = [(c.sample, c.region) for c in evaluate(samples).clicks]
    few = [(c.sample, c.region) for c in evaluate(samples, masks=2).clicks]
    assert len(few) == 4 and set(few) < set(every)
    assert few == [(c.sample, c.region) for c in evaluate(samples, masks=2).clicks]
    alone = [c.region for c in evaluate(samples[1:], masks=2).clicks]
    assert alone == [region for sample, region in few if sample == 1]
    assert [(c.sample, c.region) for c in evaluate(samples, masks=3).clicks] == every


def test_masks_below_the_least_area_and_photos_that_cannot_be_read_are_left_out(samples: Sequence[Sample]) -> None:
    assert len(evaluate(samples, min_area=170).clicks) == 4  # the smaller window has 168 pixels
    samples[1].path.write_bytes(b"no photo")
    report = evaluate(samples)
    assert len(report.clicks) == 3
    assert "1.png" in report.skipped[0]


def test_a_perfect_answer_takes_one_click_and_a_correction_tells_window_from_house(
    samples: Sequence[Sample],
) -> None:
    shares = [1.0, WINDOW_IN_HOUSE / 100, OTHER_WINDOW_IN_HOUSE / 100]
    found = evaluate(samples, corrected=2).corrected
    assert len(found) == 2
    for corrected in found:
        assert min(abs(corrected.ious[0] - share) for share in shares) < 1e-9
        assert corrected.ious[-1] == 1
        assert len(corrected.ious) == corrected.clicks_to(0.9) == (1 if corrected.ious[0] == 1 else 2)
    wanted = samples[0].mask(1)
    assert iou_after_clicks(lambda prompt: wanted, wanted) == [1.0]


def test_correcting_stops_when_right_and_counts_most_clicks_when_never_right() -> None:
    wanted = np.zeros((30, 40), bool)
    wanted[5:25, 5:35] = True

    def disc_by_disc(prompt: Prompt) -> np.ndarray:
        mask = np.zeros_like(wanted)
        for click in prompt.positives:
            mask[int(click.y) - 10 : int(click.y) + 11, int(click.x) - 10 : int(click.x) + 11] = True
        return mask & wanted

    ious = iou_after_clicks(disc_by_disc, wanted)
    assert 1 < len(ious) < MAX_CLICKS
    assert ious[-1] >= 0.9 > max(ious[:-1])
    never = CorrectedMask("made", tuple(iou_after_clicks(lambda prompt: np.zeros_like(wanted), wanted)))
    assert never.ious == (0.0,) * MAX_CLICKS
    assert never.clicks_to(0.8) == MAX_CLICKS


def test_clicks_needed_and_iou_within_clicks_are_read_off_the_curve() -> None:
    curve = CorrectedMask("made", (0.5, 0.85, 0.7, 0.95))
    assert [curve.clicks_to(t) for t in (0.4, 0.8, 0.9)] == [1, 2, 4]
    assert CorrectedMask("made", (0.5,)).clicks_to(0.8) == MAX_CLICKS
    assert [curve.after(n) for n in (1, 2, 3, 20)] == [0.5, 0.85, 0.85, 0.95]


def test_matching_pairs_each_prediction_with_one_mask_at_most() -> None:
    assert matched([[0.9, 0.8], [0.7, 0.1], [0.0, 0.2]]) == pytest.approx((0.8 + 0.7) / 2)
    assert matched([[0.3], [0.6]]) == pytest.approx(0.6)
    assert matched([[0.2, 0.5, 0.1]]) == pytest.approx(0.5)


def test_calibration_error_is_zero_where_scores_are_right_on_average_and_the_distance_elsewhere() -> None:
    assert calibration([0.25, 0.25, 0.85], [0.0, 0.5, 0.85]).error == pytest.approx(0)
    assert calibration([0.9, 0.9, 1.0, 1.0], [0.6, 0.6, 0.7, 0.7]).error == pytest.approx(0.3)
    assert calibration([0.05, 0.95], [0.05, 0.45], weights=[3, 1]).error == pytest.approx(0.125)
    bins = calibration([0.0, 1.0], [0.5, 0.5]).bins
    assert [(b.score, b.iou, b.share) for b in bins] == [(0, 0.5, 0.5), (1, 0.5, 0.5)]


def test_grabcut_finds_a_bright_patch_under_the_click_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 40, (90, 120, 3)).astype(np.uint8)
    wanted = np.zeros((90, 120), bool)
    wanted[30:60, 40:80] = True
    rgb[wanted] += 190
    other = np.zeros_like(wanted)
    other[5:20, 50:70] = True
    rgb[other] += 190
    found = grabcut(rgb, innermost(wanted))
    assert iou(found, wanted) > 0.95
    assert not (found & other).any()


def test_sources_never_trained_on_are_reported_apart(tmp_path: Path) -> None:
    for source in ("barns", "houses"):
        write_source(tmp_path, source, 1)
    samples = read_samples(tmp_path).samples
    content = summarise(evaluate(samples, grabcut=1, corrected=1), trained_on={"houses", "castles"})
    assert content["mean_over_seen"]["oracle"] == content["by_source"]["houses"]["oracle"]
    assert content["mean_over_zero_shot"]["max"] == content["by_source"]["barns"]["max"]
    assert content["baselines"]["grabcut"]["by_source"]["barns"]["n"] == 1
    assert len(content["iou_after_clicks"]) == MAX_CLICKS
    assert json.loads(json.dumps(content)) == content


def test_groups_of_sources_are_reported_with_their_seen_and_unseen_halves(tmp_path: Path) -> None:
    for source in ("barns", "houses", "sheds"):
        write_source(tmp_path, source, 1)
    report = evaluate(read_samples(tmp_path).samples)
    groups = SourceGroups({"core": ("houses", "barns", "mills"), "wide": ("sheds",)})
    content = summarise(report, {"houses"}, groups)
    assert content["groups"] == {
        "core": ["houses", "barns"],
        "core_seen": ["houses"],
        "core_unseen": ["barns"],
        "wide": ["sheds"],
        "wide_seen": [],
        "wide_unseen": ["sheds"],
    }
    by_source = content["by_source"]
    assert content["mean_over_core_seen"]["max"] == by_source["houses"]["max"]
    assert content["mean_over_core"]["oracle"] == pytest.approx(
        (by_source["houses"]["oracle"] + by_source["barns"]["oracle"]) / 2
    )
    assert content["mean_over_wide"] == content["mean_over_wide_unseen"]
    assert content["mean_over_wide_seen"] == {}
    assert "mean_over_core_seen" not in summarise(report, None, groups)
    with pytest.raises(ConfigError, match="source sheds is in none of core"):
        summarise(report, None, SourceGroups({"core": ("houses", "barns")}))


class Tags(HTMLParser):
    """Fails on a page whose tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_source_and_the_worst_cases_and_escapes_names(samples: Sequence[Sample]) -> None:
    report = evaluate(samples, grabcut=1, corrected=1)
    cases = draw_cases(seer(samples), samples, worst(report.clicks))
    assert len(cases) == 2  # one a photo
    assert all(case.url.startswith("data:image/webp;base64,") for case in cases)
    tags = Tags()
    content = {"model": "tiny-1", "photos_per_source": 2} | summarise(report)
    tags.feed(render_page(content, [*cases, Case("data:,", "<script>name")]))
    assert tags.open == []
    assert tags.seen.count("img") == 3 and "script" not in tags.seen
    for text in ("houses", "tiny-1", "grabcut", "<script>name", "houses/0.png: house (object)"):
        assert text in tags.text


def test_the_worst_cases_are_the_lowest_one_a_photo_and_few_a_source(samples: Sequence[Sample]) -> None:
    base = evaluate(samples).clicks[0]
    clicks = [replace(base, sample=i, source="ab"[i % 2], top1_given_kind=i / 100) for i in range(20)]
    clicks.append(replace(base, sample=0, source="a", top1_given_kind=0.001))
    found = worst(clicks, most=5, a_source=3)
    assert [c.sample for c in found] == [0, 1, 2, 3, 4]
    assert [c.sample for c in worst(clicks, most=24, a_source=2)] == [0, 1, 2, 3]
