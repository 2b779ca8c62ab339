"""The decoder that copies less gives the samples of Diffusers' own."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanDecoder3d

from tests.kits.vaes import a14b as a14b  # fixtures
from tests.kits.vaes import latents_of
from tests.kits.vaes import vae as vae
from worker.engine import decode
from worker.engine.kernels import KernelFailed, reference
from worker.engine.lean_decoder import lean
from worker.engine.models import components


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
    latents = latents_of(vae, count=2)
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
    torch.testing.assert_close(_sample(twin, latents_of(vae)), _sample(vae, latents_of(vae)), rtol=1e-4, atol=1e-4)


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
    assert torch.equal(_sample(twin, latents_of(a14b)), _sample(a14b, latents_of(a14b)))
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
