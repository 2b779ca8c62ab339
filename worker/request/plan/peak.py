"""How much memory each phase of a video takes, and all of them under one arrangement of the weights.

The coefficients were measured on the real classes at their real widths (Diffusers 0.42.1) with `benchmarks/memory.py`,
which follows the life of every tensor of a forward pass without computing it; tests hold them to it. What only a GPU
can show (workspaces of cuDNN and of other attention kernels) is allowed for in `MARGIN` and `WORKSPACE_BYTES`.
"""

from __future__ import annotations

from typing import Literal

from worker.request.plan.sizes import ModelSize, Shape

Precision = Literal["fp32", "bf16", "fp8", "int8"]
Residency = Literal["resident", "swap", "group_offload", "sequential"]
TextEncoderPlace = Literal["resident", "offloaded"]

# What the count of tensors does not see: rounding to the allocator's blocks and small temporaries.
MARGIN = 1.03
# cuBLAS and cuDNN workspaces, and the 64 prompts that the engine remembers (4.2 MB each).
WORKSPACE_BYTES = 500_000_000
# UMT5 over 512 tokens: attention scores in bf16 and fp32, and the gated feed-forward.
TEXT_ACTIVATION_BYTES = 300_000_000
# Rank of the common LoRAs, the distilled ones among them; a LoRA of a higher rank lives off the margin.
LORA_RANK = 64
# While a block computes, the next one is loaded and the one before is not yet freed.
STREAMED_BLOCKS = 3
# Tensors of the latents' size that live beside a forward pass: latents, mask, the first prediction of guidance, UniPC's
# history of order 2. A count of four guided steps of the real pipeline gives 6.5 fp32 copies.
_LATENT_COPIES = 7
_TILE_PIXELS = 256 * 256
_RGB_FP32 = 12
# Tiled decoding keeps rows of tiles, and in the end joins and clamps the whole video.
_TILED_DECODE_ROWS = 1.36
_TILED_DECODE_JOIN = 4.70
_TILED_ENCODE_INPUT = 1.06


def denoise_bytes(size: ModelSize, shape: Shape, precision: Precision) -> int:
    """Activations of one forward pass at its fullest, without weights. Guidance runs two passes one after the other.

    Per token, in bf16: at the end of a block its input, the state, the norm, both branches' outputs and three fp32
    copies (22 widths); in the feed-forward 4 widths beside the wide layer and its activation, or three wide layers
    where a LoRA makes a second product. A timestep per token adds its projection in bf16 and, in
    fp32, its sum with the block's table (38 widths). The step cache keeps three states for each of guidance's passes.
    """
    wide = 6 if shape.loras else 4
    per_token = max(22 * size.dim, 8 * size.dim + wide * size.ffn_dim) + 8 * size.head_dim
    if size.timestep_per_token:
        per_token += 38 * size.dim
    if shape.step_cache:
        per_token += 2 * 2 * 3 * size.dim
    condition = size.in_channels - size.latent_channels
    latents = 4 * (4 * _LATENT_COPIES * size.latent_channels + 2 * size.in_channels + 4 * condition)
    # fp8 weights are cast one layer at a time for the product; so are int8 weights.
    cast = 2 * size.dim * size.ffn_dim if precision in ("fp8", "int8") else 0
    floats = 2 if precision == "fp32" else 1
    return size.tokens(shape) * (per_token * floats + latents) + cast


def decode_bytes(size: ModelSize, shape: Shape, *, tiled: bool) -> int:
    """The VAE's decoder at its fullest in fp32, without weights: one latent frame at a time, or tiled and whole."""
    plain = shape.pixels * (size.decode_pixel_bytes + 2 * shape.latent_frames)
    if not tiled:
        return plain
    video = _RGB_FP32 * shape.pixels * shape.num_frames
    tile = _TILE_PIXELS * size.decode_pixel_bytes
    return min(plain + video, int(max(tile + _TILED_DECODE_ROWS * video, _TILED_DECODE_JOIN * video)))


def encode_bytes(size: ModelSize, shape: Shape, *, tiled: bool) -> int:
    """The VAE's encoder at its fullest in fp32, without weights: the conditioning video, or the 5B model's image."""
    plain = int(shape.pixels * (size.encode_pixel_bytes + size.encode_frame_bytes * shape.num_frames))
    if not tiled:
        return plain
    video = _RGB_FP32 * shape.pixels * shape.num_frames
    return min(plain, int(_TILE_PIXELS * size.encode_pixel_bytes + _TILED_ENCODE_INPUT * video))


def expert_bytes(size: ModelSize, precision: Precision, loras: int = 0) -> int:
    """The weights of one expert, LoRAs of rank 64 included."""
    return _outer_bytes(size, precision) + size.layers * _block_bytes(size, precision, loras)


def text_encoder_bytes(size: ModelSize, precision: Precision) -> int:
    """The text encoder is bf16 on every GPU, whatever the experts' precision is."""
    return size.text_encoder_params * (4 if precision == "fp32" else 2)


def vae_bytes(size: ModelSize) -> int:
    """The VAE is always fp32."""
    return size.vae_params * 4


def _block_bytes(size: ModelSize, precision: Precision, loras: int) -> int:
    linear = size.linear_params // size.layers
    other = size.block_params // size.layers - linear
    lora = loras * LORA_RANK * (16 * size.dim + 2 * (size.dim + size.ffn_dim))
    match precision:
        case "fp32":
            return 4 * (linear + other + lora)
        case "bf16":
            return 2 * (linear + other + lora)
        case "fp8" | "int8":
            return linear + 2 * (other + lora)


def _outer_bytes(size: ModelSize, precision: Precision) -> int:
    """The part of an expert outside its blocks, and what its fp32 parameters add."""
    outer = size.expert_params - size.block_params
    return 4 * outer if precision == "fp32" else 2 * outer + 2 * size.fp32_params


def peak_bytes(
    size: ModelSize,
    shape: Shape,
    precision: Precision,
    residency: Residency,
    text_encoder: TextEncoderPlace,
    *,
    tiled: bool,
) -> int:
    """The most that torch allocates at once on the device during one video, margin included.

    Comparable with `torch.cuda.max_memory_allocated`; the CUDA context is not in it.
    """
    expert = expert_bytes(size, precision, shape.loras)
    text = text_encoder_bytes(size, precision)
    vae = vae_bytes(size)
    denoise = denoise_bytes(size, shape, precision)
    pixels = max(encode_bytes(size, shape, tiled=tiled), decode_bytes(size, shape, tiled=tiled))
    match residency:
        case "resident":
            busiest = max(denoise, pixels)
            with_text = max(busiest, TEXT_ACTIVATION_BYTES) + text
            passing_text = max(busiest, TEXT_ACTIVATION_BYTES + text)
            peak = size.experts * expert + vae + (with_text if text_encoder == "resident" else passing_text)
        case "swap":
            peak = max(text + TEXT_ACTIVATION_BYTES, expert + denoise, vae + pixels)
        case "group_offload":
            streamed = STREAMED_BLOCKS * _block_bytes(size, precision, shape.loras) + _outer_bytes(size, precision)
            peak = max(text + TEXT_ACTIVATION_BYTES, streamed + denoise, vae + pixels)
        case "sequential":
            layer = 2 * 2 * size.dim * size.ffn_dim
            embedding = 2 * size.text_embedding_params
            peak = max(embedding + TEXT_ACTIVATION_BYTES, layer + denoise, vae + pixels)
    return int(peak * MARGIN) + WORKSPACE_BYTES


def host_bytes(
    size: ModelSize, shape: Shape, precision: Precision, residency: Residency, text_encoder: TextEncoderPlace
) -> int:
    """Weights that wait in (pinned) host memory, and come back from there without being read again."""
    text = text_encoder_bytes(size, precision)
    if residency == "resident":
        return 0 if text_encoder == "resident" else text
    return text + vae_bytes(size) + size.experts * expert_bytes(size, precision, shape.loras)
