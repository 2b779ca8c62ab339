"""T2V-A14B with random weights in the worker's own engine: at full size on a GPU, at a tiny size on a CPU.

Nothing of 57 GB is written: the folder has the published configs and the headers of the weight files, which are holes
(sparse files) behind them, and a reader that fills every tensor with random numbers at its place, on the GPU or in
pinned host memory. All else is the worker's: `Engine`, `LoadedModels`, the memory plan, every technique.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks import memory_on_meta as on_meta
from worker.request import ModelSpec
from worker.request.catalogue import T2V_A14B, as_demo
from worker.request.plan import SIZES, ModelSize, Shape
from worker.weights.sources import demo
from worker.weights.tensors.reading import Target

# text_encoder/config.json of Wan-AI/Wan2.2-T2V-A14B-Diffusers, what differs from the class's defaults.
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
# Sizes that fp8 and int8 units take; more than one block, for the step cache.
TINY = replace(SIZES["t2v"], layers=3, dim=64, ffn_dim=128, head_dim=32)
_TINY_TEXT_DIM = 32  # of the demo model's text encoder
_LORA_RANK = 64
_NOISE_NUMBERS = 2**24
_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Scale:
    """What is made: the size of the video, the steps of a guided one, and of which model."""

    name: str
    width: int
    height: int
    num_frames: int
    steps: int
    size: ModelSize
    is_published: bool = True

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, self.num_frames)

    @property
    def spec(self) -> ModelSpec:
        return T2V_A14B if self.is_published else replace(as_demo(T2V_A14B), extent=None)


SCALES = {
    "480p": Scale("480p", 832, 480, 81, 40, SIZES["t2v"]),
    "720p": Scale("720p", 1280, 720, 81, 40, SIZES["t2v"]),
    "tiny": Scale("tiny", 64, 64, 5, 8, TINY, is_published=False),
}


def write_model(scale: Scale, folder: Path) -> None:
    """A Diffusers folder of T2V-A14B: tokenizer and scheduler of the demo model, the rest configs and hollow files."""
    demo.build(next(spec for spec in demo.catalogue() if spec.key == "t2v"), folder)
    with torch.device("meta"):
        text_dim = on_meta.TEXT_DIM if scale.is_published else _TINY_TEXT_DIM
        expert = on_meta.expert(scale.size, layers=scale.size.layers, text_dim=text_dim)
        for name in ("transformer", "transformer_2"):
            expert.save_config(folder / name)
            _hollow(folder / name, expert, torch.bfloat16)
        if not scale.is_published:
            return
        vae = on_meta.real_vae("t2v")
        vae.save_config(folder / "vae")
        _hollow(folder / "vae", vae, torch.float32)
        config = UMT5Config(**UMT5_XXL)
        config.save_pretrained(folder / "text_encoder")
        _hollow(folder / "text_encoder", UMT5EncoderModel(config), torch.bfloat16)


def _hollow(folder: Path, module: nn.Module, dtype: torch.dtype) -> None:
    """In the place of the weights in `folder`, a safetensors file with the header of `module`'s and a hole behind."""
    (old,) = folder.glob("*.safetensors")
    tied = getattr(module, "_tied_weights_keys", None) or {}
    entries: dict[str, Any] = {}
    end = 0
    for key, tensor in module.state_dict().items():
        if key not in tied:
            begin, end = end, end + tensor.numel() * dtype.itemsize
            entries[key] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with old.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def fill(targets: Sequence[Target], *, check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
    """In the place of `worker.weights.tensors.reading.read`: random weights of the size that a layer's inputs ask for.

    Random bits, not one number: a GPU multiplies zeros faster, because they take less power.
    """
    noise: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
    largest = max(target.tensor.numel() for target in targets)
    for target in targets:
        check()
        tensor = target.tensor
        key = (tensor.device, tensor.dtype)
        if key not in noise:
            noise[key] = _numbers(len(noise))[:largest].to(*key)
        _fill(tensor, target.stored.key, noise[key])
        on_bytes(target.stored.nbytes)
    for device in {device for device, _ in noise if device.type == "cuda"}:
        torch.cuda.synchronize(device)


@lru_cache(maxsize=3)
def _numbers(seed: int) -> torch.Tensor:
    """The same for every call: quantised weights are read block by block."""
    return 2 * torch.rand(_NOISE_NUMBERS, generator=torch.Generator().manual_seed(seed)) - 1


@torch.no_grad()
def _fill(tensor: torch.Tensor, key: str, noise: torch.Tensor) -> None:
    if key.endswith("gamma") or (tensor.ndim == 1 and "norm" in key and key.endswith("weight")):
        tensor.fill_(1)
    elif tensor.ndim < 2:
        tensor.zero_()
    else:
        bound = 1 / math.sqrt(math.prod(tensor.shape[1:]))
        flat = tensor.view(-1)
        begin = zlib.crc32(key.encode()) % len(noise)  # or the layers would all be alike
        first = flat[: len(noise) - begin]
        torch.mul(noise[begin : begin + len(first)], bound, out=first)
        for piece in torch.split(flat[len(first) :], len(noise)):
            torch.mul(noise[: len(piece)], bound, out=piece)


def lora(scale: Scale) -> dict[str, torch.Tensor]:
    """A random LoRA of rank 64 on every linear layer of an expert's blocks, in Diffusers' names."""
    with torch.device("meta"):
        expert = on_meta.expert(scale.size, layers=scale.size.layers)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in expert.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            for factor, shape in (("A", (_LORA_RANK, module.in_features)), ("B", (module.out_features, _LORA_RANK))):
                numbers = torch.empty(shape, dtype=torch.bfloat16)
                tensors[f"{name}.lora_{factor}.weight"] = numbers.uniform_(-0.1, 0.1).div_(math.sqrt(shape[1]))
    return tensors
