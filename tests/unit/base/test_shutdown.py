"""SIGTERM's grace, seen from a job."""

from __future__ import annotations

import asyncio

from worker.base.sigterm import Shutdown, ShuttingDown
from worker.base.stop import Stop


async def test_a_job_is_stopped_and_hurried_when_the_grace_is_over_and_not_before() -> None:
    shutdown, stop, hurried = Shutdown(0.05), Stop(), asyncio.Event()
    with shutdown.watching(stop, hurried.set):
        shutdown.begin()
        assert (stop.requested, hurried.is_set()) == (False, False)
        await asyncio.wait_for(hurried.wait(), 20)
        assert isinstance(stop.reason, ShuttingDown)


async def test_the_grace_is_as_long_as_it_was_given() -> None:
    shutdown, stop = Shutdown(600.0), Stop()
    with shutdown.watching(stop):
        shutdown.begin()
        await asyncio.sleep(0.1)
        assert not stop.requested


async def test_a_job_that_ended_in_time_is_left_alone() -> None:
    shutdown, over, first, second = Shutdown(0.05), asyncio.Event(), Stop(), Stop()
    hurried: list[str] = []
    with shutdown.watching(second, over.set):
        with shutdown.watching(first, lambda: hurried.append("first")):
            shutdown.begin()
        await asyncio.wait_for(over.wait(), 20)
    assert hurried == []
    assert not first.requested


async def test_a_job_that_comes_in_the_grace_is_stopped_at_once_and_hurried_with_its_end() -> None:
    shutdown, stop, hurried = Shutdown(0.05), Stop(), asyncio.Event()
    shutdown.begin()
    with shutdown.watching(stop, hurried.set):
        assert stop.requested
        assert not hurried.is_set()
        await asyncio.wait_for(hurried.wait(), 20)
    late: list[str] = []
    with shutdown.watching(Stop(), lambda: late.append("hurried")):
        assert late == ["hurried"]


async def test_what_is_no_jobs_ends_when_a_shutdown_begins_and_at_once_behind_one() -> None:
    shutdown = Shutdown(60.0)
    ended: list[str] = []
    with shutdown.ending(lambda: ended.append("over")):
        pass
    with shutdown.ending(lambda: ended.append("under way")):
        assert ended == []
        shutdown.begin()
        assert ended == ["under way"]
    with shutdown.ending(lambda: ended.append("late")):
        assert ended == ["under way", "late"]


async def test_without_grace_a_job_ends_with_the_signal() -> None:
    shutdown, stop = Shutdown(0.0), Stop()
    with shutdown.watching(stop):
        shutdown.begin()
        for _ in range(3):  # turns of the loop, and no seconds
            await asyncio.sleep(0)
        assert stop.requested
