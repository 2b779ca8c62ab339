"""Routers over doubles: a policy with one backend for each double, and timing that suits loopback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kits.service_double import ServiceDouble
from tests.kits.services import FalDouble, GoogleDouble, ReplicateDouble, RunPodDouble, RunwayDouble, VideosDouble
from videogen_client.router import Policy, Router, RouterTiming

FAST = RouterTiming(submit_s=10.0, read_s=10.0, lease_s=40.0, retry_s=0.02, pause_s=0.02, find_s=0.1)
ENVIRON = {"SERVICE_KEY": ServiceDouble.key}
KINDS: dict[type[ServiceDouble], tuple[str, str]] = {
    FalDouble: ("fal", FalDouble.app),
    ReplicateDouble: ("replicate", "wan-video/wan-2.2"),
    RunwayDouble: ("runway", "gen4.5"),
    GoogleDouble: ("google", GoogleDouble.model),
    VideosDouble: ("openai_videos", "wan2.2"),
    RunPodDouble: ("runpod", RunPodDouble.endpoint_id),
}


def backend_table(double: ServiceDouble, **more: Any) -> dict[str, Any]:
    kind, model = KINDS[type(double)]
    return {
        "kind": kind,
        "model": model,
        "base_url": double.base_url,
        "api_key_env": "SERVICE_KEY",
        "start_s": [0, 1],
        "seconds_per_video_second": [0, 1],
        "poll_s": 0.01,
        "bills_failures": False,
        **more,
    }


def price_of(backend: str, usd: float) -> dict[str, Any]:
    return {"backend": backend, "usd": [usd, usd], "per": "video", "as_of": "2026-11-01", "source": "a test"}


def policy_of(
    store: Path | str,
    backends: Mapping[str, Mapping[str, Any]],
    *,
    usd: float = 0.5,
    tier: Mapping[str, Any] | None = None,
    **more: Any,
) -> Policy:
    """Every backend is a candidate of the tier draft, in their order, at `usd` a video."""
    url = store if isinstance(store, str) else f"sqlite:///{store}"
    tables = {
        "store": url,
        "backends": backends,
        "prices": [price_of(name, usd) for name in backends],
        "tiers": {"draft": {"candidates": list(backends), "deadline_s": 60.0, **(tier or {})}},
        **more,
    }
    return Policy.read(tables)


def router_of(policy: Policy, timing: RouterTiming = FAST, **more: Any) -> Router:
    return Router(policy, timing=timing, environ=ENVIRON, **more)
