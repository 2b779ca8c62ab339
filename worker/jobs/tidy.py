"""Tidying up beside a job: send and store what earlier jobs left, remove what has expired, return freed memory.

glibc keeps freed memory in one heap a thread. Encoding, uploads and tensors of ever different sizes leave holes in
them, and a worker that runs for days grows though nothing is leaked (docs/reliability.md has figures).
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial

from worker.base import folders, scratch
from worker.base.files import StateFolder
from worker.delivery.webhooks import postman
from worker.jobs.services import Services
from worker.training import checkpoint

logger = logging.getLogger(__name__)


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl and macOS have none, and need none
        return None
    return trim


_trim = _find_trim()


def give_back_memory() -> bool:
    """Return free memory to the machine; False where the C library has no way to. Milliseconds; releases the GIL."""
    if _trim is None:
        return False
    _trim(0)
    return True


async def tidy(worker: Services) -> None:
    """Store and send what earlier jobs and other workers could not, remove what has expired. Bounded; never raises."""
    stop = threading.Event()
    secrets = worker.settings.webhook_secrets
    # A thread of its own: a storage that is silent must not take those in which jobs are accepted.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
    draining = thread.submit(copy_context().run, partial(worker.spool.drain, worker.storage, stop=stop))
    thread.shutdown(wait=False)
    try:
        await asyncio.gather(
            asyncio.wrap_future(draining),
            postman.redeliver(worker.outbox, opener=worker.opener, secrets=secrets, journal=worker.journal),
            asyncio.to_thread(worker.journal.sweep),
            asyncio.to_thread(worker.segments.sweep),
            asyncio.to_thread(checkpoint.sweep, StateFolder(folders.state_dir(worker.settings))),
            asyncio.to_thread(worker.storage.sweep),
            asyncio.to_thread(scratch.sweep),
        )
    except Exception as failure:
        logger.error("tidying up failed", exc_info=failure)
    finally:
        stop.set()


async def tidy_alone(worker: Services) -> None:
    """`tidy` outside of a job, in an event loop of its own: a shutdown ends it, and the upload under way."""
    loop = asyncio.get_running_loop()
    tidying = asyncio.create_task(tidy(worker))

    def end() -> None:
        with suppress(RuntimeError):  # it has ended by itself, and the loop is closed
            loop.call_soon_threadsafe(tidying.cancel)

    with worker.shutdown.ending(end):
        await asyncio.wait({tidying})
