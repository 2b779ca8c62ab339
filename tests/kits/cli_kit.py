"""Runs a command of the command line in this process, and what an endpoint has for `submit` to fetch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kits.endpoint_double import EndpointDouble, State
from tests.kits.logs import logging_as_it_was
from tests.kits.paid_endpoint import video_of
from videogen_client import Timing
from worker.cli.__main__ import main
from worker.jobs import answers

VIDEO, POSTER = b"a video" * 1000, b"a poster" * 100
TIMING = Timing(poll_s=0.01, attempts=4, first_wait_s=0.001, longest_wait_s=0.002)


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Send = Callable[..., Done]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """What `python -m worker.cli ARGUMENTS` answers."""
    capsys.readouterr()
    with logging_as_it_was():
        try:
            status = main(arguments)
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
    captured = capsys.readouterr()
    return Done(status, captured.out, captured.err)


def video(endpoint: EndpointDouble, index: int = 0, content: bytes = VIDEO, **more: Any) -> State:
    """A video result whose files can be fetched."""
    endpoint.files[f"{index}.jpg"] = POSTER
    made = {
        "index": index,
        "job_id": "rp-1",
        "thumbnail_url": endpoint.file_url(f"{index}.jpg"),
        "duration_seconds": 5.062,
        "num_frames": 81,
        "resolution": "832x480",
        "fps": 16,
        "prompt": "a cat",
        "model_version": "wan2.2-t2v-a14b",
        "mode": "text_to_video",
        "warnings": [],
        "timings": {"generate": 250.0, "total": 260.0},
        "gpu": "NVIDIA H100 80GB HBM3",
        "cost_usd": 0.2311,
    }
    return video_of(endpoint, f"{index}.mp4", content, **{**made, **more})


def answer(*videos: State) -> dict[str, Any]:
    return answers.job_answer("rp-1", videos, {"total": 261.0})
