"""The doctor on the GPU, plans, host memory and attention: a row for each finding and its advice."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kits.doctor_kit import GIB, H100, PLATFORM, Patch, Row, device_of, i2v
from worker.doctor import attention, gpu, plans
from worker.doctor.deployment import Deployment, Device, Driver, Host, driver, look, readable_settings
from worker.engine import device as planning
from worker.request.plan import Gpu, Planner, from_name


def hidden(device: Device, found: str, advice: str) -> Row:
    """Without a GPU on the platform the reason is found, and nothing starts."""
    return Row(gpu.check, "FAIL", found, advice, stops=True, env=PLATFORM, given={"device": device})


def unfit(device: Device, found: str, advice: str) -> Row:
    return Row(gpu.check, "FAIL", found, advice, stops=True, gpu=device.gpu, given={"device": device})


def in_use(used: int) -> dict[str, Any]:
    return {"device": device_of(H100, free_bytes=H100.vram_bytes - used)}


# fmt: off
ROWS: dict[str, Row] = {
    # gpu
    "gpu healthy": Row(gpu.check, "OK",
        "H100 80GB, 79.1 GiB, compute capability 9.0; driver 570.86.15 for CUDA 12.8, torch for CUDA 12.8", gpu=H100),
    "gpu several": Row(gpu.check, "OK", "; the first of 4 GPUs", gpu=H100, given={"device": device_of(H100, count=4)}),
    "gpu demo": Row(gpu.check, "OK", "the demo model runs on the CPU"),
    "gpu demo on the platform": Row(gpu.check, "OK", "the demo model", env={"MODEL_PROFILE": "demo", **PLATFORM}),
    "gpu cpu build": hidden(Device(None), "torch is built without CUDA", "install torch's CUDA build"),
    "gpu no driver": hidden(Device(None, torch_cuda="13.0"), "nor its driver", "choose a GPU type for the endpoint"),
    "gpu old driver": hidden(Device(None, torch_cuda="13.0", driver=Driver((12, 4), "550.54.15")),
        "its driver 550.54.15 serves CUDA 12.4, and torch needs 13.0", "allow only hosts with CUDA 13.0 or later"),
    "gpu hidden": hidden(Device(None, torch_cuda="12.8", driver=Driver((12, 8), "570.86.15")),
        "though its driver 570.86.15 is there", "unset CUDA_VISIBLE_DEVICES"),
    "gpu silent": hidden(Device(None, silent_s=8.0), "the GPU did not answer in 8 s", "end this worker"),
    "gpu broken": hidden(Device(None, failure="CudaError"), "the GPU cannot be asked (CudaError)", "end this worker"),
    "gpu too old": unfit(device_of(Gpu("V100", 16 * GIB, (7, 0))), "it cannot compute in bf16", "Ampere"),
    "gpu unknown to torch": unfit(device_of(from_name("RTX 5090"), architectures=("sm_80", "sm_90")),
        "this torch holds kernels for sm_80, sm_90 only", "choose another GPU type"),
    "gpu does not compute": unfit(device_of(H100, failure="AcceleratorError"),
        "a small computation failed (AcceleratorError)", "another machine"),
    "gpu memory free": Row(gpu.check, "OK", "H100", gpu=H100, given=in_use(2 * GIB)),
    "gpu memory in use": Row(gpu.check, "WARN", "3.0 GiB of its memory are in use already", "beside the doctor",
        gpu=H100, given=in_use(3 * GIB)),
    # plans
    "plan told": Row(i2v(plans.check), "OK", "832x480 with 81 frames: bf16, swap, 34 of 46 GB at the peak, ",
        gpu="L40S"),
    "plan demo": Row(i2v(plans.check), "OK", "the demo model needs less than 1 GB"),
    "plan none": Row(i2v(plans.check), "WARN", "there is no GPU", "what the line gpu says", env=PLATFORM),
    **{f"plan too small, PRELOAD={preload}": Row(i2v(plans.check), "FAIL" if stops else "WARN",
        "does not fit GT 1030 at any size", "choose a GPU with more memory", stops=stops, env={"PRELOAD": preload},
        gpu=Gpu("GT 1030", 2 * GIB, (8, 6))) for preload, stops in (("i2v", True), ("none", False))},
    "plan smaller videos": Row(i2v(plans.check), "WARN",
        "832x480 with 81 frames does not fit GTX 1650; the largest that does is", "choose a GPU", gpu=Gpu("GTX 1650",
        5 * GIB, (8, 6))),
    "plan quantization": Row(i2v(plans.check), "FAIL", "QUANTIZATION: RTX 3090 has no fp8",
        "write int8, none or auto", stops=True, env={"QUANTIZATION": "fp8"}, gpu="RTX 3090"),
    **{f"host {total} GiB": Row(plans.check_host, status, found, advice, gpu=H100, given={"host": Host(total * GIB,
        available * GIB)}) for total, available, status, found, advice in ((256, 200, "OK", "256.0 GiB", ""), (255, 3,
        "FAIL", "3.0 GiB available", "choose a larger machine"), (24, 20, "WARN", "one expert of i2v, 29 GB in bf16",
        "more main memory"))},
    "host slows the plan": Row(plans.check_host, "WARN", "it would as bf16, swap", "more main memory", gpu="L40S",
        given={"host": Host(48 * GIB, 40 * GIB), "host_limit": 40 * 10**9}),
    # attention
    "attention cpu": Row(attention.check, "OK", "torch's own"),
    "attention without sage": Row(attention.check, "WARN", "sage: the package sageattention is not installed",
        "ENABLE_SAGE_ATTENTION=false", gpu=H100),
    "attention off": Row(attention.check, "OK", "switched off", env={"ENABLE_SAGE_ATTENTION": "false"}, gpu=H100),
}
# fmt: on


@pytest.mark.parametrize("name", ROWS)
def test_a_check_finds_and_advises(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    ROWS[name].holds(tmp_path, monkeypatch)


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


def test_this_machine_and_its_driver_are_looked_at_as_they_are(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert driver("libdoes-not-exist.so", version) == Driver(None, "550.54.15")
    assert driver("libc.so.6", tmp_path / "nothing") == Driver(None, None)
    found = look(None, compute=True)
    assert (found.gpu, found.count, found.torch_cuda) == (None, 0, torch.version.cuda)
    host = Host.here()
    assert 0 < host.available_bytes <= host.total_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_driver_that_hangs_and_one_that_fails_are_findings(monkeypatch: Patch) -> None:
    over = threading.Event()

    def hang(_: object) -> Planner:
        over.wait(30)
        raise RuntimeError

    def fail(_: object) -> Planner:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(planning, "planner_for", hang)
    try:
        found = gpu.check(Deployment.tried(*readable_settings(), limit_s=0.05))
    finally:
        over.set()
    assert (found.status, found.found) == ("FAIL", "the GPU did not answer in 0 s")
    monkeypatch.setattr(planning, "planner_for", fail)
    assert "the GPU cannot be asked (AcceleratorError)" in gpu.check(Deployment.tried(*readable_settings())).found


def test_attention_names_what_serves_best_first() -> None:
    exact = {"_flash_3": "the module flash_attn_interface is not installed", "native": None}
    finding = attention.judge({"sage": None}, exact, wanted=True)
    assert (finding.status, finding.found) == ("OK", "sage, native")
    old = attention.judge({"sage": "sageattention 1.0.6 is too old, 2.1.1 or newer is needed"}, exact, wanted=True)
    assert old.status == "WARN"
    assert "1.0.6 is too old" in old.found
