"""Whole videos by the worker, and the stages before and behind the denoising."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import deque
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_rates, gpu_rows, gpu_stock, gpu_videos
from benchmarks.on_gpu.bench import BEGAN, GB, Bench
from worker.base.stop import Stop
from worker.engine import decode as decoding
from worker.request.plan import duration, peak


def facts(bench: Bench) -> None:
    add = bench.notes.add
    add("facts", "torch", torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    add("facts", "seconds until here", time.perf_counter() - BEGAN, cores=os.cpu_count())
    if bench.on_gpu:
        found = torch.cuda.get_device_properties(0)
        add("facts", "GPU", found.name, bytes=found.total_memory, GiB=found.total_memory / 2**30)
        big = torch.empty(2**31, dtype=torch.uint8, device="cuda")
        other = torch.empty_like(big)
        seconds = statistics.median(bench.once(lambda: other.copy_(big)) for _ in range(5))
        add("facts", "device copy, TB/s read and written", 2 * 2**31 / seconds / 1e12)
        del big, other
    bench.rates = gpu_rates.measure(bench.small, bench.device)
    add("facts", "matrix rates", bench.rates.told())
    bench.reset()
    for scale in (bench.small, bench.large):
        row = bench.row("exact")
        work = duration.forward_flop(scale.size, scale.shape) / 1e12
        add("facts", f"floor of a guided step, {scale.name}, s", bench.floor(scale, bench.rates, 2), TFLOP_pass=work)
        plan = bench.studio.engine.video(gpu_rows.request(row, scale, take=0)).plan
        add("facts", f"plan, {scale.name}", str(plan.rung), estimate_GB=plan.estimated_peak_bytes / GB)


_SHOWN = ("memory_plan", "attention_backend", "attention_reason", "fused_kernels")


def _job(bench: Bench, stage: str, scale: Any, steps: int) -> None:
    """A whole video by the worker: prompt to stored file."""
    bench.take_scale(scale)
    bench.reset()
    request = gpu_rows.request(bench.row("exact"), scale, take=1, steps=steps, even=True)
    plan = bench.studio.engine.video(request).plan
    made = bench.studio.make(request, bench.home)
    steps_s = made.steps_s
    add = bench.notes.add
    add(stage, "step, s (median; all)", statistics.median(steps_s), all=[round(each, 3) for each in steps_s])
    add(stage, "x floor, of the median step", statistics.median(steps_s) / bench.floor(scale, bench.rates, 2))
    add(stage, "timings", {name: round(each, 2) for name, each in made.timings.items()})
    estimated = plan.estimated_peak_bytes / GB
    peak = (made.peak_bytes or 0) / GB
    add(stage, "peak, GB, beside the plan's", peak, plan_GB=estimated, ratio=estimated / peak if peak else 0.0)
    add(
        stage,
        "parameters",
        {key: made.parameters.get(key) for key in _SHOWN},
    )
    if bench.on_gpu:
        add(stage, "memory", bench.memory())


def job480(bench: Bench) -> None:
    _job(bench, "job480", bench.small, 4)


def job720(bench: Bench) -> None:
    _job(bench, "job720", bench.large, 4 if bench.tiny else 2)


def _turbo(bench: Bench, stage: str, scale: Any, takes: int) -> None:
    bench.take_scale(scale)
    for take in range(takes):
        bench.reset()
        made = bench.studio.make(gpu_rows.request(bench.row("turbo"), scale, take=10 + take), bench.home)
        said = {name: round(each, 2) for name, each in made.timings.items()}
        bench.notes.add(stage, f"whole request, s, take {take}", made.timings["total"], timings=said, **bench.memory())
        bench.notes.add(stage, "passes, s", [round(each, 3) for each in made.steps_s])


def turbo480(bench: Bench) -> None:
    _turbo(bench, "turbo480", bench.small, 1)


def turbo720(bench: Bench) -> None:
    _turbo(bench, "turbo720", bench.large, 1)


def decode(bench: Bench) -> None:
    """The VAE's decode: in fp32 (TF32 convolutions) and in bf16."""
    studio = bench.studio
    plan = studio.engine.video(gpu_rows.request(bench.row("exact"), bench.small, take=0)).plan
    loaded = studio.engine.models.use(studio.spec, plan, Stop())
    vae = loaded.components.shared.vae
    loaded.residency.bring(vae)
    for scale, half in ((bench.large, False), (bench.large, True), (bench.small, False)):
        bench.take_scale(scale)
        latents = gpu_videos.vae_input(bench.row("decode"), bench.rig)
        bench.reset()
        before = torch.cuda.memory_allocated() / GB if bench.on_gpu else 0.0

        def work(latents: torch.Tensor = latents, half: bool = half) -> None:
            with contextlib.closing(decoding.frames(vae, latents, half=half, fused=True)) as frames:
                for _ in frames:
                    pass

        first, again = bench.once(work), bench.once(work)
        name = f"{scale.name}, {'bf16' if half else 'fp32'}, s"
        memory = bench.memory()
        more = {"above_weights_GB": memory["peak_GB"] - before, "reserved_GB": memory["reserved_GB"]} if memory else {}
        estimated = peak.decode_bytes(scale.size, scale.shape, tiled=False) / GB
        bench.notes.add("decode", name, again, first=first, estimate_GB=estimated, **more)


def decode_profile(bench: Bench) -> None:
    """Which kernels the decode of the large size spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    studio = bench.studio
    bench.take_scale(bench.large)
    plan = studio.engine.video(gpu_rows.request(bench.row("exact"), bench.large, take=0)).plan
    loaded = studio.engine.models.use(studio.spec, plan, Stop())
    vae = loaded.components.shared.vae
    loaded.residency.bring(vae)
    latents = gpu_videos.vae_input(bench.row("decode"), bench.rig)
    activities = [ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]
    for half in (False, True):
        closing = contextlib.closing(decoding.frames(vae, latents[:, :, :5], half=half))
        with closing as frames, profile(activities=activities) as found:
            seconds = bench.once(partial(deque, frames, maxlen=0))
        name = f"{bench.large.name}, 5 latent frames, {'bf16' if half else 'fp32'}"
        bench.notes.add("decode_profile", f"{name}, s", seconds)
        kernels = found.key_averages()
        taken = {each: float(each.self_device_time_total or each.self_cpu_time_total) / 1e6 for each in kernels}
        for each in sorted(kernels, key=lambda each: -taken[each])[:14]:
            bench.notes.add("decode_profile", f"{name}: {each.key[:110]}", taken[each], times=each.count)


def stock480(bench: Bench) -> None:
    """The same video by Diffusers' own pipeline on weights of the same kind, and its decode of both sizes."""
    add = bench.notes.add
    bench.take_scale(bench.small)
    stock = gpu_stock.Stock(bench.rig)
    made = stock.video(
        bench.row("exact"), gpu_rows.request(bench.row("exact"), bench.small, take=1, steps=4, even=True)
    )
    add("stock480", "step, s (median; all)", made.step_s, all=[round(each, 3) for each in made.steps_s])
    add(
        "stock480",
        "whole, s (frames as arrays: not encoded)",
        made.timings["total"],
        peak_GB=(made.peak_bytes or 0) / GB,
    )
    for scale in (bench.small, bench.large):
        bench.take_scale(scale)
        bench.reset()
        decoded = stock.measure(bench.row("decode"), steps=1, repeats=1)
        add("stock480", f"decode, {scale.name}, fp32, s", decoded.video_s, peak_GB=(decoded.peak_bytes or 0) / GB)
    stock.close()
