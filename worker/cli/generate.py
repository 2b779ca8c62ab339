"""`generate` and `calibrate`: a video made on this machine, through the very flow that serves RunPod's jobs.

Nothing is sent anywhere and no port is opened, but one on loopback where a reference video is a file. The video is
stored in OUTPUT_DIR, whatever bucket the settings name, then copied to `--out`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from worker.base import folders, log
from worker.base import settings as settings_module
from worker.base.errors import InvalidRequest, WorkerError
from worker.base.settings import Settings
from worker.cli import flags, local_files, overview, terminal
from worker.cli import out as places
from worker.cli.failures import CANCELLED, DONE, FAILED, USAGE, CommandFailed, usage
from worker.request import Limits, ModelSpec, VideoRequest, choose
from worker.request.parse import draw_seed, parse

if TYPE_CHECKING:
    from worker.jobs.services import Services

_STATE = "command-line"
_FILES = ("video_url", "thumbnail_url", "frames_url", "preview_url")


def run(chosen: argparse.Namespace) -> int:
    """Exit status of the command. Raises CommandFailed, SettingsError and KeyboardInterrupt."""
    if chosen.gpu is not None and not chosen.dry_run:
        raise usage("--gpu is for --dry-run: a video is made on the GPU that is here")
    settings = local_settings(chosen)
    log.configure(
        level="INFO" if chosen.verbose else "ERROR",
        layout=settings.log_format,
        secrets=settings.secret_values(),
        stream=terminal.BesideBar(),
    )
    out = places.Out.of(chosen.out, force=chosen.force) if chosen.out is not None else None
    with local_files.FileServer() as server:
        # Drawn here, so that what is shown is what is made.
        payload = local_files.filled({"seed": draw_seed(), **flags.given(chosen)}, serve=server.serve)
        try:
            video, count = _parsed(payload, settings, overview.catalogue(settings, chosen.gpu))
            if chosen.dry_run:
                return _dry_run(overview.dry(video, settings, chosen.gpu), as_json=chosen.json)
            if out is not None:
                out.check([f".{video.output.format}"] * count, posters=video.output.thumbnail)
            if server.address is not None:
                opened = (*settings.private_url_allowlist, server.address)
                settings = settings.model_copy(update={"private_url_allowlist": opened})
            return _generate(payload, video, settings, out, chosen)
        except WorkerError as failure:
            status = USAGE if isinstance(failure, InvalidRequest) else FAILED
            return failed(failure.as_dict(), flags.message_of(failure), as_json=chosen.json, status=status)


def local_settings(chosen: argparse.Namespace) -> Settings:
    """The operator's settings, with a local folder for storage and nothing loaded ahead.

    The state is kept apart from a worker's: videos that wait there for its bucket must not land in OUTPUT_DIR.
    """
    settings = settings_module.load()
    changed: dict[str, Any] = {
        "storage_endpoint_url": None,
        "storage_access_key": None,
        "storage_secret_key": None,
        "storage_bucket": None,
        "preload": (),
        "state_dir": folders.state_dir(settings) / _STATE,
    }
    if chosen.gpu_hourly_usd is not None:
        changed["gpu_hourly_usd"] = chosen.gpu_hourly_usd
    return settings.model_copy(update=changed)


def _parsed(
    payload: Mapping[str, Any], settings: Settings, catalogue: tuple[ModelSpec, ...]
) -> tuple[VideoRequest, int]:
    """The first video, and how many there are: they differ in their seeds alone."""
    limits = Limits(settings.max_videos_per_job, settings.max_pixels, settings.max_frames, settings.max_total_frames)
    videos = parse(payload, default_job_id="cli", limits=limits, catalogue=catalogue).videos
    return videos[0], len(videos)


def _dry_run(seen: overview.Overview, *, as_json: bool) -> int:
    if as_json:
        terminal.show([json.dumps(seen.as_dict(), ensure_ascii=False)])
    else:
        terminal.show(flags.in_flags(line) for line in seen.lines())
    return DONE


def _generate(
    payload: Mapping[str, Any],
    video: VideoRequest,
    settings: Settings,
    out: places.Out | None,
    chosen: argparse.Namespace,
) -> int:
    settings_module.quiet_imports()
    with terminal.Bar("starting"):
        from worker import start  # torch and Diffusers with it: not before the request is known to be good

        worker = start.build_worker(settings)
    try:
        spec = choose(worker.engine.catalogue, video)
        video, notes = overview.settled(video, spec, opener=worker.opener, max_pixels=settings.max_pixels)
        made = worker.engine.video(video)
        seen = overview.of_plan(video, made.spec, worker.engine.planner.gpu, made.plan, settings, notes)
        if not chosen.json:
            terminal.show(flags.in_flags(line) for line in seen.lines())
        if chosen.confirm and not confirmed():
            raise CommandFailed("nothing was made")
        with worker.engine.techniques.calibrating() if chosen.command == "calibrate" else nullcontext():
            answer = asyncio.run(_run(payload, worker))
    finally:
        worker.gpu.shutdown(wait=False)
    return _conclude(answer, settings, out, chosen)


def confirmed() -> bool:
    sys.stderr.write("go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _run(payload: Mapping[str, Any], worker: Services) -> dict[str, Any]:
    """The answer of the job. Ctrl-C stops it within a step."""
    from worker.jobs import flow

    event = {"id": f"cli-{uuid.uuid4().hex[:8]}", "input": dict(payload)}
    return await terminal.followed(lambda bar: flow.run(event, worker, bar))


def _conclude(answer: dict[str, Any], settings: Settings, out: places.Out | None, chosen: argparse.Namespace) -> int:
    if answer["status"] != "completed":
        errors = [video["error"] for video in answer["videos"] if video["status"] != "completed"]
        error = errors[0] if errors else json.loads(answer["error"])
        message = f"error: {flags.in_flags(error['message'])}"
        if error["code"] == "upload_failed":
            kept = folders.state_dir(settings)
            message += f"\nthe video is kept in {kept}: the next generate stores it in {settings.output_dir}"
        return failed(error, message, as_json=chosen.json)
    paths: list[Path] = []
    shown = []
    for index, video in enumerate(answer["videos"]):
        video["warnings"] = [flags.in_flags(warning) for warning in video["warnings"]]
        files = {name: path_of(video[name]) for name in _FILES if video.get(name) is not None}
        if out is not None:
            place = out.place(
                answer["job_id"],
                index,
                len(answer["videos"]),
                files["video_url"].suffix if "video_url" in files else out.suffix,
            )
            files = _copied(files, place, force=out.force)
        paths += files.values()
        shown.append({**video, **{name: _relative(path) for name, path in files.items()}})
    if chosen.json:
        terminal.show([json.dumps({**answer, "files": [str(path) for path in paths]}, ensure_ascii=False)])
    else:
        terminal.summarise({**answer, "videos": shown})
    if chosen.command == "calibrate":
        _say_where_curves_are(shown, as_json=chosen.json)
    return DONE


def _say_where_curves_are(videos: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Raises CommandFailed where none were stored."""
    stored = [
        video["parameters"]["step_cache_curves"] for video in videos if "step_cache_curves" in video["parameters"]
    ]
    if not stored:
        raise CommandFailed("error: " + "\n".join(line for video in videos for line in video["warnings"]))
    if not as_json:
        terminal.show(terminal.row("curves", stored[-1]))


def _copied(files: Mapping[str, Path], place: places.Place, *, force: bool) -> dict[str, Path]:
    targets = dict(zip(_FILES, (place.video, place.poster, place.frames, place.preview), strict=True))
    for name, source in files.items():
        try:
            places.copy(source, targets[name], force=force)
        except OSError as failure:
            reason = failure.strerror or str(failure)
            raise CommandFailed(
                f"error: --out: {targets[name]} could not be written: {reason}\n"
                f"the video is there: {files.get('video_url', source)}"
            ) from failure
    return {name: targets[name] for name in files}


def failed(error: Mapping[str, Any], message: str, *, as_json: bool, status: int = FAILED) -> int:
    cancelled = error["code"] == "cancelled"
    if as_json:
        terminal.show([json.dumps({"error": error}, ensure_ascii=False)])
    terminal.complain("cancelled" if cancelled else message)
    return CANCELLED if cancelled else status


def path_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _relative(path: Path) -> str:
    """As short as it can be written from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
