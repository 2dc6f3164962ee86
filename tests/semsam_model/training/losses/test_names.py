"""Which name reaches which head, and against which labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semsam_model.data.vocabulary import NO_LABEL, NameTable, Vocabulary
from semsam_model.training.losses.names import CandidateLabels, NameLoss, name_loss

ROWS = (("street", 0, "car"), ("street", 0, "house"), ("street", 1, "door"), ("street", 1, "wheel"), ("zoo", 0, "bear"))
VOCABULARY = Vocabulary((*ROWS, ("zoo", 0, "deer")), (400, 100, 30, 30, 10, 10))


@pytest.fixture
def table() -> NameTable:
    vectors = torch.randn(len(VOCABULARY.rows), 8, generator=torch.Generator().manual_seed(0))
    return NameTable.of(VOCABULARY, torch.nn.functional.normalize(vectors, dim=-1))


def gradients(labels: list[int], table: NameTable) -> tuple[NameLoss, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(len(labels), 8, generator=generator).requires_grad_() for _ in range(2)]
    loss = name_loss(heads[0], heads[1], torch.tensor(labels, dtype=torch.long), table, torch.full((2,), 10.0))
    if loss.total.requires_grad:
        loss.total.backward()
    return loss, heads[0].grad, heads[1].grad


def test_object_names_give_no_gradient_to_the_part_head(table: NameTable) -> None:
    loss, of_object, of_part = gradients([0, 4, NO_LABEL], table)
    assert loss.part_name == 0 and loss.part_top1 is None and of_part is None
    assert of_object is not None
    assert of_object[:2].abs().sum(1).min() > 0
    assert not of_object[2].any()


def test_part_names_give_no_gradient_to_the_object_head(table: NameTable) -> None:
    loss, of_object, of_part = gradients([2, 3], table)
    assert loss.object_name == 0 and of_object is None
    assert of_part is not None and of_part.any()


def test_masks_without_a_name_teach_neither_head(table: NameTable) -> None:
    loss, of_object, of_part = gradients([NO_LABEL, NO_LABEL], table)
    assert loss.total == 0 and of_object is None and of_part is None
    assert gradients([], table)[0].total == 0


def test_labels_of_other_sources_are_no_wrong_answers(table: NameTable) -> None:
    before = gradients([0, 1], table)[0].total
    table.vectors[4:] = -table.vectors[4:]
    assert gradients([0, 1], table)[0].total == before
    table.vectors[1] = -table.vectors[1]
    assert gradients([0, 1], table)[0].total != before


def test_a_perfect_embedding_costs_nothing_at_a_high_scale(table: NameTable) -> None:
    labels = torch.arange(6)
    loss = name_loss(3 * table.vectors, 5 * table.vectors, labels, table, torch.full((2,), 1000.0))
    assert loss.total < 1e-3
    assert (loss.object_top1, loss.part_top1) == (1, 1)


def test_a_rare_label_counts_more_a_mask_and_a_list_as_a_whole_counts_as_before(table: NameTable) -> None:
    assert torch.isclose(table.weights[1] / table.weights[0], torch.tensor(2.0))  # four times rarer
    assert torch.isclose(table.weights[0] * 0.8 + table.weights[1] * 0.2, torch.tensor(1.0))


def test_names_shared_by_two_processes_average_to_the_loss_of_all(table: NameTable) -> None:
    generator = torch.Generator().manual_seed(2)
    of_object, of_part = torch.randn(2, 7, 8, generator=generator)
    labels = torch.tensor([0, 2, NO_LABEL, 1, 4, 0, 3])
    scales, halves = torch.full((2,), 10.0), (slice(0, 2), slice(2, 7))
    totals: list[Tensor] = []

    def noted(counts: Tensor) -> Tensor:
        totals.append(counts)
        return counts

    for half in halves:
        name_loss(of_object[half], of_part[half], labels[half], table, scales, reduce_mean=noted)
    mean = torch.stack(totals).mean(0)
    parts = [
        name_loss(of_object[h], of_part[h], labels[h], table, scales, reduce_mean=lambda _: mean).total for h in halves
    ]
    whole = name_loss(of_object, of_part, labels, table, scales).total
    assert torch.allclose(torch.stack(parts).mean(), whole)


def test_none_of_these_is_the_right_answer_exactly_where_the_own_label_is_off_the_list(table: NameTable) -> None:
    labels = torch.tensor([0, 0])
    asked = torch.ones(2, len(VOCABULARY.rows), dtype=torch.bool)
    lacks = torch.tensor([False, True])

    def top1(none: float, rows: list[int]) -> float | None:
        given = CandidateLabels(torch.tensor([none, none]), lacks[rows], asked[rows])
        # both queries look exactly like their label
        return name_loss(
            table.vectors[labels[rows]], table.vectors[labels[rows]], labels[rows], table, torch.full((2,), 10.0), given
        ).object_top1

    assert top1(-50.0, [0]) == 1
    assert top1(-50.0, [1]) == 0
    assert top1(50.0, [0]) == 0
    assert top1(50.0, [1]) == 1


def test_labels_that_are_not_asked_do_not_compete(table: NameTable) -> None:
    def loss(asked: list[bool]) -> float:
        given = CandidateLabels(torch.full((2,), -50.0), torch.tensor([False]), torch.tensor([asked]))
        embedding = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
        return float(name_loss(embedding, embedding, torch.tensor([0]), table, torch.full((2,), 10.0), given).total)

    assert loss([True] * 6) > 0
    assert loss([False] * 6) == pytest.approx(0, abs=1e-5)  # the own label is always there


def test_lists_are_drawn_whole_for_half_of_the_queries_and_short_for_others() -> None:
    torch.manual_seed(0)
    drawn = CandidateLabels.draw(torch.zeros(2), 2000, 100)
    shares = drawn.others.float().mean(1)
    assert 0.47 < (shares == 1).float().mean() < 0.55
    assert (shares < 0.1).float().mean() > 0.15
    assert 0.22 < drawn.removed.float().mean() < 0.28
