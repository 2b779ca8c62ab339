"""A process that stands still for longer than its lease, at the worst moment, and then goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kits.router_kit import FAST, backend_table, policy_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble, RunPodDouble
from videogen_client.router import Job, Policy, RouterTiming

REQUEST = {"prompt": "a fox", "tier": "draft"}
SHORT = replace(FAST, submit_s=0.2, lease_s=0.6)


class Frozen(logging.Filter):
    """Stops the thread that logs a decision: the attempt is written, and not yet submitted."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread = thread
        self.stands, self.goes_on = threading.Event(), threading.Event()

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.current_thread() is self._thread and "decided in" in str(record.msg):
            self.stands.set()
            self.goes_on.wait(30)
        return True


@contextmanager
def frozen_between_intention_and_submission(policy: Policy, timing: RouterTiming) -> Iterator[str]:
    """The key of a job, whose router stands still in the block; it has gone on for two leases after that."""

    async def first() -> None:
        async with router_of(policy, timing) as router:
            await router.submit(REQUEST, key="order-1")
            await asyncio.sleep(0)  # its drive decides, and logs, at the next turns of the loop
            await asyncio.to_thread(frozen.goes_on.wait, 30)
            await asyncio.sleep(2 * timing.lease_s)

    thread = threading.Thread(target=lambda: asyncio.run(first()))
    log, frozen = logging.getLogger("videogen_client.router"), Frozen(thread)
    before = log.level
    log.addFilter(frozen)
    log.setLevel(logging.INFO)
    try:
        thread.start()
        assert frozen.stands.wait(30)
        yield "order-1"
    finally:
        frozen.goes_on.set()
        thread.join()
        log.removeFilter(frozen)
        log.setLevel(before)


async def taken_over(policy: Policy, key: str) -> Job:
    """By a second process, to its end."""
    async with router_of(policy, SHORT) as router:
        return await router.result(await router.submit(REQUEST, key=key), timeout_s=30)


@pytest.mark.parametrize("kind", [ReplicateDouble, RunPodDouble])
async def test_a_process_that_wakes_after_its_lease_submits_nothing(kind: Any, tmp_path: Path) -> None:
    """In the meantime another one has taken the job over, and has had its video made elsewhere."""
    with kind(Order("failed")) as first, FalDouble() as spare:
        tables = {"first": backend_table(first), "spare": backend_table(spare)}
        policy = policy_of(tmp_path / "store", tables, tier={"tries": 1})
        with frozen_between_intention_and_submission(policy, SHORT) as key:
            job = await taken_over(policy, key)
            assert job.result is not None
            assert job.result["backend"] == "spare"
            first.default = Order()
            jobs, requests = len(first.jobs), first.requests
        assert (len(first.jobs), first.requests) == (jobs, requests)
        assert first.made("a fox") + spare.made("a fox") == 1
