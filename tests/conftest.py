"""What every test stands on: an environment without the operator's variables, and folders of its own."""

from __future__ import annotations

import functools
import gc
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # read when transformers is first imported
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the workers, which share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here and in the processes of tests

from worker.base.settings import Settings, variables_of

# jsonschema imports it where it is there, which takes seconds; no schema here has a format that needs it.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
pytest_plugins = ["tests.kits.no_orphans"]
hypothesis.settings.register_profile(
    "project", deadline=None, derandomize="CI" in os.environ, print_blob=True, database=None
)
hypothesis.settings.load_profile("project")

# Most HTTP clients read all authorities' certificates when they are made, which takes up to 60 ms: once is enough.
_new_context, _same_context = ssl.create_default_context, functools.cache(ssl.create_default_context)


def _context(*arguments: Any, **options: Any) -> ssl.SSLContext:
    shared = not arguments and options.keys() == {"cafile"}
    return (_same_context if shared else _new_context)(*arguments, **options)


ssl.create_default_context = _context  # type: ignore[assignment]

# A shell has what it runs in the background ignore Ctrl-C, and every child inherits that; CI is no terminal either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave out of each `gc.collect`, here and in the engine, the million objects that the imported libraries are."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test; state and outputs go to the test's folder."""
    for field in Settings.model_fields:
        for variable in variables_of(field):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "models"))
