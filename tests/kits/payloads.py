"""Payloads that nobody would think of: good ones with a few wild fields, wild ones, and no payloads at all."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from worker.request.payload import JobInput, VideoInput

PROFILE = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
)

TEXTS = st.one_of(
    st.sampled_from(["", " ", "a cat", "x" * 4000, "x" * 4001, "\ud800", "\x00", "null", "50", "猫", "%s{}", "../.."]),
    st.text(st.characters(), max_size=12),
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 4, 5, 6, 16, 60, 61, 81, 100, 161, 162, 255, 256, 479, 480, 832, 1920, 1921, 2**63 - 1]),
    st.sampled_from([2**63, 10**400, 0.0, -0.0, 0.5, 0.8, 1.0, 5.0, 20.0, 25.0, 25.1, 1e308]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
# None of these is ever fetched: an address that is not public, another scheme, nothing at all.
URLS = st.sampled_from(
    [
        *("http://10.0.0.1/a.png", "http://169.254.169.254/latest", "http://[::1]/x", "https://u:p@10.0.0.1/"),
        *("file:///etc/passwd", "ftp://10.0.0.1/a", "javascript:alert(1)", "http://", "https:", "x", "", "http://a b"),
        *("data:image/png;base64,AAAA", "data:text/html,hello", "data:,", "data:image/png;base64,%%%", "data:image/"),
    ]
)
LORAS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "source": st.sampled_from(["a.safetensors", "", "\ud800"]) | JSON,
            "scale": NUMBERS,
            "expert": st.sampled_from(["high", "low", "both", "none"]) | JSON,
            "scle": JSON,
        },
    )
    | JSON,
    max_size=3,
)
# What would be taken for each field, more or less; anything may stand in its place.
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "job_id": st.sampled_from(["j-1", "..", ".", "a/b", "a" * 128, "a" * 129, ""]),
    "webhook_url": URLS,
    "webhook_events": st.lists(st.sampled_from(["progress", "completed", "failed", "other"]) | SCALARS, max_size=4),
    "prompt": TEXTS,
    "negative_prompt": TEXTS,
    "reference_image_url": URLS,
    "last_image_url": URLS,
    "reference_video_url": URLS,
    "camera_motion": st.sampled_from(["pan_left", "handheld", "spin", ""]),
    "enhance_prompt": st.booleans(),
    "quality_preset": st.sampled_from(["draft", "turbo", "ultra", "best"]),
    "model": st.sampled_from(["a14b", "5b", "A14B"]),
    "loras": LORAS,
    "thumbnail": st.booleans(),
    "height": st.sampled_from([255, 256, 479, 480, 511, 720]),
    "width": st.sampled_from([256, 300, 832, 1280, 1921]),
    "num_frames": st.sampled_from([4, 5, 6, 81, 161, 162]),
    "fps": st.sampled_from([1, 16, 60, 61]),
    "num_inference_steps": st.sampled_from([0, 1, 50, 100]),
    "guidance_scale": st.sampled_from([1, 5.0, 20, 20.5]),
    "guidance_scale_2": st.sampled_from([1, 5.0, 20, None]),
    "guidance_until": st.sampled_from([0, 0.5, 1, 1.5, None]),
    "flow_shift": st.sampled_from([0.4, 0.5, 12, 25]),
    "seed": st.sampled_from([0, 2**63 - 1, 2**63, None]),
    "strength": st.sampled_from([0, 0.5, 1]),
    "step_cache": st.sampled_from(["off", "balanced", "fast", "on"]),
    "turbo_variant": st.sampled_from(["full", "hybrid", "half"]),
    "resolution": st.sampled_from(["480p", "720p", "1080p"]),
    "aspect_ratio": st.sampled_from(["16:9", "9:21", "auto", "2:1"]),
    "duration_seconds": st.sampled_from([0, 0.1, 5, 10.0, 30, 1e300]),
    "target_fps": st.sampled_from([1, 17, 60, 61]),
    "num_outputs": st.sampled_from([0, 1, 2, 4, 5, 2.0]),
    "prompt_expansion": st.booleans(),
    "output_format": st.sampled_from(["mp4", "webm", "gif", "webp", "mov"]),
    "output_codec": st.sampled_from(["h264", "hevc", "av1", "vp9", "gif"]),
    "video_quality": st.sampled_from(["low", "maximum", "best"]),
    "frames_zip": st.booleans(),
    "response_format": st.sampled_from(["url", "base64", "file"]),
    "upload_url": URLS,
    "preview": st.sampled_from(["off", "strip", "animated", "on"]),
    "preview_at": st.lists(st.sampled_from([0, 0.1, 0.5, 0.99, 1]), max_size=6),
    "preview_only": st.booleans(),
    "segments": st.lists(
        st.fixed_dictionaries({}, optional={"prompt": TEXTS, "num_frames": st.sampled_from([4, 5, 9]), "seed": NUMBERS})
        | JSON,
        max_size=3,
    ),
    "continuity": st.sampled_from(["last_frame", "keyframes", "svi", "none"]),
    "overlap_frames": st.sampled_from([0, 1, 5, 9]),
    "extend_video_url": URLS,
    "loop": st.booleans(),
    "color_match": st.booleans(),
}
SLIPS = ["num_infrence_steps", "promt", "Seed", "webhook", "job_request_param", "prompt_id", "image_url", "", "\ud800"]


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, each as often as its weight says (`one_of` flattens its branches and drops repeats)."""
    drawn = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(range(len(drawn))).flatmap(lambda place: drawn[place])


def good_or_wild(names: list[str], good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A few wild fields on top of a request that is good, or many on top of nothing."""
    values = {name: weighted((8, LIKELY[name]), (1, NUMBERS), (1, JSON)) for name in names}
    field = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), values[name]))
    few, many = st.lists(field, max_size=2), st.lists(field, max_size=6)
    return weighted((4, few.map(lambda fields: {**good, **dict(fields)})), (1, many.map(dict)))


SOME_STRANGERS = st.dictionaries(st.sampled_from(SLIPS) | st.text(st.characters(), max_size=8), JSON, max_size=2)
STRANGERS = weighted((4, st.just({})), (1, SOME_STRANGERS))
JOB_FIELDS, VIDEO_FIELDS = list(JobInput.model_fields), list(VideoInput.model_fields)
VIDEOS = st.builds(
    lambda fields, strangers: {**fields, **strangers}, good_or_wild(VIDEO_FIELDS, {"prompt": "a cat"}), STRANGERS
)
SEVERAL = st.lists(VIDEOS, min_size=1, max_size=2)
ENTRIES = weighted((8, SEVERAL), (1, st.lists(VIDEOS | JSON, max_size=2)), (1, JSON))
LISTED = st.builds(
    lambda job, entries, strangers: {**strangers, **job, "job_request_params": entries},
    good_or_wild(JOB_FIELDS, {}),
    ENTRIES,
    STRANGERS,
)
FLAT = st.builds(lambda job, video: {**job, **video}, good_or_wild(JOB_FIELDS, {}), VIDEOS)
PAYLOADS = weighted((4, LISTED), (4, FLAT), (1, SOME_STRANGERS), (1, JSON))
