"""What a training takes, held to counts of the real classes at their real width; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.memory_on_meta import training_peak
from tests.kits.slow import slow
from tests.kits.training_kit import ZIP_URL
from worker.base.errors import InvalidRequest
from worker.request.plan import SIZES, Gpu, Shape, from_name
from worker.request.training import TrainingRequest, parse_training
from worker.training import plan
from worker.training.adapter import Adapter
from worker.training.plan import TrainingPlan, choose


def request(num_frames: int = 81, **fields: object) -> TrainingRequest:
    train = {"training_data_url": ZIP_URL, "num_frames": num_frames, **fields}
    return parse_training({"train": train}, default_job_id="plan").train


@pytest.mark.parametrize(("key", "shape"), [("t2v", Shape(832, 480, 81)), ("5b", Shape(448, 256, 17))])
@pytest.mark.parametrize("recomputed", [True, *slow(False)])
def test_activations_are_those_that_are_counted(key: str, shape: Shape, recomputed: bool) -> None:
    size = replace(SIZES[key], layers=3)
    counted = training_peak(key, shape, layers=3, rank=16, recomputed=recomputed)
    estimated = plan.activation_bytes(size, shape, recomputed=recomputed)
    assert 0.97 * counted < estimated < 1.08 * counted


def test_the_parameters_of_the_lora_are_those_that_are_trained() -> None:
    from benchmarks.memory_on_meta import expert

    size = SIZES["t2v"]
    model = expert(replace(size, dim=256, head_dim=128, ffn_dim=512), layers=2)
    adapter = Adapter(model, 8, 8.0, seed=0, dtype=torch.bfloat16)
    small = replace(size, layers=2, dim=256, ffn_dim=512)
    assert sum(master.numel() for master in adapter.masters) == plan.lora_parameters(small, 8)
    assert plan.lora_parameters(size, 16) == 76_677_120


@pytest.mark.parametrize(
    ("gpu", "frames", "arranged"),
    [
        ("H200", 1, TrainingPlan("bf16", recomputed=False)),
        ("H100", 81, TrainingPlan("bf16", recomputed=True)),
        ("L40S", 17, TrainingPlan("bf16", recomputed=True)),
        ("L40S", 81, TrainingPlan("fp8", recomputed=True, on_host=True)),
        ("RTX 4090", 5, TrainingPlan("fp8", recomputed=True)),
        ("RTX 4090", 17, TrainingPlan("fp8", recomputed=True, on_host=True)),
    ],
)
def test_the_fastest_arrangement_that_fits_is_chosen(gpu: str, frames: int, arranged: TrainingPlan) -> None:
    found = choose(request(frames), from_name(gpu))
    assert replace(found, estimated_peak_bytes=None) == arranged
    assert found.estimated_peak_bytes is not None
    assert found.estimated_peak_bytes <= from_name(gpu).budget_bytes


def test_what_does_not_fit_is_refused_with_figures_and_with_what_would() -> None:
    gpu = from_name("RTX 4090")
    with pytest.raises(InvalidRequest) as refused:
        choose(request(81), gpu)
    assert refused.value.path == "train.num_frames"
    assert str(refused.value) == (
        "train.num_frames: training at 832x480 with 81 frames needs 37.5 GB and this worker's GPU has 23.9 GB; "
        "what fits: 832x480 with 17 frames"
    )
    assert choose(request(17), gpu).estimated_peak_bytes is not None
    with pytest.raises(InvalidRequest):
        choose(request(33), gpu)


def test_inputs_of_blocks_need_host_memory() -> None:
    gpu = from_name("L40S")
    inputs = plan.input_bytes(SIZES["t2v"], Shape(832, 480, 81))
    assert choose(request(81), gpu, inputs).on_host
    with pytest.raises(InvalidRequest):
        choose(request(81), gpu, inputs - 1)


def test_a_gpu_that_holds_no_expert_fits_nothing() -> None:
    with pytest.raises(InvalidRequest, match="no size fits"):
        choose(request(1), Gpu("small", 12 * 1024**3, (8, 9)))


def test_on_a_cpu_nothing_is_refused() -> None:
    assert choose(request(161), None) == TrainingPlan("fp32", recomputed=False)


def test_seconds_are_those_of_all_steps() -> None:
    gpu = from_name("H100")
    both, high = (plan.estimated_s(each, choose(each, gpu), gpu) for each in (request(), request(experts="high")))
    assert both is not None
    assert high is not None
    assert both.low == 2 * high.low < both.high
    # 1,678 TFLOP a forward pass, four of them a step, at 35 to 65% of 989 TFLOP/s.
    assert high.low / 1000 == pytest.approx(4 * 1678 / 989 / 0.65, rel=0.02)
    assert plan.estimated_s(request(), choose(request(), None), None) is None
