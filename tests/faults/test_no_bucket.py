"""The real worker on the platform without a bucket: no video is lost, and each can be played."""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path
from typing import Any

import av
import pytest

from tests.flow.conftest import small
from tests.kits.platform_double import Platform, WorkerProcess

LIMIT = 100_000


def frames_of(content: bytes, path: Path) -> int:
    path.write_bytes(content)
    with av.open(str(path)) as opened:
        return sum(1 for _ in opened.decode(video=0))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_of_all_sizes_lose_nothing(tmp_path: Path) -> None:
    """Some files are larger than they may be. One job is delivered again."""
    sizes = random.Random(7)
    payloads: list[dict[str, Any]] = [
        small(
            num_inference_steps=1,
            seed=number,
            width=sizes.choice((256, 256, 256, 416)),
            height=256,
            num_frames=sizes.choice((5, 5, 5, 13)),
            output_format="mp4",
        )
        for number in range(20)
    ]
    with Platform() as platform, WorkerProcess(platform, tmp_path, {"INLINE_MAX_BYTES": str(LIMIT)}) as worker:
        jobs = [platform.submit(payload, job_id=f"job-{number}") for number, payload in enumerate(payloads)]
        answers = [platform.wait_result(job, 600)["output"] for job in jobs]
        again = platform.wait_result(platform.submit(payloads[0], job_id="job-0"), 600)["output"]
        log = worker.log
    assert "no bucket is configured" in log
    fitted = 0
    for payload, answer in zip([*payloads, payloads[0]], [*answers, again], strict=True):
        (video,) = answer["videos"]
        content = base64.b64decode(video["video_base64"], validate=True)
        assert len(content) <= LIMIT
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (video["sha256"], video["size_bytes"])
        assert frames_of(content, tmp_path / "played.mp4") == payload["num_frames"] == video["num_frames"]
        fitted += any("encoded again" in line for line in video["warnings"])
    assert again["videos"] == answers[0]["videos"]
    assert 1 <= fitted <= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_job_loses_nothing(tmp_path: Path) -> None:
    with Platform() as platform, WorkerProcess(platform, tmp_path):
        answer = platform.wait_result(platform.submit(small(num_inference_steps=1)), 300)["output"]
    (video,) = answer["videos"]
    assert frames_of(base64.b64decode(video["video_base64"]), tmp_path / "played.mp4") == 5
