"""The worker's entry: reads the settings, has the worker put together and hands the job flow to RunPod.

`python handler.py` serves a RunPod endpoint on the platform. Anywhere else RunPod's SDK runs `test_input.json` (or
`--test_input '{...}'`) once, or serves an HTTP API with `--rp_serve_api`. Beside the command that sends
jobs (`worker/cli/submit.py`) only this module imports runpod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from worker.base import log, sigterm
from worker.base import settings as settings_module
from worker.base.errors import SettingsError, WorkerError
from worker.base.settings import Settings
from worker.base.timing import ColdStart
from worker.cli import terminal

if TYPE_CHECKING:
    from worker.delivery.webhooks.progress_sender import ProgressEvent
    from worker.jobs.flow import Report

logger = logging.getLogger("handler")
# The SDK's id for every run of test_input.json; each gets an id of its own, or the second would be the first again.
LOCAL_RUN = "local_test"
PROGRESS_LANDS_WITHIN_S = 5.0


def main() -> int:
    """Start the worker; returns an exit status where it cannot start."""
    signal.signal(signal.SIGTERM, sigterm.leave_at_once)
    cold_start = ColdStart()
    try:
        settings = settings_module.load()
    except SettingsError as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    _configure_logs(settings)
    cold_start.reached("settings")
    try:
        with nullcontext() if settings.on_platform else terminal.Bar("starting"):
            from worker import (
                jobs,
                start,
            )  # torch and Diffusers with them: not before the settings are known to be good

            cold_start.reached("imports")
            worker = start.build_worker(settings, cold_start)
    except (SettingsError, WorkerError) as failure:
        return _refuse(failure, settings)
    except KeyboardInterrupt:
        terminal.complain("cancelled")
        return 130

    def tidy() -> None:
        threading.Thread(target=asyncio.run, args=(jobs.tidy_alone(worker),), name="tidy", daemon=True).start()

    if not settings.on_platform:
        tidy()
    import runpod

    _configure_logs(settings)  # importing the SDK adds a handler of its own to the root logger

    def before_each_look_for_a_job(concurrency: int) -> int:
        # The one call of the SDK that is made on its event loop before the first job, and after it has forked its
        # heartbeat: a file lock that the tidying holds at the fork would be held for as long as the heartbeat lives.
        if worker.shutdown.install(_leave):
            tidy()
        return concurrency

    async def handler(event: Mapping[str, Any]) -> dict[str, Any]:
        worker.shutdown.install()  # for local mode, where the SDK looks for no job
        if settings.on_platform:
            answer = await jobs.run(event, worker, _platform_reporter(event))
            await asyncio.to_thread(_let_progress_land)
            return answer
        if event.get("id") != LOCAL_RUN:  # --rp_serve_api
            return await jobs.run(event, worker, lambda _: None)
        own = {**event, "id": f"local-{uuid.uuid4().hex[:8]}"}
        answer = await terminal.followed(lambda bar: jobs.run(own, worker, bar))
        terminal.summarise(answer)
        return answer

    with suppress(asyncio.CancelledError):  # from _leave
        runpod.serverless.start({"handler": handler, "concurrency_modifier": before_each_look_for_a_job})
    return 0


def _refuse(failure: SettingsError | WorkerError, settings: Settings) -> int:
    """Say why the worker cannot start: in the log, and to the platform, which shows it beside the worker."""
    if isinstance(failure, SettingsError):
        logger.error("%s", failure)
    else:
        logger.error("the worker cannot start: %s", failure)
    if settings.on_platform:
        import runpod

        from worker.doctor import CannotStart

        _configure_logs(settings)

        def unfit() -> None:
            raise failure

        # The SDK sends the name of a check that fails and its reason to the platform, and exits with status 1.
        unfit.__name__ = failure.lines[0].name if isinstance(failure, CannotStart) else "start"
        runpod.serverless.register_fitness_check(unfit)
        runpod.serverless.start({"handler": lambda _: None})
    return 1


async def _leave() -> None:
    """End the SDK once its jobs are done. It would wait for its polls, up to 90 s, and lose a job that they return."""
    jobs, everything = (
        next((task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", None) == name), None)
        for name in ("JobScaler.run_jobs", "JobScaler.run")
    )
    if jobs is not None and everything is not None:
        await asyncio.wait({jobs})
        everything.cancel()


def _configure_logs(settings: Settings) -> None:
    # A person at a terminal sees the bar and the summary; LOG_LEVEL shows more, above the bar.
    bar_alone = not settings.on_platform and sys.stderr.isatty() and "--rp_serve_api" not in sys.argv
    log.configure(
        level="WARNING" if bar_alone and "log_level" not in settings.model_fields_set else settings.log_level,
        layout=settings.log_format,
        secrets=settings.secret_values(),
        stream=terminal.BesideBar() if bar_alone else None,
    )
    # The SDK logs every input and output at DEBUG, its default, and at INFO in local mode: prompts and signed URLs.
    if settings.sdk_log_level is None:
        os.environ["RUNPOD_LOG_LEVEL"] = "INFO" if settings.on_platform else "WARN"
    settings_module.quiet_imports()


def _platform_reporter(event: Mapping[str, Any]) -> Report:
    from runpod.serverless import progress_update

    def report(progress: ProgressEvent) -> None:
        if not _updates_under_way():  # a slow one would be overtaken
            known = {name: value for name, value in asdict(progress).items() if value is not None}
            progress_update(dict(event), known)

    return report


def _let_progress_land() -> None:
    """An update that is still under way would arrive after the answer."""
    deadline = time.monotonic() + PROGRESS_LANDS_WITHIN_S
    for thread in _updates_under_way():
        thread.join(max(0.0, deadline - time.monotonic()))


def _updates_under_way() -> list[threading.Thread]:
    """The SDK sends each update from a thread of its own."""
    from runpod.serverless.modules import rp_progress

    target = rp_progress._thread_target
    return [thread for thread in threading.enumerate() if getattr(thread, "_target", None) is target]


if __name__ == "__main__":
    sigterm.end(main())
