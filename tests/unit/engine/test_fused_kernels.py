"""The fused forward of a block against Diffusers' own, alone and with everything that changes or wraps a block.

On a CPU the kernels are the plain torch reference; Triton's own are run by its interpreter where Triton is installed,
and on a GPU by the tests marked so.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import logging
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock

from tests.kits import lora_kit
from tests.kits.engine_kit import (
    PICTURE,
    FixedPlanner,
    Quiet,
    demo_source,
    image_request,
    pixels,
    plan,
    render,
    request,
)
from tests.kits.slow import slow
from tests.kits.videos import given
from tests.kits.worker_process import forked
from tests.unit.engine import crew_tokens
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, kernels
from worker.engine.kernels import KernelFailed, probe, reference
from worker.engine.kernels.probe import TOLERANCE
from worker.engine.models import precision
from worker.engine.techniques import Setup
from worker.engine.techniques.fused_kernels import FusedKernels, fused, misfit
from worker.request.plan import MemoryPlan
from worker.weights.loras import LoraFile
from worker.weights.sources import demo

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
WIDTH, HEADS, FFN = 64, 4, 160
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


def block_of(
    width: int = WIDTH, heads: int = HEADS, ffn: int = FFN, dtype: torch.dtype = torch.float32, seed: int = 0
) -> WanTransformerBlock:
    """With random numbers where a new block has ones and zeros; what Diffusers keeps in float32 stays so."""
    torch.manual_seed(seed)
    block = WanTransformerBlock(width, ffn, heads, cross_attn_norm=True).eval().requires_grad_(False)
    for norm in (block.norm2, block.attn1.norm_q, block.attn1.norm_k):
        norm.weight.normal_(1, 0.2)
    block.norm2.bias.normal_(0, 0.2)
    kept = {"scale_shift_table", "norm2.weight", "norm2.bias"}
    for name, each in block.named_parameters():
        each.data = each.data if name in kept else each.data.to(dtype)
    return block


def inputs_of(
    tokens: int = 30,
    width: int = WIDTH,
    heads: int = HEADS,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    by_token: bool = False,
) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    angles = drawn(1, tokens, 1, width // heads // 2).repeat_interleave(2, dim=3)
    temb = drawn(batch, tokens, 6, width) if by_token else drawn(batch, 6, width)
    hidden, text = drawn(batch, tokens, width), drawn(batch, 9, width)
    return hidden.to(dtype), text.to(dtype), temb.to(dtype), (angles.cos(), angles.sin())


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


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


def settings(**fields: Any) -> Setup:
    return Setup(Settings(**fields), CPU, torch.float32)


@pytest.fixture
def expert(tmp_path: Path) -> Any:
    return lora_kit.load(tmp_path / "t2v").transformer


RESIDENT = plan("resident")


def counted(by: Any = reference) -> tuple[Any, list[int]]:
    """`by`, with a count of its calls to `rms_rope`: one a block."""
    calls = [0]

    def rms_rope(*arguments: Any, **named: Any) -> None:
        calls[0] += 1
        by.rms_rope(*arguments, **named)

    return SimpleNamespace(add_norm=by.add_norm, rms_rope=rms_rope, rms_silu=by.rms_silu), calls


def run_of(expert: Any) -> Any:
    return SimpleNamespace(experts=(expert,), parameters={})


def test_a_run_is_fused_and_between_runs_the_blocks_are_diffusers_own(expert: Any) -> None:
    plain = lora_kit.output(expert)
    by, calls = counted()
    technique = FusedKernels(settings(), by)
    technique.prepare(expert, RESIDENT)
    calls[0] = 0
    assert torch.equal(lora_kit.output(expert), plain)
    assert calls == [0]
    run = run_of(expert)

    def fail() -> None:
        with technique.applied(run):
            assert off(lora_kit.output(expert), plain) < 1e-5
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert calls == [len(expert.blocks)]
    assert torch.equal(lora_kit.output(expert), plain)
    with technique.applied(run):
        pass
    assert run.parameters["fused_kernels"] == "on"


@pytest.mark.parametrize(
    ("fields", "residency", "reason"),
    [
        ({"enable_fused_kernels": False}, "resident", None),
        ({"enable_torch_compile": True}, "resident", "torch.compile is on"),
        ({}, "sequential", "streamed layer by layer"),
    ],
)
def test_where_it_is_off_no_block_is_changed(
    expert: Any, fields: Any, residency: Any, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    technique = FusedKernels(settings(**fields), counted()[0])
    with caplog.at_level(logging.INFO):
        technique.prepare(expert, plan(residency))
    assert not any("forward" in block.__dict__ for block in expert.blocks)
    assert ("fused kernels are off" in caplog.text) == (reason is not None)
    assert reason is None or reason in caplog.text
    run = run_of(expert)
    with technique.applied(run):
        pass
    assert run.parameters["fused_kernels"] == "off"


def test_without_a_gpu_there_are_no_kernels_and_the_log_says_so(expert: Any, caplog: pytest.LogCaptureFixture) -> None:
    technique = FusedKernels(settings())
    with caplog.at_level(logging.INFO):
        technique.prepare(expert, RESIDENT)
    assert technique.active is None
    assert "the fused kernels are off: Triton needs a CUDA device" in caplog.text


@pytest.mark.parametrize("wrong", [lambda result: result * 1.01, lambda result: result * float("nan")])
def test_a_kernel_that_is_off_is_not_used(expert: Any, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    def add_norm(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = reference.add_norm(*arguments, **named)
        return total, wrong(normed)

    by: Any = SimpleNamespace(add_norm=add_norm, rms_rope=reference.rms_rope, rms_silu=reference.rms_silu)
    technique = FusedKernels(settings(), by)
    with caplog.at_level(logging.INFO):
        technique.prepare(expert, RESIDENT)
    assert technique.active is None
    assert "is off by more than" in caplog.text


def failing(*_: Any, **__: Any) -> Any:
    raise KernelFailed("no such instruction")


@pytest.mark.parametrize(
    ("quantize_rows", "reason"),
    [
        (reference.quantize_rows, None),
        (lambda rows, gelu=False: (reference.quantize_rows(rows)[0], torch.ones(len(rows), 1)), "off by more than"),
        (failing, "no such instruction"),
    ],
    ids=["agrees", "is off", "fails"],
)
def test_a_kernel_for_fp8_that_is_off_leaves_the_others_on(
    expert: Any, quantize_rows: Any, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    by: Any = SimpleNamespace(add_norm=reference.add_norm, rms_rope=reference.rms_rope, quantize_rows=quantize_rows)
    technique = FusedKernels(settings(quantized_compute="on"), by)
    with caplog.at_level(logging.INFO):
        technique.prepare(expert, plan("resident", "fp8"))
    assert technique.active is by
    assert technique._quantizer is (by if reason is None else None)
    assert ("the fused kernels for fp8 are off" in caplog.text) == (reason is not None)
    assert reason is None or reason in caplog.text


def test_a_kernel_that_fails_in_a_run_leaves_the_result_as_it_is_without(
    expert: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [0]

    def rms_rope(*arguments: Any, **named: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:  # the first is the probe's
            raise KernelFailed("out of resource")
        reference.rms_rope(*arguments, **named)

    by: Any = SimpleNamespace(add_norm=reference.add_norm, rms_rope=rms_rope, rms_silu=reference.rms_silu)
    technique = FusedKernels(settings(), by)
    technique.prepare(expert, RESIDENT)
    plain, run = lora_kit.output(expert), run_of(expert)
    with caplog.at_level(logging.INFO), technique.applied(run):
        assert torch.equal(lora_kit.output(expert), plain)
    assert calls == [2]
    assert run.parameters["fused_kernels"] == "off"
    assert "the fused kernels are off: out of resource" in caplog.text


def test_it_is_given_up_and_taken_back(expert: Any) -> None:
    technique = FusedKernels(settings(), counted()[0])
    assert technique.fall_back() is None
    technique.prepare(expert, RESIDENT)
    assert "the fused kernels are off from now on" in str(technique.fall_back())
    assert technique.active is None
    technique.take_back()
    assert technique.active is not None


def test_a_model_that_is_dropped_goes_at_once(expert: Any) -> None:
    technique = FusedKernels(settings(), counted()[0])
    kept = copy.deepcopy(expert)
    technique.prepare(kept, RESIDENT)
    block = weakref.ref(kept.blocks[0])
    gc.collect()
    gc.disable()
    try:
        del kept
        assert block() is None
    finally:
        gc.enable()


def test_a_copied_block_runs_with_its_own_weights(expert: Any) -> None:
    technique = FusedKernels(settings(), counted()[0])
    technique.prepare(expert, RESIDENT)
    plain = lora_kit.output(expert)
    copied = copy.deepcopy(expert)
    copied.blocks[0].ffn.net[2].bias.data += 1
    assert not torch.equal(lora_kit.output(copied), plain)
    assert torch.equal(lora_kit.output(expert), plain)


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


# With the engine: everything that wraps a block or changes its layers.


@pytest.fixture
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The reference as the kernels of the CPU; the count of fused blocks."""
    by, calls = counted()
    monkeypatch.setattr(kernels, "of", lambda _: by)
    return calls


def engine_of(source: demo.DemoSource, fixed: MemoryPlan, **fields: Any) -> Engine:
    return Engine(source, demo.catalogue(), FixedPlanner(None, Settings(**fields), None, fixed, None), CPU)


@pytest.fixture(scope="module")
def source() -> demo.DemoSource:
    return demo_source(3)


PLANS = {
    "resident": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "fp8": plan("resident", "fp8"),
    "fp8 and group offload": plan("group_offload", "fp8"),
    "int8": plan("resident", "int8"),
}
VIDEOS: dict[str, tuple[Any, Conditioning]] = {
    "text": (request(num_inference_steps=4), Conditioning()),
    "image": (image_request(num_inference_steps=4), PICTURE),
    "5b": (image_request(num_inference_steps=4, model="5b"), PICTURE),
    "step cache": (request(num_inference_steps=10, step_cache="fast"), Conditioning()),
}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 1)


QUICK = ("resident",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PLANS]
)
def test_every_plan_makes_the_frames_of_diffusers_blocks(
    name: str, source: demo.DemoSource, on_this_cpu: list[int]
) -> None:
    plain = engine_of(source, PLANS[name], enable_fused_kernels=False)
    engine = engine_of(source, PLANS[name])
    for case in VIDEOS if name == "resident" else ("text",):
        video, conditioning = VIDEOS[case]
        wanted = render(plain, video, conditioning)
        on_this_cpu[0] = 0
        rendering = render(engine, video, conditioning)
        assert on_this_cpu[0] > 0, case
        assert rendering.parameters["fused_kernels"] == "on", case
        assert wanted.parameters["fused_kernels"] == "off"
        assert same(pixels(rendering), pixels(wanted)), case
        if case == "step cache":
            assert rendering.parameters["step_cache_share"] == wanted.parameters["step_cache_share"] > 0


@pytest.mark.slow
def test_magcache_measures_fused_blocks_and_leaves_them_out(
    source: demo.DemoSource, on_this_cpu: list[int], tmp_path: Path
) -> None:
    plain = engine_of(source, PLANS["resident"], enable_fused_kernels=False, model_cache_dir=tmp_path)
    engine = engine_of(source, PLANS["resident"], model_cache_dir=tmp_path)
    video, conditioning = VIDEOS["step cache"]
    with engine.techniques.calibrating():
        render(engine, video, conditioning)
    wanted = render(plain, video, conditioning)
    on_this_cpu[0] = 0
    rendering = render(engine, video, conditioning)
    assert on_this_cpu[0] > 0
    assert rendering.parameters["step_cache_rule"] == wanted.parameters["step_cache_rule"] == "magcache"
    assert rendering.parameters["step_cache_share"] == wanted.parameters["step_cache_share"] > 0
    assert same(pixels(rendering), pixels(wanted))


@pytest.mark.parametrize(
    "name",
    ["group offload", *slow("resident", "swap", "fp8")],
)
def test_loras_are_in_effect_and_go_again(
    name: str, source: demo.DemoSource, on_this_cpu: list[int], tmp_path: Path
) -> None:
    plain = engine_of(source, PLANS[name], enable_fused_kernels=False)
    engine = engine_of(source, PLANS[name])
    video, conditioning = VIDEOS["step cache"]
    before = pixels(render(engine, video, conditioning))
    pairs = lora_kit.factors(
        engine.models["t2v"].components.transformer,
        *(f"blocks.1.attn1.{each}" for each in ("to_q", "to_k", "to_out.0")),
    )
    file = lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs))
    with_lora = replace(video, loras=request(loras=[{"source": "a.safetensors", "scale": 4.0}]).loras)
    made = {}
    for each in (engine, plain):
        on_this_cpu[0] = 0
        rendering = each.generate(
            given(each, with_lora, conditioning, loras=(LoraFile(file, "", file.name),)),
            watcher=Quiet(),
            stop=Stop(),
        )
        made[each] = pixels(rendering)
        assert (on_this_cpu[0] > 0) is (each is engine)
    assert same(made[engine], made[plain])
    assert not same(made[engine], before)
    assert (pixels(render(engine, video, conditioning)) == before).all()


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
from tests.unit.engine.test_fused_kernels import block_of, inputs_of, off
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


# On a GPU.


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
