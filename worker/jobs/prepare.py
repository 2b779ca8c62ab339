"""Before the GPU's turn: fetch what a request points to, settle its size, refuse what cannot be served."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from worker.base.errors import InputInvalid
from worker.engine import Conditioning, Engine
from worker.media import inputs
from worker.net import Opener
from worker.request import ModelSpec, VideoRequest
from worker.request.parse import DEFAULT_HEIGHT, DEFAULT_WIDTH
from worker.request.payload import MIN_FRAMES
from worker.weights.loras import DistilledFiles, LoraFile, LoraStore


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose size is settled, with what it points to, and the distilled LoRAs where turbo needs them."""

    request: VideoRequest
    conditioning: Conditioning
    loras: tuple[LoraFile, ...] = ()
    distilled: DistilledFiles | None = None


def prepare(video: VideoRequest, engine: Engine, opener: Opener, loras: LoraStore, stop: threading.Event) -> Prepared:
    """Blocks while it fetches and decodes.

    Raises Unsupported and InvalidRequest for what this worker does not serve or its GPU cannot hold, and what
    `worker.media.inputs` raises.
    """
    spec = engine.spec_for(video)
    images = {}
    for field in ("reference_image_url", "last_image_url"):
        if (url := getattr(video, field)) is not None:
            images[field] = inputs.load_image(url, opener=opener, path=video.at(field), stop=stop)
    width, height = video.width, video.height
    if width is None or height is None:
        area = DEFAULT_WIDTH * DEFAULT_HEIGHT
        width, height = inputs.size_for(images["reference_image_url"].size, area=area, stride=spec.size_stride)
        video = replace(video, width=width, height=height)
    engine.plan_for(video)
    files = tuple(
        loras.fetch(lora.source, path=video.at(f"loras[{number}].source"), stop=stop)
        for number, lora in enumerate(video.loras)
    )
    distilled = None
    if video.quality_preset == "turbo" and spec.distilled:
        distilled = loras.fetch_distilled(spec.distilled, path=video.at("quality_preset"), stop=stop)
    if video.reference_video_url is not None:
        prepared = _with_video(video, video.reference_video_url, (width, height), spec, opener, stop)
        return replace(prepared, loras=files, distilled=distilled)
    fitted = {field: inputs.fit(image, width, height) for field, image in images.items()}
    conditioning = Conditioning(fitted.get("reference_image_url"), fitted.get("last_image_url"))
    return Prepared(video, conditioning, files, distilled)


def _with_video(
    video: VideoRequest, url: str, size: tuple[int, int], spec: ModelSpec, opener: Opener, stop: threading.Event
) -> Prepared:
    """The frames of the reference video; where it is shorter than what was asked for, so is the answer."""
    path = video.at("reference_video_url")
    frames = inputs.load_video(
        url,
        opener=opener,
        path=path,
        fps=video.fps,
        width=size[0],
        height=size[1],
        max_frames=video.num_frames,
        stop=stop,
    )
    count = (len(frames) - 1) // spec.frame_stride * spec.frame_stride + 1
    if count < MIN_FRAMES:
        raise InputInvalid(
            f"the video has {len(frames)} frames at {video.fps} fps: send one with at least {MIN_FRAMES}", path=path
        )
    if count < video.num_frames:
        note = f"{video.at('num_frames')}: {video.num_frames} lowered to {count}, the length of the reference video"
        video = replace(video, num_frames=count, warnings=(*video.warnings, note))
    return Prepared(video, Conditioning(video=frames[:count]))
