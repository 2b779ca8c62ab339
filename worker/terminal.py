"""What a person at a terminal sees of a local run: a progress bar and a summary of the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from worker.progress import ProgressEvent


class Bar:
    """A sink for progress events that draws a bar on standard error; draws nothing where that is not a terminal."""

    def __enter__(self) -> Bar:
        self._bar = tqdm(total=100, desc="queued", unit="%", disable=None, leave=False, file=sys.stderr)
        return self

    def __call__(self, event: ProgressEvent) -> None:
        self._bar.set_description(event.status, refresh=False)
        self._bar.update(event.progress - self._bar.n)

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def summarise(answer: Mapping[str, Any]) -> None:
    """Write the answer of a job to standard output in a few lines: where each video lies, or what went wrong."""
    lines = [f"job {answer['job_id']}: {answer['status']} in {answer['timings']['total']:.1f} s"]
    for video in answer["videos"]:
        lines += _completed(video) if video["status"] == "completed" else [_failed(video["index"], video["error"])]
    if not answer["videos"]:
        lines.append(_failed(None, json.loads(answer["error"])))
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _completed(video: Mapping[str, Any]) -> list[str]:
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in video["timings"].items())
    lines = [
        f"  video {video['index']}   {video['video_url']}",
        *([f"  poster    {video['thumbnail_url']}"] if video["thumbnail_url"] is not None else []),
        f"  what      {video['resolution']}, {video['num_frames']} frames at {video['fps']} fps "
        f"({video['duration_seconds']:.2f} s), {video['size_bytes'] / 1e6:.2f} MB",
        f"  made by   {video['model_version']}, {video['mode']}, seed {video['seed']}, on {video['gpu']}",
        f"  prompt    {video['prompt']}",
        f"  seconds   {seconds}",
    ]
    return lines + [f"  warning   {warning}" for warning in video["warnings"]]


def _failed(index: int | None, error: Mapping[str, Any]) -> str:
    return f"  {'job' if index is None else f'video {index}'} failed: {error['code']}: {error['message']}"
