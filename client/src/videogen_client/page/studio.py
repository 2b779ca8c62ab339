"""What the buttons of the page do: a plan, a video, a stop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..async_client import AsyncClient
from ..errors import Job, VideoFailed, VideoGenError
from ..state import Progress
from ..types import Input, VideoResult, Webhook
from .fields import FieldsWrong, Form, as_flags, errors_of, payload_of
from .local_worker import LocalWorker

_SHOW_EVERY_S = 0.4
_PLAN_WITHIN_S = 60.0
CLIPS = 12


@dataclass(frozen=True)
class Clip:
    """One video on this disk, and the words that it was made from. Names are those of files in the folder `clips`."""

    name: str
    prompt: str
    seed: int
    poster: str | None = None


@dataclass
class Look:
    """What the page shows at one moment."""

    status: str
    percent: int | None = None
    preview: str | None = None
    clip: Clip | None = None
    errors: dict[str, str] = field(default_factory=dict)
    is_running: bool = False
    is_wrong: bool = False


@dataclass
class _Run:
    job_id: str
    began: float
    job: Job | None = None
    progress: Progress | None = None
    preview: tuple[str, str] | None = None  # the URL that was fetched last, and its file
    task: asyncio.Task[Clip] | None = None


class Studio:
    """`worker` is the local one that this process started, None for any other. `plan_command` is `videogen`, or empty.

    `address` is where the worker reaches this page with its events.
    """

    def __init__(
        self,
        client: AsyncClient,
        home: Path,
        *,
        worker: LocalWorker | None = None,
        plan_command: Sequence[str] = (),
        address: str | None = None,
    ) -> None:
        self.clips_folder = home / "clips"
        self.clips_folder.mkdir(parents=True, exist_ok=True)
        self.clips: list[Clip] = []
        self._client = client
        self._worker = worker
        self._plan_command = list(plan_command)
        self._address = address
        self._runs: dict[str, _Run] = {}

    @property
    def has_plans(self) -> bool:
        return bool(self._plan_command)

    async def plan(self, form: Form, gpu: str, usd_an_hour: float | None) -> Look:
        """What the video would take on a GPU: nothing is loaded or sent."""
        try:
            payload = payload_of(form)
        except FieldsWrong as wrong:
            return Look("not yet: see the field", errors=dict(wrong.messages), is_wrong=True)
        command = [*self._plan_command, "generate", "--dry-run", *as_flags(payload, form.picture)]
        command += [f"--gpu={gpu}"] if gpu else []
        command += [f"--gpu-hourly-usd={usd_an_hour}"] if usd_an_hour else []
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), _PLAN_WITHIN_S)
        except TimeoutError:
            process.kill()
            return Look("the plan took too long", is_wrong=True)
        return Look(said.decode(errors="replace").strip("\n"), is_wrong=process.returncode != 0)

    async def make(self, form: Form, session: str) -> AsyncIterator[Look]:
        """Looks at the video on its way; the last one has its clip or its errors."""
        try:
            payload = payload_of(form)
        except FieldsWrong as wrong:
            yield Look("nothing was sent: see the field", errors=dict(wrong.messages), is_wrong=True)
            return
        run = _Run(f"page-{uuid.uuid4().hex}", time.monotonic())
        payload |= {"job_id": run.job_id}
        if self._address is not None:
            payload |= {"webhook_url": f"{self._address}/webhooks/videogen"}
        run.task = asyncio.create_task(self._run(run, cast(Input, payload), form.prompt))
        self._runs[session] = run
        try:
            while not run.task.done():
                yield await self._look(run)
                await asyncio.wait({run.task}, timeout=_SHOW_EVERY_S)
            yield self._end(run)
        finally:
            run.task.cancel()
            if self._runs.get(session) is run:
                del self._runs[session]

    async def stop(self, session: str) -> None:
        """Ends what this session runs; a local worker is started again. Raises VideoGenError: then the job goes on."""
        run = self._runs.get(session)
        if run is None or run.task is None:
            return
        run.task.cancel()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.restart)
        elif run.job is not None:
            await self._client.cancel(run.job)

    def hear(self, event: Webhook) -> None:
        """A progress event of the worker, whose signature was checked."""
        for run in self._runs.values():
            if event["type"] == "progress" and event["job_id"] == run.job_id:
                run.progress = Progress(
                    event["progress"],
                    event["status"],
                    step=event.get("step"),
                    steps=event.get("steps"),
                    preview_url=event.get("preview_url"),
                    preview_step=event.get("preview_step"),
                )

    async def _run(self, run: _Run, payload: Input, prompt: str) -> Clip:
        run.job = await self._client.submit(payload)
        async for progress in self._client.stream(run.job, timeout_s=24 * 3600.0):
            if progress.answer is None:
                run.progress = progress
                continue
            video = next(each for each in progress.answer["videos"] if each["status"] == "completed")
            return await self._fetched(run, video, prompt)
        raise AssertionError("a stream ends with the answer")

    async def _fetched(self, run: _Run, video: VideoResult, prompt: str) -> Clip:
        """A clip without a video, of `preview_only`, is its preview."""
        is_video = video["video_url"] is not None or "video_base64" in video
        url = str(video["video_url"] if is_video else video.get("preview_url"))
        name = run.job_id + (Path(url).suffix if "." in url.rpartition("/")[2] else ".mp4").partition("?")[0]
        await self._client.download(video, self.clips_folder / name, file="video" if is_video else "preview")
        poster = None
        if video["thumbnail_url"] is not None:
            poster = f"{run.job_id}.jpg"
            await self._client.download(video, self.clips_folder / poster, file="thumbnail")
        clip = Clip(name, prompt.strip(), video["seed"], poster)
        self.clips = [clip, *self.clips][:CLIPS]
        return clip

    async def _look(self, run: _Run) -> Look:
        seconds, progress = time.monotonic() - run.began, run.progress
        if progress is None:
            return Look(f"waiting, {seconds:.0f} s", is_running=True)
        if progress.preview_url is not None and (run.preview is None or run.preview[0] != progress.preview_url):
            name = f"{run.job_id}-{progress.preview_step or 0}.webp"
            made: Any = {"status": "completed", "preview_url": progress.preview_url}
            with suppress(VideoGenError, OSError):  # the next one will do
                await self._client.download(made, self.clips_folder / name, file="preview", timeout_s=10)
                run.preview = (progress.preview_url, name)
        step = "" if progress.step is None else f", step {progress.step} of {progress.steps}"
        status = f"{progress.status}{step}, {seconds:.0f} s"
        return Look(status, progress.percent, None if run.preview is None else run.preview[1], is_running=True)

    def _end(self, run: _Run) -> Look:
        task = cast(asyncio.Task[Clip], run.task)
        if task.cancelled():
            return Look("stopped", is_wrong=True)
        failure = task.exception()
        if isinstance(failure, VideoFailed):
            errors, rest = errors_of(failure)
            return Look(rest, errors=errors, is_wrong=True)
        if isinstance(failure, VideoGenError | OSError):
            return Look(str(failure), is_wrong=True)
        clip = task.result()
        return Look(f"done in {time.monotonic() - run.began:.0f} s, seed {clip.seed}", 100, clip=clip)
