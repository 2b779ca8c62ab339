"""The fused kernels of an expert: where they are on, what turns them off, and that nothing of them stays."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.kits import lora_kit
from tests.kits.engine_kit import plan
from tests.kits.fused_block import CPU, counted, off
from worker.base.settings import Settings
from worker.engine.kernels import KernelFailed, reference
from worker.engine.techniques import Setup
from worker.engine.techniques.fused_kernels import FusedKernels


def settings(**fields: Any) -> Setup:
    return Setup(Settings(**fields), CPU, torch.float32)


@pytest.fixture
def expert(tmp_path: Path) -> Any:
    return lora_kit.load(tmp_path / "t2v").transformer


RESIDENT = plan("resident")


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
