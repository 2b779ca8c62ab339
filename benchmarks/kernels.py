"""What the fused kernels save: bytes moved in a block beside products and attention; on a GPU, the times as well.

    python -m benchmarks.kernels            # counted on the meta device, no GPU needed
    python -m benchmarks.kernels --gpu      # each kernel against plain torch, a whole block, the VAE's decode

Everything has the size of an A14B expert and random numbers. The count takes every operation of a block, reads each
input and writes each output once; views, products and attention are left out. `--gpu` takes about 15 s.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from worker.engine import decode, kernels
from worker.engine.kernels import Kernels, reference
from worker.engine.lean_decoder import lean
from worker.engine.models import components, precision
from worker.engine.techniques.fused_kernels import fused

HEADS, HEAD, FFN = 40, 128, 13_824
WIDTH = HEADS * HEAD
TOKENS = {"480p": 32_760, "720p": 75_600}
LATENTS = {"480p": (60, 104), "720p": (90, 160)}
# Matrix products and attention, which are counted elsewhere, and what only changes how memory is looked at.
_LEFT_OUT = ("mm", "detach", "empty")


class Traffic(TorchDispatchMode):
    """Counts the operations, and the bytes that they read and write; a broadcast input is read as it is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.kernels = 0
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not any(part in name for part in _LEFT_OUT):
            self.add(name, tree_iter((args, kwargs)), tree_iter(out))
        return out

    def add(self, name: str, read: Iterable[Any], written: Iterable[Any]) -> None:
        moved = sum(_stored(each) for each in (*read, *written) if isinstance(each, torch.Tensor))
        self.kernels += 1
        self.bytes += moved
        self.by_name[name] += moved


def _stored(tensor: torch.Tensor) -> int:
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * tensor.element_size()


def counting(traffic: Traffic) -> Kernels:
    """Kernels that compute nothing and count what the real ones read and write: each row once."""

    def add_norm(hidden: torch.Tensor, *, norm: bool = True, update: Any = None, **others: Any) -> Any:
        out = others.pop("out", None)
        total = hidden if update is None else torch.empty_like(hidden) if out is None else out
        normed = torch.empty_like(hidden) if norm else total
        written = [each for each, is_written in ((total, update is not None), (normed, norm)) if is_written]
        traffic.add("add_norm", (hidden, update, *others.values()), written)
        return total, normed

    def rms_rope(*tensors: torch.Tensor, eps: float) -> None:  # noqa: ARG001 - the kernels' own
        traffic.add("rms_rope", tensors, tensors[:2])

    def quantize_rows(rows: torch.Tensor, *, gelu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.empty_like(rows, dtype=torch.float8_e4m3fn), rows.new_empty(len(rows), 1, dtype=torch.float32)
        traffic.add("GELU, quantize_rows" if gelu else "quantize_rows", (rows,), found)
        return found

    return SimpleNamespace(add_norm=add_norm, rms_rope=rms_rope, quantize_rows=quantize_rows)


def block_and_inputs(tokens: int, device: str) -> tuple[WanTransformerBlock, tuple[Any, Any, Any, Any]]:
    dtype = torch.bfloat16
    with torch.device(device):
        block = WanTransformerBlock(WIDTH, FFN, HEADS, cross_attn_norm=True).eval().requires_grad_(False)
        for each in (block.attn1, block.attn2, block.ffn):
            each.to(dtype)
        hidden = torch.randn(1, tokens, WIDTH, dtype=dtype)
        text = torch.randn(1, 512, WIDTH, dtype=dtype)
        temb = torch.randn(1, 6, WIDTH, dtype=dtype)
        angles = torch.randn(1, tokens, 1, HEAD // 2).repeat_interleave(2, dim=3)
        return block, (hidden, text, temb, (angles.cos(), angles.sin()))


@torch.no_grad()
def count(tokens: int) -> dict[str, Traffic]:
    block, inputs = block_and_inputs(tokens, "meta")
    found = {name: Traffic() for name in ("Diffusers", "fused", "fused, fp8 by torch", "fused, fp8")}
    # As on CUDA: attention is left out, and torch's RMS norm is one kernel. The meta device takes both apart. It has no
    # fp8 product into a given output either: all rows are one part.
    with (
        mock.patch.object(precision, "LEAST_ROWS", tokens),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query)),
        mock.patch("torch.nn.functional.rms_norm", lambda x, *_: x.clone()),
    ):
        with found["Diffusers"]:
            block(*inputs)
        with found["fused"] as traffic:
            fused(block, *inputs, counting(traffic))
        precision.replace_linears(block, "fp8", "quantized")
        with found["fused, fp8 by torch"] as traffic:
            fused(block, *inputs, counting(traffic))
        with found["fused, fp8"] as traffic, precision.quantized_by(counting(traffic)):
            fused(block, *inputs, counting(traffic))
    return found


def print_count(*, each: bool) -> None:
    for size, tokens in TOKENS.items():
        for way, traffic in count(tokens).items():
            per_element = traffic.bytes / (tokens * WIDTH)
            print(
                f"{size}, a block, {way}: {traffic.bytes / 1e9:.1f} GB moved, {per_element:.0f} B an element, "
                f"{traffic.kernels} kernels; a pass of 40 blocks {40 * traffic.bytes / 1e12:.2f} TB"
            )
            for name, moved in traffic.by_name.most_common() if each else ():
                print(f"    {name}: {moved / (tokens * WIDTH):.1f} B an element")


def milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The least of `repeats`, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return min(found)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@torch.no_grad()
def time_kernels(by: Kernels, tokens: int, size: str) -> None:
    element = tokens * WIDTH
    hidden, update, query, key = (torch.randn(tokens, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    modulation = torch.randn(1, 6, WIDTH, device="cuda")
    shift, scale, gate = modulation.unbind(1)[:3]
    weight, bias = torch.randn(2, WIDTH, device="cuda")
    angles = torch.randn(tokens, HEAD // 2, device="cuda").repeat_interleave(2, dim=1)
    cosine, sine = angles.cos(), angles.sin()
    plain = torch.ones(WIDTH, device="cuda", dtype=torch.bfloat16)
    cases: dict[str, tuple[float, Callable[[Any], object]]] = {
        "norm, modulation": (4, lambda it: it.add_norm(hidden, eps=1e-6, scale=scale, shift=shift)),
        "gate, sum, norm": (
            8,
            lambda it: it.add_norm(hidden, eps=1e-6, update=update, gate=gate, weight=weight, bias=bias),
        ),
        "sum, norm, modulation": (
            8,
            lambda it: it.add_norm(hidden, eps=1e-6, update=update, scale=scale, shift=shift),
        ),
        "gate, sum": (6, lambda it: it.add_norm(hidden, eps=0.0, update=update, gate=gate, norm=False)),
        "RMS norm, RoPE of q and k": (
            8 + 8 * HEAD / WIDTH,
            lambda it: it.rms_rope(query, key, plain, plain, cosine, sine, eps=1e-6),
        ),
    }
    if torch.cuda.get_device_capability() >= (8, 9):
        wide = torch.randn(tokens, FFN, device="cuda", dtype=torch.bfloat16)
        cases["fp8 of a row"] = (3, lambda it: it.quantize_rows(hidden))
        cases["GELU, fp8 of a wide row"] = (3 * FFN / WIDTH, lambda it: it.quantize_rows(wide, gelu=True))
    for name, (each_bytes, work) in cases.items():
        taken, before = (milliseconds(partial(work, it)) for it in (by, reference))
        rate = each_bytes * element / taken / 1e6
        print(f"{size}, {name}: {taken:.3f} ms, {rate:.0f} GB/s; plain torch {before:.3f} ms", flush=True)


@torch.no_grad()
def time_block(by: Kernels, tokens: int, size: str) -> None:
    block, inputs = block_and_inputs(tokens, "cuda")
    error = off(fused(block, *inputs, by), block(*inputs))
    ways = {"Diffusers": lambda: block(*inputs), "fused": lambda: fused(block, *inputs, by)}
    taken = {way: milliseconds(work, 3) for way, work in ways.items()}
    saved = taken["Diffusers"] - taken["fused"]
    print(
        f"{size}, a block: Diffusers {taken['Diffusers']:.2f} ms, fused {taken['fused']:.2f} ms; saved in a pass of 40 "
        f"{40 * saved / 1e3:.2f} s; off by {error:.1e}",
        flush=True,
    )


@torch.no_grad()
def decode_ms(vae: AutoencoderKLWan, latents: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Of one latent frame behind the first two, which gives four frames; the least of two, and the last frames."""
    features: list[object] = [None] * sum(isinstance(each, WanCausalConv3d) for each in vae.decoder.modules())
    found = []
    for step in range(latents.shape[2]):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        sample = vae.decoder(latents[:, :, step : step + 1], feat_cache=features, feat_idx=[0], first_chunk=step == 0)
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return min(found[2:]), sample


def time_decode(size: str) -> None:
    torch.manual_seed(0)
    with torch.device("cuda"):
        vae = AutoencoderKLWan().eval().requires_grad_(False)
        latents = torch.randn(1, 16, 4, *LATENTS[size])
    vae = components.channels_last(vae)
    for name, half in (("fp32", False), ("bf16", True)):
        each = decode._in_half(vae) if half else vae
        given = latents.bfloat16() if half else latents
        before, wanted = decode_ms(each, given)
        line = f"{size}, decode of a latent frame, {name}: Diffusers {before:.0f} ms"
        for way, is_fused in (("without copies", False), ("and with the kernel", True)):
            taken, frames = decode_ms(lean(each, fused=is_fused), given)
            line += f", {way} {taken:.0f} ms (off by {off(frames, wanted):.1e})"
        torch.backends.cudnn.benchmark = True
        taken, _ = decode_ms(lean(each), given)
        torch.backends.cudnn.benchmark = False
        print(f"{line}, cuDNN by trial {taken:.0f} ms", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="measure on the CUDA device")
    parser.add_argument("--only", choices=("kernels", "block", "decode"), help="of what --gpu measures")
    parser.add_argument("--each", action="store_true", help="also what each kernel of a block moves")
    options = parser.parse_args(arguments)
    print_count(each=options.each)
    if not options.gpu:
        return
    by = kernels.of(torch.device("cuda"))
    for size, tokens in TOKENS.items():
        if options.only in (None, "kernels"):
            time_kernels(by, tokens, size)
        if options.only in (None, "block"):
            time_block(by, tokens, size)
    if options.only in (None, "decode"):
        time_decode("720p")


if __name__ == "__main__":
    main()
