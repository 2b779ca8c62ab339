"""One video that is to be made: everything that is settled before the GPU's turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.modes.base import Conditioning
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import MemoryPlan, Shape
from worker.weights.loras import DistilledFiles, LoraFile


@dataclass(frozen=True, slots=True)
class Video:
    """A request with its size settled, the model and the memory plan chosen for it, and what it points to.

    `prompt` is the text as it goes to the text encoder. `loras` are the files of the request's LoRAs in their order,
    `distilled` those of turbo, None where it needs none; `svi` those of Stable Video Infinity, high and low. `later`
    are texts that the job's next videos need of the same model: they are encoded with this one's, so that the text
    encoder is loaded once. `segments` are the clips of a longer video, each a video of its own. `ingredients` is what
    the marks say of the pictures or video that were sent.
    Can be pickled.
    """

    request: VideoRequest
    spec: ModelSpec
    plan: MemoryPlan
    prompt: str
    conditioning: Conditioning = field(default_factory=Conditioning)
    loras: tuple[LoraFile, ...] = ()
    distilled: DistilledFiles | None = None
    svi: tuple[LoraFile, LoraFile] | None = None
    later: tuple[str, ...] = ()
    ingredients: tuple[bytes, ...] = ()
    segments: tuple[Video, ...] = ()

    @property
    def shape(self) -> Shape:
        return Shape.of(self.request, self.spec)
