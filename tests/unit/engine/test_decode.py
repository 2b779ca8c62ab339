"""The stream of frames against Diffusers' own whole decode, on real VAEs of a tiny size."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor

from tests.kits.slow import slow
from tests.kits.vaes import a14b as a14b  # fixtures
from tests.kits.vaes import latents_of, offloaded, stacked
from tests.kits.vaes import vae as vae
from worker.engine import decode


@torch.no_grad()
def whole(vae: AutoencoderKLWan, latents: torch.Tensor, *, in_float: bool = False) -> np.ndarray:
    """What the pipeline does for output_type="np", and Diffusers' step from there to 8 bits."""
    latents = latents.to(vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents.dtype)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents.dtype)
    sample = vae.decode(latents / inverse_std + mean, return_dict=False)[0]
    video = VideoProcessor().postprocess_video(sample.float() if in_float else sample, output_type="np")[0]
    return (video * 255).round().astype("uint8")


@pytest.mark.parametrize("count", [1, 2, *slow(5)])
def test_stream_equals_the_whole_decode(vae: AutoencoderKLWan, count: int) -> None:
    latents = latents_of(vae, count=count)
    expected = whole(vae, latents)
    assert expected.shape[0] == 4 * (count - 1) + 1
    assert (expected.min(), expected.max()) == (0, 255)
    np.testing.assert_array_equal(stacked(vae, latents), expected)


def test_bfloat16_vae_is_within_one_level(vae: AutoencoderKLWan) -> None:
    half = copy.deepcopy(vae).to(torch.bfloat16)
    latents = latents_of(half)
    streamed = stacked(half, latents)
    np.testing.assert_array_equal(streamed, whole(half, latents, in_float=True))
    rounded_in_bfloat16 = whole(half, latents)
    assert np.abs(streamed.astype(int) - rounded_in_bfloat16.astype(int)).max() <= 1


def test_frames_are_single_contiguous_rgb(vae: AutoencoderKLWan) -> None:
    latents = latents_of(vae)
    scale = vae.config.scale_factor_spatial
    for frame in decode.frames(vae, latents):
        assert frame.shape == (4 * scale, 6 * scale, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous


def test_latents_of_another_type_are_taken(a14b: AutoencoderKLWan) -> None:
    latents = latents_of(a14b).to(torch.bfloat16)
    np.testing.assert_array_equal(stacked(a14b, latents), whole(a14b, latents.float()))


def test_decodes_one_latent_frame_at_a_time(a14b: AutoencoderKLWan) -> None:
    calls: list[int] = []
    hook = a14b.decoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[2]))
    try:
        stream = decode.frames(a14b, latents_of(a14b))
        seen = []
        for _ in stream:
            seen.append(len(calls))
    finally:
        hook.remove()
    assert seen == [1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert calls == [1, 1, 1]


def test_interleaved_streams_and_an_encode_do_not_mix(a14b: AutoencoderKLWan) -> None:
    first, second = latents_of(a14b, seed=1), latents_of(a14b, seed=2)
    expected = stacked(a14b, first), stacked(a14b, second)
    streams = decode.frames(a14b, first), decode.frames(a14b, second)
    seen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for one, other in zip(*streams, strict=True):
        seen[0].append(one)
        seen[1].append(other)
        with torch.no_grad():
            a14b.encode(torch.zeros(1, 3, 1, 32, 48))
    np.testing.assert_array_equal(np.stack(seen[0]), expected[0])
    np.testing.assert_array_equal(np.stack(seen[1]), expected[1])


def test_gradients_stay_on_for_the_caller(a14b: AutoencoderKLWan) -> None:
    stream = decode.frames(a14b, latents_of(a14b))
    for _ in itertools.islice(stream, 3):
        assert torch.is_grad_enabled()
    stream.close()
    assert torch.is_grad_enabled()


@pytest.fixture
def caches(a14b: AutoencoderKLWan):
    """The feature caches that were handed to the decoder."""
    seen: list[list[object]] = []
    hook = a14b.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["feat_cache"]), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_close_lets_the_feature_cache_go(a14b: AutoencoderKLWan, caches: list[list[object]]) -> None:
    stream = decode.frames(a14b, latents_of(a14b))
    next(stream)
    assert any(isinstance(entry, torch.Tensor) for entry in caches[0])
    stream.close()
    assert caches[0] == []


def test_failure_lets_the_feature_cache_go(a14b: AutoencoderKLWan, caches: list[list[object]]) -> None:
    def fail_at_second(module: torch.nn.Module, args: object) -> None:
        if len(caches) == 2:
            raise torch.OutOfMemoryError("no room")

    hook = a14b.decoder.register_forward_pre_hook(fail_at_second)
    try:
        stream = decode.frames(a14b, latents_of(a14b))
        next(stream)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            next(stream)
    finally:
        hook.remove()
    assert caches[0] == []


def test_tiled_equals_the_vaes_own_tiling(vae: AutoencoderKLWan) -> None:
    latents = latents_of(vae, count=2, height=4, width=272 // vae.config.scale_factor_spatial)
    vae.enable_tiling()
    try:
        expected = whole(vae, latents)
    finally:
        vae.disable_tiling()
    assert not np.array_equal(expected, whole(vae, latents))
    np.testing.assert_array_equal(stacked(vae, latents, tiled=True), expected)
    assert vae.use_tiling is False


def test_untiled_ignores_tiling_that_was_switched_on(a14b: AutoencoderKLWan) -> None:
    latents = latents_of(a14b, count=1, width=34)
    expected = whole(a14b, latents)
    a14b.enable_tiling()
    try:
        np.testing.assert_array_equal(stacked(a14b, latents), expected)
        stacked(a14b, latents, tiled=True)
        assert a14b.use_tiling is True
    finally:
        a14b.disable_tiling()


def test_failed_tiled_decode_restores_the_vae(a14b: AutoencoderKLWan) -> None:
    def fail(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("no room")

    hook = a14b.decoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            next(decode.frames(a14b, latents_of(a14b, width=34), tiled=True))
    finally:
        hook.remove()
    assert a14b.use_tiling is False
    assert a14b._feat_map == [None] * len(a14b._feat_map)


@pytest.mark.parametrize("append", [False, True], ids=["alone", "in a sequence of hooks"])
@pytest.mark.parametrize("ending", ["close", *slow("end", "tiled")])
def test_model_offload_is_told(a14b: AutoencoderKLWan, append: bool, ending: str) -> None:
    latents = latents_of(a14b)
    expected = stacked(a14b, latents)
    vae, hook = offloaded(a14b, append=append)
    stream = decode.frames(vae, latents, tiled=ending == "tiled")
    assert hook.events == []
    first = next(stream)
    np.testing.assert_array_equal(first, expected[0])
    assert set(hook.events) == {"onload"}
    if ending == "close":
        stream.close()
    else:
        np.testing.assert_array_equal(np.stack(list(stream)), expected[1:])
    assert hook.events[-1] == "offload"
    assert hook.events.count("offload") == 1


def test_sequential_offload_gives_the_same_frames(a14b: AutoencoderKLWan) -> None:
    latents = latents_of(a14b)
    expected = stacked(a14b, latents)
    vae = cpu_offload(copy.deepcopy(a14b), torch.device("cpu"))
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}
    np.testing.assert_array_equal(stacked(vae, latents), expected)
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}


@pytest.mark.parametrize("shape", [(16, 3, 4, 6), (2, 16, 3, 4, 6), (1, 15, 3, 4, 6), (1, 16, 0, 4, 6)])
def test_other_shapes_are_refused_at_once(a14b: AutoencoderKLWan, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \[1, 16, T, h, w\]"):
        decode.frames(a14b, torch.zeros(shape))
