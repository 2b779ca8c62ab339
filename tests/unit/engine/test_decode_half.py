"""The decode in half precision: near the exact one, and its copy of the weights is gone with the stream."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks import memory_on_meta
from tests.kits.slow import slow
from tests.kits.vaes import a14b as a14b  # fixtures
from tests.kits.vaes import latents_of, lively, offloaded, stacked, vae_a14b
from tests.kits.vaes import vae as vae
from worker.engine import decode
from worker.request.plan import SIZES, Shape, peak


@pytest.mark.parametrize("tiled", [False, *slow(True)])
def test_decoding_in_half_is_near_and_leaves_the_vae_as_it_is(vae: AutoencoderKLWan, tiled: bool) -> None:
    width = 272 // vae.config.scale_factor_spatial if tiled else 6
    latents = latents_of(vae, count=2, width=width)
    exact = stacked(vae, latents, tiled=tiled)
    half = np.stack(list(decode.frames(vae, latents, tiled=tiled, half=True))).astype(float)
    error = float(((half - exact) ** 2).mean())
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 35
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert (stacked(vae, latents, tiled=tiled) == exact).all()


@pytest.mark.parametrize("ending", ["end", "close", "failure"])
def test_the_weights_for_half_go_with_the_stream(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    vae = lively(vae_a14b())
    made: list[weakref.ref[torch.Tensor]] = []
    halved = decode._halved

    def watched(weight: torch.nn.Parameter) -> torch.nn.Parameter:
        copied = halved(weight)
        made.append(weakref.ref(copied))
        return copied

    monkeypatch.setattr(decode, "_halved", watched)
    stream = decode.frames(vae, latents_of(vae, count=2), half=True)
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
    latents = latents_of(a14b)
    expected = np.stack(list(decode.frames(a14b, latents, tiled=tiled, half=True)))
    vae, hook = offloaded(a14b, append=append)
    np.testing.assert_array_equal(np.stack(list(decode.frames(vae, latents, tiled=tiled, half=True))), expected)
    assert (hook.events[0], hook.events[-1]) == ("onload", "offload")
    assert hook.events.count("offload") == 1


def test_the_layout_of_half_changes_no_more_than_rounding(a14b: AutoencoderKLWan) -> None:
    latents = latents_of(a14b, count=2)
    as_it_is = copy.deepcopy(a14b).to(torch.bfloat16)
    off = np.abs(
        np.stack(list(decode.frames(a14b, latents, half=True))).astype(int) - stacked(as_it_is, latents).astype(int)
    )
    exact = stacked(a14b, latents).astype(int)
    error = np.abs(stacked(as_it_is, latents).astype(int) - exact)
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
