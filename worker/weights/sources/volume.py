"""The source of the real models: the volume that the settings name, which is filled from the hub."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

from worker.base.folders import model_cache_dir
from worker.base.settings import Settings
from worker.request import CATALOGUE, ModelSpec
from worker.request.catalogue import with_distilled_fused
from worker.weights.ensure import ensure
from worker.weights.folder import fused
from worker.weights.folder.places import ModelCache


def catalogue(settings: Settings) -> tuple[ModelSpec, ...]:
    """The models that can be served from the volume: all of them, and those whose fused weights it has."""
    cache = ModelCache(model_cache_dir(settings))
    stored = (
        spec
        for spec in CATALOGUE
        if spec.distilled and fused.find(cache, settings.model_ids[spec.base], "bf16") is not None
    )
    return (*CATALOGUE, *map(with_distilled_fused, stored))


class VolumeSource:
    """Finds each model by the id that the settings give it; fetches what is missing."""

    def __init__(self, settings: Settings) -> None:
        self._cache = ModelCache(model_cache_dir(settings), token=settings.hub_token)
        self._ids = settings.model_ids

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: Literal["bf16", "fp8"]) -> Path:
        """A Diffusers-format folder of `spec`, verified, in the prepared precision where there is one.

        Raises ModelUnavailable or Cancelled.
        """
        model_id = self._ids[spec.base]
        if spec.fused:
            return fused.ensure(self._cache, model_id, prepared).path
        return ensure(self._cache, model_id, prepared=prepared, stop=stop).path
