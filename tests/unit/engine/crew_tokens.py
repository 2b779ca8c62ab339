"""One of two processes that share the tokens of a pass: fused, it gives what the blocks of Diffusers give alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel

from worker.base.settings import Settings
from worker.engine.kernels import reference
from worker.engine.techniques import Setup, context_parallel
from worker.engine.techniques.fused_kernels import FusedKernels
from worker.request.plan import MemoryPlan


def work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
    ).eval()
    setup = Setup(Settings(), torch.device("cpu"), torch.float32, 2)
    technique = FusedKernels(setup, reference)
    technique.prepare(made, MemoryPlan("fp32", "resident", "resident", False, 0, 0, ()))
    given: dict[str, Any] = {
        "hidden_states": torch.randn(1, 4, 4, 6, 6),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 16),
        "return_dict": False,
    }
    with torch.no_grad():
        alone = made(**given)[0]
        context_parallel.enable(made, 2)
        run: Any = SimpleNamespace(experts=(made,), parameters={})
        with technique.applied(run):
            shared = made(**given)[0]
    assert run.parameters["fused_kernels"] == "on", run.parameters
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()
