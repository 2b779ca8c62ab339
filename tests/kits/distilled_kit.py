"""Distilled LoRAs for the built-in small model, behind a hub on loopback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.kits import lora_kit
from tests.kits.hub_server import HubServer
from worker.engine.models import components as loading
from worker.net import Opener
from worker.request import ModelSpec
from worker.request.catalogue import DistilledLoras
from worker.weights.loras import LoraStore
from worker.weights.sources import demo

REPO = "org/distilled"
SETS = (DistilledLoras(REPO, "first/high.safetensors", "first/low.safetensors"),)


def catalogue(sets: tuple[DistilledLoras, ...] = SETS) -> tuple[ModelSpec, ...]:
    """The demo's, with LoRAs for turbo as the real models have."""
    return tuple(replace(spec, distilled=sets) if spec.turbo else spec for spec in demo.catalogue())


def serve(hub: HubServer, components: loading.Components, repo: str = REPO, folder: str = "first") -> None:
    """Put a LoRA of every layer for each expert on the hub, in Wan's own names."""
    files: dict[str, bytes] = {}
    for seed, name in enumerate(("high", "low")):
        pairs = lora_kit.factors(components.transformer, *lora_kit.ORIGINAL, seed=seed)
        tensors = lora_kit.as_original(pairs, alpha=1.0)
        files[f"{folder}/{name}.safetensors"] = save({key: value.contiguous() for key, value in tensors.items()})
    hub.add(repo, files)


def serve_misfit(hub: HubServer) -> None:
    tensors = {
        f"diffusion_model.blocks.7.self_attn.q.lora_{end}.weight": torch.ones(shape)
        for end, shape in (("down", (2, 24)), ("up", (24, 2)))
    }
    hub.add(REPO, {f"first/{name}.safetensors": save(tensors) for name in ("high", "low")})


def store(folder: Path, hub: HubServer, **options: Any) -> LoraStore:
    return LoraStore(folder, Opener(), token=None, endpoint=hub.url, **options)
