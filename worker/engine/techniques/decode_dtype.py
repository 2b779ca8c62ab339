"""Decoding in bf16 (`VAE_DECODE_DTYPE`): half the memory and work of the VAE's decoder, at some cost in quality.

The engine decodes after the steps, as `Run.half_decode` says; `worker.engine.decode` makes the copy of the weights
that this needs. Encoding stays in fp32, where bf16 would show.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel

from worker.engine.techniques.base import Run, Setup, Technique
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)
_BF16_SINCE = (8, 0)


def refusal(device: torch.device) -> str | None:
    """Why this device does not decode in bf16, or None."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _BF16_SINCE:
        return "bf16 needs compute capability 8.0"
    return None


class DecodeDtype(Technique):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._half: bool | None = None

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:  # noqa: ARG002 - alike for all
        if self._half is not None:
            return
        asked = self.setup.settings.vae_decode_dtype == "bf16"
        reason = refusal(self.setup.device) if asked else None
        self._half = asked and reason is None
        if reason is not None:
            logger.warning("the VAE decodes in fp32: %s", reason)
        elif asked:
            logger.info("the VAE decodes in bf16")

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        run.half_decode = self._half is True
        run.parameters["vae_decode_dtype"] = "bf16" if run.half_decode else "fp32"
        yield
