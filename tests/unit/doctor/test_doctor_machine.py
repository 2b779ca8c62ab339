"""The doctor on GPUs, drivers, memory and attention: each failure gives its line and its advice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from tests.kits.doctor_kit import GIB, deployment, device_of
from worker.doctor import attention, gpu, plans
from worker.doctor.deployment import Deployment, Device, Driver, Host, driver, look, readable_settings
from worker.engine.device import Planner
from worker.request.plan import Gpu, from_name

PLATFORM = "http://127.0.0.1:9/job-take/$ID"
V100 = Gpu("Tesla V100", 16 * GIB, (7, 0))
SMALL = Gpu("GTX 1650", 5 * GIB, (8, 6))


@pytest.fixture
def on_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", PLATFORM)


def test_a_healthy_gpu_is_named_with_its_driver(tmp_path: Path) -> None:
    found = gpu.check(deployment(tmp_path, "H100 80GB"))
    assert found.status == "OK"
    assert found.found == (
        "H100 80GB, 79.1 GiB, compute capability 9.0; driver 570.86.15 for CUDA 12.8, torch for CUDA 12.8"
    )


@pytest.mark.parametrize(
    ("device", "found", "advice"),
    [
        (Device(None), "torch is built without CUDA", "install torch's CUDA build"),
        (Device(None, torch_cuda="13.0"), "nor its driver", "choose a GPU type for the endpoint"),
        (
            Device(None, torch_cuda="13.0", driver=Driver((12, 4), "550.54.15")),
            "its driver 550.54.15 serves CUDA 12.4, and torch needs 13.0",
            "allow only hosts with CUDA 13.0 or later",
        ),
        (
            Device(None, torch_cuda="12.8", driver=Driver((12, 8), "570.86.15")),
            "though its driver 570.86.15 is there",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (Device(None, silent_s=8.0), "the GPU did not answer in 8 s", "end this worker"),
        (Device(None, failure="AcceleratorError"), "the GPU cannot be asked (AcceleratorError)", "end this worker"),
    ],
    ids=["cpu-build", "no-driver", "old-driver", "hidden", "silent", "broken"],
)
@pytest.mark.usefixtures("on_platform")
def test_without_a_gpu_the_reason_is_told(tmp_path: Path, device: Device, found: str, advice: str) -> None:
    finding = gpu.check(deployment(tmp_path, device=device))
    assert (finding.status, finding.stops_jobs) == ("FAIL", True)
    assert found in finding.found
    assert advice in finding.advice


@pytest.mark.parametrize("variables", [{}, {"MODEL_PROFILE": "demo", "RUNPOD_WEBHOOK_GET_JOB": PLATFORM}])
def test_the_demo_model_needs_no_gpu(
    tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert gpu.check(deployment(tmp_path)).status == "OK"
    assert plans.check(deployment(tmp_path), "i2v").status == "OK"


@pytest.mark.parametrize(
    ("device", "found", "advice"),
    [
        (device_of(V100), "it cannot compute in bf16", "Ampere"),
        (
            device_of(from_name("RTX 5090"), architectures=("sm_80", "sm_90")),
            "this torch holds kernels for sm_80, sm_90 only",
            "choose another GPU type",
        ),
        (
            device_of(from_name("H100 80GB"), failure="AcceleratorError"),
            "a small computation failed (AcceleratorError)",
            "another machine",
        ),
    ],
    ids=["old", "unknown-to-torch", "does-not-compute"],
)
def test_a_gpu_that_cannot_serve_is_refused(tmp_path: Path, device: Device, found: str, advice: str) -> None:
    finding = gpu.check(deployment(tmp_path, device.gpu, device=device))
    assert (finding.status, finding.stops_jobs) == ("FAIL", True)
    assert found in finding.found
    assert advice in finding.advice


@pytest.mark.parametrize(("in_use", "status"), [(2 * GIB, "OK"), (3 * GIB, "WARN")])
def test_gpu_memory_in_use_is_a_warning(tmp_path: Path, in_use: int, status: str) -> None:
    h100 = from_name("H100 80GB")
    finding = gpu.check(deployment(tmp_path, h100, device=device_of(h100, free_bytes=h100.vram_bytes - in_use)))
    assert finding.status == status
    assert ("already" in finding.found) == (status == "WARN")


def test_several_gpus_are_counted(tmp_path: Path) -> None:
    h100 = from_name("H100 80GB")
    assert gpu.check(deployment(tmp_path, h100, device=device_of(h100, count=4))).found.endswith("the first of 4 GPUs")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ("sm_80",), True),
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_90a",), True),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_90",), False),
        ((7, 0), ("sm_75", "compute_80"), False),
        ((8, 0), (), True),
    ],
)
def test_kernels_run_on_their_own_generation_and_ptx_on_later_ones(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert gpu.runs_on(capability, architectures) is runs


def test_the_driver_tells_its_release_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert driver("libdoes-not-exist.so", version) == Driver(None, "550.54.15")
    assert driver("libc.so.6", tmp_path / "nothing") == Driver(None, None)


def test_this_machine_is_looked_at_as_it_is() -> None:
    found = look(None, compute=True)
    assert (found.gpu, found.count, found.torch_cuda) == (None, 0, torch.version.cuda)


def test_a_driver_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: object) -> Planner:
        over.wait(30)
        raise RuntimeError

    monkeypatch.setattr(Planner, "here", hang)
    try:
        found = Deployment.tried(*readable_settings(), limit_s=0.05)
    finally:
        over.set()
    assert gpu.check(found).found == "the GPU did not answer in 0 s"
    assert gpu.check(found).status == "FAIL"


def test_a_driver_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Planner:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(Planner, "here", fail)
    assert "the GPU cannot be asked (AcceleratorError)" in gpu.check(Deployment.tried(*readable_settings())).found


def test_a_plan_is_told_with_its_peak_and_the_host_memory(tmp_path: Path) -> None:
    finding = plans.check(deployment(tmp_path, "L40S"), "i2v")
    assert finding.status == "OK"
    assert finding.found.startswith("832x480 with 81 frames: bf16, swap, 34 of 46 GB at the peak, ")


@pytest.mark.parametrize(("preload", "status", "stops"), [("i2v", "FAIL", True), ("none", "WARN", False)])
def test_a_gpu_too_small_is_fatal_for_a_model_of_preload_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: str, status: str, stops: bool
) -> None:
    monkeypatch.setenv("PRELOAD", preload)
    finding = plans.check(deployment(tmp_path, Gpu("GT 1030", 2 * GIB, (8, 6))), "i2v")
    assert (finding.status, finding.stops_jobs) == (status, stops)
    assert "does not fit GT 1030 at any size" in finding.found
    assert "choose a GPU with more memory" in finding.advice


def test_a_gpu_that_takes_smaller_videos_only_is_a_warning(tmp_path: Path) -> None:
    finding = plans.check(deployment(tmp_path, SMALL), "i2v")
    assert finding.status == "WARN"
    assert "832x480 with 81 frames does not fit GTX 1650; the largest that does is" in finding.found


def test_a_quantization_that_the_gpu_has_not_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZATION", "fp8")
    finding = plans.check(deployment(tmp_path, "RTX 3090"), "i2v")
    assert (finding.status, finding.stops_jobs) == ("FAIL", True)
    assert (finding.found, finding.advice) == ("QUANTIZATION: RTX 3090 has no fp8", "write int8, none or auto")


@pytest.mark.usefixtures("on_platform")
def test_without_a_gpu_no_plan_is_worked_out(tmp_path: Path) -> None:
    assert plans.check(deployment(tmp_path), "i2v").status == "WARN"


@pytest.mark.parametrize(
    ("total", "available", "status", "found"),
    [
        (256, 200, "OK", "256.0 GiB"),
        (256, 3, "FAIL", "3.0 GiB available"),
        (24, 20, "WARN", "one expert of i2v, 29 GB in bf16"),
    ],
)
def test_host_memory(tmp_path: Path, total: int, available: int, status: str, found: str) -> None:
    finding = plans.check_host(deployment(tmp_path, "H100 80GB", host=Host(total * GIB, available * GIB)))
    assert finding.status == status
    assert found in finding.found
    assert bool(finding.advice) == (status != "OK")


def test_host_memory_that_slows_the_plan_is_a_warning(tmp_path: Path) -> None:
    finding = plans.check_host(deployment(tmp_path, "L40S", host=Host(48 * GIB, 40 * GIB), host_limit=40 * 10**9))
    assert finding.status == "WARN"
    assert "model i2v runs as" in finding.found
    assert "it would as bf16, swap" in finding.found


def test_the_hosts_memory_here_is_measured() -> None:
    host = Host.here()
    assert 0 < host.available_bytes <= host.total_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_attention_on_the_cpu_is_torchs_own(tmp_path: Path) -> None:
    assert attention.check(deployment(tmp_path)).status == "OK"


def test_attention_is_asked_of_the_engines_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = attention.check(deployment(tmp_path, "H100 80GB"))
    assert finding.status == "WARN"
    assert "sage: the package sageattention is not installed" in finding.found
    assert "ENABLE_SAGE_ATTENTION=false" in finding.advice
    monkeypatch.setenv("ENABLE_SAGE_ATTENTION", "false")
    assert attention.check(deployment(tmp_path, "H100 80GB")).status == "OK"


def test_attention_names_what_serves_best_first() -> None:
    exact = {"_flash_3": "the module flash_attn_interface is not installed", "native": None}
    finding = attention.judge({"sage": None}, exact, wanted=True)
    assert (finding.status, finding.found) == ("OK", "sage, native")
    old = attention.judge({"sage": "sageattention 1.0.6 is too old, 2.1.1 or newer is needed"}, exact, wanted=True)
    assert old.status == "WARN"
    assert "1.0.6 is too old" in old.found
