"""The stream of frames against Diffusers' own whole decode, on real VAEs of a tiny size."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanDecoder3d
from diffusers.video_processor import VideoProcessor

from benchmarks import memory_on_meta
from tests.kits.slow import slow
from worker.engine import decode
from worker.engine.kernels import KernelFailed, reference
from worker.engine.lean_decoder import lean
from worker.engine.models import components
from worker.request.plan import SIZES, Shape, peak

FIVE_B_CHANNELS = 12


def _vae_a14b() -> AutoencoderKLWan:
    """The VAE of A14B: 16 channels, 8x spatial."""
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def _vae_5b() -> AutoencoderKLWan:
    """The VAE of TI2V-5B: residual blocks, patches of 2, 16x spatial."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=FIVE_B_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.1 * channel for channel in range(FIVE_B_CHANNELS)],
        latents_std=[0.5 + 0.1 * channel for channel in range(FIVE_B_CHANNELS)],
    )


BUILDERS = {"a14b": _vae_a14b, "5b": _vae_5b}


def _lively(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Scale the output up, so that the frames of an untrained VAE use the range of levels and clip at both ends."""
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=1.0)
    return vae.eval()


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    torch.manual_seed(7)
    return _lively(BUILDERS[request.param]())


@pytest.fixture(scope="module")
def a14b() -> AutoencoderKLWan:
    torch.manual_seed(7)
    return _lively(_vae_a14b())


def _latents(vae: AutoencoderKLWan, *, count: int = 3, height: int = 4, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, vae.config.z_dim, count, height, width, generator=generator)


@torch.no_grad()
def _whole(vae: AutoencoderKLWan, latents: torch.Tensor, *, in_float: bool = False) -> np.ndarray:
    """What the pipeline does for output_type="np", and Diffusers' step from there to 8 bits."""
    latents = latents.to(vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents.dtype)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents.dtype)
    sample = vae.decode(latents / inverse_std + mean, return_dict=False)[0]
    video = VideoProcessor().postprocess_video(sample.float() if in_float else sample, output_type="np")[0]
    return (video * 255).round().astype("uint8")


def _stacked(vae: AutoencoderKLWan, latents: torch.Tensor, *, tiled: bool = False) -> np.ndarray:
    return np.stack(list(decode.frames(vae, latents, tiled=tiled)))


@pytest.mark.parametrize("count", [1, 2, *slow(5)])
def test_stream_equals_the_whole_decode(vae: AutoencoderKLWan, count: int) -> None:
    latents = _latents(vae, count=count)
    expected = _whole(vae, latents)
    assert expected.shape[0] == 4 * (count - 1) + 1
    assert (expected.min(), expected.max()) == (0, 255)
    np.testing.assert_array_equal(_stacked(vae, latents), expected)


def test_bfloat16_vae_is_within_one_level(vae: AutoencoderKLWan) -> None:
    half = copy.deepcopy(vae).to(torch.bfloat16)
    latents = _latents(half)
    streamed = _stacked(half, latents)
    np.testing.assert_array_equal(streamed, _whole(half, latents, in_float=True))
    rounded_in_bfloat16 = _whole(half, latents)
    assert np.abs(streamed.astype(int) - rounded_in_bfloat16.astype(int)).max() <= 1


def test_frames_are_single_contiguous_rgb(vae: AutoencoderKLWan) -> None:
    latents = _latents(vae)
    scale = vae.config.scale_factor_spatial
    for frame in decode.frames(vae, latents):
        assert frame.shape == (4 * scale, 6 * scale, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous


def test_latents_of_another_type_are_taken(a14b: AutoencoderKLWan) -> None:
    latents = _latents(a14b).to(torch.bfloat16)
    np.testing.assert_array_equal(_stacked(a14b, latents), _whole(a14b, latents.float()))


def test_decodes_one_latent_frame_at_a_time(a14b: AutoencoderKLWan) -> None:
    calls: list[int] = []
    hook = a14b.decoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[2]))
    try:
        stream = decode.frames(a14b, _latents(a14b))
        seen = []
        for _ in stream:
            seen.append(len(calls))
    finally:
        hook.remove()
    assert seen == [1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert calls == [1, 1, 1]


def test_interleaved_streams_and_an_encode_do_not_mix(a14b: AutoencoderKLWan) -> None:
    first, second = _latents(a14b, seed=1), _latents(a14b, seed=2)
    expected = _stacked(a14b, first), _stacked(a14b, second)
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
    stream = decode.frames(a14b, _latents(a14b))
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
    stream = decode.frames(a14b, _latents(a14b))
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
        stream = decode.frames(a14b, _latents(a14b))
        next(stream)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            next(stream)
    finally:
        hook.remove()
    assert caches[0] == []


def test_tiled_equals_the_vaes_own_tiling(vae: AutoencoderKLWan) -> None:
    latents = _latents(vae, count=2, height=4, width=272 // vae.config.scale_factor_spatial)
    vae.enable_tiling()
    try:
        expected = _whole(vae, latents)
    finally:
        vae.disable_tiling()
    assert not np.array_equal(expected, _whole(vae, latents))
    np.testing.assert_array_equal(_stacked(vae, latents, tiled=True), expected)
    assert vae.use_tiling is False


def test_untiled_ignores_tiling_that_was_switched_on(a14b: AutoencoderKLWan) -> None:
    latents = _latents(a14b, count=1, width=34)
    expected = _whole(a14b, latents)
    a14b.enable_tiling()
    try:
        np.testing.assert_array_equal(_stacked(a14b, latents), expected)
        _stacked(a14b, latents, tiled=True)
        assert a14b.use_tiling is True
    finally:
        a14b.disable_tiling()


def test_failed_tiled_decode_restores_the_vae(a14b: AutoencoderKLWan) -> None:
    def fail(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("no room")

    hook = a14b.decoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            next(decode.frames(a14b, _latents(a14b, width=34), tiled=True))
    finally:
        hook.remove()
    assert a14b.use_tiling is False
    assert a14b._feat_map == [None] * len(a14b._feat_map)


class _RecordingOffload(CpuOffload):
    """Model offload as on a GPU; the execution device is the CPU, so the moves are recorded."""

    def __init__(self) -> None:
        super().__init__(execution_device=torch.device("cpu"))
        self.events: list[str] = []

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self.events.append("offload")
        return super().init_hook(module)

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        self.events.append("onload")
        return super().pre_forward(module, *args, **kwargs)


@pytest.mark.parametrize("append", [False, True], ids=["alone", "in a sequence of hooks"])
@pytest.mark.parametrize("ending", ["close", *slow("end", "tiled")])
def test_model_offload_is_told(a14b: AutoencoderKLWan, append: bool, ending: str) -> None:
    latents = _latents(a14b)
    expected = _stacked(a14b, latents)
    vae = copy.deepcopy(a14b)
    hook = _RecordingOffload()
    if append:
        add_hook_to_module(vae, CpuOffload(execution_device=torch.device("cpu")))
    add_hook_to_module(vae, hook, append=append)
    hook.events.clear()
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
    latents = _latents(a14b)
    expected = _stacked(a14b, latents)
    vae = cpu_offload(copy.deepcopy(a14b), torch.device("cpu"))
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}
    np.testing.assert_array_equal(_stacked(vae, latents), expected)
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}


@pytest.mark.parametrize("shape", [(16, 3, 4, 6), (2, 16, 3, 4, 6), (1, 15, 3, 4, 6), (1, 16, 0, 4, 6)])
def test_other_shapes_are_refused_at_once(a14b: AutoencoderKLWan, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \[1, 16, T, h, w\]"):
        decode.frames(a14b, torch.zeros(shape))


@pytest.mark.parametrize("tiled", [False, *slow(True)])
def test_decoding_in_half_is_near_and_leaves_the_vae_as_it_is(vae: AutoencoderKLWan, tiled: bool) -> None:
    width = 272 // vae.config.scale_factor_spatial if tiled else 6
    latents = _latents(vae, count=2, width=width)
    exact = _stacked(vae, latents, tiled=tiled)
    half = np.stack(list(decode.frames(vae, latents, tiled=tiled, half=True))).astype(float)
    error = float(((half - exact) ** 2).mean())
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 35
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert (_stacked(vae, latents, tiled=tiled) == exact).all()


@pytest.mark.parametrize("ending", ["end", "close", "failure"])
def test_the_weights_for_half_go_with_the_stream(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    vae = _lively(_vae_a14b())
    made: list[weakref.ref[torch.Tensor]] = []
    halved = decode._halved

    def watched(weight: torch.nn.Parameter) -> torch.nn.Parameter:
        copied = halved(weight)
        made.append(weakref.ref(copied))
        return copied

    monkeypatch.setattr(decode, "_halved", watched)
    stream = decode.frames(vae, _latents(vae, count=2), half=True)
    assert made == []
    next(stream)
    decoding = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    assert [each().dtype for each in made] == [torch.bfloat16] * len(decoding)
    if ending == "end":
        list(stream)
    elif ending == "close":
        stream.close()
    else:
        with pytest.raises(torch.OutOfMemoryError):
            stream.throw(torch.OutOfMemoryError("no room"))
    gc.collect()
    assert [each() for each in made] == [None] * len(decoding)


@pytest.mark.parametrize("append", [False, True], ids=["alone", "in a sequence of hooks"])
@pytest.mark.parametrize("tiled", [False, *slow(True)])
def test_half_under_model_offload(a14b: AutoencoderKLWan, append: bool, tiled: bool) -> None:
    latents = _latents(a14b)
    expected = np.stack(list(decode.frames(a14b, latents, tiled=tiled, half=True)))
    vae = copy.deepcopy(a14b)
    hook = _RecordingOffload()
    if append:
        add_hook_to_module(vae, CpuOffload(execution_device=torch.device("cpu")))
    add_hook_to_module(vae, hook, append=append)
    hook.events.clear()
    np.testing.assert_array_equal(np.stack(list(decode.frames(vae, latents, tiled=tiled, half=True))), expected)
    assert (hook.events[0], hook.events[-1]) == ("onload", "offload")
    assert hook.events.count("offload") == 1


def test_the_layout_of_half_changes_no_more_than_rounding(a14b: AutoencoderKLWan) -> None:
    latents = _latents(a14b, count=2)
    as_it_is = copy.deepcopy(a14b).to(torch.bfloat16)
    off = np.abs(
        np.stack(list(decode.frames(a14b, latents, half=True))).astype(int) - _stacked(as_it_is, latents).astype(int)
    )
    exact = _stacked(a14b, latents).astype(int)
    error = np.abs(_stacked(as_it_is, latents).astype(int) - exact)
    assert off.mean() <= error.mean()


@pytest.mark.parametrize("shape", [Shape(256, 256, 17), *slow(Shape(832, 480, 17))], ids=str)
@pytest.mark.parametrize("key", ["i2v", *slow("5b")])
def test_half_and_its_copy_fit_where_the_plan_expects_fp32(key: str, shape: Shape) -> None:
    """At 5B's smallest size the copy is more than what is saved, by less than the plan's margin for the weights."""
    size = SIZES[key]
    with torch.device("meta"):
        half = decode._in_half(memory_on_meta.real_vae(key))
    copied = sum(each.nbytes for each in half.parameters())
    assert copied == pytest.approx({"i2v": 146e6, "5b": 1.11e9}[key], rel=0.01)
    taken = copied + memory_on_meta.decode_peak(key, shape, tiled=False, vae=half)
    weights = peak.vae_bytes(size) + size.experts * peak.expert_bytes(size, "bf16")
    margin = 0 if key == "i2v" else peak.WORKSPACE_BYTES / 2 + (peak.MARGIN - 1) * weights
    assert taken <= peak.decode_bytes(size, shape, tiled=False) + margin


@torch.no_grad()
def _sample(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The frames of the loop over latent frames, as the decoder gives them."""
    features: list[object] = [None] * sum(isinstance(each, WanCausalConv3d) for each in vae.decoder.modules())
    samples = [
        vae.decoder(latents[:, :, step : step + 1], feat_cache=features, feat_idx=[0], first_chunk=step == 0)
        for step in range(latents.shape[2])
    ]
    return torch.cat(samples, dim=2)


def test_the_lean_decoder_shares_the_weights_and_copies_nothing_but_the_kept_frames(vae: AutoencoderKLWan) -> None:
    latents = _latents(vae, count=2)
    twin = lean(vae)
    assert {id(each) for each in twin.decoder.parameters()} == {id(each) for each in vae.decoder.parameters()}
    assert torch.equal(_sample(twin, latents), _sample(vae, latents))
    assert type(vae.decoder) is WanDecoder3d
    names: dict[str, list[str]] = {}
    for name, each in (("lean", twin), ("Diffusers", vae)):
        with torch.profiler.profile() as seen:
            _sample(each, latents)
        names[name] = [event.name for event in seen.events()]
    for operation in ("aten::cat", "aten::constant_pad_nd", "aten::stack"):
        left = names["lean"].count(operation)
        # What is left are convolutions of one place, and the shortcuts of 5B.
        assert left <= 0.2 * names["Diffusers"].count(operation), operation


def test_weights_with_channels_last_change_no_more_than_rounding(vae: AutoencoderKLWan) -> None:
    twin = lean(components.channels_last(copy.deepcopy(vae)))
    torch.testing.assert_close(_sample(twin, _latents(vae)), _sample(vae, _latents(vae)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["decoder", "a layer"])
def test_a_decoder_whose_forward_was_replaced_is_left_alone(a14b: AutoencoderKLWan, place: str) -> None:
    vae = copy.deepcopy(a14b)
    module = vae.decoder if place == "decoder" else vae.decoder.conv_out
    module.forward = functools.partial(type(module).forward, module)
    assert lean(vae) is vae


def test_a_norm_that_fails_is_computed_by_torch(a14b: AutoencoderKLWan, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise KernelFailed("no such instruction")

    twin = lean(a14b)
    for module in twin.decoder.modules():
        module.by = SimpleNamespace(rms_silu=fail)
    assert torch.equal(_sample(twin, _latents(a14b)), _sample(a14b, _latents(a14b)))
    assert "no such instruction" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_the_lean_decoder_is_diffusers_own_on_a_gpu(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    with torch.device("cuda"):
        exact = components.channels_last(AutoencoderKLWan().eval().requires_grad_(False))
        latents = torch.randn(1, 16, 3, 30, 52)
    vae, given = (decode._in_half(exact), latents.bfloat16()) if half else (exact, latents)
    twin = lean(vae)
    assert twin.decoder.norm_out.by is not reference
    layouts: list[bool] = []
    for block in twin.decoder.up_blocks:
        block.register_forward_hook(
            lambda module, args, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last_3d))
        )
    found, theirs, wanted = _sample(twin, given), _sample(vae, given), _sample(exact, latents)
    ours = float((found.float() - wanted).norm() / wanted.norm())
    assert ours <= (1.05 * float((theirs.float() - wanted).norm() / wanted.norm()) if half else 1e-4)
    assert layouts == [True] * 4 * 3
