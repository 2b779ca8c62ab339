"""The trained weights of the demo model, stored beside the worker: folders for its two A14B twins.

`demo_weights/` holds one tokenizer, text encoder, VAE and pair of experts, and the distilled LoRAs of `turbo` for each
of the two. The experts know both tasks: image-to-video reads the image in channels of its own, which text-to-video does
without. Here folders in Diffusers' format are made of them; the distilled LoRAs are merged into copies of the experts,
as `python -m builder.prepare --turbo` does with the real ones. docs/demo-model.md is their card.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import load_file, save_file

from worker.request import ModelSpec

WEIGHTS = Path(__file__).resolve().parent / "demo_weights"
_SHARED = ("tokenizer", "text_encoder", "vae")
_EXPERTS = {"transformer": "high", "transformer_2": "low"}
_PATCHES = "patch_embedding.weight"
_EXPERT_FILE = "diffusion_pytorch_model.safetensors"


def has(spec: ModelSpec, weights: Path) -> bool:
    """Whether `weights` has trained weights for `spec`; there are none for the 5B model."""
    shared = all((weights / part).is_dir() for part in _SHARED)
    experts = all((weights / "experts" / side / _EXPERT_FILE).is_file() for side in _EXPERTS.values())
    known = spec.boundary_ratio is not None and (not spec.fused or has_distilled(spec, weights))
    return known and shared and experts


def has_distilled(spec: ModelSpec, weights: Path) -> bool:
    return all(_lora(spec, side, weights).is_file() for side in _EXPERTS.values())


def assemble(spec: ModelSpec, folder: Path, weights: Path) -> None:
    """Write a Diffusers-format folder for `spec`, which `has`. Files that are used as they are become links."""
    folder.mkdir(parents=True)
    for part in _SHARED:
        (folder / part).symlink_to(weights / part, target_is_directory=True)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    scheduler.save_pretrained(str(folder / "scheduler"))
    for name, side in _EXPERTS.items():
        _write_expert(spec, side, folder / name, weights)
    index = {"_class_name": "WanPipeline" if spec.base == "t2v" else "WanImageToVideoPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_expert(spec: ModelSpec, side: str, folder: Path, weights: Path) -> None:
    source = weights / "experts" / side
    for_text = spec.base == "t2v"
    if not for_text and not spec.fused:
        folder.symlink_to(source, target_is_directory=True)
        return
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(source / _EXPERT_FILE)
    if for_text:
        config["in_channels"] = config["out_channels"]
        tensors[_PATCHES] = tensors[_PATCHES][:, : config["in_channels"]].contiguous()
    if spec.fused:
        tensors = with_lora(tensors, load_file(_lora(spec, side, weights)))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / _EXPERT_FILE, metadata={"format": "pt"})


def with_lora(weights: dict[str, torch.Tensor], lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` with every pair of factors of `lora` (PEFT's names, alpha equal to the rank) added, in float32."""
    merged = dict(weights)
    for key, down in lora.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            up = lora[f"{module}.lora_B.weight"]
            name = f"{module.removeprefix('transformer.')}.weight"
            merged[name] = weights[name].float() + up.float() @ down.float()
    return merged


def _lora(spec: ModelSpec, side: str, weights: Path) -> Path:
    return weights / "loras" / f"turbo-{spec.base}-{side}.safetensors"
