"""A forward pass of the real width takes no more memory than the plan says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory_on_meta
from worker.base.settings import Settings
from worker.engine.models import precision
from worker.engine.techniques import Setup
from worker.engine.techniques.attention import Attention
from worker.request.plan import SIZES, MemoryPlan, Shape, peak

GPU = torch.device("cuda", 0)


@torch.no_grad()
@pytest.mark.parametrize("weights", ["bf16", "fp8"])
@pytest.mark.parametrize("shape", [Shape(832, 480, 81), Shape(1280, 720, 81)], ids=str)
def test_a_pass_of_two_blocks_stays_within_the_plan(shape: Shape, weights: peak.Precision) -> None:
    size = SIZES["t2v"]
    if torch.cuda.get_device_properties(GPU).total_memory < 40e9:
        pytest.skip("written for a GPU of 80 GB")
    with torch.device(GPU):
        model = memory_on_meta.expert(size, layers=2)
    plan = MemoryPlan(weights, "resident", "resident", False, 0, 0, ())
    precision.apply(model, plan, torch.bfloat16, "quantized")
    Attention(Setup(Settings(enable_sage_attention=False), GPU, torch.bfloat16)).prepare(model, plan)
    latents = torch.randn(
        1, 16, shape.latent_frames, shape.height // 8, shape.width // 8, device=GPU, dtype=torch.bfloat16
    )
    text = torch.randn(1, 512, memory_on_meta.TEXT_DIM, device=GPU, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = model(latents, torch.tensor([500.0], device=GPU), text, return_dict=False)[0]
    assert bool(torch.isfinite(result).all())
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= peak.denoise_bytes(size, shape, weights) * peak.MARGIN + peak.WORKSPACE_BYTES
