"""The memory plan's estimates, held against the real classes.

    python -m benchmarks.memory           without a GPU: follows every tensor of the real-width model and VAE on the
                                          meta device (sizes without contents), then runs a tiny model on the CPU
    python -m benchmarks.memory --full    on a GPU: full-size experts with random weights as the plan places them,
                                          with torch's share limited to 24, 48, 80 and 141 GB

Exits 1 where an estimate is below what was measured, or more than 10% above it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.hooks import apply_group_offloading

from benchmarks import memory_on_meta as on_meta
from worker.base.settings import Settings
from worker.engine import decode
from worker.request.catalogue import T2V_A14B, TI2V_5B
from worker.request.plan import SIZES, Gpu, MemoryPlan, ModelSize, Planner, Shape
from worker.request.plan import peak as estimate

GB = 1e9
LIMITS_GB = (24, 48, 80, 141)
TOO_HIGH = 1.10
TINY = dataclasses.replace(SIZES["t2v"], layers=1, dim=256, ffn_dim=704, head_dim=64)
TINY_VAE: dict[str, Any] = {
    "base_dim": 8,
    "dim_mult": [1, 1, 1],
    "temperal_downsample": [True, True],
    "num_res_blocks": 1,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}
REQUESTS = (
    (T2V_A14B, Shape(832, 480, 81)),
    (T2V_A14B, Shape(1280, 720, 81)),
    (TI2V_5B, Shape(1280, 704, 121)),
)


class CudaMeter:
    """`peak` is torch's own count while inside, with torch's share of the GPU limited to `fraction`."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self.peak = 0
        self.reserved = 0

    def __enter__(self) -> CudaMeter:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(self._fraction)
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_failure: object) -> None:
        torch.cuda.synchronize()
        self.peak = torch.cuda.max_memory_allocated()
        self.reserved = torch.cuda.max_memory_reserved()
        torch.cuda.set_per_process_memory_fraction(1.0)


def latents_of(size: ModelSize, vae: Any, experts: list[Any], shape: Shape, device: torch.device) -> torch.Tensor:
    """Four guided steps of the real pipeline: UniPC's history is full then, and both experts have had a turn."""
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=12.0
        ),
        transformer=experts[0],
        transformer_2=experts[1] if len(experts) == 2 else None,
        boundary_ratio=0.875 if len(experts) == 2 else None,
        expand_timesteps=size.timestep_per_token,
    )
    pipeline.set_progress_bar_config(disable=True)
    text = torch.randn(1, on_meta.TEXT_TOKENS, experts[0].config.text_dim, device=device, dtype=torch.bfloat16)
    with mock.patch.object(WanPipeline, "_execution_device", device):
        return pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=text.clone(),
            width=shape.width,
            height=shape.height,
            num_frames=shape.num_frames,
            num_inference_steps=4,
            guidance_scale=4.0,
            output_type="latent",
        )[0]


def _placed(size: ModelSize, made: MemoryPlan, device: torch.device) -> WanTransformer3DModel:
    with device:
        model = on_meta.expert(size, layers=size.layers)
    if made.precision == "fp8":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    if made.residency == "group_offload":
        apply_group_offloading(
            model,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
        )
    return model


@torch.no_grad()
def phases(
    size: ModelSize,
    made: MemoryPlan,
    vae: AutoencoderKLWan,
    shape: Shape,
    device: torch.device,
    meter: Callable[[], Any],
) -> dict[str, Any]:
    """Make one video as `made` says; a meter for each phase.

    The text encoder is stood for by a block of its size: its few activations are far from any peak.
    """
    text_bytes = estimate.text_encoder_bytes(size, made.precision) if device.type == "cuda" else 0
    whole = made.residency == "resident"
    vae.to(device if whole else "cpu")
    experts: list[Any] = [_placed(size, made, device) for _ in range(size.experts if whole else 1)]
    stays = made.text_encoder == "resident"
    text = torch.empty(text_bytes if stays else 0, dtype=torch.uint8, device=device)
    with meter() as denoise:
        latents = latents_of(size, vae, experts, shape, device)
    if not whole:
        experts.clear()
        gc.collect()
    vae.to(device)
    with meter() as decoding:
        for _frame in decode.frames(vae, latents, tiled=made.vae_tiling):
            pass
    if not whole:
        vae.to("cpu")
    with meter() as reading:
        passing = torch.empty(0 if stays else text_bytes, dtype=torch.uint8, device=device)
    del text, passing
    return {"denoise": denoise, "decode": decoding, "text": reading}


def full(device: torch.device) -> bool:
    """Measure on the GPU. True where every estimate holds."""
    properties = torch.cuda.get_device_properties(device)
    good = True
    print(f"{properties.name}, torch {torch.__version__}")
    print("| limit, GB | model | request | plan | estimate, GB | measured, GB | reserved, GB | estimate / measured |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for limit in LIMITS_GB:
        vram = min(int(limit * GB), properties.total_memory)
        gpu = Gpu(f"{limit} GB", vram, (properties.major, properties.minor))
        fraction = gpu.budget_bytes / properties.total_memory
        for spec, shape in REQUESTS:
            made = Planner(gpu, Settings()).plan(spec, shape)
            start = f"| {limit} | {spec.version} | {shape} | {made.rung} | {made.estimated_peak_bytes / GB:.1f} |"
            if made.precision == "int8" or made.residency == "sequential":
                print(f"{start} not measured by this script | | |")
                continue
            size, vae = SIZES[spec.key], on_meta.real_vae(spec.key)
            try:
                found = phases(size, made, vae, shape, device, lambda: CudaMeter(fraction))  # noqa: B023 - used at once
            except torch.OutOfMemoryError:
                good = False
                print(f"{start} out of memory | | |")
                continue
            peak = max(each.peak for each in found.values())
            reserved = max(each.reserved for each in found.values())
            good &= 1.0 <= made.estimated_peak_bytes / peak <= TOO_HIGH
            ratio = made.estimated_peak_bytes / peak
            print(f"{start} {peak / GB:.2f} | {reserved / GB:.2f} | {ratio:.3f} |")
    return good


def _compare(name: str, estimated: int, counted: int) -> bool:
    ratio = estimated * estimate.MARGIN / counted
    print(f"| {name} | {counted / GB:.3f} | {estimated / GB:.3f} | {ratio:.3f} |")
    return 1.0 <= ratio <= TOO_HIGH


def at_real_width() -> bool:
    """Activations of the real classes, counted on the meta device, beside the estimates (margin in the last column)."""
    print("| activations | counted, GB | estimate, GB | with margin / counted |")
    print("| --- | --- | --- | --- |")
    good = True
    for spec, shape in REQUESTS:
        size = SIZES[spec.key]
        for asked in (shape, dataclasses.replace(shape, loras=1)):
            name = f"{spec.version}, {asked}, denoise{', a LoRA' if asked.loras else ''}"
            counted = on_meta.denoise_peak(spec.key, asked)
            good &= _compare(name, estimate.denoise_bytes(size, asked, "bf16"), counted)
        decoded = estimate.decode_bytes(size, shape, tiled=False)
        good &= _compare(f"{spec.version}, {shape}, decode", decoded, on_meta.decode_peak(spec.key, shape, tiled=False))
        encoded = estimate.encode_bytes(size, shape, tiled=False)
        good &= _compare(f"{spec.version}, {shape}, encode", encoded, on_meta.encode_peak(spec.key, shape, tiled=False))
    return good


def tiny_growth() -> tuple[int, int]:
    """How much more a larger video takes in denoising, for real on the CPU: (estimated, counted) bytes."""
    made = MemoryPlan("bf16", "swap", "offloaded", False, 0, 0, ())
    device = torch.device("cpu")
    estimated, counted = [], []
    for shape in (Shape(256, 256, 9), Shape(320, 320, 17)):
        vae = AutoencoderKLWan(**TINY_VAE).eval().requires_grad_(False)
        found = phases(TINY, made, vae, shape, device, on_meta.LiveBytes)
        estimated.append(estimate.denoise_bytes(TINY, shape, "bf16"))
        counted.append(found["denoise"].peak)
    return estimated[1] - estimated[0], counted[1] - counted[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full-size experts on the GPU")
    if parser.parse_args().full:
        if not torch.cuda.is_available():
            parser.error("--full needs a CUDA GPU")
        return 0 if full(torch.device("cuda", 0)) else 1
    good = at_real_width()
    estimated, counted = tiny_growth()
    good &= _compare("tiny A14B run on the CPU, growth from 256x256x9 to 320x320x17", estimated, counted)
    print(
        "\nNot measured without a GPU: torch's own peak for whole experts (python -m benchmarks.memory --full), cuDNN "
        "and attention workspaces, fragmentation, the fp8 and int8 kernels, group offload with streams."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
