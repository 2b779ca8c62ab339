"""Videos of a training's sample prompts, without the new LoRA and with it, made as any request's video is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Preview
from worker.media import VideoFile
from worker.media.encode import encode
from worker.request import Lora, VideoRequest
from worker.request.parse import parse
from worker.request.training import TrainingRequest
from worker.training.dataset import Dataset
from worker.training.train import Trained
from worker.weights.loras import LoraFile

_STAND_IN = "https://-"


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt's two videos, of the same seed, by the name that their keys end with: `before` and `after`."""

    prompt: str
    seed: int
    files: Mapping[str, VideoFile]


class Unwatched:
    """The engine's watcher that shows nothing: the samples' progress is counted in videos."""

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...

    def preview(self, preview: Preview) -> None: ...


def make(
    request: TrainingRequest, dataset: Dataset, trained: Trained, engine: Engine, folder: Path, stop: Stop
) -> Iterator[Sample]:
    """Yields the samples in the order of the prompts. Blocks; runs in the GPU's thread.

    Raises the reason of `stop`, and what the engine and the encoder raise.
    """
    loras = tuple(
        (
            Lora(each.path.name, 1.0, each.learned.training.expert or "both", f"loras[{number}].source"),
            LoraFile(each.path, each.sha256, each.path.name),
        )
        for number, each in enumerate(trained.experts)
    )
    conditioning = _conditioning(request, dataset)
    for number, prompt in enumerate(request.sample_prompts):
        wanted = _request(request, prompt, engine, conditioning)
        files = {}
        for name, pairs in (("before", ()), ("after", loras)):
            video = replace(wanted, loras=tuple(lora for lora, _ in pairs))
            files_of = tuple(file for _, file in pairs)
            # The model that was trained, whichever one would serve this size.
            made = replace(engine.video(video), spec=request.model, conditioning=conditioning, loras=files_of)
            rendering = engine.generate(made, watcher=Unwatched(), stop=stop)
            with closing(rendering.frames()) as frames:
                files[name] = encode(
                    frames,
                    path=folder / f"{number}-{name}.mp4",
                    poster=None,
                    width=rendering.shape.width,
                    height=rendering.shape.height,
                    num_frames=rendering.shape.num_frames,
                    fps=video.fps,
                    on_frame=lambda _: stop.check(),
                )
        yield Sample(wanted.prompt, wanted.seed, files)


def _conditioning(request: TrainingRequest, dataset: Dataset) -> Conditioning:
    """For image-to-video the first frame of a clip, one that is held out where there is one."""
    if "text_to_video" in request.model.modes:
        return Conditioning()
    clip = (*dataset.held_out, *dataset.clips)[0]
    return Conditioning(image=Image.fromarray(np.array(np.load(clip.frames, mmap_mode="r")[0])))


def _request(request: TrainingRequest, prompt: str, engine: Engine, conditioning: Conditioning) -> VideoRequest:
    """The request of one sample: its model's defaults, at the size that was trained."""
    trigger, spec = request.trigger_phrase, request.model
    payload: dict[str, Any] = {
        "prompt": prompt if trigger.casefold() in prompt.casefold() else f"{trigger}, {prompt}",
        "model": spec.name,
        "seed": request.seed,
    }
    if conditioning.image is not None:
        payload["reference_image_url"] = _STAND_IN
    (video,) = parse(payload, default_job_id="sample", catalogue=engine.catalogue).videos
    frames = request.num_frames if request.num_frames > 1 else spec.defaults.num_frames
    return replace(video, width=request.width, height=request.height, num_frames=frames)
