"""Before the GPU's turn: choose model and plan, fetch what a request points to, refuse what cannot be served."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from PIL.Image import Image

from worker.base.errors import InputInvalid
from worker.engine import Conditioning, Engine, Video
from worker.media import formats, inputs
from worker.net import Opener
from worker.request import VideoRequest, choose, prompt
from worker.request.payload import MIN_FRAMES
from worker.request.values import DEFAULT_HEIGHT, DEFAULT_WIDTH
from worker.weights.loras import LoraStore


def prepare(
    request: VideoRequest,
    following: Sequence[VideoRequest],
    *,
    engine: Engine,
    opener: Opener,
    loras: LoraStore,
    stop: threading.Event,
) -> Video:
    """The video that `request` asks for, ready to be made. `following` are the job's next requests: the texts of those
    that the same model serves are encoded with its own.

    Blocks while it fetches and decodes. Raises Unsupported and InvalidRequest for what this worker does not serve or
    its GPU cannot hold, what `worker.media.inputs` raises, and what the LoRA store raises.
    """
    spec = choose(engine.catalogue, request)  # refuses before anything is fetched
    formats.check(request.output, path=request.at("output_codec"))
    request = replace(request, warnings=(*request.warnings, *formats.notes(request)))
    later = _texts(request, following)
    images = {}
    for field in ("reference_image_url", "last_image_url"):
        if (url := getattr(request, field)) is not None:
            images[field] = inputs.load_image(url, opener=opener, path=request.at(field), stop=stop)
    if request.width is None or request.height is None:
        area, image = DEFAULT_WIDTH * DEFAULT_HEIGHT, images["reference_image_url"]
        width, height = inputs.size_for(image.size, area=area, stride=spec.size_stride)
        request = replace(request, width=width, height=height)
    video = engine.video(request)  # refuses what does not fit before the rest is fetched
    if request.reference_video_url is not None:
        frames = _frames(video, request.reference_video_url, opener, stop)
        if len(frames) < request.num_frames:
            video = engine.video(_shortened(request, len(frames)))
        conditioning = Conditioning(video=frames)
    else:
        shape = video.shape
        fitted = {field: inputs.fit(image, shape.width, shape.height) for field, image in images.items()}
        conditioning = Conditioning(fitted.get("reference_image_url"), fitted.get("last_image_url"))
    files = tuple(
        loras.fetch(lora.source, path=request.at(f"loras[{number}].source"), stop=stop)
        for number, lora in enumerate(request.loras)
    )
    distilled = None
    if request.quality_preset == "turbo" and video.spec.distilled:
        distilled = loras.fetch_distilled(video.spec.distilled, path=request.at("quality_preset"), stop=stop)
    return replace(video, conditioning=conditioning, loras=files, distilled=distilled, later=later)


def _frames(video: Video, url: str, opener: Opener, stop: threading.Event) -> list[Image]:
    """The frames of the reference video, at most those that were asked for, and a number that the model makes."""
    request, shape, stride = video.request, video.shape, video.spec.frame_stride
    path = request.at("reference_video_url")
    frames = inputs.load_video(
        url,
        opener=opener,
        path=path,
        fps=request.fps,
        width=shape.width,
        height=shape.height,
        max_frames=request.num_frames,
        stop=stop,
    )
    count = (len(frames) - 1) // stride * stride + 1
    if count < MIN_FRAMES:
        raise InputInvalid(
            f"the video has {len(frames)} frames at {request.fps} fps: send one with at least {MIN_FRAMES}", path=path
        )
    return frames[:count]


def _shortened(request: VideoRequest, count: int) -> VideoRequest:
    note = f"{request.at('num_frames')}: {request.num_frames} lowered to {count}, the length of the reference video"
    return replace(request, num_frames=count, warnings=(*request.warnings, note))


def _texts(request: VideoRequest, following: Sequence[VideoRequest]) -> tuple[str, ...]:
    """What the text encoder will read for those of `following` that the same model serves."""

    def kind(each: VideoRequest) -> tuple[object, ...]:
        return each.model, each.mode, each.quality_preset, each.height, each.width, each.num_frames

    alike = [each for each in following if kind(each) == kind(request)]
    guided = [each for each in alike if max(each.guidance_scale, each.guidance_scale_2) > 1]
    return (*map(prompt.of_request, alike), *(each.negative_prompt for each in guided))
