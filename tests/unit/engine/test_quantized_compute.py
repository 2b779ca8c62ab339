"""Quantised arithmetic in the experts, through the engine's own classes on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worker.base.settings import Settings
from worker.engine.models import precision as quantize
from worker.engine.models import precision as scaled_linear
from worker.engine.techniques.base import Run, Setup
from worker.engine.techniques.quantized_compute import QuantizedCompute
from worker.request.catalogue import T2V_A14B
from worker.request.parse import parse
from worker.request.plan import MemoryPlan, Planner, from_name
from worker.weights.sources import demo

CPU = torch.device("cpu")


def expert(precision: str, arithmetic: str) -> Any:
    torch.manual_seed(0)
    from diffusers import WanTransformer3DModel

    made = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    ).eval()
    plan = MemoryPlan(precision, "resident", "resident", False, 0, 0, ())  # type: ignore[arg-type]
    quantize.apply(made.requires_grad_(False), plan, torch.float32, arithmetic)  # type: ignore[arg-type]
    return made


def output(made: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return made(
            hidden_states=torch.randn(1, 16, 3, 8, 8, generator=draw),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 7, 32, generator=draw),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_an_expert_that_multiplies_quantised_values_is_near_the_exact_one(precision: str) -> None:
    exact = output(expert("fp32", "cast"))
    found = output(expert(precision, "quantized"))
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < 0.1
    assert not torch.equal(found, output(expert(precision, "cast")))


def run_of(made: Any, steps: int) -> Run:
    video = parse({"prompt": "a cat", "seed": 1, "num_inference_steps": steps}, default_job_id="j").videos[0]

    class Parts:
        transformer, transformer_2, modules = made, None, (made,)

    plan = MemoryPlan("fp8", "resident", "resident", False, 0, 0, ())
    return Run(video, demo.catalogue()[0], plan, Parts())  # type: ignore[arg-type]


def arithmetics(wanted: str, steps: int = 4) -> tuple[list[str], Run, Any]:
    """The arithmetic of each step, as the first layer has it while it runs."""
    made = expert("fp8", "quantized")
    technique = QuantizedCompute(Setup(Settings(quantized_compute=wanted), CPU, torch.float32))  # type: ignore[arg-type]
    seen: list[str] = []
    layer = scaled_linear.computing(made)[0]
    layer.register_forward_pre_hook(lambda module, _: seen.append(module.arithmetic))
    run = run_of(made, steps)
    with technique.applied(run):
        for step in range(steps):
            output(made)
            run.steps_done, run.steps = step + 1, steps
    return seen, run, made


def test_on_is_every_step() -> None:
    seen, run, _ = arithmetics("on")
    assert seen == ["quantized"] * 4
    assert run.parameters["quantized_compute"] == "fp8"


def test_middle_leaves_the_first_and_the_last_step_exact() -> None:
    seen, run, made = arithmetics("middle")
    assert seen == ["cast", "quantized", "quantized", "cast"]
    assert run.parameters["quantized_compute"] == "fp8, not in the first and last step"
    assert {layer.arithmetic for layer in scaled_linear.computing(made)} == {"quantized"}  # as before


def test_middle_holds_for_an_expert_that_was_still_being_read_when_the_run_began() -> None:
    first, late = expert("fp8", "quantized"), expert("fp32", "cast")
    run = run_of(first, 3)
    run.components.modules = (first, late)  # type: ignore[misc]
    technique = QuantizedCompute(Setup(Settings(quantized_compute="middle"), CPU, torch.float32))
    seen: list[str] = []
    with technique.applied(run):
        quantize.apply(late, run.plan, torch.float32, "quantized")
        scaled_linear.computing(late)[0].register_forward_pre_hook(lambda module, _: seen.append(module.arithmetic))
        for step in range(3):
            output(first if step == 0 else late)
            run.steps_done, run.steps = step + 1, 3
    assert seen == ["quantized", "cast"]
    assert {layer.arithmetic for layer in scaled_linear.computing(late)} == {"quantized"}


def test_a_run_that_fails_leaves_the_arithmetic_as_it_was() -> None:
    made = expert("fp8", "quantized")
    technique = QuantizedCompute(Setup(Settings(quantized_compute="middle"), CPU, torch.float32))
    layers = scaled_linear.computing(made)

    def stopped_in_the_first_step() -> None:
        with technique.applied(run_of(made, 4)):
            output(made)
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        stopped_in_the_first_step()
    assert {layer.arithmetic for layer in layers} == {"quantized"}


def test_weights_that_are_not_quantised_say_so(caplog: pytest.LogCaptureFixture) -> None:
    made = expert("fp32", "cast")
    technique = QuantizedCompute(Setup(Settings(quantized_compute="on"), CPU, torch.float32))
    run = run_of(made, 2)
    with caplog.at_level("INFO"), technique.applied(run):
        output(made)
    assert run.parameters["quantized_compute"] == "off"
    assert "quantized compute is off" in caplog.text


@pytest.mark.parametrize(("gpu", "precision"), [("H100", "fp8"), ("L40S", "fp8"), ("A100 80GB", "int8")])
@pytest.mark.parametrize(("wanted", "quantised"), [("off", False), ("on", True), ("middle", True)])
def test_the_plan_quantises_for_it(gpu: str, precision: str, wanted: str, quantised: bool) -> None:
    found = from_name(gpu)
    settings = Settings(quantized_compute=wanted)  # type: ignore[arg-type]
    first = Planner(found, settings).ladder(T2V_A14B)[0]
    if quantised:
        assert first.precision == precision
        none = Settings(quantized_compute=wanted, quantization="none")  # type: ignore[arg-type]
        assert Planner(found, none).ladder(T2V_A14B)[0].precision == "bf16"
    else:
        assert first.precision in ("bf16", precision)
