"""The quality gate, on clips that are really encoded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.kits.router_kit import backend_table, policy_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble
from videogen_client.router import VideoRequest
from videogen_client.router.quality import fault_of

REQUEST = {"prompt": "a fox", "tier": "draft", "duration_seconds": 2, "width": 96, "height": 64}
Picture = Callable[[int], np.ndarray]


def moving(number: int) -> np.ndarray:
    frame = np.full((64, 96, 3), 40, np.uint8)
    frame[10:40, 2 * number : 2 * number + 30] = 220
    return frame


def black(number: int) -> np.ndarray:
    return np.full((64, 96, 3), number % 3, np.uint8)


def still(number: int) -> np.ndarray:
    return moving(3)


def clip(
    path: Path, picture: Picture, *, frames: int = 32, codec: str = "libx264", size: tuple[int, int] = (96, 64)
) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(16))
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(*size, format=stream.pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("picture", "options", "why_not"),
    [
        (moving, {}, None),
        (moving, {"codec": "libx265"}, None),
        (black, {}, "is black"),
        (still, {}, "is frozen"),
        (moving, {"frames": 12}, "is 0.8 s long, not 2 s"),
        (moving, {"size": (64, 96)}, "is 64x96, not 96x64"),
        (moving, {"codec": "mjpeg"}, "its codec is mjpeg"),
    ],
)
def test_what_a_clip_may_not_be(picture: Picture, options: dict, why_not: str | None, tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", picture, **options)
    assert fault_of(path, VideoRequest.read(REQUEST)) == why_not


def test_what_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"no video")
    assert str(fault_of(path, VideoRequest.read(REQUEST))).startswith("cannot be decoded")


async def test_a_clip_that_fails_goes_to_the_next_within_the_budget(tmp_path: Path) -> None:
    with FalDouble(Order()) as poor, ReplicateDouble() as good:
        poor.video = clip(tmp_path / "black.mp4", black).read_bytes()
        good.video = clip(tmp_path / "good.mp4", moving).read_bytes()
        tables = {"poor": backend_table(poor), "good": backend_table(good)}
        quality = {"technical": True}
        async with router_of(policy_of(tmp_path / "store", tables, quality=quality)) as router:
            job = await router.result(await router.submit(REQUEST), timeout_s=60)
            assert job.result is not None
            assert job.result["backend"] == "good"
            assert job.route[0]["outcome"] == "failed: the clip is not good: is black"
            assert job.spent_usd == 1.0  # both are billed
            once = await router.submit({**REQUEST, "max_cost_usd": 0.6})
            assert (await router.result(once, timeout_s=60)).status == "failed"


async def test_a_score_decides_and_its_outage_does_not(tmp_path: Path) -> None:
    async def scorer(details: object) -> float:
        scores.append(details)
        if len(scores) == 3:
            raise RuntimeError
        return 0.2 if len(scores) == 1 else 0.9

    scores: list[object] = []
    with FalDouble() as first, ReplicateDouble() as second:
        tables = {"first": backend_table(first), "second": backend_table(second)}
        async with router_of(policy_of(tmp_path / "store", tables), scorer=scorer) as router:
            job = await router.result(await router.submit(REQUEST), timeout_s=60)
            assert [each.state for each in job.attempts] == ["failed", "completed"]
            job = await router.result(await router.submit(REQUEST), timeout_s=60)
            assert [each.state for each in job.attempts] == ["completed"]
