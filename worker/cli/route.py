"""`route`: the router of the package videogen-client, where that is installed. The worker itself does without it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence

from worker.cli.failures import CommandFailed

_ROUTER = "videogen_client.router.__main__"


def run(chosen: argparse.Namespace) -> int:
    """Exit status of the router's own command. Raises CommandFailed where a package is missing."""
    try:
        router: Callable[[Sequence[str]], int] = importlib.import_module(_ROUTER).main
    except ModuleNotFoundError as missing:
        message = f"error: route needs {missing.name}: pip install './client[router]', of this repository"
        raise CommandFailed(message) from missing
    given = [] if chosen.key is None else ["--key", chosen.key]
    given += [] if chosen.out is None else ["--out", chosen.out]
    return router(["route", *(["--dry-run"] if chosen.dry_run else []), *given, "--", chosen.policy, chosen.request])
