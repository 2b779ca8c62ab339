"""Puts a worker together from its settings: the engine of the profile, the models of PRELOAD, storage, state.

The handler, the command line and the checks of a deployment all start here, so that they see the same worker.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from worker import doctor
from worker.base import folders, metrics
from worker.base.errors import ModelUnavailable
from worker.base.files import StateFolder
from worker.base.settings import Settings
from worker.base.sigterm import Shutdown
from worker.base.stop import Stop
from worker.base.timing import ColdStart
from worker.delivery import journal, spool, storage
from worker.delivery.kept_segments import KeptSegments
from worker.delivery.webhooks import outbox
from worker.engine import Engine, build
from worker.engine.device import crew_size, detect, planner_for
from worker.engine.distributed import CrewLost, follower
from worker.engine.distributed.leader import Leader
from worker.jobs.services import Services
from worker.media.marks.marker import Marker
from worker.net import opener as net
from worker.request.plan import Planner
from worker.weights.loras import store

logger = logging.getLogger(__name__)


def build_engine(settings: Settings, planner: Planner) -> Engine:
    """The engine of MODEL_PROFILE, with the processes of GPUS that share its work.

    The doctor refuses a machine that cannot serve the profile before this is called. Raises ModelUnavailable where not
    all of the processes start.
    """
    device = detect()
    profile = doctor.profile_of(settings, planner.gpu)
    if profile == "demo" and settings.model_profile is None:
        logger.info("no CUDA GPU here: serving the small built-in demo model (set MODEL_PROFILE to choose)")
    size = crew_size(settings, torch.cuda.device_count() if device.type == "cuda" else None)
    if size == 1:
        return build.build(settings, planner, profile, device)
    logger.info("%d processes share each video", size)
    try:
        leader = Leader.start(follower.serve, size, device, build.following, settings, profile)
    except CrewLost as failure:
        raise ModelUnavailable(f"the {size} processes of GPUS={settings.gpus} did not come up") from failure
    return build.build(settings, planner, profile, device, leader)


def build_worker(settings: Settings, cold_start: ColdStart | None = None) -> Services:
    """Everything a job needs, with the models of PRELOAD in memory; `cold_start` has the parts of the start so far.

    Raises SettingsError, of which `doctor.CannotStart` is one, and WorkerError: the platform has no fallback.
    """
    cold_start = ColdStart() if cold_start is None else cold_start
    metrics.serve(settings.metrics_port)
    state = StateFolder(folders.state_dir(settings))
    opener = net.Opener(settings.private_url_allowlist, local=not settings.on_platform)
    target = storage.open_storage(settings)
    marker = Marker.from_settings(settings)
    planner = planner_for(settings)
    # What can be refused in a moment is refused before minutes of loading.
    with doctor.watched(doctor.Deployment.here(settings, planner)):
        made = build_engine(settings, planner)
        made.preload(settings.preload, Stop())
    cold_start.reached("load")
    logger.info("ready on %s after %.1f s; videos go to %s", made.gpu, process_age_s(), target.describe())
    if settings.lacks_bucket:
        logger.warning(
            "no bucket is configured: each file travels in its job's answer, %d bytes at most (INLINE_MAX_BYTES). Set "
            "the four DIGITAL_OCEAN_* variables",
            settings.inline_max_bytes,
        )
    state.now()  # says so where the worker's clock is wrong
    cold_start.ready(settings.gpu_hourly_usd)
    return Services(
        settings=settings,
        engine=made,
        opener=opener,
        loras=store.LoraStore.of(settings, opener),
        storage=target,
        journal=journal.Journal(state),
        outbox=outbox.Outbox(state),
        spool=spool.Spool(state, journal.Journal(state)),
        segments=KeptSegments(state),
        gpu=ThreadPoolExecutor(1, thread_name_prefix="gpu"),
        shutdown=Shutdown(settings.shutdown_grace_s),
        marker=marker,
    )


def process_age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    return max(0.0, time.time() - psutil.Process().create_time())
