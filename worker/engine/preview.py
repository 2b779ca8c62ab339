"""Early looks at a video while it is denoised.

A preview shows x0 = x - sigma * v, the estimate of the clean latents that the scheduler's step has computed from the
expert's answer, by a linear map to colours (`preview_map`). The engine's thread only queues a copy of it, which does
not wait for the device; whoever has the preview makes the file, in another thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from worker.engine.preview_map import ColourMap
from worker.media import preview_file
from worker.request.payload import PreviewKind

_FRAMES_OF_LATENT = 4


@dataclass(frozen=True, slots=True)
class Preview:
    """After `step` of the steps: the estimate `latents` [z_dim, T, h, w] on its way to host memory.

    `arrived` is None where the copy is there already.
    """

    step: int
    kind: PreviewKind
    fps: int
    colours: ColourMap = field(repr=False)
    latents: torch.Tensor = field(repr=False)
    arrived: torch.cuda.Event | None = field(repr=False)

    def webp(self, most_bytes: int) -> bytes:
        """The file. Blocks until the copy has arrived; raises EncodeFailed where it cannot be as small."""
        if self.arrived is not None:
            self.arrived.synchronize()
        frames = self.colours.frames(self.latents)
        if self.kind == "animated":
            return preview_file.animated(frames, self.fps / _FRAMES_OF_LATENT, most_bytes)
        return preview_file.strip(frames, most_bytes)


def copied(estimate: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy of `estimate` in (pinned) host memory, and what says that it has arrived; queued without waiting."""
    copy = estimate.detach().to("cpu", non_blocking=True, copy=True)
    if estimate.device.type != "cuda":
        return copy, None
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return copy, arrived
