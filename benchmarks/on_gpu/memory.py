"""Weights on their way: readings while work is queued, pinned memory, smaller cards, quantised weights."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from unittest import mock

import torch

from benchmarks import gpu_rows, gpu_videos
from benchmarks.on_gpu.bench import GB, Bench
from worker.base.stop import Stop
from worker.engine.device import host_memory_bytes
from worker.engine.models.arrivals import Progress, wait_for
from worker.request.plan import Gpu, Planner


def race(bench: Bench) -> None:
    """Weights read into memory that work under way on the device still writes: are they whole behind it?

    The allocator gives a freed block to its stream again at once; a copy on another stream has to wait for that stream.
    """
    from safetensors.torch import save_file

    from worker.weights.tensors import reading
    from worker.weights.tensors.headers import stored_tensors

    size = 256 if bench.tiny else 8192
    wanted = torch.randn(size, size).to(torch.bfloat16)
    file = bench.home / "race.safetensors"
    save_file({"weight": wanted}, file)
    (stored,) = stored_tensors(file)
    busy = torch.randn(size, size, device=bench.device).to(torch.bfloat16)
    reading.read([reading.Target(stored, torch.empty_like(busy))])  # the first one makes streams and pinned blocks
    bench.rig.synchronize()
    torn = 0
    for _ in range(5):
        for _ in range(4 if bench.tiny else 200):  # 0.3 s of work, of which each product's block is freed at once
            product = busy @ busy
        del product
        target = torch.empty_like(busy)
        reading.read([reading.Target(stored, target)])
        bench.rig.synchronize()
        torn += not torch.equal(target.cpu(), wanted)
        del target
    bench.notes.add("race", "weights torn by work that was under way, of 5 readings", torn)


def weights(bench: Bench) -> None:
    """How fast the worker reads weights to the device: first copies in the page cache, as the second start has them."""
    from benchmarks.load_files import write_expert
    from worker.weights.tensors import reading
    from worker.weights.tensors.headers import stored_tensors

    folder = bench.home / "weights"
    if not bench.tiny:
        write_expert(folder, blocks=12)
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file({"weight": torch.randn(256, 256)}, folder / "one.safetensors")
    stored = [each for file in sorted(folder.glob("*.safetensors")) for each in stored_tensors(file)]
    for take in range(3):
        targets = [
            reading.Target(each, torch.empty(each.shape, dtype=each.dtype, device=bench.device)) for each in stored
        ]
        total = sum(each.tensor.nbytes for each in targets)
        seconds = bench.once(partial(reading.read, targets))
        bench.notes.add("weights", f"page cache to the device, GB/s, take {take}", total / GB / seconds, GB=total / GB)
        del targets
    shutil.rmtree(folder)


def fp8(bench: Bench) -> None:
    """QUANTIZED_COMPUTE=on: how long the model takes to be quantised on the device, and a guided video of two steps."""
    row, add = bench.row("quantized"), bench.notes.add
    studio = gpu_videos.Studio(row, bench.rig)
    bench.take_scale(bench.small)
    request = gpu_rows.request(row, bench.small, take=0, steps=4 if bench.tiny else 2, even=True)
    plan = studio.engine.video(request).plan
    began = time.perf_counter()
    loaded = studio.engine.models.use(studio.spec, plan, Stop())
    wait_for(loaded.components.parts, Progress(Stop()))
    add("fp8", "model loaded, s", time.perf_counter() - began, plan=str(plan.rung), **bench.memory())
    made = studio.make(request, bench.home)
    shown = {key: made.parameters.get(key) for key in ("quantized_compute", "fused_kernels", "attention_backend")}
    add("fp8", f"{bench.small.name}, step, s (all)", [round(each, 3) for each in made.steps_s], **shown)
    add("fp8", "peak, GB", (made.peak_bytes or 0) / GB, plan_GB=plan.estimated_peak_bytes / GB, **bench.memory())
    studio.close()


def pinned(bench: Bench) -> None:
    """What pinning takes and gives: bytes really taken, seconds, and the rate to the device."""
    import psutil

    add = bench.notes.add
    shape = (13824, 5120) if not bench.tiny else (138, 51)
    count = 24 if not bench.tiny else 2
    wanted = count * shape[0] * shape[1] * 2
    before, began = psutil.virtual_memory().available, time.perf_counter()
    held = [torch.empty(shape, dtype=torch.bfloat16, pin_memory=bench.on_gpu) for _ in range(count)]
    seconds = time.perf_counter() - began
    taken = before - psutil.virtual_memory().available
    add("pinned", "torch.empty(pin_memory), GB/s", wanted / GB / seconds, wanted_GB=wanted / GB, taken_GB=taken / GB)
    if not bench.on_gpu:
        return
    target = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for _ in range(count)]

    def copy() -> None:
        for one, other in zip(target, held, strict=True):
            one.copy_(other, non_blocking=True)

    copy()
    add("pinned", "pinned to device, GB/s", wanted / GB / bench.once(copy))
    fresh = [torch.empty(shape, dtype=torch.bfloat16).fill_(1) for _ in range(4)]
    part = wanted / count * 4

    def copy_pageable() -> None:
        for one, other in zip(target, fresh, strict=False):
            one.copy_(other)

    copy_pageable()
    add("pinned", "pageable to device, GB/s", part / GB / bench.once(copy_pageable))
    add(
        "pinned",
        "device to pageable (.to('cpu')), GB/s",
        part / GB / bench.once(lambda: [t.to("cpu") for t in target[:4]]),
    )
    began = time.perf_counter()
    [each.pin_memory() for each in fresh]
    add("pinned", "pin_memory() of what is there, GB/s", part / GB / (time.perf_counter() - began))
    flat = torch.empty(4 * 2**30, dtype=torch.uint8).fill_(1)
    began = time.perf_counter()
    failed = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), flat.numel(), 0)
    add(
        "pinned",
        "cudaHostRegister of 4 GiB, GB/s",
        flat.numel() / GB / (time.perf_counter() - began),
        answer=str(failed),
    )
    torch.cuda.cudart().cudaHostUnregister(flat.data_ptr())


def _smaller(bench: Bench, stage: str, gib: float) -> None:
    """A card of `gib` GiB, by torch's share of this one: the plan that it gets, and a video of two steps."""
    import psutil

    add = bench.notes.add
    bench.take_scale(bench.small)
    found = torch.cuda.get_device_properties(0) if bench.on_gpu else None
    gpu = Gpu(f"{gib:g} GiB", int(gib * 2**30), (9, 0)) if found is not None else None
    if found is not None and gpu is not None:
        torch.cuda.set_per_process_memory_fraction(gpu.budget_bytes / found.total_memory)

    share = int(host_memory_bytes() * 0.85) if bench.on_gpu else None
    with mock.patch.object(bench.rig, "_planner", lambda settings: Planner(gpu, settings, share)):
        studio = gpu_videos.Studio(bench.row("exact"), bench.rig)
        request = gpu_rows.request(bench.row("exact"), bench.small, take=1, steps=4 if bench.tiny else 2, even=True)
        plan = studio.engine.video(request).plan
        add(stage, "plan", str(plan.rung), estimate_GB=plan.estimated_peak_bytes / GB, host_GB=plan.host_bytes / GB)
        before = psutil.virtual_memory().available
        made = studio.make(request, bench.home)
        taken = (before - psutil.virtual_memory().available) / GB
        add(stage, "step, s (all)", [round(each, 3) for each in made.steps_s])
        add(stage, "timings", {name: round(each, 2) for name, each in made.timings.items()})
        add(stage, "peak, GB", (made.peak_bytes or 0) / GB, host_taken_GB=taken, **bench.memory())
        if not bench.tiny:
            made = studio.make(replace(request, seed=2), bench.home)
            add(stage, "again: steps and timings", [round(each, 3) for each in made.steps_s], timings=made.timings)
        studio.close()


def swap48(bench: Bench) -> None:
    _smaller(bench, "swap48", 44.39)


def swap24(bench: Bench) -> None:
    """fp8 weights are cast on the host first, which takes a while."""
    _smaller(bench, "swap24", 22.03)
