"""The services that the router knows, one file each. Adding one: docs/router.md."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ..backend import Backend
from ..errors import PolicyInvalid, Problem
from ..policy import Kind, Policy

# The class of each kind. Its file is loaded where a policy has the kind: it imports the service's SDK.
REGISTRY: dict[Kind, tuple[str, str]] = {
    "runpod": ("runpod", "RunPodWorker"),
    "openai_videos": ("openai_videos", "OpenAIVideos"),
    "fal": ("fal", "Fal"),
    "replicate": ("replicate", "Replicate"),
    "runway": ("runway", "Runway"),
    "google": ("google", "Google"),
}


def make_backends(policy: Policy, environ: Mapping[str, str]) -> dict[str, Backend]:
    """Those of the policy, by their names. Raises PolicyInvalid for missing keys and missing SDKs, all at once."""
    made: dict[str, Backend] = {}
    problems = []
    for name, table in policy.backends.items():
        key = None
        if table.api_key_env is not None:
            key = environ.get(table.api_key_env)
            if not key:
                problems.append(Problem(f"backends.{name}.api_key_env", f"{table.api_key_env} is not set"))
        file, class_name = REGISTRY[table.kind]
        try:
            module = importlib.import_module(f".{file}", __name__)
        except ImportError as failure:
            install = f"pip install 'videogen-client[{file}]'"
            problems.append(Problem(f"backends.{name}.kind", f"needs {failure.name}: {install}"))
            continue
        try:
            made[name] = getattr(module, class_name)(name, table, policy.prices, key)
        except PolicyInvalid as failure:
            problems += failure.problems
    if problems:
        raise PolicyInvalid(problems)
    return made
