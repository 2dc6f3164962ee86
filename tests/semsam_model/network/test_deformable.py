"""Both forms, in pieces or whole, against one point after another in double precision."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from semsam_model.network.deformable import DeformableAttention, Shapes

SHAPES: Shapes = ((2, 3), (3, 2), (4, 5), (7, 6))
CELLS = sum(h * w for h, w in SHAPES)
HEADS, POINTS, DIM = 2, 2, 8
FEW, MANY = 3, 24  #: queries that make the sparse form and the dense form the cheaper one


@pytest.fixture
def attention() -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(DIM, HEADS, len(SHAPES), POINTS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.sampling_offsets.bias.normal_(std=2.0)
    return module


def inputs(queries: int, numbers: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Query, reference and memory; some references sit at the edge, so that points fall outside."""
    torch.manual_seed(queries)
    reference = torch.rand(batch, queries, numbers)
    reference[:, 0, :2], reference[:, 1, :2] = 0.0, 1.0
    return torch.randn(batch, queries, DIM), reference, torch.randn(batch, CELLS, DIM)


def slow(module: DeformableAttention, query: Tensor, reference: Tensor, memory: Tensor) -> Tensor:
    """The definition, differentiable: for each image, query, head, level and point, four taps, zero outside."""
    b, q, _ = query.shape
    value = module.value_proj(memory).view(b, CELLS, HEADS, -1)
    offset = module.sampling_offsets(query).view(b, q, HEADS, len(SHAPES), POINTS, 2)
    weight = module.attention_weights(query).view(b, q, HEADS, -1).softmax(-1).view(b, q, HEADS, len(SHAPES), POINTS)
    starts = list(itertools.accumulate((h * w for h, w in SHAPES), initial=0))
    images = []
    for i, j, head in itertools.product(range(b), range(q), range(HEADS)):
        total = torch.zeros(value.shape[-1], dtype=value.dtype)
        for level, point in itertools.product(range(len(SHAPES)), range(POINTS)):
            h, w = SHAPES[level]
            at, move = reference[i, j], offset[i, j, head, level, point]
            if len(at) == 2:
                x, y = at[0] + move[0] / w, at[1] + move[1] / h
            else:
                x, y = at[0] + move[0] / POINTS * at[2] / 2, at[1] + move[1] / POINTS * at[3] / 2
            x, y = x * w - 0.5, y * h - 0.5
            left, top = math.floor(x.item()), math.floor(y.item())
            for col, row in itertools.product((left, left + 1), (top, top + 1)):
                if 0 <= col < w and 0 <= row < h:
                    share = (1 - (x - col).abs()) * (1 - (y - row).abs())
                    cell = value[i, starts[level] + row * w + col, head]
                    total = total + weight[i, j, head, level, point] * share * cell
        images.append(total)
    return module.output_proj(torch.stack(images).view(b, q, -1))


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("queries", [FEW, MANY])
@torch.no_grad()
def test_attention_is_the_sum_over_points_with_zeros_outside(
    queries: int, numbers: int, attention: DeformableAttention
) -> None:
    query, reference, memory = inputs(queries, numbers)
    expected = slow(copy.deepcopy(attention).double(), query.double(), reference.double(), memory.double())
    torch.testing.assert_close(attention(query, reference, memory, SHAPES).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@torch.no_grad()
def test_one_query_alone_is_answered_as_among_many(numbers: int, attention: DeformableAttention) -> None:
    query, reference, memory = inputs(MANY, numbers)
    assert HEADS * 2 <= CELLS < MANY * HEADS * 2  # alone the sparse form is used, together the dense one
    together = attention(query, reference, memory, SHAPES)
    for i in range(MANY):
        alone = attention(query[:, i : i + 1], reference[:, i : i + 1], memory, SHAPES)
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [FEW, MANY])
@torch.no_grad()
def test_work_in_pieces_changes_nothing(queries: int, attention: DeformableAttention) -> None:
    query, reference, memory = inputs(queries, 4)
    in_pieces = DeformableAttention(DIM, HEADS, len(SHAPES), POINTS, chunk=2)
    in_pieces.load_state_dict(attention.state_dict())
    whole = attention(query, reference, memory, SHAPES)
    torch.testing.assert_close(in_pieces(query, reference, memory, SHAPES), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_one_reference_serves_every_image_of_a_batch(attention: DeformableAttention) -> None:
    query, reference, memory = inputs(MANY, 2)
    shared = attention(query, reference[:1], memory, SHAPES)
    repeated = attention(query, reference[:1].expand(2, -1, -1), memory, SHAPES)
    torch.testing.assert_close(shared, repeated)


@pytest.mark.parametrize("queries", [FEW, MANY])
@torch.no_grad()
def test_points_far_outside_read_nothing(queries: int, attention: DeformableAttention) -> None:
    query, _, memory = inputs(queries, 2)
    attention.value_proj.bias.zero_()
    attention.output_proj.bias.zero_()
    far = torch.full((2, queries, 2), 100.0)
    for away in (far, -far):
        assert attention(query, away, memory, SHAPES).abs().max() == 0
    assert attention(query, far / 200, memory, SHAPES).abs().max() > 0


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("queries", [FEW, MANY])
def test_sums_without_gradients_are_bit_for_bit_those_with_them(
    queries: int, numbers: int, attention: DeformableAttention
) -> None:
    given = (*inputs(queries, numbers), SHAPES)
    with torch.no_grad():
        found = attention(*given)
    assert torch.equal(found, attention(*given))


@pytest.mark.parametrize("queries", [FEW, MANY])
@torch.no_grad()
def test_a_query_that_is_not_a_number_harms_no_other(queries: int, attention: DeformableAttention) -> None:
    query, reference, memory = inputs(queries, 2)
    expected = attention(query, reference, memory, SHAPES)
    query[1, 2] = math.nan
    found = attention(query, reference, memory, SHAPES)
    assert found[1, 2].isnan().all()
    found[1, 2] = expected[1, 2]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("queries", [FEW, MANY])
def test_gradients_are_those_of_the_definition(queries: int, numbers: int, attention: DeformableAttention) -> None:
    exact = copy.deepcopy(attention).double()
    given = inputs(queries, numbers)
    leaves = [t.requires_grad_() for t in given]
    exact_leaves = [t.detach().double().requires_grad_() for t in given]
    found = attention(*leaves, SHAPES)
    into = torch.randn(found.shape)
    (found * into).sum().backward()
    (slow(exact, *exact_leaves) * into).sum().backward()
    pairs = [*zip(leaves, exact_leaves, strict=True), *zip(attention.parameters(), exact.parameters(), strict=True)]
    for ours, theirs in pairs:
        assert ours.grad is not None and theirs.grad is not None
        scale = theirs.grad.abs().max()
        assert scale > 0
        torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, rtol=1e-3, atol=1e-5)


def test_a_fresh_module_looks_in_eight_directions_further_with_each_point() -> None:
    fresh = DeformableAttention(16, 8, 1, 3)
    offset = fresh.sampling_offsets.bias.view(8, 3, 2)
    assert torch.allclose(offset.abs().amax(-1), torch.tensor([1.0, 2.0, 3.0]).expand(8, 3))
    compass = {(round(x), round(y)) for x, y in offset[:, 0].tolist()}
    assert compass == set(itertools.product((-1, 0, 1), repeat=2)) - {(0, 0)}
