"""The work of an estimate is what torch counts of the real classes: forward passes, the VAE, each expert's steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import memory_on_meta
from tests.kits.request_kit import VIDEO, video_of
from worker.engine.modes import schedules
from worker.engine.techniques import image_encode
from worker.request import CATALOGUE, ModelSpec
from worker.request.catalogue import I2V_A14B, T2V_A14B, TI2V_5B, find
from worker.request.plan import SIZES, Shape, duration
from worker.request.settle import HYBRID

SMALL, LARGE = Shape(832, 480, 81), Shape(1280, 720, 81)


@pytest.mark.parametrize(("shape", "tflop"), [(SMALL, 1678), (LARGE, 6523)], ids=str)
def test_a_forward_pass_has_the_published_work(shape: Shape, tflop: float) -> None:
    for key in ("i2v", "t2v"):
        assert duration.forward_flop(SIZES[key], shape) / 1e12 == pytest.approx(tflop, rel=0.001)


@pytest.mark.parametrize(("shape", "share"), [(SMALL, 0.52), (LARGE, 0.72)], ids=str)
def test_self_attention_has_its_share(shape: Shape, share: float) -> None:
    size = SIZES["i2v"]
    scores = 4 * size.tokens(shape) ** 2 * size.dim * size.layers
    assert scores / duration.forward_flop(size, shape) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("shape", [SMALL, Shape(1280, 704, 121)], ids=str)
@pytest.mark.parametrize("key", sorted(SIZES))
def test_a_forward_pass_is_what_torch_counts(key: str, shape: Shape) -> None:
    """Of two layers; the formula leaves out what lies before and behind the blocks."""
    size = dataclasses.replace(SIZES[key], layers=2)
    with torch.device("meta"), torch.no_grad():
        model = memory_on_meta.expert(size, layers=2)
        grid = (shape.latent_frames, shape.height // size.latent_stride, shape.width // size.latent_stride)
        latents = torch.empty(1, size.in_channels, *grid, dtype=torch.bfloat16)
        timestep = torch.empty(1, size.tokens(shape)) if size.timestep_per_token else torch.empty(1)
        text = torch.empty(1, duration.TEXT_TOKENS, memory_on_meta.TEXT_DIM, dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as counter:
            model(latents, timestep, text, return_dict=False)
    assert duration.forward_flop(size, shape) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("shape", "tflop"), [(SMALL, 275), (LARGE, 639)], ids=str)
def test_decoding_has_the_published_work(shape: Shape, tflop: float) -> None:
    assert duration.decode_flop(T2V_A14B, shape) / 1e12 == pytest.approx(tflop, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(832, 480, 17), Shape(1280, 704, 33)], ids=str)
@pytest.mark.parametrize("spec", [I2V_A14B, TI2V_5B], ids=lambda spec: spec.key)
def test_the_vae_is_what_torch_counts(spec: ModelSpec, shape: Shape) -> None:
    size = SIZES[spec.key]
    with torch.device("meta"), torch.no_grad():
        vae = memory_on_meta.real_vae(spec.key)
        grid = (shape.latent_frames, shape.height // size.latent_stride, shape.width // size.latent_stride)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(torch.empty(1, size.latent_channels, *grid))
        frames = 1 if spec is TI2V_5B else shape.num_frames
        with FlopCounterMode(display=False) as encoding:
            vae.encode(torch.empty(1, 3, frames, shape.height, shape.width))
    assert duration.decode_flop(spec, shape) == pytest.approx(decoding.get_total_flops(), rel=0.02)
    assert duration.encode_flop(spec, shape) == pytest.approx(encoding.get_total_flops(), rel=0.02)


@pytest.fixture(scope="module")
def real_width_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return memory_on_meta.real_vae("i2v")


@pytest.mark.slow
@pytest.mark.parametrize("last_image", [False, True])
@pytest.mark.parametrize("frames", [5, 33, 81])
def test_the_encode_of_a_picture_is_what_torch_counts(
    real_width_vae: AutoencoderKLWan, frames: int, last_image: bool
) -> None:
    """At a tiny size, where the attention of the middle layers is missing: 4% of this at 832x480 and 81 frames."""
    shape = Shape(16, 16, frames)
    video = torch.zeros(1, 3, frames, shape.height, shape.width)
    video[:, :, 0] = torch.rand(3, shape.height, shape.width)
    if last_image:
        video[:, :, -1] = torch.rand(3, shape.height, shape.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        image_encode.encode(real_width_vae, video, image_encode.Passes())
    counted = duration.image_encode_flop(I2V_A14B, shape, last_image=last_image)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_layers_that_come_to_stand_still_are_the_whole_encoder() -> None:
    for name, (_, _, _, further) in duration.VAE_FLOP.items():
        assert sum(flop for _, flop in duration.STANDS_STILL[name]) == pytest.approx(further, rel=0.001)


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, 100),
        ({"guidance_scale": 1.0}, 50),
        ({"num_inference_steps": 40, "guidance_scale": 1.0, "guidance_scale_2": 3.0}, 26 + 2 * 14),
        ({"num_inference_steps": 40, "guidance_scale_2": 1.0}, 2 * 26 + 14),
        ({"guidance_until": 0}, 50),
        ({"num_inference_steps": 40, "guidance_until": 0.5}, 40 + 20),
        ({"num_inference_steps": 40, "guidance_until": 0.75, "guidance_scale": 1.0, "guidance_scale_2": 3.0}, 40 + 4),
        ({"num_inference_steps": 40, "guidance_until": 0.75, "guidance_scale_2": 1.0}, 40 + 26),
        ({"quality_preset": "draft"}, 60),
        ({"quality_preset": "turbo"}, 4),
        ({"quality_preset": "turbo", "turbo_variant": "hybrid"}, 2 * 13 + 2),
        ({"reference_video_url": VIDEO, "strength": 0.8}, 80),
        ({"reference_video_url": VIDEO, "strength": 0.001}, 2),
        ({"model": "5b", "guidance_scale": 1.0, "guidance_scale_2": 5.0}, 50),
    ],
    ids=str,
)
def test_forward_passes(fields: dict[str, Any], passes: int) -> None:
    video = video_of(**fields)
    spec = find(video.model, video.mode)
    assert spec is not None
    assert duration.forwards(video, spec) == passes


@pytest.mark.parametrize("steps", [*range(1, 12), 20, 40, 50, 99])
@pytest.mark.parametrize("spec", [I2V_A14B, T2V_A14B], ids=lambda spec: spec.key)
def test_the_experts_share_the_steps_as_the_real_schedule_does(spec: ModelSpec, steps: int) -> None:
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
    video = video_of(num_inference_steps=steps)
    scheduler = schedules.choose(video, spec, config).scheduler
    scheduler.set_timesteps(steps)
    assert spec.boundary_ratio is not None
    high = int((scheduler.timesteps >= 1000 * spec.boundary_ratio).sum())
    assert duration.high_noise_steps(video, spec, spec.boundary_ratio) == high


def test_the_hybrid_steps_are_the_documented_ones() -> None:
    assert HYBRID[0] == 20
    video = video_of(quality_preset="turbo", turbo_variant="hybrid")
    assert duration.high_noise_steps(video, T2V_A14B, 0.875) == 13
    assert duration.high_noise_steps(video, I2V_A14B, 0.9) == 8


def test_every_model_has_the_work_of_its_vae() -> None:
    assert {spec.name for spec in CATALOGUE} == set(duration.VAE_FLOP)
