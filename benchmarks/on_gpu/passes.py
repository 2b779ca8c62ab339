"""A forward pass of an expert and its parts: attention, products, all else; compiled, quantised."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_rows
from benchmarks.on_gpu.bench import Bench
from worker.base.stop import Stop
from worker.engine import kernels
from worker.engine.models import precision
from worker.engine.models.precision import ScaledLinear
from worker.engine.techniques import Run, attention
from worker.engine.techniques import compile as compiling


def _backends(bench: Bench) -> list[str]:
    names = ["native"]
    if bench.on_gpu:
        names += ["_native_flash", "_native_cudnn", "_flash_3", "sage"]
    return names


@torch.no_grad()
def attention_(bench: Bench) -> None:
    """Self-attention of the model's sizes by each backend, and how far it is from flash attention 2."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    heads, width = (40, 128) if not bench.tiny else (2, 32)
    for scale in (bench.small, bench.large):
        tokens = scale.size.tokens(scale.shape)
        flop = 4 * tokens * tokens * heads * width
        one = [torch.randn(1, tokens, heads, width, device=bench.device).to(bench.dtype) for _ in range(3)]
        wanted = None
        for name in ["_native_flash" if bench.on_gpu else "native", *_backends(bench)]:

            def call(name: str = name, one: list[torch.Tensor] = one) -> torch.Tensor:
                return dispatch_attention_fn(*one, backend=AttentionBackendName(name))

            try:
                got = call()
                seconds = statistics.median(bench.once(call) for _ in range(3))
            except Exception as failure:  # noqa: BLE001 - a kernel that is not here
                bench.notes.add("attention", f"{scale.name}, {name}", f"{type(failure).__name__}: {str(failure)[:90]}")
                continue
            if wanted is None:
                wanted = got.float()
                continue
            off = float((got.float() - wanted).norm() / wanted.norm())
            bench.notes.add(
                "attention", f"{scale.name}, {name}, ms", seconds * 1e3, TFLOP_s=flop / seconds / 1e12, off=off
            )
            del got
        one, wanted = [], None
        bench.reset()


def pass_(bench: Bench) -> None:
    """A forward pass of an expert by each backend that is here."""
    expert = bench.expert()
    for name in _backends(bench):
        if name in ("_native_flash", "_native_cudnn"):  # `attention` measures them
            continue
        try:
            attention._set(expert, attention.Backend(name, quantised=name == "sage"))
            first, seconds = bench.pass_s(expert, bench.small, repeats=1)
        except Exception as failure:  # noqa: BLE001 - as above
            bench.notes.add("pass", f"{bench.small.name}, {name}", f"{type(failure).__name__}: {str(failure)[:90]}")
            continue
        ratio = seconds / bench.floor(bench.small, bench.rates, 1)
        bench.notes.add("pass", f"{bench.small.name}, {name}, s", seconds, first=first, x_floor=ratio)
    attention._set(expert, attention.Backend("native"))


@torch.no_grad()
def profile(bench: Bench) -> None:
    """Where a pass spends its time, with the techniques of a run: matrix products, attention, all else."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    studio, inputs = bench.studio, bench.inputs(bench.small)
    video = studio.engine.video(gpu_rows.request(bench.row("exact"), bench.small, take=0))
    loaded = studio.engine.models.use(studio.spec, video.plan, Stop())
    run = Run(video.request, video.spec, video.plan, loaded.components)
    activities = [ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]
    with studio.engine.techniques.applied(run):

        def work() -> object:
            return loaded.experts[0](**inputs, return_dict=False)

        work()
        seconds = bench.once(work)
        with profiling(activities=activities) as found:
            bench.once(work)
    bench.notes.add("profile", f"{bench.small.name}, a pass, s", seconds, **run.parameters)
    kinds = {
        "attention": ("flash", "fmha", "sdpa", "attention"),
        "product": ("gemm", "nvjet", "xmma", "cutlass", "addmm"),
    }
    sums: dict[str, float] = {"attention": 0.0, "product": 0.0, "rest": 0.0}
    rest: list[tuple[float, int, str]] = []
    for event in found.key_averages():
        taken = float(event.self_device_time_total if bench.on_gpu else event.self_cpu_time_total) / 1e6
        name = event.key.lower()
        kind = next((kind for kind, words in kinds.items() if any(word in name for word in words)), "rest")
        sums[kind] += taken
        if kind == "rest":
            rest.append((taken, event.count, event.key[:100]))
    total = sum(sums.values()) or 1.0
    for kind, taken in sums.items():
        bench.notes.add("profile", f"{bench.small.name}, {kind}, s", taken, share=taken / total)
    for taken, count, name in sorted(rest, reverse=True)[:12]:
        bench.notes.add("profile", f"rest: {name}", taken, calls=count)


@torch.no_grad()
def linear(bench: Bench) -> None:
    """The feed-forward's first layer at 480p: bf16, and what each part of the quantised way takes."""
    rows, dim, inner = (bench.small.size.tokens(bench.small.shape), 5120, 13824) if not bench.tiny else (256, 64, 128)
    plain = torch.nn.Linear(dim, inner, device=bench.device, dtype=bench.dtype).requires_grad_(False)
    inputs = torch.randn(rows, dim, device=bench.device).to(bench.dtype)
    flop = 2 * rows * dim * inner

    def tell(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
            seconds = statistics.median(bench.once(work) for _ in range(5))
        except Exception as failure:  # noqa: BLE001 - an arithmetic that is not here
            bench.notes.add("linear", name, f"{type(failure).__name__}: {str(failure)[:90]}")
            return
        bench.notes.add("linear", f"{name}, ms", seconds * 1e3, TFLOP_s=flop / seconds / 1e12)

    tell("bf16" if bench.on_gpu else "fp32", lambda: plain(inputs))
    if bench.tiny:
        inputs = inputs.bfloat16()
        plain = plain.bfloat16()
    twin = precision.ScaledLinear.of(plain, "fp8", "quantized")
    tell("ScaledLinear fp8, as it is", lambda: twin(inputs))
    tell("quantize of the input alone", lambda: precision.quantize(inputs, "fp8"))
    quantized, scale = precision.quantize(inputs, "fp8")
    for fast in (False, True):
        tell(
            f"_scaled_mm by rows, fast accumulation {fast}",
            partial(
                torch._scaled_mm,
                quantized,
                twin.weight.t(),
                scale_a=scale,
                scale_b=twin.scale.t(),
                out_dtype=torch.bfloat16,
                use_fast_accum=fast,
            ),
        )
    if bench.on_gpu:
        _by_kernel(tell, plain, twin, inputs)
    one = torch.ones((), device=bench.device)
    tell(
        "_scaled_mm, one scale, fast accumulation True",
        lambda: torch._scaled_mm(
            quantized, twin.weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
    )
    if bench.tiny:  # compiling takes minutes on a CPU, and shows nothing
        return
    compiled = torch.compile(precision.quantize, dynamic=False)
    tell("quantize of the input alone, compiled", lambda: compiled(inputs, "fp8"))
    tell("ScaledLinear fp8, compiled", torch.compile(lambda: twin(inputs)))


def _by_kernel(
    tell: Callable[[str, Callable[[], Any]], None], plain: torch.nn.Linear, twin: ScaledLinear, inputs: torch.Tensor
) -> None:
    """Quantising by the kernel, alone and before the product, and what GELU takes by itself and within others."""
    by, wide = kernels.of(inputs.device), plain(inputs)

    def product() -> torch.Tensor:
        with precision.quantized_by(by):
            return twin(inputs)

    tell("quantize by the kernel", lambda: by.quantize_rows(inputs))
    tell("ScaledLinear fp8, quantised by the kernel", product)
    tell("GELU of the output alone", lambda: torch.nn.functional.gelu(wide, approximate="tanh"))
    tell("quantize of the output alone", lambda: precision.quantize(wide, "fp8"))
    tell("GELU and quantize of the output by the kernel", lambda: by.quantize_rows(wide, gelu=True))
    tell(
        "bf16 with GELU in the product",
        lambda: torch._addmm_activation(plain.bias, inputs, plain.weight.t(), use_gelu=True),
    )


def compile_(bench: Bench, scale: Any | None = None, stage: str = "compile") -> None:
    """A pass with compiled blocks, and how long compiling takes."""
    scale = bench.small if scale is None else scale
    expert = bench.expert()
    if (reason := compiling.refusal(_plan(bench), bench.device)) is not None:
        bench.notes.add(stage, "refused", reason)
        return
    compiling.enable(expert)
    attention._set(expert, attention.Backend("native"))
    first, seconds = bench.pass_s(expert, scale, repeats=1 if scale is bench.large else 2)
    ratio = seconds / bench.floor(scale, bench.rates, 1)
    bench.notes.add(stage, f"{scale.name}, compiled pass, s", seconds, first=first, x_floor=ratio)
    for name in _backends(bench):
        if name == "_flash_3":
            try:
                attention._set(expert, attention.Backend(name))
                first, seconds = bench.pass_s(expert, scale, repeats=1)
                bench.notes.add(stage, f"{scale.name}, compiled pass, {name}, s", seconds, first=first)
            except Exception as failure:  # noqa: BLE001 - not here
                bench.notes.add(stage, f"compiled, {name}", f"{type(failure).__name__}: {str(failure)[:90]}")


def compile720(bench: Bench) -> None:
    compile_(bench, bench.large, "compile720")


def _plan(bench: Bench) -> Any:
    return bench.studio.engine.video(gpu_rows.request(bench.row("exact"), bench.small, take=0)).plan
