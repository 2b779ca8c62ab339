"""Looks at jobs where there is too little time for them: how many at once, and what is said at the deadline."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from tests.kits.router_kit import FAST, backend_table, policy_of, router_of
from tests.kits.service_double import Fault, Order, ServiceDouble
from tests.kits.services import FalDouble, ReplicateDouble, RunwayDouble
from videogen_client.router import Job
from videogen_client.router.driver import LOOKS_AT_ONCE

REQUEST = {"prompt": "a fox", "tier": "draft"}


async def test_there_are_never_more_looks_at_once_than_a_process_can_carry_out(tmp_path: Path) -> None:
    """They would all wait for each other behind the time limit of a look, and no job would have an answer."""
    with FalDouble(Order(seconds=0.1)) as fal:
        slow: list[Fault | None] = ["late"] * 60
        fal.read_faults, fal.late_s = slow, 0.3
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            many = range(LOOKS_AT_ONCE + 10)
            ids = await asyncio.gather(*(router.submit({**REQUEST, "prompt": str(each)}) for each in many))
            jobs = await asyncio.gather(*(router.result(each, timeout_s=60) for each in ids))
    assert {each.status for each in jobs} == {"completed"}
    assert LOOKS_AT_ONCE / 2 < fal.most_looks <= LOOKS_AT_ONCE


async def ended_after_the_deadline_passed_during_a_look(service: ServiceDouble, looks: int, tmp_path: Path) -> Job:
    """The first `looks` bring no answer in time; the deadline passes during the first one."""
    slow: list[Fault | None] = ["late"] * looks
    service.read_faults, service.late_s = slow, 1.0
    now = [time.time()]
    policy = policy_of(tmp_path / "store", {"only": backend_table(service)}, tier={"deadline_s": 60.0})
    async with router_of(policy, replace(FAST, read_s=0.6), clock=lambda: now[0]) as router:
        job_id = await router.submit(REQUEST)
        while not service.looks:
            await asyncio.sleep(0.005)
        now[0] += 61
        return await router.result(job_id, timeout_s=60)


async def test_a_job_is_looked_at_once_more_before_it_is_called_unknown(tmp_path: Path) -> None:
    """Its video is done: the look of before the deadline, and a cancel, had no time."""
    with RunwayDouble() as runway:
        job = await ended_after_the_deadline_passed_during_a_look(runway, 2, tmp_path)
    assert job.status == "completed"


async def test_a_service_whose_looks_all_hang_does_not_keep_a_job_for_ever(tmp_path: Path) -> None:
    """The turns are taken by looks at other jobs."""
    with FalDouble(Order("hang")) as fal:
        policy = policy_of(tmp_path / "store", {"fal": backend_table(fal)}, tier={"deadline_s": 1.0})
        async with router_of(policy, replace(FAST, read_s=0.1)) as router:
            router._driver.turns["fal"] = asyncio.Semaphore(0)
            job = await router.result(await router.submit(REQUEST), timeout_s=30)
    assert job.status == "unknown"


async def test_a_lost_job_is_looked_for_once_more_before_it_is_called_unknown(tmp_path: Path) -> None:
    with ReplicateDouble() as replicate:
        replicate.submit_faults = ["cut_after"]
        job = await ended_after_the_deadline_passed_during_a_look(replicate, 1, tmp_path)
    assert job.status == "completed"
