"""Puts a worker together from its settings: the engine of the profile, the models of PRELOAD, storage, state.

The handler, the command line and the checks of a deployment all start here, so that each meets what the others meet.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from worker import demo, engine, folders, journal, loras, models, net, outbox, spool, storage, volume
from worker.engine import Engine
from worker.planning import Planner
from worker.services import Worker
from worker.settings import Settings
from worker.shutdown import Shutdown
from worker.statefiles import StateFolder
from worker.stop import Stop

logger = logging.getLogger(__name__)


def build_engine(settings: Settings) -> Engine:
    """The engine of MODEL_PROFILE. Raises WorkerError where the platform lacks what it needs: there is no fallback."""
    planner = Planner.here(settings)
    profile = settings.model_profile
    if profile is None:
        local_without_gpu = not settings.on_platform and planner.gpu is None
        profile = "demo" if local_without_gpu else "wan2.2"
        if local_without_gpu:
            logger.info("no CUDA GPU here: serving the small built-in demo model (set MODEL_PROFILE to choose)")
    if profile == "demo":
        return Engine(demo.DemoSource(), demo.catalogue(), planner)
    engine.require_gpu()
    return Engine(volume.VolumeSource(settings), models.CATALOGUE, planner)


def build_worker(settings: Settings) -> Worker:
    """Everything a job needs, with the models of PRELOAD in memory. Raises SettingsError and WorkerError."""
    # What can be refused in a moment comes before minutes of loading.
    state = StateFolder(folders.state_dir(settings))
    opener = net.Opener(settings.private_url_allowlist)
    target = storage.open_storage(settings)
    made = build_engine(settings)
    made.preload(settings.preload, Stop())
    logger.info("ready on %s after %.1f s; videos go to %s", made.gpu, process_age_s(), target.describe())
    return Worker(
        settings=settings,
        engine=made,
        opener=opener,
        loras=loras.LoraStore(folders.model_cache_dir(settings), opener, token=settings.hub_token),
        storage=target,
        journal=journal.Journal(state),
        outbox=outbox.Outbox(state),
        spool=spool.Spool(state),
        gpu=ThreadPoolExecutor(1, thread_name_prefix="gpu"),
        shutdown=Shutdown(settings.shutdown_grace_s),
    )


def process_age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    return max(0.0, time.time() - psutil.Process().create_time())
