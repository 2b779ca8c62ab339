"""What the step cache saves, and what it costs in quality: against the same video computed in full.

    python -m benchmarks.step_cache                  the demo model, trained where its weights are here; for a CPU
    python -m benchmarks.step_cache --full-size      T2V-A14B's experts with random weights, on a GPU of 80 GB
    python -m benchmarks.step_cache --full-size --layers 2 --heads 2 --width 64 --height 64 --frames 5 --steps 6
                                                     to see that it works

The demo model gives frames: PSNR and SSIM against the exact ones. Full-size experts without a VAE give latents: the
norm of their difference, as a share of the norm of the exact ones. What a pass takes does not depend on the weights;
which passes may be left out does, and so does the error: the real weights have to be measured. Prints a Markdown
table and writes `step-cache-DATE.json` beside the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch.nn import functional

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine, Preview
from worker.engine.device import planner_for
from worker.engine.models.components import Components, SharedParts
from worker.engine.modes import schedules
from worker.engine.modes.base import TextPipeline
from worker.engine.techniques import Run
from worker.engine.techniques.base import Setup
from worker.engine.techniques.step_cache import THRESHOLDS, StepCache
from worker.request import VideoRequest
from worker.request.catalogue import T2V_A14B
from worker.request.parse import parse
from worker.request.plan import MemoryPlan
from worker.weights.sources import demo, demo_trained

MODES = ("off", *THRESHOLDS)
PROMPTS = ("a red ball moves to the right", "a blue square moves up", "a green triangle moves to the left")
_PEAK = 255.0
# Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13 (2004).
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


@dataclass(frozen=True)
class Row:
    """One mode: median seconds of a video's steps, and means of the share of passes that left blocks out and of the
    errors; infinite where every video is exact."""

    mode: str
    seconds: float
    share: float
    errors: dict[str, float]


@dataclass(frozen=True)
class Made:
    """What one run made: frames uint8 [F, H, W, 3], or latents."""

    result: np.ndarray
    seconds: float
    share: float


Make = Callable[[str, int], Made]  # of a mode and a seed


class Unwatched:
    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...

    def preview(self, preview: Preview) -> None: ...


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames; infinite where they are equal."""
    error = float(np.square(one.astype(np.float64) - other.astype(np.float64)).mean())
    return float("inf") if error == 0 else float(10 * np.log10(_PEAK**2 / error))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Mean structural similarity of uint8 [F, H, W, 3], each channel by itself; 1 where they are equal."""
    steps = torch.arange(_SSIM_WINDOW, dtype=torch.float64) - _SSIM_WINDOW // 2
    weights = torch.exp(-(steps**2) / (2 * _SSIM_SIGMA**2))
    window = torch.outer(weights, weights)
    window = (window / window.sum())[None, None]

    def blurred(planes: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(planes, window)

    totals = []
    for first, second in zip(one, other, strict=True):
        a, b = (torch.from_numpy(frame.astype(np.float64)).permute(2, 0, 1)[:, None] for frame in (first, second))
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        covariance = blurred(a * b) - mean_a * mean_b
        likeness = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
        likeness /= (mean_a**2 + mean_b**2 + _SSIM_C1) * (var_a + var_b + _SSIM_C2)
        totals.append(float(likeness.mean()))
    return statistics.fmean(totals)


def frame_errors(made: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    return {"psnr_db": psnr_db(made, exact), "ssim": ssim(made, exact)}


def latent_errors(made: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    return {"latent_error": float(np.linalg.norm(made - exact) / np.linalg.norm(exact))}


def request_of(options: argparse.Namespace, mode: str, seed: int) -> VideoRequest:
    payload = {
        "prompt": PROMPTS[seed % len(PROMPTS)],
        "seed": seed,
        "num_frames": options.frames,
        "num_inference_steps": options.steps,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
        "step_cache": mode,
    }
    return replace(parse(payload, default_job_id="bench").videos[0], width=options.width, height=options.height)


def on_the_demo_model(options: argparse.Namespace) -> Make:
    """Frames of the built-in model, through the engine."""
    source = demo.DemoSource(blocks=options.layers)
    engine = Engine(source, demo.catalogue(trained=options.trained), planner_for(Settings()))

    def make(mode: str, seed: int) -> Made:
        request = request_of(options, mode, seed)
        made = engine.generate(replace(engine.video(request), prompt=request.prompt), watcher=Unwatched(), stop=Stop())
        share = made.parameters.get("step_cache_share", 0.0)
        return Made(np.stack(list(made.frames())), made.seconds["generate"], share)

    make("off", options.seed)  # what was asked for in `layers` may not be what the trained model has
    options.layers = len(engine.models["t2v"].experts[0].blocks)
    return make


def full_size_expert(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
    """An expert of Wan-AI/Wan2.2-T2V-A14B-Diffusers with random weights, of the variance 1 / inputs."""
    with torch.device("meta"):
        expert = WanTransformer3DModel(
            num_attention_heads=options.heads, num_layers=options.layers, ffn_dim=round(options.heads * 13824 / 40)
        )
    kept = set(expert._keep_in_fp32_modules)
    for name, parameter in expert.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    expert = expert.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                fan_in = parameter.shape[1:].numel() if parameter.ndim > 1 else 1
                parameter.normal_(std=max(fan_in, 1) ** -0.5)
        # Positions are no parameters, and were not made on the meta device.
        expert.rope = type(expert.rope)(expert.config.attention_head_dim, expert.config.patch_size, 1024).to(device)
    return expert


def on_full_size_experts(options: argparse.Namespace) -> Make:
    """Latents of two experts of the real shapes, through the pipeline, without text encoder and VAE."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(options.seed)
    experts = (full_size_expert(options, device, dtype), full_size_expert(options, device, dtype))
    none: Any = None
    components = Components(SharedParts(none, none, none), {}, experts, T2V_A14B.boundary_ratio, expand_timesteps=False)
    technique = StepCache(Setup(Settings(), device, dtype))
    plan = MemoryPlan("bf16", "resident", "resident", False, 0, 0, ())
    embeds = torch.randn(2, 1, 512, 4096, device=device, dtype=dtype)
    config = dict(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).config)

    @torch.no_grad()
    def make(mode: str, seed: int) -> Made:
        request = request_of(options, mode, seed)
        run = Run(request, T2V_A14B, plan, components)
        pipeline = TextPipeline(**components.for_pipeline(schedules.choose(request, T2V_A14B, config).scheduler))
        pipeline.run_device = device
        pipeline.set_progress_bar_config(disable=True)

        def after_step(_: object, step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            run.steps_done, run.steps = step + 1, options.steps
            return tensors

        _synchronised(device)
        began = time.perf_counter()
        with technique.applied(run):
            latents = pipeline(
                width=request.width,
                height=request.height,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                guidance_scale_2=request.guidance_scale_2,
                prompt_embeds=embeds[0],
                negative_prompt_embeds=embeds[1],
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="latent",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[],
                return_dict=False,
            )[0]
            _synchronised(device)
        seconds = time.perf_counter() - began
        return Made(latents.float().cpu().numpy(), seconds, run.parameters.get("step_cache_share", 0.0))

    return make


def _synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    make: Make, errors: Callable[[np.ndarray, np.ndarray], dict[str, float]], seeds: Sequence[int]
) -> list[Row]:
    """After one warm-up, a video for each seed and mode; the first mode is the exact one."""
    make("off", seeds[0])
    made: dict[str, list[Made]] = {mode: [] for mode in MODES}
    for seed in seeds:
        for mode in MODES:  # side by side: a machine that is busy for a while slows all of them
            made[mode].append(make(mode, seed))
    rows: list[Row] = []
    for mode, videos in made.items():
        found = [errors(video.result, exact.result) for video, exact in zip(videos, made["off"], strict=True)]
        means = {kind: statistics.fmean(each[kind] for each in found) for kind in found[0]}
        seconds = statistics.median(video.seconds for video in videos)
        rows.append(Row(mode, seconds, statistics.fmean(video.share for video in videos), means))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--layers", type=int, help="blocks of an expert; 40, and 8 of the random demo model")
    parser.add_argument("--random", dest="trained", action="store_false", help="the demo model with random weights")
    parser.add_argument("--heads", type=int, default=40, help="of 128 channels each; with --full-size")
    parser.add_argument("--width", type=int, help="832, and 256 with the demo model")
    parser.add_argument("--height", type=int, help="480, and 256 with the demo model")
    parser.add_argument("--frames", type=int, help="81, and 17 with the demo model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    defaults = (40, 832, 480, 81) if options.full_size else (8, 256, 256, 17)
    for name, default in zip(("layers", "width", "height", "frames"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.trained = options.trained and not options.full_size and demo_trained.has(T2V_A14B, demo_trained.WEIGHTS)
    make = on_full_size_experts(options) if options.full_size else on_the_demo_model(options)
    seeds = range(options.seed, options.seed + options.videos)
    rows = measure(make, latent_errors if options.full_size else frame_errors, seeds)
    report(rows, options)


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    kinds = list(rows[0].errors)
    print(
        f"{options.width}x{options.height}x{options.frames}, {options.steps} steps, {options.layers} blocks, ", end=""
    )
    weights = "trained" if options.trained else "random"
    print(f"{weights} weights, on {gpu or 'a CPU'}; {options.videos} videos\n")
    heads = ("step_cache", "s", "of the exact time", "passes left out", *kinds)
    cells = [
        (
            *(row.mode, f"{row.seconds:.2f}", f"{row.seconds / rows[0].seconds:.0%}", f"{row.share:.0%}"),
            *(f"{row.errors[kind]:.4g}" for kind in kinds),
        )
        for row in rows
    ]
    print(reporting.table(heads, cells))
    case = {name: value for name, value in vars(options).items() if name != "output"}
    finite = [
        {**vars(row), "errors": {k: v if np.isfinite(v) else None for k, v in row.errors.items()}} for row in rows
    ]
    kind = "step-cache-full" if options.full_size else "step-cache"
    reporting.write(options.output, kind, {"case": case, "rows": finite, "gpu": gpu}, "torch", "diffusers")


if __name__ == "__main__":
    main()
