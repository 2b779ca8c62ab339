"""What attention can be computed with: the engine's own list of kernels, asked one by one whether they are here."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, ok, warn


def check(deployment: Deployment) -> Finding:
    """Which kernels are there, best first. The engine tries each against torch's own when it loads its first expert."""
    if deployment.planner.gpu is None:
        return ok("torch's own, on the CPU")
    return judge(*_kernels(deployment), wanted=deployment.settings.enable_sage_attention)


def judge(quantised: Mapping[str, str | None], exact: Mapping[str, str | None], *, wanted: bool) -> Finding:
    """Kernels by name in the engine's order, each with why it is not here, or None; those that quantise (SageAttention)
    apart. `wanted`: ENABLE_SAGE_ATTENTION. Slower kernels make the same videos: nothing here is a failure.
    """
    there = [name for name, missing in exact.items() if missing is None]
    if not wanted:
        return ok(f"{', '.join(there)}; SageAttention is switched off")
    sage = [name for name, missing in quantised.items() if missing is None]
    if sage:
        return ok(", ".join([*sage, *there]))
    reasons = "; ".join(f"{name}: {missing}" for name, missing in quantised.items())
    return warn(
        f"{', '.join(there)}; no SageAttention ({reasons})",
        "use an image that was built with SageAttention, which is faster, or set ENABLE_SAGE_ATTENTION=false",
    )


def _kernels(deployment: Deployment) -> tuple[dict[str, str | None], dict[str, str | None]]:
    # Imported late: Diffusers takes seconds, and only this check needs it.
    from worker.engine.device import detect
    from worker.engine.techniques.attention import BACKENDS, Backend
    from worker.engine.techniques.base import Setup

    setup = Setup(deployment.settings, detect(), torch.bfloat16)

    def missing(backend: Backend) -> str | None:
        try:
            return backend.missing(setup)
        except Exception as failure:  # noqa: BLE001 - whatever a foreign kernel raises; the engine passes it over
            return f"it fails with {type(failure).__name__}"

    quantised, exact = (
        {backend.name: missing(backend) for backend in BACKENDS if backend.quantised == wanted}
        for wanted in (True, False)
    )
    return quantised, exact
