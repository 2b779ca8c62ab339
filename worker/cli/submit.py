"""`submit`: a job sent to a RunPod endpoint by the package videogen-client, followed, and its videos fetched."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from videogen_client import Client, EndpointUnavailable, Job, JobNotFound, JobState, Progress, Timing, VideoGenError
from videogen_client.downloads import File
from worker.base import log
from worker.base import settings as settings_module
from worker.base.errors import InvalidRequest
from worker.base.text import printable
from worker.cli import flags, local_files, terminal
from worker.cli import out as places
from worker.cli.failures import CANCELLED, DONE, FAILED, USAGE, CommandFailed, usage
from worker.request import Limits
from worker.request.parse import parse

_Files = dict[File, Path]
TIMING = Timing()
# The endpoint's operator may have changed the limits: the endpoint decides.
_ANY = Limits(max_videos_per_job=10_000, max_pixels=10**9, max_frames=10**6)


def run(chosen: argparse.Namespace) -> int:
    """Exit status of the command. Raises CommandFailed, SettingsError and KeyboardInterrupt."""
    settings = settings_module.load()
    log.configure(level="ERROR", secrets=settings.secret_values(), stream=terminal.BesideBar())
    logging.getLogger("stamina").setLevel(logging.ERROR)  # it logs each try that failed
    out = places.Out.of(chosen.out if chosen.out is not None else ".", force=chosen.force)
    payload = _payload(chosen, out)
    if settings.runpod_api_key is None:
        raise CommandFailed("error: RUNPOD_API_KEY is not set: make a key in RunPod's console, under Settings")
    with Client(chosen.endpoint, settings.runpod_api_key.get_secret_value(), timing=TIMING) as client:
        job = Job(chosen.job) if payload is None else _sent(client, payload)
        if chosen.detach:
            return _detached(job, chosen)
        return _Following(client, job, out, chosen).run()


def _sent(client: Client, payload: Any) -> Job:
    try:
        return client.submit(payload)
    except VideoGenError as failure:
        more = ""
        if isinstance(failure, EndpointUnavailable) and failure.may_be_taken:
            more = "\nRunPod may have taken the job: look at the endpoint's requests in its console"
        raise CommandFailed(f"error: {failure}{more}") from failure
    except KeyboardInterrupt:
        message = "cancelled while the job was sent: RunPod may have it; look at the endpoint's requests in its console"
        raise CommandFailed(message, status=CANCELLED) from None


def _payload(chosen: argparse.Namespace, out: places.Out) -> Any:
    """What is sent, read as the worker will read it; None where an earlier job is picked up."""
    fields = flags.given(chosen)
    ways = [name for name, used in (("--job", chosen.job), ("--payload", chosen.payload), ("--prompt", fields)) if used]
    if len(ways) != 1:
        raise usage("give one of --prompt (with the other flags of a video), --payload FILE or --job ID")
    if chosen.job is not None:
        if chosen.detach:
            raise usage("--detach is for a job that is sent, not for --job")
        return None
    payload = local_files.filled(fields, serve=None) if chosen.payload is None else _read(chosen.payload)
    try:
        videos = parse(payload, default_job_id="cli", limits=_ANY).videos
    except InvalidRequest as refused:
        message = flags.message_of(refused) if chosen.payload is None else f"error: {refused}"
        raise CommandFailed(message, status=USAGE) from refused
    suffixes = [f".{video.output.format}" for video in videos]
    out.check(suffixes, posters=any(video.output.thumbnail for video in videos))
    return payload


def _read(name: str) -> Any:
    """The `input` in a file, which may hold the whole event as test_input.json does."""
    try:
        found = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except OSError as failure:
        raise usage(f"--payload: {name} cannot be read: {failure.strerror}") from failure
    except ValueError as failure:
        raise usage(f"--payload: {name} is not JSON: {failure}") from failure
    return found["input"] if isinstance(found, dict) and isinstance(found.get("input"), dict) else found


def _detached(job: Job, chosen: argparse.Namespace) -> int:
    terminal.show([json.dumps({"job": job.id}) if chosen.json else job.id])
    terminal.complain(f"fetch its videos with: {_pick_up(job, chosen)}")
    return DONE


def _pick_up(job: Job, chosen: argparse.Namespace) -> str:
    return f"videogen submit --endpoint {chosen.endpoint} --job {job.id}"


class _Following:
    """One job from its queue to the files on this disk."""

    def __init__(self, client: Client, job: Job, out: places.Out, chosen: argparse.Namespace) -> None:
        self._client = client
        self._job = job
        self._out = out
        self._as_json: bool = chosen.json
        self._pick_up = _pick_up(job, chosen)
        self._deadline = None if chosen.timeout is None else time.monotonic() + chosen.timeout

    def run(self) -> int:
        with terminal.Bar() as bar:
            try:
                state = self._ended(bar)
            except KeyboardInterrupt:
                bar.stop(f"cancelling job {self._job.id} at RunPod")
                return self._cancel()
            answer = cast(dict[str, Any] | None, state.answer)
            if answer is None or not answer.get("videos"):
                return self._failed(state)
            try:
                files, problems = self._fetched(answer, bar)
            except KeyboardInterrupt:
                raise CommandFailed(f"cancelled; go on with: {self._pick_up}", status=CANCELLED) from None
        return self._conclude(answer, files, problems)

    def _ended(self, bar: terminal.Bar) -> JobState:
        """The state of the job once it has ended, whatever its end was."""
        while True:
            try:
                state = self._client.status(self._job)
            except JobNotFound as failure:
                raise CommandFailed(f"error: {failure}") from failure
            except VideoGenError as failure:
                message = f"error: {failure}\nthe job goes on; follow it with: {self._pick_up}"
                raise CommandFailed(message) from failure
            if state.has_ended:
                return state
            _draw(state, bar)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise CommandFailed(f"not done in time (--timeout); the job goes on: {self._pick_up}")
            time.sleep(TIMING.poll_s)

    def _cancel(self) -> int:
        try:
            state = self._client.cancel(self._job)
        except VideoGenError as failure:
            raise CommandFailed(
                f"job {self._job.id} could not be cancelled, and may go on: cancel it in RunPod's console\n"
                f"error: {failure}"
            ) from failure
        if state.status != "CANCELLED":
            raise CommandFailed(f"job {self._job.id} had ended before; see it with: {self._pick_up}", status=CANCELLED)
        terminal.complain(f"cancelled: RunPod stops job {self._job.id}")
        return CANCELLED

    def _failed(self, state: JobState) -> int:
        problem = str(state.error or "the endpoint answered something else than this worker does")
        if self._as_json:
            terminal.show([json.dumps({"id": state.id, "status": state.status, "error": problem}, ensure_ascii=False)])
        terminal.complain(f"error: job {self._job.id}: {problem}")
        return FAILED

    def _fetched(self, answer: Mapping[str, Any], bar: terminal.Bar) -> tuple[dict[int, _Files], list[str]]:
        """Where the files of each finished video are now, by its place in the answer; and what could not be fetched."""
        fetched: dict[int, _Files] = {}
        problems: list[str] = []
        for index, video in enumerate(answer["videos"]):
            if video["status"] != "completed":
                continue
            bar.show("downloading", 0)
            on_bytes = partial(_draw_bytes, bar, video.get("size_bytes"))
            suffix = self._out.suffix if video.get("video_url") is None else places.suffix_of(video["video_url"])
            place = self._out.place(self._job.id, index, len(answer["videos"]), suffix)
            try:
                for number, (file, path) in enumerate(_files(video, place)):
                    # A file that stands beside the first goes with it.
                    overwrite = self._out.force or number > 0
                    self._client.download(video, path, file=file, overwrite=overwrite, on_bytes=on_bytes)
                    fetched.setdefault(index, {})[file] = path
            except FileExistsError:
                problems.append(f"video {index}: {path} is there already: give another name, or --force")
            except OSError as failure:
                problems.append(f"video {index}: {path} could not be written: {failure.strerror or failure}")
            except VideoGenError as failure:
                problems.append(f"video {index}: {failure}")
        return fetched, problems

    def _conclude(self, answer: dict[str, Any], files: Mapping[int, _Files], problems: list[str]) -> int:
        if self._as_json:
            paths = [_first(files.get(index, {})) for index, _ in enumerate(answer["videos"])]
            # A file that came in the answer is on the disk now.
            videos = [{name: video[name] for name in video if name != "video_base64"} for video in answer["videos"]]
            shown = {**answer, "videos": videos, "files": paths, "problems": problems}
            terminal.show([json.dumps(shown, ensure_ascii=False)])
        else:
            self._summarise(answer, files)
        for problem in problems:
            terminal.complain(f"error: {problem}")
        if problems:
            terminal.complain(f"try again with: {self._pick_up}")
        return DONE if answer.get("status") == "completed" and not problems else FAILED

    def _summarise(self, answer: Mapping[str, Any], files: Mapping[int, _Files]) -> None:
        shown = []
        for index, video in enumerate(answer["videos"]):
            written = files.get(index)
            here = {} if written is None else {f"{file}_url": _text(written.get(file)) for file in get_args(File)}
            shown.append({**video, **here})
        try:
            terminal.summarise({**answer, "videos": shown})
        except (KeyError, TypeError, ValueError):  # an endpoint of another version
            terminal.show(path for each in files.values() if (path := _first(each)) is not None)


def _files(video: Mapping[str, Any], place: places.Place) -> Iterator[tuple[File, Path]]:
    """What can be fetched of a video, with its place; of `preview_only` the preview alone."""
    is_inline = video.get("video_base64") is not None
    if is_inline or video.get("video_url") is not None:
        yield "video", place.video
    beside: tuple[tuple[File, Path], ...] = (
        ("thumbnail", place.poster),
        ("frames", place.frames),
        ("preview", place.preview),
    )
    for file, path in beside:
        url = video.get(f"{file}_url")
        if url is not None and not (is_inline and url.startswith("file:")):  # that is the worker's own disk
            yield file, path


def _first(written: _Files) -> str | None:
    """The video, or the preview that stands for it."""
    return _text(written.get("video", written.get("preview")))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _draw_bytes(bar: terminal.Bar, size_bytes: object, fetched: int) -> None:
    share = min(100, 100 * fetched // size_bytes) if isinstance(size_bytes, int) and size_bytes > 0 else None
    bar.show("downloading", share)


def _draw(state: JobState, bar: terminal.Bar) -> None:
    progress = state.progress or Progress(0, "queued" if state.status == "IN_QUEUE" else "running")
    bar.show(
        printable(progress.status),
        progress.percent if state.progress else None,
        step=progress.step,
        steps=progress.steps,
    )
