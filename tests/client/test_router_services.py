"""Each service, by its official SDK, against a double that speaks its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kits.router_kit import FAST, backend_table, policy_of, router_of
from tests.kits.service_double import Order, ServiceDouble
from tests.kits.services import FalDouble, GoogleDouble, ReplicateDouble, RunPodDouble, RunwayDouble, VideosDouble

SERVICES = [FalDouble, GoogleDouble, ReplicateDouble, RunPodDouble, RunwayDouble, VideosDouble]
REQUEST = {"prompt": "a fox", "tier": "draft"}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> Iterator[ServiceDouble]:
    with request.param() as double:
        yield double


@pytest.fixture
def spare() -> Iterator[FalDouble]:
    with FalDouble() as double:
        yield double


async def outcome(tmp_path: Path, doubles: dict[str, ServiceDouble], **tier: Any) -> Any:
    backends = {name: backend_table(double) for name, double in doubles.items()}
    async with router_of(policy_of(tmp_path / "store", backends, tier=tier)) as router:
        job_id = await router.submit(REQUEST)
        return await router.result(job_id, timeout_s=60)


async def test_a_video_is_made_once_and_can_be_downloaded(service: ServiceDouble, tmp_path: Path) -> None:
    policy = policy_of(tmp_path / "store", {"first": backend_table(service)})
    async with router_of(policy) as router:
        job = await router.result(await router.submit(REQUEST), timeout_s=60)
        assert job.status == "completed"
        assert job.result is not None
        assert job.result["backend"] == "first"
        assert service.made("a fox") == 1
        if not isinstance(service, RunPodDouble):  # whose file has a hash
            await router.download(job.id, tmp_path / "fox.mp4")
            assert (tmp_path / "fox.mp4").read_bytes() == service.video


@pytest.mark.parametrize("status", [401, 429])
async def test_a_refusal_that_is_not_the_requests_fault_goes_to_the_next(
    service: ServiceDouble, spare: FalDouble, status: int, tmp_path: Path
) -> None:
    service.submit_faults = [status]
    job = await outcome(tmp_path, {"first": service, "spare": spare})
    assert job.result["backend"] == "spare"
    assert [each["backend"] for each in job.route if each["chosen"]] == ["first", "spare"]


async def test_the_requests_own_fault_goes_nowhere_else(
    service: ServiceDouble, spare: FalDouble, tmp_path: Path
) -> None:
    service.submit_faults = [422]
    job = await outcome(tmp_path, {"first": service, "spare": spare})
    assert job.status == "failed"
    assert job.error["retryable"] is False
    assert spare.jobs == {}


async def test_a_model_that_refuses_the_content_ends_the_job(
    service: ServiceDouble, spare: FalDouble, tmp_path: Path
) -> None:
    service.default = Order("refused")
    job = await outcome(tmp_path, {"first": service, "spare": spare})
    assert job.status == "failed"
    assert job.error["code"] == "refused_by_model"
    assert spare.jobs == {}


async def test_a_failed_job_goes_to_the_next(service: ServiceDouble, spare: FalDouble, tmp_path: Path) -> None:
    service.default = Order("failed")
    job = await outcome(tmp_path, {"first": service, "spare": spare})
    assert job.result["backend"] == "spare"
    assert len(service.jobs) == 1


async def test_questions_without_an_answer_change_nothing(service: ServiceDouble, tmp_path: Path) -> None:
    service.read_faults = [500, "cut", 429, "cut_after", 502]
    job = await outcome(tmp_path, {"first": service})
    assert job.status == "completed"
    assert service.made("a fox") == 1


@pytest.mark.parametrize("fault", ["cut_after", 500])
async def test_a_lost_answer_is_never_paid_twice(
    service: ServiceDouble, spare: FalDouble, fault: Any, tmp_path: Path
) -> None:
    service.submit_faults = [fault]
    knows_its_jobs = isinstance(service, RunPodDouble | ReplicateDouble)
    job = await outcome(tmp_path, {"first": service, "spare": spare}, deadline_s=60 if knows_its_jobs else 1)
    assert service.made("a fox") + spare.made("a fox") <= 1
    if knows_its_jobs:  # by its job_id, or by its list
        was_taken = isinstance(service, RunPodDouble) or fault == "cut_after"
        assert job.result["backend"] == ("first" if was_taken else "spare")
    else:
        assert job.status == "unknown"
        assert spare.jobs == {}


async def test_a_connection_that_the_service_has_closed_costs_no_submission(
    service: ServiceDouble, tmp_path: Path
) -> None:
    """It was idle since the last question. Where the service has no keys, the job would end as unknown."""
    service.closes_idle = True
    policy = policy_of(tmp_path / "store", {"only": backend_table(service)}, tier={"deadline_s": 5.0})
    async with router_of(policy) as router:
        for number in range(2):
            job = await router.result(await router.submit({**REQUEST, "prompt": str(number)}), timeout_s=60)
            assert (job.status, len(job.attempts)) == ("completed", 1)


async def test_an_answer_that_is_late_is_looked_for(spare: FalDouble, tmp_path: Path) -> None:
    with ReplicateDouble() as service:
        service.submit_faults, service.late_s = ["late"], 4.0
        tables = {"first": backend_table(service), "spare": backend_table(spare)}
        timing = replace(FAST, submit_s=1.0)
        async with router_of(policy_of(tmp_path / "store", tables), timing) as router:
            job = await router.result(await router.submit(REQUEST), timeout_s=60)
        assert job.result is not None
        assert job.result["backend"] == "first"
        assert spare.jobs == {}


async def test_a_server_that_keeps_keys_is_asked_again(tmp_path: Path) -> None:
    with VideosDouble(keeps_keys=True) as service:
        service.submit_faults = ["cut_after", "cut_after", 500, 503]
        backends = {"first": backend_table(service, on_lost="resubmit")}
        async with router_of(policy_of(tmp_path / "store", backends)) as router:
            job = await router.result(await router.submit(REQUEST), timeout_s=60)
        assert job.status == "completed"
        assert len(service.jobs) == 1


async def test_runpod_forgets_a_job_and_its_journal_does_not(tmp_path: Path) -> None:
    with RunPodDouble(Order(seconds=0.3)) as service:
        async with router_of(policy_of(tmp_path / "store", {"first": backend_table(service)})) as router:
            job_id = await router.submit(REQUEST)
            while not service.jobs:
                await router.job(job_id)
            service.forget()
            job = await router.result(job_id, timeout_s=60)
        assert job.status == "completed"
        assert service.made("a fox") == 1


async def test_extras_reach_their_backend_untouched_and_no_other(tmp_path: Path) -> None:
    extras = {"first": {"shift": 5.0, "nested": {"a": [1, None]}}, "other": {"secret": 1}}
    with ReplicateDouble() as service:
        async with router_of(policy_of(tmp_path / "store", {"first": backend_table(service)})) as router:
            await router.result(await router.submit({**REQUEST, "extras": extras}), timeout_s=60)
        (job,) = service.jobs.values()
    assert job.fields["shift"] == 5.0
    assert job.fields["nested"] == {"a": [1, None]}
    assert "secret" not in job.fields
