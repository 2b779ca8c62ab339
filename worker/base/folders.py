"""Where models and state are stored: the folders that the settings name, or those of the mounted volume."""

from __future__ import annotations

from pathlib import Path

from worker.base.settings import Settings

POD_VOLUME = Path("/workspace")
SERVERLESS_VOLUME = Path("/runpod-volume")


def model_cache_dir(settings: Settings) -> Path:
    """Where model weights are stored: `MODEL_CACHE_DIR`, or the first volume that exists, or the user's cache.

    A network volume is mounted at /workspace on pods and at /runpod-volume on serverless.
    """
    if settings.model_cache_dir is not None and not settings.model_cache_dir.is_relative_to(POD_VOLUME):
        return settings.model_cache_dir
    wanted = settings.model_cache_dir or POD_VOLUME / "models"
    if POD_VOLUME.is_dir():
        return wanted
    if SERVERLESS_VOLUME.is_dir():
        return SERVERLESS_VOLUME / wanted.relative_to(POD_VOLUME)
    return Path.home() / ".cache" / "videogen" / "models"


def state_dir(settings: Settings) -> Path:
    """Where journal, outbox and spool are: `STATE_DIR`, or `state` beside the model cache on a volume, or ./.state."""
    if settings.state_dir is not None:
        return settings.state_dir
    cache = model_cache_dir(settings)
    if settings.model_cache_dir is not None or any(
        cache.is_relative_to(volume) for volume in (POD_VOLUME, SERVERLESS_VOLUME)
    ):
        return cache.parent / "state"
    return Path("./.state")
