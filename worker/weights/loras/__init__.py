"""LoRA files: fetched from URLs, the hub or the volume, their content and keys read, fused into weights."""

from worker.weights.loras.store import DistilledFiles, LoraFile, LoraStore

__all__ = ["DistilledFiles", "LoraFile", "LoraStore"]
