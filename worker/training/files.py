"""The LoRA of one expert as a file that this worker, Diffusers and ComfyUI read: Diffusers' keys, facts in its header.

alpha is in the factors already, so that every reader's scale is 1: some read no alpha, others not from the same place.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save as serialised

from worker.base.version import VERSION
from worker.request.training import TrainingRequest
from worker.training.expert import Learned


def save(learned: Learned, request: TrainingRequest, path: Path) -> None:
    """Write the best factors, in the type in which they were trained. The same training writes the same bytes."""
    scale = request.alpha / request.rank
    tensors = {
        f"transformer.{name}": (value * scale if ".lora_B." in name else value).contiguous()
        for name, value in learned.weights.items()
    }
    path.write_bytes(_sorted(serialised(tensors, {"format": "pt", **metadata(learned, request)})))


def _sorted(content: bytes) -> bytes:
    """The file with its facts in order: safetensors writes them in one that is drawn again each time."""
    begins = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begins])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[begins:]


def metadata(learned: Learned, request: TrainingRequest) -> dict[str, str]:
    """safetensors' header holds texts alone."""
    facts = {
        "base_model": request.model.version,
        "expert": learned.training.expert or "both",
        "rank": request.rank,
        "alpha": request.alpha,
        "trigger_phrase": request.trigger_phrase,
        "steps": learned.progress.step,
        "best_step": learned.best_step,
        "seed": request.seed,
        "software": f"videogen-runpod {VERSION}",
    }
    return {name: str(value) for name, value in facts.items()}
