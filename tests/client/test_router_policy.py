"""What the policy refuses, and which candidate it chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kits.router_kit import backend_table, policy_of, price_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble
from videogen_client.router import KeyReused, NoCandidate, Policy, PolicyInvalid, RequestRefused

REQUEST = {"prompt": "a fox", "tier": "draft"}
TOML = """
[backends.fal]
kind = "fal"
model = "fal-ai/wan/v2.2-a14b/text-to-video"
seconds_per_video_second = [4, 20]

[[prices]]
backend = "fal"
usd = [0.04, 0.08]
per = "video_second"
as_of = 2026-11-26
source = "the price list of fal"

[tiers.draft]
candidates = ["fal"]
max_cost_usd = 0.5
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(TOML)
    policy = Policy.load(path)
    assert policy.tiers["draft"].candidates == ("fal",)
    assert policy.prices[0].as_of.year == 2026


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    tables: dict[str, Any] = {
        "backends": {
            "one": {"kind": "fal", "seconds_per_video_second": [9, 4]},
            "two": {"kind": "fax", "model": "x", "seconds_per_video_second": [1, 2], "tries": 3},
            "three": {"kind": "runway", "model": "x", "seconds_per_video_second": [1, 2], "on_lost": "resubmit"},
        },
        "prices": [{"backend": "four", "usd": [1, 2], "per": "video", "as_of": "2999-01-01", "source": ""}],
        "tiers": {"draft": {"candidates": ["one", "five"]}, "cheap": {"candidates": ["one"]}},
        "tenants": {"a": {"budget_usd_per_day": -1}},
    }
    with pytest.raises(PolicyInvalid) as caught:
        Policy.read(tables)
    paths = {each.path for each in caught.value.problems}
    assert paths >= {
        "backends.one.seconds_per_video_second",
        "backends.one.model",
        "backends.one",
        "backends.two.kind",
        "backends.two.tries",
        "backends.three.on_lost",
        "prices.0.backend",
        "prices.0.as_of",
        "prices.0.source",
        "tiers.draft.candidates.1",
        "tiers.cheap.[key]",
        "tenants.a.budget_usd_per_day",
    }


def test_missing_keys_are_reported_before_anything_starts() -> None:
    policy = Policy.read(
        {
            "backends": {
                "one": {"kind": "fal", "model": "a/b", "seconds_per_video_second": [1, 2], "api_key_env": "NONE"}
            },
            "prices": [price_of("one", 1.0)],
            "tiers": {"draft": {"candidates": ["one"]}},
        }
    )
    with pytest.raises(PolicyInvalid, match="NONE is not set"):
        router_of(policy)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"reference_image_url": "http://a/b.png"}, "has no mode image"),
        ({"duration_seconds": 9}, "makes 1 s to 8 s, not 9 s"),
        ({"width": 1280, "height": 720}, "makes 400000 pixels a frame, not 921600"),
        ({"loras": [{"source": "a"}]}, "takes no LoRA"),
        ({"audio": True}, "makes no audio"),
        ({"max_cost_usd": 0.4}, "may cost 0.5000 USD, 0.4000 are left of the most for the job"),
        ({"deadline_s": 2}, "takes 5 s at least, 2 s are left until the deadline"),
        ({"tenant": "poor"}, "may cost 0.5000 USD, 0.3000 are left of the tenant's budget for the day"),
    ],
)
async def test_a_candidate_that_does_not_fit_says_why(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    with FalDouble() as fal:
        table = backend_table(
            fal, min_seconds=1, max_seconds=8, max_pixels=400_000, seconds_per_video_second=[1, 1], start_s=[0, 0]
        )
        tenants = {"poor": {"budget_usd_per_day": 0.3}, "default": {"budget_usd_per_day": 9}}
        async with router_of(policy_of(tmp_path / "store", {"fal": table}, tenants=tenants)) as router:
            (entry,) = await router.plan({**REQUEST, **fields})
            assert entry == {"backend": "fal", "chosen": False, "why": why}
            with pytest.raises(NoCandidate, match="no backend may make this video"):
                await router.submit({**REQUEST, **fields})
        assert fal.requests == 0


async def test_a_size_without_a_price_is_never_sent(tmp_path: Path) -> None:
    with FalDouble() as fal:
        small = {**price_of("fal", 0.1), "max_pixels": 100_000}
        policy = policy_of(tmp_path / "store", {"fal": backend_table(fal)}, prices=[small])
        async with router_of(policy) as router:
            (entry,) = await router.plan(REQUEST)
    assert entry["why"] == "has no price for this size and sound"


async def test_the_first_price_that_fits_counts(tmp_path: Path) -> None:
    with FalDouble() as fal:
        prices = [
            {**price_of("fal", 0.01), "max_pixels": 500_000, "per": "video_second"},
            {**price_of("fal", 36.0), "per": "gpu_hour"},
        ]
        table = backend_table(fal, start_s=[0, 50], seconds_per_video_second=[10, 10])
        async with router_of(
            policy_of(tmp_path / "store", {"fal": table}, prices=prices, tier={"deadline_s": 200})
        ) as router:
            (small,) = await router.plan(REQUEST)
            (large,) = await router.plan({**REQUEST, "width": 1280, "height": 720})
    assert small["why"].endswith("0.0500 to 0.0500 USD, 50 to 100 s")
    assert large["why"].endswith("0.5000 to 1.0000 USD, 50 to 100 s")


async def test_every_problem_of_a_request_is_reported(tmp_path: Path) -> None:
    with FalDouble() as fal:
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            with pytest.raises(RequestRefused) as caught:
                await router.submit({"prompt": "", "tier": "best", "widht": 3, "seed": "7"})
    assert {each.path for each in caught.value.problems} == {"prompt", "tier", "widht", "seed"}


async def test_a_key_belongs_to_one_request(tmp_path: Path) -> None:
    with FalDouble(Order(seconds=0.0)) as fal:
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            first = await router.submit(REQUEST, key="order-1")
            await router.result(first, timeout_s=60)
            assert await router.submit(REQUEST, key="order-1") == first
            with pytest.raises(KeyReused):
                await router.submit({**REQUEST, "prompt": "a wolf"}, key="order-1")
            assert await router.submit({**REQUEST, "tenant": "another"}, key="order-1") != first
        assert fal.made("a wolf") == 0


async def test_a_key_that_is_known_is_its_job_also_where_no_other_could_be_made(tmp_path: Path) -> None:
    """A caller who was told otherwise would have the same video made elsewhere."""
    with FalDouble() as fal:
        tenants = {"default": {"budget_usd_per_day": 0.5}}
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)}, tenants=tenants)) as router:
            job_id = await router.submit(REQUEST, key="order-1")
            await router.result(job_id, timeout_s=60)
            assert await router.submit(REQUEST, key="order-1") == job_id
            with pytest.raises(NoCandidate, match="budget"):
                await router.submit(REQUEST, key="order-2")


async def test_a_tier_that_the_policy_has_not_is_refused(tmp_path: Path) -> None:
    with FalDouble() as fal:
        async with router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})) as router:
            for call in (router.submit, router.plan):
                with pytest.raises(NoCandidate, match="the policy has no tier premium"):
                    await call({**REQUEST, "tier": "premium"})


async def test_a_budget_is_reserved_then_settled_and_never_passed(tmp_path: Path) -> None:
    """At 0.5 USD, with 1.5 USD for the day: three of eight are made."""
    with FalDouble() as fal, ReplicateDouble() as replicate:
        tables = {"fal": backend_table(fal), "replicate": backend_table(replicate)}
        tenants = {"default": {"budget_usd_per_day": 1.5}}
        async with router_of(policy_of(tmp_path / "store", tables, tenants=tenants)) as router:
            statuses = []
            for number in range(8):
                try:
                    job_id = await router.submit({**REQUEST, "prompt": f"clip {number}"})
                except NoCandidate:
                    statuses.append("refused")
                else:
                    statuses.append((await router.result(job_id, timeout_s=60)).status)
            assert statuses.count("completed") == 3
            assert (await router.plan(REQUEST))[0]["why"].endswith("0.0000 are left of the tenant's budget for the day")
        assert len(fal.jobs) + len(replicate.jobs) == 3
