"""What a training takes, held to counts of the real classes at their real width; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.memory_on_meta import training_peak
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
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_those_that_are_counted(key: str, shape: Shape, checkpointed: bool) -> None:
    size = replace(SIZES[key], layers=3)
    counted = training_peak(key, shape, layers=3, rank=16, checkpointed=checkpointed)
    estimated = plan.activation_bytes(size, shape, checkpointed=checkpointed)
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
        ("H200", 81, ("bf16", True)),
        ("H100", 81, ("bf16", True)),
        ("L40S", 49, ("fp8", True)),
        ("L40S", 1, ("bf16", True)),
        ("RTX 4090", 1, ("fp8", True)),
    ],
)
def test_the_fastest_arrangement_that_fits_is_chosen(gpu: str, frames: int, arranged: tuple[str, bool]) -> None:
    found = choose(request(frames), from_name(gpu))
    assert (found.precision, found.checkpointed) == arranged
    assert found.estimated_peak_bytes is not None
    assert found.estimated_peak_bytes <= from_name(gpu).budget_bytes


@pytest.mark.parametrize("gpu", ["L40S", "RTX 4090"])
def test_what_does_not_fit_is_refused_with_figures_and_with_what_would(gpu: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        choose(request(81), from_name(gpu))
    assert refused.value.path == "train.num_frames"
    needs, _, offer = refused.value.message.partition("what fits: 832x480 with ")
    assert "832x480 with 81 frames needs 51" in needs
    frames = int(offer.split()[0])
    choose(request(frames), from_name(gpu))
    with pytest.raises(InvalidRequest):
        choose(request(next(each for each in (81, 49, 33, 17, 5) if each > frames)), from_name("RTX 4090"))


def test_a_gpu_that_holds_no_expert_is_told_so() -> None:
    with pytest.raises(InvalidRequest, match="no size fits"):
        choose(request(1), Gpu("small", 12 * 1024**3, (8, 9)))


def test_on_a_cpu_nothing_is_refused() -> None:
    assert choose(request(161), None) == TrainingPlan("fp32", checkpointed=False)


def test_seconds_are_those_of_all_steps() -> None:
    gpu = from_name("H100")
    both, high = (plan.estimated_s(each, choose(each, gpu), gpu) for each in (request(), request(experts="high")))
    assert both is not None
    assert high is not None
    assert both.low == 2 * high.low < both.high
    # 1,678 TFLOP a forward pass, four of them a step, at 35 to 65% of 989 TFLOP/s.
    assert high.low / 1000 == pytest.approx(4 * 1678 / 989 / 0.65, rel=0.02)
    assert plan.estimated_s(request(), choose(request(), None), None) is None
