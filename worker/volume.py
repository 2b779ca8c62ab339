"""Where the real models come from: the volume that the settings name, or the hub by way of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

from worker import weights
from worker.folders import model_cache_dir
from worker.models import ModelSpec
from worker.settings import Settings


class VolumeSource:
    """Finds each model by the id that the settings give it; fetches what is missing."""

    def __init__(self, settings: Settings) -> None:
        self._cache_dir = model_cache_dir(settings)
        self._token = settings.hub_token
        self._ids = {"i2v": settings.i2v_model_id, "t2v": settings.t2v_model_id, "5b": settings.ti2v_model_id}

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: Literal["bf16", "fp8"]) -> Path:
        """A Diffusers-format folder of `spec`, verified, in the prepared precision where there is one.

        Raises ModelUnavailable or Cancelled.
        """
        model_id = self._ids[spec.key]
        return weights.ensure(model_id, cache_dir=self._cache_dir, token=self._token, prepared=prepared, stop=stop).path
