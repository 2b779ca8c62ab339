"""`submit`: a job sent to a RunPod endpoint with RunPod's SDK, followed, and its videos fetched.

Beside handler.py this is the only module that imports runpod.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import runpod
from runpod.endpoint import Job

from worker.base import log
from worker.base import settings as settings_module
from worker.base.errors import InvalidRequest
from worker.base.text import printable
from worker.cli import download, endpoint, flags, local_files, terminal
from worker.cli import out as places
from worker.cli.failures import CANCELLED, DONE, FAILED, USAGE, CommandFailed, usage
from worker.request import Limits
from worker.request.parse import parse

POLL_S = 2.0
# Requests in a row that may fail: at two seconds and more each, a minute.
PATIENCE = 20
# The endpoint's operator may have changed the limits: the endpoint decides.
_ANY = Limits(max_videos_per_job=10_000, max_pixels=10**9, max_frames=10**6)


def run(chosen: argparse.Namespace) -> int:
    """Exit status of the command. Raises CommandFailed, SettingsError and KeyboardInterrupt."""
    settings = settings_module.load()
    # Importing the SDK gave the root logger a handler of its own.
    log.configure(level="ERROR", secrets=settings.secret_values(), stream=terminal.BesideBar())
    out = places.Out.of(chosen.out if chosen.out is not None else ".", force=chosen.force)
    request = _request(chosen, out)
    if settings.runpod_api_key is None:
        raise CommandFailed("error: RUNPOD_API_KEY is not set: make a key in RunPod's console, under Settings")
    there = runpod.Endpoint(chosen.endpoint, api_key=settings.runpod_api_key.get_secret_value())
    job = Job(chosen.endpoint, chosen.job, there.rp_client) if request is None else _sent(there, request)
    if chosen.detach:
        return _detached(job, as_json=chosen.json)
    return _Following(job, out, chosen).run()


def _sent(there: runpod.Endpoint, request: Mapping[str, Any]) -> Job:
    try:
        return there.run(request)
    except endpoint.SDK_FAILURES as failure:
        raise endpoint.explained(failure) from failure
    except KeyboardInterrupt:
        message = "cancelled while the job was sent: RunPod may have it; look at the endpoint's requests in its console"
        raise CommandFailed(message, status=CANCELLED) from None


def _request(chosen: argparse.Namespace, out: places.Out) -> dict[str, Any] | None:
    """What goes to /run, read as the worker will read it; None where an earlier job is picked up."""
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
    request = {"input": payload}
    endpoint.check_size(request)
    return request


def _read(name: str) -> Any:
    """The `input` in a file, which may hold the whole event as test_input.json does."""
    try:
        found = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except OSError as failure:
        raise usage(f"--payload: {name} cannot be read: {failure.strerror}") from failure
    except ValueError as failure:
        raise usage(f"--payload: {name} is not JSON: {failure}") from failure
    return found["input"] if isinstance(found, dict) and isinstance(found.get("input"), dict) else found


def _detached(job: Job, *, as_json: bool) -> int:
    terminal.show([json.dumps({"job": job.job_id}) if as_json else job.job_id])
    terminal.complain(f"fetch its videos with: {_pick_up(job)}")
    return DONE


def _pick_up(job: Job) -> str:
    return f"videogen submit --endpoint {job.endpoint_id} --job {job.job_id}"


class _Following:
    """One job from its queue to the files on this disk."""

    def __init__(self, job: Job, out: places.Out, chosen: argparse.Namespace) -> None:
        self._job = job
        self._out = out
        self._as_json: bool = chosen.json
        self._deadline = None if chosen.timeout is None else time.monotonic() + chosen.timeout

    def run(self) -> int:
        with terminal.Bar() as bar:
            try:
                state = self._finished(bar)
            except KeyboardInterrupt:
                bar.stop(f"cancelling job {self._job.job_id} at RunPod")
                return self._cancel()
            answer = endpoint.answer_of(state)
            if answer is None or not answer["videos"]:
                return self._failed(state)
            try:
                files, problems = self._fetched(answer, bar)
            except KeyboardInterrupt:
                raise CommandFailed(f"cancelled; go on with: {_pick_up(self._job)}", status=CANCELLED) from None
        return self._conclude(answer, files, problems)

    def _finished(self, bar: terminal.Bar) -> Mapping[str, Any]:
        """The state of the job once it has ended, whatever its end was."""
        unanswered = 0
        while True:
            try:
                state: dict[str, Any] = self._job.rp_client.get(f"{self._job.endpoint_id}/status/{self._job.job_id}")
            except endpoint.SDK_FAILURES as failure:
                unanswered += 1
                if not endpoint.is_passing(failure) or unanswered >= PATIENCE:
                    reason = endpoint.explained(failure)
                    raise CommandFailed(
                        f"{reason}\nthe job goes on; follow it with: {_pick_up(self._job)}"
                    ) from failure
            else:
                unanswered = 0
                if state.get("status") not in endpoint.RUNNING:
                    return state
                _draw(state, bar)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise CommandFailed(f"not done in time (--timeout); the job goes on: {_pick_up(self._job)}")
            time.sleep(POLL_S)

    def _cancel(self) -> int:
        job = self._job
        try:
            job.cancel()
        except endpoint.SDK_FAILURES as failure:
            raise CommandFailed(
                f"job {job.job_id} could not be cancelled, and may go on: cancel it in RunPod's console\n"
                f"{endpoint.explained(failure)}"
            ) from failure
        terminal.complain(f"cancelled: RunPod stops job {job.job_id}")
        return CANCELLED

    def _failed(self, state: Mapping[str, Any]) -> int:
        if self._as_json:
            terminal.show([json.dumps(state, ensure_ascii=False)])
        terminal.complain(f"error: job {self._job.job_id}: {endpoint.problem_of(state)}")
        return FAILED

    def _fetched(self, answer: Mapping[str, Any], bar: terminal.Bar) -> tuple[dict[int, places.Place], list[str]]:
        """Where each finished video is now, by its place in the answer; and what could not be fetched."""
        places_by_index: dict[int, places.Place] = {}
        problems: list[str] = []
        for index, video in enumerate(answer["videos"]):
            if video["status"] != "completed":
                continue
            is_video = video["video_url"] is not None
            url = video["video_url"] if is_video else video["preview_url"]
            suffix = places.suffix_of(url) if is_video else self._out.suffix
            place = self._out.place(self._job.job_id, index, len(answer["videos"]), suffix)
            bar.show("downloading", 0)
            on_bytes = partial(_draw_bytes, bar, video.get("size_bytes"))
            try:
                download.fetch(
                    url,
                    place.video if is_video else place.preview,
                    sha256=video.get("sha256"),
                    force=self._out.force,
                    on_bytes=on_bytes,
                )
                places_by_index[index] = place
                for name, beside in (
                    ("thumbnail_url", place.poster),
                    ("frames_url", place.frames),
                    ("preview_url", place.preview),
                ):
                    if is_video and video.get(name) is not None:
                        download.fetch(video[name], beside, sha256=None, force=True)
            except CommandFailed as failure:
                problems.append(f"video {index}: {failure}")
        return places_by_index, problems

    def _conclude(self, answer: dict[str, Any], files: Mapping[int, places.Place], problems: list[str]) -> int:
        if self._as_json:
            paths = [_path(video, files.get(index)) for index, video in enumerate(answer["videos"])]
            terminal.show([json.dumps({**answer, "files": paths, "problems": problems}, ensure_ascii=False)])
        else:
            self._summarise(answer, files)
        for problem in problems:
            terminal.complain(f"error: {problem}")
        if problems:
            terminal.complain(f"try again with: {_pick_up(self._job)}")
        return DONE if answer.get("status") == "completed" and not problems else FAILED

    def _summarise(self, answer: Mapping[str, Any], files: Mapping[int, places.Place]) -> None:
        shown = []
        for index, video in enumerate(answer["videos"]):
            poster = str(files[index].poster) if index in files and video.get("thumbnail_url") is not None else None
            here = {"video_url": str(files[index].video), "thumbnail_url": poster} if index in files else {}
            if index in files and video.get("preview_url") is not None:
                here["preview_url"] = str(files[index].preview)
            if video.get("video_url") is None:
                here["video_url"] = None
            shown.append({**video, **here})
        try:
            terminal.summarise({**answer, "videos": shown})
        except (KeyError, TypeError, ValueError):  # an endpoint of another version
            terminal.show(str(place.video) for place in files.values())


def _path(video: Mapping[str, Any], place: places.Place | None) -> str | None:
    if place is None:
        return None
    return str(place.preview if video["video_url"] is None else place.video)


def _draw_bytes(bar: terminal.Bar, size_bytes: object, fetched: int) -> None:
    share = min(100, 100 * fetched // size_bytes) if isinstance(size_bytes, int) and size_bytes > 0 else None
    bar.show("downloading", share)


def _draw(state: Mapping[str, Any], bar: terminal.Bar) -> None:
    """The last progress that the worker reported; RunPod shows it as the output of a job that runs."""
    if state["status"] == "IN_QUEUE":
        bar.show("queued")
        return
    output = state.get("output")
    said: Mapping[str, Any] = output if isinstance(output, dict) else {}
    percent, step, steps = (
        value if isinstance(value := said.get(name), int) else None for name in ("progress", "step", "steps")
    )
    status = said.get("status")
    bar.show(
        printable(status) if isinstance(status, str) else "running",
        None if percent is None else min(100, max(0, percent)),
        step=step,
        steps=steps,
    )
