"""Where the real models come from: the volume that the settings name, or the hub by way of it."""

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


def catalogue(settings: Settings) -> tuple[ModelSpec, ...]:
    """The models that can be served from the volume: all of them, and those with fused weights that lie there."""
    ids, cache_dir = _ids(settings), model_cache_dir(settings)
    lying = (
        spec
        for spec in CATALOGUE
        if spec.distilled and fused.find(ids[spec.key], cache_dir=cache_dir, prepared="bf16") is not None
    )
    return (*CATALOGUE, *map(with_distilled_fused, lying))


class VolumeSource:
    """Finds each model by the id that the settings give it; fetches what is missing."""

    def __init__(self, settings: Settings) -> None:
        self._cache_dir = model_cache_dir(settings)
        self._token = settings.hub_token
        self._ids = _ids(settings)

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: Literal["bf16", "fp8"]) -> Path:
        """A Diffusers-format folder of `spec`, verified, in the prepared precision where there is one.

        Raises ModelUnavailable or Cancelled.
        """
        model_id = self._ids[spec.base]
        if spec.fused:
            return fused.ensure(model_id, cache_dir=self._cache_dir, prepared=prepared).path
        return ensure(model_id, cache_dir=self._cache_dir, token=self._token, prepared=prepared, stop=stop).path


def _ids(settings: Settings) -> dict[str, str]:
    return {"i2v": settings.i2v_model_id, "t2v": settings.t2v_model_id, "5b": settings.ti2v_model_id}
