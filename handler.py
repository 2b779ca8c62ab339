"""The worker's entry: reads the settings, checks the start, makes the engine and hands the job flow to RunPod.

`python handler.py` serves a RunPod endpoint on the platform. Anywhere else RunPod's SDK runs `test_input.json` (or
`--test_input '{...}'`) once, or serves an HTTP API with `--rp_serve_api`. Only this module imports runpod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from worker import log, terminal
from worker import settings as settings_module
from worker.errors import SettingsError, WorkerError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.engine import Engine
    from worker.job import Report, Worker
    from worker.progress import ProgressEvent

logger = logging.getLogger("handler")
# The SDK's id for every run of test_input.json; each gets an id of its own, or the second would be the first again.
LOCAL_RUN = "local_test"
PROGRESS_LANDS_WITHIN_S = 2.0
_STARTED = time.perf_counter()


def build_engine(settings: Settings) -> Engine:
    """The engine of MODEL_PROFILE. Raises WorkerError where the platform lacks what it needs: there is no fallback."""
    from worker import demo, engine, models, volume
    from worker.planning import Planner

    planner = Planner.here(settings)
    profile = settings.model_profile
    if profile is None:
        local_without_gpu = not settings.on_platform and planner.gpu is None
        profile = "demo" if local_without_gpu else "wan2.2"
        if local_without_gpu:
            logger.info("no CUDA GPU here: serving the small built-in demo model (set MODEL_PROFILE to choose)")
    if profile == "demo":
        return engine.Engine(demo.DemoSource(), demo.catalogue(), planner)
    engine.require_gpu()
    return engine.Engine(volume.VolumeSource(settings), models.CATALOGUE, planner)


def build_worker(settings: Settings) -> Worker:
    """Everything a job needs, with the models of PRELOAD in memory."""
    from worker import job, journal, net, outbox, storage
    from worker.shutdown import Shutdown
    from worker.statefiles import StateFolder
    from worker.stop import Stop

    state = StateFolder(settings_module.state_dir(settings))
    engine = build_engine(settings)
    engine.preload(settings.preload, Stop())
    target = storage.open_storage(settings)
    logger.info(
        "ready on %s after %.1f s; videos go to %s", engine.gpu, time.perf_counter() - _STARTED, target.describe()
    )
    return job.Worker(
        settings=settings,
        engine=engine,
        opener=net.Opener(settings.private_url_allowlist),
        storage=target,
        journal=journal.Journal(state),
        outbox=outbox.Outbox(state),
        gpu=ThreadPoolExecutor(1, thread_name_prefix="gpu"),
        shutdown=Shutdown(settings.shutdown_grace_s),
    )


def main() -> int:
    """Start the worker; returns an exit status where it cannot start."""
    try:
        settings = settings_module.load()
    except SettingsError as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    _configure_logs(settings)
    try:
        worker = build_worker(settings)
    except (SettingsError, WorkerError) as failure:
        logger.error("the worker cannot start: %s", failure)
        return 1
    from worker import job

    threading.Thread(target=asyncio.run, args=(job.tidy(worker),), name="tidy", daemon=True).start()
    import runpod

    _configure_logs(settings)  # importing the SDK adds a handler of its own to the root logger

    async def handler(event: Mapping[str, Any]) -> dict[str, Any]:
        worker.shutdown.install()
        if settings.on_platform:
            answer = await job.run(event, worker, _platform_reporter(event))
            await asyncio.to_thread(_let_progress_land)
            return answer
        if event.get("id") != LOCAL_RUN:  # --rp_serve_api
            return await job.run(event, worker, lambda _: None)
        with terminal.Bar() as bar:
            answer = await job.run({**event, "id": f"local-{uuid.uuid4().hex[:8]}"}, worker, bar)
        terminal.summarise(answer)
        return answer

    runpod.serverless.start({"handler": handler})
    return 0


def _configure_logs(settings: Settings) -> None:
    log.configure(level=settings.log_level, layout=settings.log_format, secrets=settings.secret_values())
    # The SDK logs every input and output at DEBUG, its default, and at INFO in local mode: prompts and signed URLs.
    if settings.sdk_log_level is None:
        os.environ["RUNPOD_LOG_LEVEL"] = "INFO" if settings.on_platform else "WARN"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it remarks on torchvision, which nothing here needs


def _platform_reporter(event: Mapping[str, Any]) -> Report:
    from runpod.serverless import progress_update

    def report(progress: ProgressEvent) -> None:
        progress_update(
            dict(event), {"progress": progress.progress, "status": progress.status, "index": progress.index}
        )

    return report


def _let_progress_land() -> None:
    """The SDK sends each update from a thread of its own: one still under way would arrive after the answer."""
    from runpod.serverless.modules import rp_progress

    deadline = time.monotonic() + PROGRESS_LANDS_WITHIN_S
    for thread in threading.enumerate():
        if getattr(thread, "_target", None) is rp_progress._thread_target:
            thread.join(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
