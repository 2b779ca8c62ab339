"""The way of a job: falling back, waiting, cancelling, ending unknown, and going on after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.kits.router_kit import ENVIRON, backend_table, policy_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble, RunPodDouble, RunwayDouble, VideosDouble
from videogen_client.router import Router, VideoRequest
from videogen_client.router.backends import make_backends

REQUEST = {"prompt": "a fox", "tier": "draft"}


async def made(router: Router, **fields: Any) -> Any:
    return await router.result(await router.submit({**REQUEST, **fields}), timeout_s=60)


async def test_a_job_that_takes_too_long_goes_on_elsewhere_once_its_cancel_is_confirmed(tmp_path: Path) -> None:
    with ReplicateDouble(Order("hang")) as slow, FalDouble() as spare:
        tables = {"slow": backend_table(slow, patience_s=0.1), "spare": backend_table(spare)}
        async with router_of(policy_of(tmp_path / "store", tables)) as router:
            job = await made(router)
    assert job.result["backend"] == "spare"
    assert [each.state for each in job.attempts] == ["cancelled", "completed"]


async def test_a_late_success_is_taken_where_the_cancel_was_refused(tmp_path: Path) -> None:
    with ReplicateDouble(Order(seconds=0.6, obeys="never")) as slow, FalDouble() as spare:
        tables = {"slow": backend_table(slow, patience_s=0.1), "spare": backend_table(spare)}
        async with router_of(policy_of(tmp_path / "store", tables)) as router:
            job = await made(router)
        assert job.result["backend"] == "slow"
        assert spare.jobs == {}


async def test_an_end_that_nobody_knows_is_reported_and_counted_as_paid(tmp_path: Path) -> None:
    with RunwayDouble(Order("hang", obeys="never")) as slow, FalDouble() as spare:
        tables = {"slow": backend_table(slow), "spare": backend_table(spare)}
        tenants = {"default": {"budget_usd_per_day": 0.9}}
        policy = policy_of(tmp_path / "store", tables, tier={"deadline_s": 0.5}, tenants=tenants)
        async with router_of(policy) as router:
            job = await made(router)
            assert (await router.plan(REQUEST))[1]["why"].startswith("may cost 0.5000 USD, 0.4000 are left")
        assert job.status == "unknown"
        assert job.spent_usd == 0.5
        assert spare.jobs == {}


async def test_a_video_that_was_made_after_the_deadline_is_found(tmp_path: Path) -> None:
    with RunwayDouble(Order("hang", obeys="never")) as slow:
        policy = policy_of(tmp_path / "store", {"slow": backend_table(slow)}, tier={"deadline_s": 0.3})
        async with router_of(policy) as router:
            job = await made(router)
            assert job.status == "unknown"
            assert (await router.look_again(job.id)).status == "unknown"
            (task,) = slow.jobs.values()
            task.order = Order()
            job = await router.look_again(job.id)
            assert job.status == "completed"
            assert job.result["video_url"].endswith(".mp4")


async def test_a_caller_cancels(tmp_path: Path) -> None:
    with RunPodDouble(Order("hang")) as own, FalDouble() as spare:
        tables = {"own": backend_table(own), "spare": backend_table(spare)}
        async with router_of(policy_of(tmp_path / "store", tables)) as router:
            job_id = await router.submit(REQUEST)
            while not own.jobs:
                await asyncio.sleep(0.01)
            await router.cancel(job_id)
            job = await router.result(job_id, timeout_s=60)
        assert job.status == "cancelled"
        assert spare.jobs == {}


async def test_one_backend_alone_is_asked_again_after_a_pause(tmp_path: Path) -> None:
    with FalDouble() as fal:
        fal.submit_faults = [429]
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            job = await made(router)
    assert [each.state for each in job.attempts] == ["refused", "completed"]
    assert [each["outcome"] for each in job.route] == ["refused: the service returned 429", "completed"]


async def test_the_cost_of_failures_counts_for_the_most_of_a_job(tmp_path: Path) -> None:
    with FalDouble(Order("failed")) as fal, ReplicateDouble() as replicate:
        tables = {"fal": backend_table(fal, bills_failures=True), "replicate": backend_table(replicate)}
        async with router_of(policy_of(tmp_path / "store", tables, tier={"max_cost_usd": 0.9})) as router:
            job = await made(router)
        assert job.status == "failed"
        assert job.route[-1]["why"] == "may cost 0.5000 USD, 0.4000 are left of the most for the job"
        assert replicate.jobs == {}


async def test_a_webhook_brings_what_the_answer_did_not_and_twice_changes_nothing(tmp_path: Path) -> None:
    with FalDouble() as fal:
        fal.submit_faults = ["cut_after"]
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            job_id = await router.submit(REQUEST)
            while not fal.jobs:
                await asyncio.sleep(0.01)
            (handle,) = fal.jobs
            for _ in range(2):
                await router.notice(f"{job_id}-1", handle)
            job = await router.result(job_id, timeout_s=60)
        assert job.status == "completed"
        assert len(fal.jobs) == 1


async def test_a_restarted_router_finds_its_jobs(tmp_path: Path) -> None:
    with ReplicateDouble(Order(seconds=0.5)) as service:
        policy = policy_of(tmp_path / "store", {"service": backend_table(service)})
        async with router_of(policy) as router:
            job_id = await router.submit(REQUEST, key="order-1")
            while not service.jobs:
                await asyncio.sleep(0.01)
        async with router_of(policy) as router:
            assert await router.submit(REQUEST, key="order-1") == job_id
            job = await router.result(job_id, timeout_s=60)
        assert job.status == "completed"
        assert len(service.jobs) == 1


@pytest.mark.parametrize("moment", ["before the call", "after the call"])
@pytest.mark.parametrize("kind", [RunPodDouble, ReplicateDouble, FalDouble, VideosDouble])
async def test_an_intention_without_an_answer_is_never_paid_twice(kind: Any, moment: str, tmp_path: Path) -> None:
    """As a process that dies leaves it: written before the call, and no handle."""
    knows_its_jobs = kind in (RunPodDouble, ReplicateDouble)
    with kind() as service, ReplicateDouble() as spare:
        tables = {"first": backend_table(service), "spare": backend_table(spare)}
        policy = policy_of(tmp_path / "store", tables, tier={"deadline_s": 60.0 if knows_its_jobs else 2.0})
        backends = make_backends(policy, ENVIRON)
        submit, reached = backends["first"].submit, asyncio.Event()

        async def dying(request: VideoRequest, key: str, /) -> str:
            if moment == "after the call":
                await submit(request, key)
            reached.set()
            await asyncio.sleep(600)
            raise AssertionError

        backends["first"].submit = dying
        async with router_of(policy, backends=backends) as router:
            job_id = await router.submit(REQUEST)
            await reached.wait()
        async with router_of(policy) as router:
            job = await router.result(job_id, timeout_s=60)
        assert service.made("a fox") + spare.made("a fox") <= 1
        if knows_its_jobs:
            never_sent = kind is ReplicateDouble and moment == "before the call"
            assert job.status == "completed"
            assert (spare if never_sent else service).made("a fox") == 1
        else:
            assert job.status == "unknown"
