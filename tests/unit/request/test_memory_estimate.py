"""The estimate's constants, held to the real classes: parameters counted, tensors followed on the meta device."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks import memory, memory_on_meta
from tests.kits.slow import slow
from worker.request.plan import SIZES, Shape
from worker.request.plan.peak import (
    MARGIN,
    TEXT_ACTIVATION_BYTES,
    WORKSPACE_BYTES,
    decode_bytes,
    denoise_bytes,
    encode_bytes,
    expert_bytes,
    peak_bytes,
)

KEYS = sorted(SIZES)


def close(estimated: int, counted: int, *, above: float = 1.06) -> bool:
    """With its margin the estimate is never below the count, and not far above it."""
    return counted <= estimated * MARGIN <= counted * above


@pytest.mark.parametrize("key", KEYS)
def test_parameters_of_an_expert(key):
    size = SIZES[key]
    with torch.device("meta"):
        model = memory_on_meta.expert(size, layers=size.layers)
    linear = [part.weight.numel() for part in model.blocks.modules() if isinstance(part, torch.nn.Linear)]
    assert size.expert_params == sum(each.numel() for each in model.parameters())
    assert size.block_params == sum(each.numel() for each in model.blocks.parameters())
    assert size.linear_params == sum(linear)
    assert size.fp32_params == sum(each.numel() for each in model.parameters() if each.dtype == torch.float32)
    assert expert_bytes(size, "bf16") == sum(each.nbytes for each in model.parameters())
    with_lora = memory_on_meta.lora_parameters(size)
    assert expert_bytes(size, "bf16", loras=1) - expert_bytes(size, "bf16") == 2 * with_lora


def test_the_fp32_parts_are_those_that_diffusers_keeps():
    assert {"time_embedder", "scale_shift_table", "norm2"} <= set(WanTransformer3DModel._keep_in_fp32_modules)


def test_parameters_of_the_text_encoder():
    config = UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    for size in SIZES.values():
        assert size.text_encoder_params == sum(each.numel() for each in encoder.parameters())
        assert size.text_embedding_params == encoder.shared.weight.numel()


@pytest.mark.parametrize("key", KEYS)
def test_parameters_of_the_vae(key):
    with torch.device("meta"):
        vae = memory_on_meta.real_vae(key)
    assert SIZES[key].vae_params == sum(each.numel() for each in vae.parameters())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("loras", [0, 1, 2])
@pytest.mark.parametrize("shape", [Shape(832, 480, 81), *slow(Shape(1280, 704, 121))], ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_activations_of_a_forward_pass(key, shape, loras):
    asked = dataclasses.replace(shape, loras=loras)
    assert close(denoise_bytes(SIZES[key], asked, "bf16"), memory_on_meta.denoise_peak(key, asked))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(832, 480, 81), Shape(1280, 704, 121), Shape(256, 256, 17)], ids=str)
@pytest.mark.parametrize("key", ["i2v", "5b"])
def test_activations_of_the_vae(key, shape):
    size = SIZES[key]
    assert close(decode_bytes(size, shape, tiled=False), memory_on_meta.decode_peak(key, shape, tiled=False))
    assert close(encode_bytes(size, shape, tiled=False), memory_on_meta.encode_peak(key, shape, tiled=False))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["i2v", "5b"])
def test_activations_of_a_tiled_vae(key):
    shape, size = Shape(384, 256, 17), SIZES[key]
    counted = memory_on_meta.decode_peak(key, shape, tiled=True)
    assert close(decode_bytes(size, shape, tiled=True), counted, above=1.15)
    assert decode_bytes(size, shape, tiled=True) < decode_bytes(size, shape, tiled=False)


@pytest.mark.slow
def test_a_tiny_model_run_for_real_grows_as_estimated():
    estimated, counted = memory.tiny_growth()
    assert close(estimated, counted, above=1.1)


def test_the_meter_sees_what_lives_at_once_and_not_what_is_gone():
    with memory_on_meta.LiveBytes() as meter:
        for _ in range(3):
            passing = torch.empty(10_000, dtype=torch.uint8)
            del passing
        kept = [torch.empty(512, dtype=torch.uint8) for _ in range(4)]
        view = kept[0][:100]
    assert meter.peak == 10_240
    assert meter.live == 4 * 512
    del kept, view
    assert meter.live == 0


def counted_parts(key: str, shape: Shape) -> dict[str, float]:
    """Bytes of weights and activations as they are, without margins."""
    size = SIZES[key]
    with torch.device("meta"):
        expert = sum(each.nbytes for each in memory_on_meta.expert(size, layers=size.layers).parameters())
        vae = sum(each.nbytes for each in memory_on_meta.real_vae(key).parameters())
    return {
        "expert": expert,
        "vae": vae,
        "text": 2 * size.text_encoder_params,
        "denoise": memory_on_meta.denoise_peak(key, shape),
        "decode": memory_on_meta.decode_peak(key, shape, tiled=False),
    }


@pytest.mark.slow  # the parts are held alone
@pytest.mark.parametrize("shape", [Shape(832, 480, 81), Shape(1280, 704, 81)], ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_whole_plans_are_never_below_the_sum_of_their_parts_nor_10_percent_above(key, shape):
    size, part = SIZES[key], counted_parts(key, shape)
    busiest = max(part["denoise"], part["decode"])
    weights = size.experts * part["expert"] + part["vae"]
    expected = {
        ("resident", "resident"): weights + part["text"] + busiest,
        ("resident", "offloaded"): weights + max(part["text"], busiest),
        ("swap", "offloaded"): max(part["text"], part["expert"] + part["denoise"], part["vae"] + part["decode"]),
    }
    for (residency, place), sum_of_parts in expected.items():
        estimated = peak_bytes(size, shape, "bf16", residency, place, tiled=False)
        assert sum_of_parts <= estimated <= 1.1 * sum_of_parts, (residency, place)


@pytest.mark.parametrize("key", KEYS)
def test_streaming_takes_ever_less_of_the_weights(key):
    size, shape = SIZES[key], Shape(256, 256, 5)
    swap, group, sequential = (
        peak_bytes(size, shape, "bf16", residency, "offloaded", tiled=True)
        for residency in ("swap", "group_offload", "sequential")
    )
    assert swap >= group > sequential > denoise_bytes(size, shape, "bf16")


def test_quantised_weights_take_a_byte_each():
    for precision in ("fp8", "int8"):
        saved = expert_bytes(SIZES["i2v"], "bf16") - expert_bytes(SIZES["i2v"], precision)
        assert saved == SIZES["i2v"].linear_params


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_quantised_weights_are_cast_one_wide_layer_at_a_time(precision):
    """Beside the activations of bf16: the widest layer's weights, two bytes each."""
    size, shape = SIZES["t2v"], Shape(832, 480, 81)
    cast = denoise_bytes(size, shape, precision) - denoise_bytes(size, shape, "bf16")
    assert cast == 2 * 5120 * 13824


def test_a_resident_text_encoder_is_counted_beside_the_busiest_phase():
    """Offloaded it is gone by then, and counts only while it reads."""
    size, shape = SIZES["i2v"], Shape(832, 480, 81)
    stays, passes = (
        peak_bytes(size, shape, "bf16", "resident", place, tiled=False) for place in ("resident", "offloaded")
    )
    text = 2 * size.text_encoder_params
    busiest = max(
        denoise_bytes(size, shape, "bf16"),
        encode_bytes(size, shape, tiled=False),
        decode_bytes(size, shape, tiled=False),
    )
    experts, vae = 2 * expert_bytes(size, "bf16"), 4 * size.vae_params
    assert stays == int((experts + vae + busiest + text) * MARGIN) + WORKSPACE_BYTES
    assert passes == int((experts + vae + max(busiest, text + TEXT_ACTIVATION_BYTES)) * MARGIN) + WORKSPACE_BYTES
