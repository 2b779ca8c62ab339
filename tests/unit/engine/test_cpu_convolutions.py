"""The small VAE's convolutions on a CPU: torch's slow path is not taken, and what comes of it is the same video."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from tests.kits.engine_kit import demo_source, engine_with, pixels, plan, render
from tests.kits.engine_kit import request as asked
from tests.kits.slow import slow
from worker.engine.lean_decoder import lean
from worker.engine.models.cpu_convolutions import CpuConvolution, use_onednn
from worker.weights.sources import demo

SLOW = "aten::slow_conv3d_forward"


@pytest.fixture(params=["i2v", *slow("5b")])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    (spec,) = (spec for spec in demo.catalogue() if spec.key == request.param)
    folder = demo_source().folder(spec, threading.Event(), "")
    return AutoencoderKLWan.from_pretrained(folder / "vae").eval().requires_grad_(False)


def _names(vae: AutoencoderKLWan, latents: torch.Tensor) -> tuple[set[str], torch.Tensor, torch.Tensor]:
    with torch.profiler.profile() as seen:
        video = vae.decode(latents).sample
        encoded = vae.encode(video).latent_dist.mode()
    return {event.name for event in seen.events()}, video, encoded


@pytest.mark.parametrize("twin", [lean, *slow(lambda vae: vae)])
def test_no_slow_convolution_is_left_and_the_numbers_are_the_same(
    vae: AutoencoderKLWan, twin: Callable[..., AutoencoderKLWan]
) -> None:
    latents = torch.randn(1, vae.config.z_dim, 2, 4, 4)
    names, wanted, wanted_latents = _names(twin(vae), latents)
    assert SLOW in names
    ours = copy.deepcopy(vae)
    use_onednn(ours)
    names, video, encoded = _names(twin(ours), latents)
    assert SLOW not in names
    torch.testing.assert_close(video, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded, wanted_latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_torchs_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    own, ours = (WanCausalConv3d(4, 4, 3, padding=1).to(dtype) for _ in range(2))
    ours.load_state_dict(own.state_dict())
    use_onednn(torch.nn.ModuleList([ours]))  # type: ignore[arg-type]
    x = torch.randn(1, 4, 3, 5, 6, dtype=dtype)
    assert torch.equal(ours(x), own(x))


def test_the_engines_own_vae_takes_none() -> None:
    rendering = render(engine_with(plan("resident")), asked())
    with torch.profiler.profile() as seen:
        pixels(rendering)
    names = {event.name for event in seen.events()}
    assert "aten::mkldnn_convolution" in names
    assert SLOW not in names


def test_without_onednn_all_is_torchs_own(vae: AutoencoderKLWan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    use_onednn(vae)
    assert not any(isinstance(module, CpuConvolution) for module in vae.modules())


def test_the_twin_of_a_decode_is_gone_with_it(vae: AutoencoderKLWan) -> None:
    """In bf16 its weights are a copy, for which no memory is planned once the decode has ended."""
    use_onednn(vae)
    twin = lean(vae)
    layer = weakref.ref(twin.decoder.conv_in)
    gc.disable()
    try:
        del twin
        assert layer() is None
    finally:
        gc.enable()
