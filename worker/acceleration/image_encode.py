"""The reference picture's encode without the work that the blank frames behind it repeat (`worker.vae_encode`); exact.

It takes the place of the VAE's own loop for one run of image-to-video or first-and-last-frame. What makes latents of a
video, or of the 5B model's single picture, is left as it is; so is a tiled encode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from worker import vae_encode
from worker.acceleration.base import Run, Setup, Technique

logger = logging.getLogger(__name__)


class ImageEncode(Technique):
    """`ENABLE_IMAGE_ENCODE_REUSE`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._told: set[str] = set()

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        if run.request.mode not in ("image_to_video", "first_last_frame"):
            yield
            return
        reason = _hindrance(run)
        if not self.setup.settings.enable_image_encode_reuse or reason is not None:
            run.parameters["image_encode_reuse"] = "off"
            if self.setup.settings.enable_image_encode_reuse and reason is not None and reason not in self._told:
                self._told.add(reason)
                logger.info("image_encode_reuse is off: %s", reason)
            yield
            return
        run.parameters["image_encode_reuse"] = "on"
        vae, passes = run.components.shared.vae, vae_encode.Passes()
        # Of this one object: `encode` calls it, and with it the hooks and the distribution stay Diffusers' own.
        vae.__dict__["_encode"] = vae_encode.reusing(vae, passes)
        try:
            yield
        finally:
            del vae.__dict__["_encode"]
        run.parameters["image_encode_share"] = round(passes.share_left_out, 3)


def _hindrance(run: Run) -> str | None:
    """Why there is nothing to leave out in this run, or None."""
    if run.spec.boundary_ratio is None:
        return "this model encodes the picture alone, without frames behind it"
    if run.plan.vae_tiling:
        return "the memory plan encodes in tiles"
    return None
