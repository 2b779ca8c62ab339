"""Model files for the loading benchmarks: real names, shapes and types at the real width, few layers, random values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SHARD_BYTES = 1_200_000_000
_RANDOM_ELEMENTS = 170_000_000  # more than the largest tensor has


def write_expert(folder: Path, *, blocks: int, dtype: torch.dtype = torch.bfloat16, in_channels: int = 16) -> int:
    """A cut-down A14B expert: 0.6 GB and 0.7 GB for each block in bf16. Returns its bytes."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=40,
            attention_head_dim=128,
            in_channels=in_channels,
            out_channels=16,
            text_dim=4096,
            freq_dim=256,
            ffn_dim=13824,
            num_layers=blocks,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=1024,
        )
    return _write(folder, model, dtype, "diffusion_pytorch_model", set(model._keep_in_fp32_modules))


def write_text_encoder(folder: Path, vocab_size: int, *, layers: int, dtype: torch.dtype) -> int:
    """UMT5-XXL with a smaller vocabulary and fewer layers."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocab_size, d_model=4096, d_kv=64, d_ff=10240, num_layers=layers, num_heads=64,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    return _write(folder, model, dtype, "model", set())


def write_vae(folder: Path) -> int:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan()
    return _write(folder, model, torch.float32, "diffusion_pytorch_model", set())


def write_model(folder: Path, *, blocks: int) -> int:
    """A text-to-video model of two cut-down experts, in the type that a CPU computes in. Returns its bytes."""
    from tests.kits.lora_kit import spec_of
    from worker.weights.sources import demo

    demo.build(spec_of("t2v"), folder)
    vocab_size = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    for name in ("text_encoder", "vae", "transformer", "transformer_2"):
        for path in (folder / name).iterdir():
            path.unlink()
    return sum(
        (
            write_text_encoder(folder / "text_encoder", vocab_size, layers=1, dtype=torch.float32),
            write_vae(folder / "vae"),
            write_expert(folder / "transformer", blocks=blocks, dtype=torch.float32),
            write_expert(folder / "transformer_2", blocks=blocks, dtype=torch.float32),
        )
    )


def evict(folder: Path) -> None:
    """Have the page cache forget the files below a folder."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _write(folder: Path, model: Any, dtype: torch.dtype, stem: str, kept: set[str]) -> int:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_config"):
        model.save_config(folder)
    else:
        model.config.save_pretrained(folder)
    shards = list(_shards(model, dtype, kept))
    weight_map: dict[str, str] = {}
    total = 0
    numbers = torch.randn(_RANDOM_ELEMENTS, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: numbers[: math.prod(shape)].reshape(shape).to(each, copy=True) for key, shape, each in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(
    model: torch.nn.Module, dtype: torch.dtype, kept: set[str]
) -> Iterator[list[tuple[str, tuple[int, ...], torch.dtype]]]:
    shard: list[tuple[str, tuple[int, ...], torch.dtype]] = []
    size = 0
    tied = getattr(model, "_tied_weights_keys", None) or {}
    for key, tensor in model.state_dict().items():
        if key in tied:
            continue
        each = torch.float32 if kept & set(key.split(".")) else dtype
        nbytes = tensor.numel() * each.itemsize
        if shard and size + nbytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((key, tuple(tensor.shape), each))
        size += nbytes
    yield shard
