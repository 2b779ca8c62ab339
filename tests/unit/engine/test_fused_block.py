"""The fused forward of one block against Diffusers' own.

On a CPU the kernels are the plain torch reference; Triton's own are run by its interpreter where Triton is installed,
and on a GPU by the tests marked so.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock

from tests.kits.fused_block import FFN, HEADS, WIDTH, block_of, inputs_of, off
from tests.kits.worker_process import ROOT, forked
from tests.unit.engine import crew_tokens
from worker.engine import kernels
from worker.engine.kernels import probe, reference
from worker.engine.kernels.probe import TOLERANCE
from worker.engine.models import precision
from worker.engine.techniques.fused_kernels import fused, misfit


@pytest.mark.parametrize("by_token", [False, True], ids=["a timestep", "timesteps by token"])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_block_is_diffusers_own(batch: int, by_token: bool) -> None:
    block, inputs = block_of(), inputs_of(batch=batch, by_token=by_token)
    given = [each.clone() for each in inputs[:3]]
    assert off(fused(block, *inputs, reference), block(*inputs)) < 1e-6
    assert all(torch.equal(one, other) for one, other in zip(inputs[:3], given, strict=True))


@torch.no_grad()
def test_a_block_in_bf16_is_within_the_tolerance() -> None:
    block, inputs = block_of(dtype=torch.bfloat16), inputs_of(dtype=torch.bfloat16)
    assert off(fused(block, *inputs, reference), block(*inputs)) <= TOLERANCE


@torch.no_grad()
def test_projections_that_are_fused_already_are_turned_in_their_places() -> None:
    block, inputs = block_of(), inputs_of()
    wanted = block(*inputs)
    block.attn1.fuse_projections()
    assert off(fused(block, *inputs, reference), wanted) < 1e-6


@torch.no_grad()
def test_forty_blocks_in_bf16_drift_no_further_than_diffusers_own() -> None:
    exact, ours, theirs = (inputs_of(dtype=torch.bfloat16)[0] for _ in range(3))
    _, text, temb, rotary = inputs_of(dtype=torch.bfloat16)
    exact = exact.float()
    for number in range(40):
        block = block_of(dtype=torch.bfloat16, seed=number)
        ours = fused(block, ours, text, temb, rotary, reference)
        theirs = block(theirs, text, temb, rotary)
        exact = block.float()(exact, text.float(), temb.float(), rotary)
    assert off(ours, exact) <= 1.05 * off(theirs, exact)


@pytest.mark.parametrize("format", ["fp8", "int8"])
@torch.no_grad()
def test_a_block_of_quantised_layers_quantises_each_input_once(format: precision.Format) -> None:
    """Queries, keys and values; both outputs; the text; queries of cross-attention; both layers of the feed-forward."""
    block, inputs = block_of(dtype=torch.bfloat16), inputs_of(dtype=torch.bfloat16)
    precision.replace_linears(block, format, "quantized")
    plain = fused(block, *inputs, reference)
    seen: list[tuple[int, bool]] = []

    def quantize_rows(rows: torch.Tensor, *, gelu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((rows.shape[0], gelu))
        return reference.quantize_rows(rows, gelu=gelu)

    by: Any = SimpleNamespace(quantize_rows=quantize_rows)
    with precision.quantized_by(by):
        assert torch.equal(fused(block, *inputs, reference), plain)
    wide = [(30, False)] * 5 + [(30, True)]
    assert sorted(seen) == ([(9, False), *wide] if format == "fp8" else [])
    seen.clear()
    for layer in precision.computing(block):
        layer.arithmetic = "cast"
    with precision.quantized_by(by):
        fused(block, *inputs, reference)
    fused(block, *inputs, reference)
    assert seen == []


@torch.no_grad()
def test_what_the_kernels_cannot_take_is_named() -> None:
    block, (hidden, text, temb, rotary) = block_of(), inputs_of()
    del text
    assert misfit(block, hidden, temb, rotary) is None
    with torch.enable_grad():
        assert misfit(block, hidden, temb, rotary) == "gradients are on"
    assert "activations" in str(misfit(block, hidden.mT.contiguous().mT, temb, rotary))
    assert "norms are" in str(misfit(block, hidden.bfloat16(), temb, rotary))
    assert "rotary" in str(misfit(block, hidden, temb, (rotary[0].double(), rotary[1])))
    assert "timesteps" in str(misfit(block, hidden, temb.expand(3, 6, WIDTH), rotary))

    class Other(WanAttnProcessor):
        pass

    block.attn1.set_processor(Other())
    assert "Other" in str(misfit(block, hidden, temb, rotary))
    plain = WanTransformerBlock(WIDTH, FFN, HEADS).requires_grad_(False)
    assert "no norm" in str(misfit(plain, hidden, temb, rotary))


@pytest.mark.timeout(480)
def test_two_processes_that_share_the_tokens_compute_the_same(unused_tcp_port: int) -> None:
    crew = [forked().Process(target=crew_tokens.work, args=(rank, unused_tcp_port)) for rank in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0]


def in_a_new_process(*arguments: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


INTERPRETED = """
import torch
from worker.engine.kernels import FP8_LARGEST, LEAST, launch, probe, reference
from worker.engine.techniques import fused_kernels
from tests.kits.fused_block import block_of, inputs_of, off
found = probe.block(launch, heads=3, head=20, device=torch.device("cpu"), dtype=torch.float32)
assert max(found.values()) < 1e-6, found
rows = torch.randn(40, 60) * torch.rand(40, 1) * 100
rows[3] = 0
for gelu in (False, True):
    # Into float32: the interpreter's cast to fp8 loses what rounding carries into the exponent.
    out, scales = torch.empty(40, 60), torch.empty(40, 1)
    constants = dict(WIDTH=60, BLOCK=64, LEAST=LEAST, SHARE=1 / FP8_LARGEST, GELU=gelu)
    launch._launch(launch._quantize_rows, 40, rows, out, scales, **constants)
    wanted, wanted_scales = reference.quantize_rows(rows, gelu=gelu)
    assert torch.equal(scales, wanted_scales) or (gelu and off(scales, wanted_scales) < 1e-6)
    assert off(out.to(torch.float8_e4m3fn).float(), wanted.float()) <= (1e-3 if gelu else 0)
quantized, scales = launch.quantize_rows(rows[:, ::2])
assert (quantized.shape, quantized.dtype, scales.shape) == ((40, 30), torch.float8_e4m3fn, (40, 1))
block, inputs = block_of(60, 3), inputs_of(width=60, heads=3, batch=2)
with torch.no_grad():
    assert off(fused_kernels.fused(block, *inputs, launch), block(*inputs)) < 1e-5
    inputs = inputs_of(tokens=7, width=60, heads=3, by_token=True)
    assert off(fused_kernels.fused(block, *inputs, launch), block(*inputs)) < 1e-5
    block.attn1.fuse_projections()
    assert off(fused_kernels.fused(block, *inputs, launch), block(*inputs)) < 1e-5
    video = torch.randn(1, 12, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    whole = torch.zeros(1, 12, 5, 4, 5).to(memory_format=torch.channels_last_3d)
    for silu in (True, False):
        gamma = torch.randn(12, 1, 1, 1)
        launch.rms_silu(video, gamma, silu=silu, out=whole[:, :, 2:])
        assert off(whole[:, :, 2:], reference.rms_silu(video, gamma, silu=silu)) < 1e-6
        assert not whole[:, :, :2].any()
print("the same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.timeout(480)
def test_tritons_interpreter_computes_the_reference() -> None:
    assert "the same" in in_a_new_process("-c", INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.gpu
@torch.no_grad()
def test_the_kernels_agree_at_the_size_of_a_480p_pass() -> None:
    device = torch.device("cuda")
    found = probe.block(kernels.of(device), heads=40, head=128, device=device, dtype=torch.bfloat16, tokens=32_760)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.gpu
@pytest.mark.parametrize("by_token", [False, True], ids=["a timestep", "timesteps by token"])
@torch.no_grad()
def test_a_whole_block_of_full_width_agrees_on_a_gpu(by_token: bool) -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    block = block_of(5120, 40, 13_824, dtype).to(device)
    hidden, text, temb, rotary = inputs_of(2_048, 5120, 40, dtype, by_token=by_token)
    hidden, text, temb = hidden.to(device), text.to(device), temb.to(device)
    on_device = (rotary[0].to(device), rotary[1].to(device))
    wanted = block(hidden, text, temb, on_device)
    found = fused(block, hidden, text, temb, on_device, kernels.of(device))
    assert off(found, wanted) <= TOLERANCE
    exact = block.float()(hidden.float(), text.float(), temb.float(), on_device)
    assert off(found, exact) <= 1.05 * off(wanted, exact)
