"""Every form of a LoRA file that the worker reads, as its writers write it; docs/lora-formats.md has this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from tests.kits.lora_kit import ORIGINAL, Factors, deltas, factors

LAYERS = ("blocks.0.attn1.to_q", "blocks.0.attn2.to_out.0", "blocks.0.ffn.net.2")
Tensors = dict[str, torch.Tensor]
_UP = {"lora_A": "lora_B", "lora_down": "lora_up", "lora.down": "lora.up"}


@dataclass(frozen=True)
class Written:
    """What a file holds, and the changes that it must make of the weights of each expert."""

    tensors: Tensors
    high: Mapping[str, torch.Tensor]
    low: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Form:
    """`key` with one of: {ours}, Diffusers' name of a layer; {wan}, Wan's own; {ours_} and {wan_}, with underscores."""

    writers: str
    key: str
    note: str
    write: Callable[[str, WanTransformer3DModel], Written]

    @property
    def row(self) -> str:
        """Its line of the table in docs/lora-formats.md."""
        return f"| {self.writers} | `{named(self.key, LAYERS[0])}` | {self.note} |"


def named(key: str, layer: str) -> str:
    wan = ORIGINAL[layer]
    return key.format(ours=layer, wan=wan, ours_=layer.replace(".", "_"), wan_=wan.replace(".", "_"))


def _pairs(key: str, pairs: Factors) -> Tensors:
    down, up = next(each for each in _UP.items() if each[0] in key)
    tensors: Tensors = {}
    for layer, (first, second) in pairs.items():
        tensors[named(key, layer)] = first
        tensors[named(key, layer).replace(down, up)] = second
    return tensors


def plain(key: str, expert: WanTransformer3DModel) -> Written:
    pairs = factors(expert, *LAYERS)
    return Written(_pairs(key, pairs), deltas(pairs), deltas(pairs))


def with_alpha(key: str, expert: WanTransformer3DModel) -> Written:
    pairs = factors(expert, *LAYERS, rank=4)
    alphas = {named(key.partition(".lora")[0] + ".alpha", layer): torch.tensor(1.0) for layer in LAYERS}
    return Written(_pairs(key, pairs) | alphas, deltas(pairs, 0.25), deltas(pairs, 0.25))


def both_experts(key: str, expert: WanTransformer3DModel) -> Written:
    high, low = factors(expert, *LAYERS, seed=1), factors(expert, *LAYERS[:2], seed=2)
    other = key.replace("transformer_1.", "transformer_2.").replace("transformer.", "transformer_2.")
    return Written(_pairs(key, high) | _pairs(other, low), deltas(high), deltas(low))


def scaled_fp8(key: str, expert: WanTransformer3DModel) -> Written:
    pairs = {
        layer: (down.to(torch.float8_e4m3fn), up.to(torch.float8_e4m3fn))
        for layer, (down, up) in factors(expert, *LAYERS).items()
    }
    tensors = _pairs(key, pairs)
    tensors |= {name.replace(".weight", ".scale_weight"): torch.tensor(0.5) for name in tensors}
    changes = deltas({layer: (down.float(), up.float()) for layer, (down, up) in pairs.items()}, 0.25)
    return Written(tensors | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, changes, changes)


def lokr(key: str, expert: WanTransformer3DModel, *, first_rank: int = 0, second_rank: int = 0) -> Written:
    """A rank of 0: the matrix as a whole."""
    random = torch.Generator().manual_seed(4)
    tensors: Tensors = {}
    changes: Tensors = {}
    for layer in LAYERS:
        name = named(key, layer).removesuffix("lokr_w1")
        outer, inner = expert.get_submodule(layer).weight.shape
        first = _matrix(tensors, f"{name}lokr_w1", (4, 2), first_rank, random)
        second = _matrix(tensors, f"{name}lokr_w2", (outer // 4, inner // 2), second_rank, random)
        rank = first_rank or second_rank
        # Without a rank what is written has no meaning.
        tensors[f"{name}alpha"] = torch.tensor(rank / 2 if rank else 9_999_999_999.0)
        changes[f"{layer}.weight"] = torch.kron(first, second) * (0.5 if rank else 1.0)
    return Written(tensors, changes, changes)


def loha(key: str, expert: WanTransformer3DModel) -> Written:
    random = torch.Generator().manual_seed(5)
    tensors: Tensors = {}
    changes: Tensors = {}
    for layer in LAYERS:
        name = named(key, layer).removesuffix("hada_w1_a")
        shape = expert.get_submodule(layer).weight.shape
        matrices = [_matrix(tensors, f"{name}hada_w{number}", shape, 2, random) for number in (1, 2)]
        tensors[f"{name}alpha"] = torch.tensor(4.0)
        changes[f"{layer}.weight"] = 2.0 * matrices[0] * matrices[1]
    return Written(tensors, changes, changes)


def _matrix(tensors: Tensors, name: str, shape: tuple[int, ...], rank: int, random: torch.Generator) -> torch.Tensor:
    if not rank:
        tensors[name] = torch.randn(shape, generator=random) * 0.2
        return tensors[name]
    tensors[f"{name}_a"] = torch.randn(shape[0], rank, generator=random) * 0.5
    tensors[f"{name}_b"] = torch.randn(rank, shape[1], generator=random) * 0.5
    return tensors[f"{name}_a"] @ tensors[f"{name}_b"]


def whole(key: str, expert: WanTransformer3DModel) -> Written:
    random = torch.Generator().manual_seed(6)
    changes = {
        f"{layer}.weight": torch.randn(expert.get_submodule(layer).weight.shape, generator=random) for layer in LAYERS
    }
    return Written({named(key, layer): changes[f"{layer}.weight"] for layer in LAYERS}, changes, changes)


FORMS = (
    Form("Diffusers, finetrainers", "transformer.{ours}.lora_A.weight", "alpha from the file's metadata", plain),
    Form("Diffusers, with the name of an adapter", "transformer.{ours}.lora_A.default_0.weight", "", plain),
    Form("Diffusers before PEFT", "transformer.{ours}.lora.down.weight", "", plain),
    Form(
        "Diffusers, both experts",
        "transformer.{ours}.lora_A.weight",
        "and the low-noise expert's with `transformer_2.`",
        both_experts,
    ),
    Form("PEFT", "base_model.model.{ours}.lora_A.weight", "alpha is not in the file: as if it were the rank", plain),
    Form("PEFT around a pipeline", "base_model.model.transformer.{ours}.lora_A.weight", "", plain),
    Form("diffusion-pipe, ai-toolkit", "diffusion_model.{wan}.lora_A.weight", "", plain),
    Form(
        "ai-toolkit, both experts",
        "diffusion_model.transformer_1.{wan}.lora_A.weight",
        "and the low-noise expert's with `transformer_2.`",
        both_experts,
    ),
    Form(
        "LightX2V, ComfyUI",
        "diffusion_model.{wan}.lora_down.weight",
        "with `.alpha`, `.diff`, `.diff_b`, `.diff_m`",
        with_alpha,
    ),
    Form("ComfyUI, of a checkpoint", "model.diffusion_model.{wan}.lora_down.weight", "", plain),
    Form(
        "ComfyUI, scaled fp8",
        "diffusion_model.{wan}.lora_down.weight",
        "with `.scale_weight` and `scaled_fp8`",
        scaled_fp8,
    ),
    Form("DiffSynth-Studio", "{wan}.lora_A.default.weight", "also with `pipe.dit.` before it", plain),
    Form("musubi-tuner, kohya", "lora_unet_{wan_}.lora_down.weight", "with `.alpha`", with_alpha),
    Form("VideoX-Fun", "lora_unet__{wan_}.lora_down.weight", "two underscores, with `.alpha`", with_alpha),
    Form("LyCORIS, SimpleTuner: LoCon", "lycoris_{ours_}.lora_down.weight", "with `.alpha`", with_alpha),
    Form("LyCORIS, SimpleTuner: LoKr", "lycoris_{ours_}.lokr_w1", "any of its matrices in two factors", lokr),
    Form("ai-toolkit: LoKr", "diffusion_model.{wan}.lokr_w1", "the same", lokr),
    Form("LyCORIS: LoHa", "lycoris_{ours_}.hada_w1_a", "with `.alpha`", loha),
    Form("LyCORIS: full", "lycoris_{ours_}.diff", "whole differences; of a norm `.w_norm`, `.b_norm`", whole),
)
