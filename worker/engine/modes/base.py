"""What a mode is: a Wan pipeline of its own and the call that makes latents with it.

A new mode is one file beside this one and one line in `worker.engine.modes.MODES`: docs/adding-a-mode.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanPipeline
from diffusers.utils.torch_utils import randn_tensor

from worker.engine.modes import known_frames, svi
from worker.request import Mode

if TYPE_CHECKING:
    from PIL.Image import Image

Estimate = Callable[[], torch.Tensor]
# Called after each denoising step with the number of steps done and of steps in all, and what computes the estimate of
# the clean latents of that step, [1, z_dim, T, h, w]. False: the steps that are left are not made. Raising in it ends
# the run.
StepWatcher = Callable[[int, int, Estimate], bool]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the request pointed to, fetched and decoded.

    image, last_image: RGB, already at the size of the frame. video: RGB frames at the request's fps and size; beside
    `image` the first ones, 4k + 1 and `image` among them.
    svi: by the method of `worker.engine.modes.svi`. `image` is then its anchor, `tail` the last latents of the clip
    before, float32 [1, z_dim, k, h, w]; where a video is before, `video` are its last 4k + 1 frames.
    """

    image: Image | None = None
    last_image: Image | None = None
    video: Sequence[Image] | None = None
    svi: bool = False
    tail: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """What every mode gives its pipeline.

    prompt_embeds, negative_prompt_embeds: [1, 512, text_dim] in the experts' dtype; the negative ones are None where no
    guidance runs. `guidance_scale_2` is None for a model with a single expert.
    """

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    generator: torch.Generator
    strength: float
    on_step: StepWatcher

    def arguments(self, tensors: Sequence[str] = ()) -> dict[str, Any]:
        """Keyword arguments that all Wan pipelines take alike; the answer is latents [1, z_dim, T, h, w].

        `tensors` are names of the pipeline's own that the estimate of the clean latents needs.
        """

        def after_step(pipeline: Any, step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            estimate = partial(_estimate, pipeline.scheduler, tensors.get("condition"), tensors.get("first_frame_mask"))
            if not self.on_step(step + 1, pipeline.num_timesteps, estimate):
                pipeline._interrupt = True
            return tensors

        return {
            "width": self.width,
            "height": self.height,
            "num_frames": self.num_frames,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_scale_2": self.guidance_scale_2,
            "prompt_embeds": self.prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
            "generator": self.generator,
            "output_type": "latent",
            "callback_on_step_end": after_step,
            "callback_on_step_end_tensor_inputs": list(tensors),
            "return_dict": False,
        }


def _estimate(scheduler: Any, condition: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """x0 = x - sigma * v, as the step that was just made has it. Where a model's first latent frame is the picture
    itself, that frame is the picture."""
    clean: torch.Tensor = scheduler.model_outputs[-1]
    return clean if condition is None or mask is None else (1 - mask) * condition + mask * clean


class VideoMode(Protocol):
    """One way to make a video."""

    name: Mode
    pipeline: type[DiffusionPipeline]

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        """Run the denoising steps. Returns normalised latents, float32 [1, z_dim, T, h, w] on the pipeline's device."""
        ...


class _OurRun:
    """Four departures from Diffusers' pipelines.

    Guidance runs on the expert that asks for it: Diffusers looks at the high-noise expert's scale only. It would drop
    `guidance_scale_2` = 3.5 beside `guidance_scale` = 1 without a word, and the other way round make a second pass at
    every low-noise step whose result counts nothing. The device is given, not guessed from the first part, which
    may wait in host memory. And the timestep is fetched from the device once, at the beginning of a step, where
    Diffusers waits for the device too: in the midst of it, the device would be idle until the next pass is queued.
    And guidance ends behind the share of the steps that is `guidance_until`.
    """

    run_device: torch.device = torch.device("cpu")
    guidance_until: float = 1.0
    _guidance_scale: float
    _guidance_scale_2: float | None
    _timestep: torch.Tensor | None = None
    _timestep_on_host: float | None = None
    _steps_begun: int = 0

    @property
    def _current_timestep(self) -> torch.Tensor | None:
        return self._timestep

    @_current_timestep.setter
    def _current_timestep(self, timestep: torch.Tensor | None) -> None:
        self._timestep = timestep
        self._timestep_on_host = None if timestep is None else float(timestep)
        self._steps_begun = 0 if timestep is None else self._steps_begun + 1

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Of the current step; before the first, whether any step is guided."""
        high = self._guidance_scale
        low = high if self._guidance_scale_2 is None else self._guidance_scale_2
        boundary_ratio = self.config.boundary_ratio  # type: ignore[attr-defined]
        if self._timestep_on_host is None:
            return max(high, low) > 1 and self.guidance_until > 0
        if self._steps_begun > math.ceil(self.guidance_until * self.num_timesteps):  # type: ignore[attr-defined]
            return False
        if boundary_ratio is None:
            return high > 1
        boundary = boundary_ratio * self.scheduler.config.num_train_timesteps  # type: ignore[attr-defined]
        return (high if self._timestep_on_host >= boundary else low) > 1

    @property
    def _execution_device(self) -> torch.device:
        return self.run_device


class TextPipeline(_OurRun, WanPipeline):  # type: ignore[misc]
    """Diffusers' text-to-video pipeline, guided where an expert asks for it."""


class ImagePipeline(_OurRun, WanImageToVideoPipeline):  # type: ignore[misc]
    """Diffusers' image-to-video pipeline, guided where an expert asks for it.

    `given` holds what the pipeline cannot be called with: more first frames than the picture, and what SVI needs.
    """

    given: Conditioning = Conditioning()

    def prepare_latents(self, image: torch.Tensor, batch_size: int, *sizes: Any, **more: Any) -> Any:
        """Noise and condition. Diffusers passes its arguments by place, `last_image` at the end."""
        given = self.given
        if not given.video and not given.svi:
            return super().prepare_latents(image, batch_size, *sizes, **more)
        channels, height, width, num_frames, dtype, device, generator, _, last_image = sizes
        scale = self.vae_scale_factor_spatial
        latent_frames = (num_frames - 1) // self.vae_scale_factor_temporal + 1
        shape = (batch_size, channels, latent_frames, height // scale, width // scale)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if given.svi:
            before = given.video if given.tail is None else given.tail
            return noise, svi.condition(self.vae, image, before, latent_frames, device, dtype)
        return noise, known_frames.condition(self.vae, given.video or (), last_image, num_frames, device, dtype)

    _callback_tensor_inputs: ClassVar = [
        *WanImageToVideoPipeline._callback_tensor_inputs,
        "condition",
        "first_frame_mask",
    ]

    @property
    def for_estimates(self) -> tuple[str, ...]:
        """See `Sampling.arguments`."""
        return ("condition", "first_frame_mask") if self.config.expand_timesteps else ()
