"""Which files travel in the answer, and how large they may be."""

from __future__ import annotations

from typing import Any

import pytest

from worker.base.errors import Unsupported
from worker.base.settings import Settings
from worker.engine import Video
from worker.jobs import inline
from worker.media.preview_file import MAX_BYTES
from worker.media.shrink import least_bytes
from worker.request import CATALOGUE, VideoRequest, choose
from worker.request.parse import parse
from worker.request.plan import MemoryPlan

PLAN = MemoryPlan("bf16", "resident", "resident", False, 0, 0, ())
PLATFORM = {"runpod_job_url": "https://platform.example/take"}
BUCKET = {"storage_bucket": "videos"}


def requests(*asked: dict[str, Any]) -> tuple[VideoRequest, ...]:
    params = [{"prompt": "a cat", **fields} for fields in asked]
    return parse({"job_request_params": params}, default_job_id="j").videos


ASKED = {"response_format": "base64"}
UPLOADED = {"upload_url": "https://theirs.example/a?sig=1"}


@pytest.mark.parametrize(
    ("settings", "asked", "there"),
    [
        ({}, {}, False),
        ({}, ASKED, True),
        (PLATFORM, {}, True),
        ({**PLATFORM, **BUCKET}, {}, False),
        ({**PLATFORM, **BUCKET}, ASKED, True),
        (PLATFORM, UPLOADED, False),
        (PLATFORM, {**UPLOADED, **ASKED}, True),
    ],
)
def test_a_file_is_in_the_answer_where_it_is_asked_for_or_cannot_be_fetched(
    settings: dict[str, Any], asked: dict[str, Any], there: bool
) -> None:
    assert (0 in inline.limits(requests(asked), Settings(**settings))) == there


@pytest.mark.parametrize(
    ("count", "of_each", "limit"),
    [(1, 7_000_000, 7_000_000), (2, 7_000_000, 3_500_000), (2, 1_000_000, 1_000_000), (2, 10_000_000, 5_000_000)],
)
def test_the_files_of_an_answer_share_it(count: int, of_each: int, limit: int) -> None:
    videos = requests({}, *[ASKED] * count)
    limits = inline.limits(videos, Settings(inline_max_bytes=of_each))
    assert limits == dict.fromkeys(range(1, count + 1), limit)


def test_previews_in_the_answer_leave_the_files_less_of_it() -> None:
    """Without a bucket on the platform they are there too: with eight videos the answer was above 10 MB, and lost."""
    videos, platform = requests(*[{"preview": "strip"}] * 8), Settings(**PLATFORM)
    limits = inline.limits(videos, platform)
    assert sum(limits.values()) + 8 * MAX_BYTES <= inline.ANSWER_BYTES
    assert set(inline.limits(videos, platform.model_copy(update=BUCKET))) == set()
    asked = requests(*[{"preview": "strip", **ASKED}] * 8)
    assert sum(inline.limits(asked, platform.model_copy(update=BUCKET)).values()) == inline.ANSWER_BYTES


def test_what_may_not_fit_is_refused_before_the_gpu_is_used() -> None:
    (request,) = requests(
        {**ASKED, "output_format": "gif", "height": 256, "width": 256, "num_frames": 9, "fps": 8, "target_fps": 16}
    )
    video = Video(request, choose(CATALOGUE, request), PLAN, "a cat")
    least = least_bytes("gif", 256, 256, 18)
    inline.check(video, least)
    inline.check(video, None)
    with pytest.raises(Unsupported, match="INLINE_MAX_BYTES") as caught:
        inline.check(video, least - 1)
    assert caught.value.path == "job_request_params[0].response_format"
