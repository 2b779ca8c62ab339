"""Samples of the campaigns: random faults of six services, and router processes that are killed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import router as faults
from benchmarks import router_kills as kills
from tests.kits.postgres import postgres
from tests.kits.router_kit import FAST, backend_table, policy_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble
from videogen_client.router import NoCandidate, VideoRequest
from videogen_client.router.jobs import End
from videogen_client.router.leases import LeaseLost
from videogen_client.router.store import Store

REQUEST = {"prompt": "a fox", "tier": "draft"}
RUNS = 50


@pytest.mark.slow  # test_router_services has each fault
async def test_no_video_is_paid_twice_or_lost_and_no_budget_is_passed(tmp_path: Path) -> None:
    figures = await faults.measure(RUNS, 7, tmp_path)
    assert figures.is_clean, figures
    ended = figures.completed + figures.failed + figures.cancelled + figures.unknown + figures.refused
    assert ended == RUNS
    assert figures.completed > RUNS / 10


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_processes_that_are_killed_pay_nothing_twice(tmp_path: Path) -> None:
    with postgres() as url:
        figures = kills.measure(3, 8, 2, 1, 5, tmp_path, url)
    assert figures.is_clean, figures
    assert figures.completed > 0


@pytest.mark.slow
def test_a_store_in_postgres_keeps_the_same_promises(tmp_path: Path) -> None:
    with postgres() as url:
        _keeps_its_promises(url)


def test_a_store_in_sqlite_keeps_its_promises(tmp_path: Path) -> None:
    _keeps_its_promises(f"sqlite:///{tmp_path / 'store'}")


def _keeps_its_promises(url: str) -> None:
    """One claim for a job, no write without the lease, one probe for a breaker, no reservation over the budget."""
    with FalDouble() as fal:
        tenants = {"default": {"budget_usd_per_day": 1.2}}
        policy = policy_of(url, {"fal": backend_table(fal)}, tenants=tenants, breaker={"min_calls": 1, "open_s": 0.2})
    now = [time.time()]
    store, other = Store(policy, lambda: now[0]), Store(policy, lambda: now[0])
    request = VideoRequest.read(REQUEST)
    jobs = [store.create(f"job{each}", f"key{each}", request, now[0] + 60, "one", 10.0) for each in range(4)]
    assert other.claim("two", 10.0, 10) == []
    notes: dict[str, str] = {}
    attempts = [store.begin(each, "one", 10.0, lambda _: [("fal", 0.5)], notes.__setitem__) for each in jobs]
    assert [each is not None for each in attempts] == [True, True, False, False]
    assert "budget" in notes["fal"]
    assert store.standing("default")[1] == pytest.approx(0.2)

    now[0] += 11
    assert sorted(other.claim("two", 10.0, 10)) == ["job0", "job1", "job2", "job3"]
    assert store.claim("one", 10.0, 10) == []
    first = attempts[0]
    assert first is not None
    with pytest.raises(LeaseLost):
        store.hold("job0", "one", first.id, 10.0)
    with pytest.raises(LeaseLost):
        store.submitted("job0", "one", first.id, "handle")
    assert [(each.handle, each.state) for each in other.get("job0").attempts] == [("handle", "submitted")]
    with pytest.raises(LeaseLost):
        store.settle(jobs[0], "one", first, "failed", cost_usd=0.5, is_success=False)
    other.settle(jobs[0], "two", first, "failed", cost_usd=0.1, is_success=False)
    with pytest.raises(LeaseLost):  # a second time changes nothing
        other.settle(jobs[0], "two", first, "failed", cost_usd=0.1, is_success=False)
    assert store.standing("default")[1] == pytest.approx(0.6)
    with pytest.raises(LeaseLost):  # an attempt that has ended is not submitted again
        other.hold("job0", "two", first.id, 10.0)

    second = attempts[1]
    assert second is not None
    other.settle(jobs[1], "two", second, "refused", cost_usd=0.0, is_success=None)
    store.found(second.id, "late")  # a webhook for an attempt that has ended does not begin it anew
    assert [(each.handle, each.state) for each in store.get("job1").attempts] == [("late", "refused")]

    assert store.standing("default")[0]["fal"].name == "open"
    assert other.begin(store.get("job2"), "two", 10.0, lambda _: [("fal", 0.1)], notes.__setitem__) is None
    now[0] += 0.3
    probe = other.begin(store.get("job2"), "two", 10.0, lambda _: [("fal", 0.1)], notes.__setitem__)
    assert probe is not None
    assert other.begin(store.get("job3"), "two", 10.0, lambda _: [("fal", 0.1)], notes.__setitem__) is None
    assert "a probe is under way" in notes["fal"]
    other.settle(jobs[2], "two", probe, "completed", cost_usd=0.1, is_success=True, end=End("completed", result={}))
    assert store.standing("default")[0]["fal"].name == "closed"
    assert store.get("job2").status == "completed"
    now[0] += 6
    other.renew("two", ["job0", "job3"], 10.0)
    now[0] += 5
    assert store.claim("one", 10.0, 10) == ["job1"]  # which its owner did not drive
    store.close()
    other.close()


async def test_the_breaker_opens_by_the_rate_lets_one_probe_through_and_closes(tmp_path: Path) -> None:
    with FalDouble(Order("failed")) as flaky, ReplicateDouble() as spare:
        tables = {"flaky": backend_table(flaky), "spare": backend_table(spare)}
        breaker = {"failure_rate": 0.5, "min_calls": 4, "window": 10, "open_s": 1.0}
        policy = policy_of(tmp_path / "store", tables, breaker=breaker)
        now = [time.time()]
        async with router_of(policy, clock=lambda: now[0]) as router:

            async def made(count: int) -> list[str]:
                ids = [await router.submit({**REQUEST, "prompt": str(each)}) for each in range(count)]
                return [(await router.result(each, timeout_s=60)).result["backend"] for each in ids]  # type: ignore[index]

            for _ in range(4):
                assert await made(1) == ["spare"]
            assert len(flaky.jobs) == 4
            assert await made(3) == ["spare"] * 3
            assert len(flaky.jobs) == 4  # open
            assert "its breaker is open" in (await router.plan(REQUEST))[0]["why"]
            now[0] += 1.1
            await made(3)
            assert len(flaky.jobs) == 5  # one probe, which failed
            flaky.default = Order()
            now[0] += 1.1
            assert await made(1) == ["flaky"]
            assert await made(3) == ["flaky"] * 3  # closed


async def test_a_tenant_without_a_budget_has_none(tmp_path: Path) -> None:
    with FalDouble() as fal:
        policy = policy_of(tmp_path / "store", {"fal": backend_table(fal)}, tenants={"a": {"budget_usd_per_day": 9}})
        async with router_of(policy) as router:
            with pytest.raises(NoCandidate, match="budget"):
                await router.submit({**REQUEST, "tenant": "b"})


async def test_a_job_that_another_process_has_left_is_begun_anew(tmp_path: Path) -> None:
    """The other one took it while this one was asleep, saw its attempt fail, and died."""
    with FalDouble(Order("hang", obeys="never")) as slow, ReplicateDouble() as spare:
        tables = {"slow": backend_table(slow), "spare": backend_table(spare)}
        policy = policy_of(tmp_path / "store", tables, tier={"tries": 1})
        timing = replace(FAST, submit_s=2.0, lease_s=4.0)
        async with router_of(policy, timing) as router:
            job_id = await router.submit(REQUEST)
            while not slow.jobs:
                await asyncio.sleep(0.01)
            while (attempt := (await router.job(job_id)).current) is None or attempt.handle is None:
                await asyncio.sleep(0.01)
            other = Store(policy, lambda: time.time() + 1000)
            assert other.claim("other", 1.0, 10) == [job_id]
            other.settle(other.get(job_id), "other", attempt, "failed", cost_usd=0.1, is_success=False)
            other.release("other")
            other.close()
            job = await router.result(job_id, timeout_s=60)
        assert job.result is not None
        assert job.result["backend"] == "spare"
