"""What the CPU answers, a GPU answers too. Nothing here runs where there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.inference.predict import predict_candidates
from semsam_model.network.deformable import DeformableAttention
from semsam_model.network.model import DecoderOutput, SemanticSAM, build_model
from semsam_model.types import Box, Click, Prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PROMPTS = (Click(30.0, 40.0), Click(100.5, 20.25), Box(10, 10, 70, 60))
FIELDS = ("logits", "predicted_iou", "boxes", "object_embedding", "part_embedding")


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Matrix products and convolutions in float32, not in the shorter TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module", params=["tiny", "mobile"])
def model(request: pytest.FixtureRequest) -> SemanticSAM:
    torch.manual_seed(0)
    return build_model(read_model_config(request.param)).eval()


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)


def assert_close(found: DecoderOutput, wanted: DecoderOutput, tolerance: float) -> None:
    assert found.tokens == wanted.tokens
    for field in FIELDS:
        here, there = getattr(found, field).cpu(), getattr(wanted, field)
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance * max(1.0, float(there.abs().max())))


def test_cuda_answers_as_the_cpu_does(model: SemanticSAM, rgb: np.ndarray) -> None:
    there = copy.deepcopy(model).cuda()
    embedding = there.encode(rgb)
    assert embedding.features.memory.is_cuda and embedding.features.mask_features.is_cuda
    assert_close(there.decode(embedding, PROMPTS), model.decode(model.encode(rgb), PROMPTS), 1e-3)


def test_an_embedding_moves_between_devices(model: SemanticSAM, rgb: np.ndarray) -> None:
    there = copy.deepcopy(model).cuda()
    on_cpu = model.encode(rgb)
    assert_close(there.decode(on_cpu.to("cuda"), PROMPTS), model.decode(on_cpu, PROMPTS), 1e-3)
    on_cuda = there.encode(rgb)
    back = on_cuda.to("cpu")
    assert not back.features.memory.is_cuda and back.nbytes == on_cuda.nbytes
    assert_close(there.decode(on_cuda, PROMPTS), model.decode(back, PROMPTS), 1e-3)


def test_a_bfloat16_backbone_runs_on_cuda_with_finite_float32_answers(model: SemanticSAM, rgb: np.ndarray) -> None:
    there = copy.deepcopy(model).cuda()
    there.backbone.to(torch.bfloat16)
    output = there.decode(there.encode(rgb), PROMPTS)
    for field in FIELDS:
        value = getattr(output, field)
        assert value.dtype == torch.float32 and value.isfinite().all()


def test_candidates_of_a_click_come_from_cuda_as_arrays_in_photo_pixels(model: SemanticSAM, rgb: np.ndarray) -> None:
    there = copy.deepcopy(model).cuda()
    for candidate in predict_candidates(there, there.encode(rgb), Prompt(PROMPTS[:1])):
        assert candidate.mask.shape == rgb.shape[:2]


@pytest.mark.parametrize("queries", [5, 300])
def test_gradients_of_attention_on_cuda_are_those_of_the_cpu(queries: int) -> None:
    torch.manual_seed(queries)
    here = DeformableAttention(48, 2, 2, 4)  # 24 channels a head: no power of two
    for parameter in here.parameters():  # fresh weights look at fixed places, whatever the query: no gradient for it
        torch.nn.init.normal_(parameter, std=0.1)
    there = copy.deepcopy(here).cuda()
    shapes = ((3, 5), (12, 10))
    given = torch.randn(2, queries, 48), torch.rand(2, queries, 4), torch.randn(2, 135, 48)
    into = torch.randn(2, queries, 48)
    leaves = [[t.clone().to(device).requires_grad_() for t in given] for device in ("cpu", "cuda")]
    for module, (query, reference, memory) in zip((here, there), leaves, strict=True):
        (module(query, reference, memory, shapes) * into.to(query.device)).sum().backward()
    pairs = [*zip(*leaves, strict=True), *zip(here.parameters(), there.parameters(), strict=True)]
    for on_cpu, on_cuda in pairs:
        assert on_cpu.grad is not None and on_cuda.grad is not None
        scale = on_cpu.grad.abs().max()
        assert scale > 0
        torch.testing.assert_close(on_cuda.grad.cpu() / scale, on_cpu.grad / scale, rtol=1e-3, atol=1e-5)
