"""The encode that leaves out what stands still, against the VAE's own, bit for bit, and how much it leaves out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLWan
from torch import nn

from benchmarks.memory_on_meta import LiveBytes
from tests.kits.slow import slow
from worker.engine.techniques import image_encode
from worker.engine.techniques.image_encode import Passes, same_bits
from worker.request.catalogue import I2V_A14B, TI2V_5B
from worker.weights.sources import demo


def _real_depth() -> AutoencoderKLWan:
    """The layers of the A14B's VAE, a twelfth as wide."""
    return AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)


def _real_depth_5b() -> AutoencoderKLWan:
    """The layers of the 5B's VAE, which in the worker never encodes more than a picture."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


BUILDERS = {
    "demo": lambda: demo._vae(I2V_A14B),
    "demo 5b": lambda: demo._vae(TI2V_5B),
    "real depth": _real_depth,
    "real depth 5b": _real_depth_5b,
}
SLOW = ("real depth 5b",)
QUICK = tuple(name for name in BUILDERS if name not in SLOW)


def _built(name: str) -> AutoencoderKLWan:
    torch.manual_seed(11)
    return BUILDERS[name]().eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[*QUICK, *slow(*SLOW)])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    return _built(request.param)


@pytest.fixture(scope="module")
def real_depth() -> AutoencoderKLWan:
    return _built("real depth")


def _video(num_frames: int, *, last: bool = False, size: int = 32, batch: int = 1) -> torch.Tensor:
    """As `WanImageToVideoPipeline.prepare_latents` makes it."""
    generator = torch.Generator().manual_seed(num_frames)
    video = torch.zeros(batch, 3, num_frames, size, size + 16)
    video[:, :, 0] = torch.rand(batch, 3, size, size + 16, generator=generator) * 2 - 1
    if last:
        video[:, :, -1] = torch.rand(batch, 3, size, size + 16, generator=generator) * 2 - 1
    return video


@torch.no_grad()
def _both(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Passes]:
    passes = Passes()
    return vae._encode(video), image_encode.encode(vae, video, passes), passes


@pytest.mark.parametrize("last", [False, True], ids=["picture", "both ends"])
@pytest.mark.parametrize("num_frames", [1, 5, 17, *slow(33, 81)])
def test_latents_are_those_of_the_whole_encode_bit_for_bit(vae: AutoencoderKLWan, num_frames: int, last: bool) -> None:
    whole, reusing, passes = _both(vae, _video(num_frames, last=last))
    assert same_bits(whole, reusing)
    layers = len(image_encode.layers_of(vae.encoder))
    assert passes.all == layers * (1 + (num_frames - 1) // 4)
    assert passes.computed <= passes.all
    if num_frames >= 33:
        assert passes.share_left_out > 0.05
    if num_frames <= 5:
        assert passes.computed == passes.all


def _calls(vae: AutoencoderKLWan, video: torch.Tensor) -> dict[str, int]:
    """How often each part of the encoder ran."""
    counts = {name: 0 for name, module in vae.encoder.named_modules() if isinstance(module, nn.Conv3d)}
    hooks = []
    for name in counts:

        def count(*_: object, name: str = name) -> None:
            counts[name] += 1

        hooks.append(vae.encoder.get_submodule(name).register_forward_pre_hook(count))
    try:
        with torch.no_grad():
            image_encode.encode(vae, video, Passes())
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@pytest.mark.slow
def test_layers_stand_still_as_soon_as_the_picture_is_behind_what_they_see(real_depth: AutoencoderKLWan) -> None:
    """Of 81 frames in 21 chunks; a layer of the fullest size sees ten frames back, the deepest more than there are."""
    counts = _calls(real_depth, _video(81))
    assert counts["conv_in"] == counts["down_blocks.0.conv1"] == 4
    assert counts["down_blocks.1.conv2"] == 5
    assert counts["down_blocks.4.conv1"] == 7
    assert counts["down_blocks.6.conv1"] == 9
    assert counts["down_blocks.10.conv1"] == 20
    assert counts["conv_out"] == 21
    both_ends = _calls(real_depth, _video(81, last=True))
    assert both_ends["conv_in"] == counts["conv_in"] + 1
    assert both_ends["conv_out"] == 21


@pytest.mark.slow
def test_in_a_long_video_the_whole_encoder_stands_still(real_depth: AutoencoderKLWan) -> None:
    assert _calls(real_depth, _video(161))["conv_out"] == _calls(real_depth, _video(129))["conv_out"] == 30


def test_a_moving_video_is_computed_in_full(vae: AutoencoderKLWan) -> None:
    video = torch.rand(1, 3, 33, 32, 32, generator=torch.Generator().manual_seed(5))
    whole, reusing, passes = _both(vae, video)
    assert same_bits(whole, reusing)
    assert passes.computed == passes.all


@pytest.mark.slow
def test_chunks_that_change_and_stand_again_are_followed(real_depth: AutoencoderKLWan) -> None:
    video = _video(97)
    video[:, :, 41:45] = 0.5
    video[:, :, 60] = -0.0
    whole, reusing, passes = _both(real_depth, video)
    assert same_bits(whole, reusing)
    assert 0 < passes.share_left_out < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_types_and_batches(dtype: torch.dtype) -> None:
    vae = _built("demo").to(dtype)
    whole, reusing, passes = _both(vae, _video(33, batch=2).to(dtype))
    assert same_bits(whole, reusing)
    assert passes.share_left_out > 0


@pytest.mark.slow
def test_several_threads_give_the_same(real_depth: AutoencoderKLWan) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        whole, reusing, _ = _both(real_depth, _video(81, last=True, size=48))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(whole, reusing)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["picture", "both ends"])
def test_no_more_memory_than_the_whole_encode(vae: AutoencoderKLWan, last: bool) -> None:
    """So that the memory plan need not know of it. At this size the answers of comparisons count: 512 bytes each."""
    video = _video(49, last=last)
    with torch.no_grad():
        with LiveBytes() as whole:
            vae._encode(video)
        with LiveBytes() as reusing:
            image_encode.encode(vae, video, Passes())
    assert reusing.peak <= whole.peak + 1024


def test_the_vaes_own_cache_is_left_alone(real_depth: AutoencoderKLWan) -> None:
    real_depth.clear_cache()
    before = list(real_depth._enc_feat_map)
    with torch.no_grad():
        image_encode.encode(real_depth, _video(9), Passes())
    assert real_depth._enc_feat_map == before == [None] * len(before)


@pytest.fixture
def standing_in(real_depth: AutoencoderKLWan) -> Iterator[Passes]:
    passes = Passes()
    real_depth.__dict__["_encode"] = image_encode.reusing(real_depth, passes)
    yield passes
    del real_depth.__dict__["_encode"]


def test_it_stands_in_for_the_loop_within_the_public_encode(real_depth: AutoencoderKLWan, standing_in: Passes) -> None:
    video = _video(33)
    with torch.no_grad():
        reusing = real_depth.encode(video).latent_dist
        stand_in = real_depth.__dict__.pop("_encode")
        whole = real_depth.encode(video).latent_dist
        real_depth.__dict__["_encode"] = stand_in
    assert standing_in.share_left_out > 0
    assert same_bits(whole.mode(), reusing.mode())
    assert same_bits(whole.parameters, reusing.parameters)


def test_sequential_offload_gives_the_same() -> None:
    vae = _built("demo")
    video = _video(33, last=True)
    expected, _, _ = _both(vae, video)
    cpu_offload(vae, torch.device("cpu"))
    with torch.no_grad():
        reusing = image_encode.encode(vae, video, Passes())
    assert same_bits(expected, reusing)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.zeros(2), torch.zeros(2), True),
        (torch.zeros(2), -torch.zeros(2), False),
        (torch.full((2,), float("nan")), torch.full((2,), float("nan")), True),
        (torch.zeros(2), torch.zeros(1), False),
        (torch.zeros(2), torch.tensor([0.0, 1e-45]), False),
        (torch.zeros(2, 2).t(), torch.zeros(2, 2), True),
        (None, torch.zeros(2), False),
    ],
    ids=str,
)
def test_bits(one: torch.Tensor | None, other: torch.Tensor, same: bool) -> None:
    assert same_bits(one, other) is same
