"""A payload becomes a `Job` of `VideoRequest`s.

All problems of a payload are reported at once, each with its dotted path. Importing this module loads neither torch nor
diffusers.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from worker.base.errors import InputBlocked, InvalidRequest, Problem
from worker.request import foreign
from worker.request.catalogue import CATALOGUE, ModelSpec
from worker.request.complaints import read
from worker.request.names import unknown_fields
from worker.request.payload import (
    MAX_LORAS,
    MAX_SEED,
    MAX_SEGMENTS,
    JobInput,
    Limits,
    LoraInput,
    SegmentInput,
    VideoInput,
)
from worker.request.problems import Problems, join
from worker.request.settle import settle
from worker.request.values import Job, VideoRequest

DEFAULT_LIMITS = Limits()
_LIST = "job_request_params"
_JOB_NAMES = frozenset({*JobInput.model_fields, _LIST, "train"})
_VIDEO_NAMES = frozenset(VideoInput.model_fields)
_FLAT_NAMES = _JOB_NAMES | _VIDEO_NAMES
_LORA_NAMES = frozenset(LoraInput.model_fields)
_SEGMENT_NAMES = frozenset({*SegmentInput.model_fields, *VideoInput.model_fields})
# Known in a segment, but to be sent around it.
_AROUND_SEGMENTS = [name for name in VideoInput.model_fields if name not in SegmentInput.model_fields]
_PICTURES = ("reference_image_url", "last_image_url")
_URLS = (*_PICTURES, "reference_video_url", "extend_video_url", "upload_url")
# What is a URL to the store of LoRAs, and no name of a file.
_HAS_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")


class UrlCheck(Protocol):
    """Raises InputBlocked or InvalidRequest for a URL that may not be fetched, as far as that is known at once."""

    def __call__(self, url: str, *, path: str) -> None: ...


def draw_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)


def parse(
    payload: object,
    *,
    default_job_id: str,
    limits: Limits = DEFAULT_LIMITS,
    catalogue: Sequence[ModelSpec] = CATALOGUE,
    check_url: UrlCheck | None = None,
    new_seed: Callable[[], int] = draw_seed,
) -> Job:
    """Read the `input` of a RunPod event.

    `default_job_id` is RunPod's id of the job, used where the payload names none; `catalogue` are the models whose
    defaults a request has. Raises InvalidRequest, or InputBlocked where URLs are all that is wrong; either names every
    problem of the payload (up to MAX_NAMED_PROBLEMS) with its path and its remedy.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest("must be an object with job_request_params (or prompt)", path="input")
    problems = Problems()
    job = read(JobInput, payload, limits, problems)
    if job.webhook_url is not None:
        vet("webhook_url", job.webhook_url, check_url, problems)
    listed = payload.get(_LIST) is not None
    flat = not listed and "prompt" in payload
    if listed:
        unknown_fields(payload, _JOB_NAMES, foreign.OF_JOB, problems)
    else:
        unknown_fields(payload, _FLAT_NAMES, foreign.OF_FLAT, problems)
    videos: list[VideoRequest] = []
    for path, item in _items(payload, flat, limits, problems):
        own = problems.at(path)
        if not flat:
            unknown_fields(item, _VIDEO_NAMES, foreign.OF_VIDEO, own)
        _look_inside(item, own)
        video = read(VideoInput, item, limits, own, prompt="-")
        _check_urls(video, check_url, own)
        videos += settle(video, len(videos), catalogue, limits, new_seed, own)
    if len(videos) > limits.max_videos_per_job:
        _refuse_count(len(videos), "num_outputs" if flat else _LIST, limits, problems)
    if problems.found.problems:
        raise problems.found.error()
    return Job(
        job_id=job.job_id if job.job_id is not None else default_job_id,
        webhook_url=job.webhook_url,
        webhook_events=frozenset(job.webhook_events),
        videos=tuple(videos),
    )


def _items(
    payload: Mapping[str, object], flat: bool, limits: Limits, problems: Problems
) -> Sequence[tuple[str, Mapping[str, Any]]]:
    if flat:
        return [("", payload)]
    entries = payload.get(_LIST)
    if entries is None:
        problems.refuse(_LIST, "is missing: send a list of video requests, each with a prompt")
        return []
    if not isinstance(entries, list) or not entries:
        problems.refuse(_LIST, "must be a list of 1 or more video requests")
        return []
    if len(entries) > limits.max_videos_per_job:
        _refuse_count(len(entries), _LIST, limits, problems)
        return []
    read: list[tuple[str, Mapping[str, Any]]] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            read.append((f"{_LIST}[{index}]", entry))
        else:
            problems.refuse(f"{_LIST}[{index}]", "must be an object with a prompt")
    return read


def _refuse_count(count: int, field: str, limits: Limits, problems: Problems) -> None:
    problems.refuse(field, f"asks for {count} videos; send at most {limits.max_videos_per_job} in one job")


def _look_inside(item: Mapping[str, Any], problems: Problems) -> None:
    """Unknown fields of the segments and LoRAs, whose warnings are the video's."""
    for field, most, known, table in (
        ("segments", MAX_SEGMENTS, _SEGMENT_NAMES, foreign.OF_VIDEO),
        ("loras", MAX_LORAS, _LORA_NAMES, foreign.OF_LORA),
    ):
        sent = item.get(field)
        for index, each in enumerate(sent[:most] if isinstance(sent, list) else ()):
            if isinstance(each, Mapping):
                place = problems.at(f"{join(problems.path, field)}[{index}]")
                unknown_fields(each, known, table, place)
                if field == "segments":
                    for name in _AROUND_SEGMENTS:
                        if each.get(name) is not None:
                            place.refuse(name, "is not a field of a segment; send it in the request around it")
                    _look_inside({"loras": each.get("loras")}, place)
                problems.warnings = place.warnings


def _check_urls(video: VideoInput | SegmentInput, check_url: UrlCheck | None, problems: Problems) -> None:
    for index, segment in enumerate(getattr(video, "segments", ())):
        _check_urls(segment, check_url, problems.at(f"{join(problems.path, 'segments')}[{index}]"))
    for field in _URLS:
        url: str | None = getattr(video, field, None)
        if url is not None and not (field in _PICTURES and url[:5].lower() == "data:"):
            vet(field, url, check_url, problems)
    for index, lora in enumerate(video.loras or ()):
        for field in ("source", "high", "low"):
            source: str | None = getattr(lora, field)
            if source is not None and _HAS_SCHEME.match(source):
                vet(f"loras[{index}].{field}", source, check_url, problems)


def vet(field: str, url: str, check_url: UrlCheck | None, problems: Problems) -> None:
    """Add a problem where `check_url` refuses the URL of a field."""
    path = join(problems.path, field)
    if check_url is None:
        return
    try:
        check_url(url, path=path)
    except (InputBlocked, InvalidRequest) as refused:
        problems.found.add(Problem(path, refused.message), type(refused))
