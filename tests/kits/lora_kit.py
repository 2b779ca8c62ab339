"""LoRA files in every form that the worker reads, for the built-in small model."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from tests.kits.engine_kit import demo_source
from worker.engine.models import components as loading
from worker.engine.techniques.base import Adapter
from worker.request import ModelSpec
from worker.weights.sources import demo

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
# Wan's own names of the modules of a block, and those of Diffusers.
BLOCK_NAMES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
ORIGINAL = {f"blocks.0.{ours}": f"blocks.0.{theirs}" for theirs, ours in BLOCK_NAMES.items()}


def spec_of(key: str) -> ModelSpec:
    return next(spec for spec in demo.catalogue() if spec.key == key)


def load(folder: Path, key: str = "t2v", dtype: torch.dtype = torch.float32) -> loading.Components:
    """The experts of the built-in model; text encoder and VAE, which no LoRA here touches, are left out."""
    if not folder.exists():
        shutil.copytree(demo_source().folder(spec_of(key), threading.Event(), "bf16"), folder)
    return loading.load(folder, spec_of(key), None, device=torch.device("cpu"), dtype=dtype)  # type: ignore[arg-type]


@torch.no_grad()
def output(expert: WanTransformer3DModel) -> torch.Tensor:
    """What the expert answers to an input that is always the same."""
    generator = torch.Generator().manual_seed(0)
    channels, text = expert.config.in_channels, expert.config.text_dim
    answer: torch.Tensor = expert(
        hidden_states=torch.randn(1, channels, 2, 8, 8, generator=generator).to(expert.dtype),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 8, text, generator=generator).to(expert.dtype),
        return_dict=False,
    )[0]
    return answer


def outputs(components: loading.Components) -> list[torch.Tensor]:
    """Of the high-noise expert, then of the low-noise one where there is one."""
    experts = (components.transformer, components.transformer_2)
    return [output(expert) for expert in experts if expert is not None]


def changed(expert: WanTransformer3DModel, deltas: Mapping[str, torch.Tensor]) -> WanTransformer3DModel:
    """A copy of the expert with `deltas` added to the parameters of these names."""
    twin = copy.deepcopy(expert)
    with torch.no_grad():
        for name, delta in deltas.items():
            twin.get_parameter(name).add_(delta)
    return twin


def untouched(components: loading.Components) -> WanTransformer3DModel:
    """The high-noise expert as it is without LoRAs."""
    twin = copy.deepcopy(components.transformer)
    twin.unload_lora()
    return twin


def assert_equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> None:
    assert [torch.equal(one, other) for one, other in zip(these, those, strict=True)] == [True] * len(those)


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """By far more than rounding."""
    return bool((one - other).abs().max() > 1e-3)


def factors(expert: WanTransformer3DModel, *modules: str, rank: int = 2, seed: int = 7) -> Factors:
    """Random factors (down, up) for modules by Diffusers' names, big enough to show."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in modules:
        outer, inner = expert.get_submodule(module).weight.shape[:2]
        made[module] = (
            torch.randn(rank, inner, generator=generator) * 0.3,
            torch.randn(outer, rank, generator=generator) * 0.3,
        )
    return made


def deltas(pairs: Factors, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"{module}.weight": scale * (up @ down) for module, (down, up) in pairs.items()}


def as_diffusers(pairs: Factors) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for module, (down, up) in pairs.items():
        tensors[f"transformer.{module}.lora_A.weight"] = down
        tensors[f"transformer.{module}.lora_B.weight"] = up
    return tensors


def as_original(pairs: Factors, alpha: float | None = None, *, letters: bool = False) -> dict[str, torch.Tensor]:
    """Wan's own names, as lightx2v writes them; `letters`: with lora_A and lora_B."""
    ends = ("lora_A", "lora_B") if letters else ("lora_down", "lora_up")
    tensors: dict[str, torch.Tensor] = {}
    for module, (down, up) in pairs.items():
        name = f"diffusion_model.{ORIGINAL[module]}"
        tensors[f"{name}.{ends[0]}.weight"] = down
        tensors[f"{name}.{ends[1]}.weight"] = up
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def as_musubi(pairs: Factors, alpha: float) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for module, (down, up) in pairs.items():
        name = "lora_unet_" + ORIGINAL[module].replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


LYCORIS = {
    "lycoris_blocks_0_attn1_to_k.lokr_w1": (2, 4),
    "lycoris_blocks_0_attn1_to_k.lokr_w2": (12, 6),
    "lycoris_blocks_0_attn1_to_q.hada_w1_a": (24, 2),
    "lycoris_blocks_0_attn1_to_q.hada_w1_b": (2, 24),
    "lycoris_blocks_0_attn1_to_q.hada_w2_a": (24, 2),
    "lycoris_blocks_0_attn1_to_q.hada_w2_b": (2, 24),
}


def lycoris() -> dict[str, torch.Tensor]:
    """A LoKr and a LoHa of two layers."""
    random = torch.Generator().manual_seed(9)
    return {key: torch.randn(shape, generator=random) * 0.3 for key, shape in LYCORIS.items()}


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = "lora", **metadata: str) -> Path:
    file = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata=metadata or None)
    return file


def adapter(file: Path, expert: Any = "both", scale: float = 1.0, number: int = 0) -> Adapter:
    path = f"job_request_params[0].loras[{number}].source"
    return Adapter(file=file, name=file.name, scale=scale, expert=expert, path=path)


class Opened:
    """Marks a pickle that was opened."""

    seen: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("from tests.kits.lora_kit import Opened; Opened.seen += ('opened',)",))
