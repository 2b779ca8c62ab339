"""Before the GPU's turn: choose model and plan, fetch what a request points to, refuse what cannot be served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from worker.base.errors import InputInvalid, InvalidRequest
from worker.engine import Conditioning, Engine, Video
from worker.jobs import expand
from worker.media import formats, inputs
from worker.media.decode_video import SourceVideo
from worker.net import Opener
from worker.net.language_model import LanguageModel
from worker.request import ModelSpec, VideoRequest, choose, prompt
from worker.request.payload import MIN_FRAMES
from worker.weights.loras import LoraStore

Seen = Callable[[bytes | Path], None]
# Of a source's pixels; a crop of more than this is reported.
MAX_SILENT_CROP = 0.05


def prepare(
    request: VideoRequest,
    following: Sequence[VideoRequest],
    *,
    engine: Engine,
    opener: Opener,
    loras: LoraStore,
    stop: threading.Event,
    max_pixels: int,
    writer: LanguageModel | None = None,
    seen: Seen | None = None,
) -> Video:
    """The video that `request` asks for, ready to be made. `following` are the job's next requests: the texts of those
    that the same model serves are encoded with its own. `writer` expands prompts.
    `seen` is called with each picture and video that the request points to.

    Blocks while it fetches and decodes. Raises Unsupported and InvalidRequest for what this worker does not serve or
    its GPU cannot hold, what `worker.media.inputs` raises, and what the LoRA store raises.
    """
    spec = choose(engine.catalogue, request)  # refuses before anything is fetched
    formats.check(request.output, path=request.at("output_codec"))
    expand.check(request, writer)
    if request.output.upload_url is not None:
        opener.check_name(request.output.upload_url, path=request.at("upload_url"), stop=stop)
    request = replace(request, warnings=(*request.warnings, *formats.notes(request)))
    later = _texts(request, following)
    if request.reference_video_url is not None:
        path = request.at("reference_video_url")
        with inputs.fetch_video(request.reference_video_url, opener=opener, path=path, stop=stop, seen=seen) as source:
            request = _sized(request, {"reference_video_url": source.size}, spec, max_pixels)
            request = expand.expanded(request, None, writer, stop)
            video, conditioning = _of_video(source, request, engine, stop)
    else:
        given = {field: getattr(request, field) for field in ("reference_image_url", "last_image_url")}
        images = {
            field: inputs.load_image(url, opener=opener, path=request.at(field), stop=stop, seen=seen)
            for field, url in given.items()
            if url is not None
        }
        request = _sized(request, {field: image.size for field, image in images.items()}, spec, max_pixels)
        video = engine.video(expand.expanded(request, images.get("reference_image_url"), writer, stop))
        shape = video.shape
        fitted = {field: inputs.fit(image, shape.width, shape.height) for field, image in images.items()}
        conditioning = Conditioning(fitted.get("reference_image_url"), fitted.get("last_image_url"))
    files = tuple(loras.fetch(lora.source, path=request.at(lora.field), stop=stop) for lora in request.loras)
    distilled = None
    if request.quality_preset == "turbo" and video.spec.distilled:
        distilled = loras.fetch_distilled(video.spec.distilled, path=request.at("quality_preset"), stop=stop)
    return replace(video, conditioning=conditioning, loras=files, distilled=distilled, later=later)


def _sized(
    request: VideoRequest, sources: Mapping[str, tuple[int, int]], spec: ModelSpec, max_pixels: int
) -> VideoRequest:
    """`request` with both sides, and a warning of each crop. What is not given follows the first of `sources`, which
    are sizes by the field they came in."""
    if not sources:
        return request
    try:
        width, height = inputs.size_following(
            next(iter(sources.values())), request, stride=spec.size_stride, max_pixels=max_pixels
        )
    except ValueError as failure:
        side = "height" if request.width is None else "width"
        raise InvalidRequest(f"{failure}: send a smaller one", path=request.at(side)) from failure
    shares = {field: inputs.cropped_share(size, width, height) for field, size in sources.items()}
    notes = (
        f"{request.at(field)}: {share:.0%} of it is outside of {width}x{height} and is cropped"
        for field, share in shares.items()
        if share > MAX_SILENT_CROP
    )
    return replace(request, width=width, height=height, warnings=(*request.warnings, *notes))


def _of_video(
    source: SourceVideo, request: VideoRequest, engine: Engine, stop: threading.Event
) -> tuple[Video, Conditioning]:
    """The video, and the frames of its source: at most those that were asked for, and a number that the model makes."""
    video = engine.video(request)
    frames = source.frames(
        fps=request.fps,
        width=video.shape.width,
        height=video.shape.height,
        max_frames=request.num_frames,
        stop=stop,
    )
    count = (len(frames) - 1) // video.spec.frame_stride * video.spec.frame_stride + 1
    if count < MIN_FRAMES:
        message = f"the video has {len(frames)} frames at {request.fps} fps: send one with at least {MIN_FRAMES}"
        raise InputInvalid(message, path=source.path)
    if count < request.num_frames:
        video = engine.video(_shortened(request, count))
    return video, Conditioning(video=frames[:count])


def _shortened(request: VideoRequest, count: int) -> VideoRequest:
    note = f"{request.at('num_frames')}: {request.num_frames} lowered to {count}, the length of the reference video"
    return replace(request, num_frames=count, warnings=(*request.warnings, note))


def _texts(request: VideoRequest, following: Sequence[VideoRequest]) -> tuple[str, ...]:
    """What the text encoder will read for those of `following` that the same model serves."""

    def kind(each: VideoRequest) -> tuple[object, ...]:
        return each.model, each.mode, each.quality_preset, each.height, each.width, each.num_frames

    alike = [each for each in following if kind(each) == kind(request) and not each.prompt_expansion]
    guided = [each for each in alike if each.is_guided]
    return (*map(prompt.of_request, alike), *(each.negative_prompt for each in guided))
