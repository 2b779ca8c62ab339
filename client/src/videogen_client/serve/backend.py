"""What the facade needs of what makes the videos. `AsyncClient` has it as it is; a router of several endpoints too."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..downloads import File
from ..errors import Job
from ..state import JobState
from ..types import Input, VideoFailure, VideoResult


class Backend(Protocol):
    """Every call raises VideoGenError and no other, and ends within `timeout_s` seconds.

    A payload always has a `job_id`: the same one sent twice is one job, and its videos are made once.
    """

    async def submit(self, payload: Input, *, timeout_s: float) -> Job:
        """Sends the job. Raises JobRefused where the payload is at fault."""

    async def status(self, job: Job, *, timeout_s: float) -> JobState:
        """One look at the job: its progress, its answer or its error. Raises JobNotFound. May block until the end."""

    async def cancel(self, job: Job, *, timeout_s: float) -> JobState:
        """Stops the job. Returns the state afterwards. Raises CancelRefused where it runs on."""

    async def download(self, video: VideoResult | VideoFailure, path: Path, *, file: File, timeout_s: float) -> Path:
        """Writes a file of a video of an answer to `path`, whole or not at all. Raises DownloadFailed and OSError."""

    async def close(self) -> None: ...
