"""Which module may load what: judged in a fresh interpreter, and by reading the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "diffusers", "transformers", "runpod", "accelerate", "peft")
LIGHT_MODULES = ("base.settings", "base.timing", "net", "request", "request.schema", "media", "delivery", "cli.submit")
REPORT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, module], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_no_model_library(module: str) -> None:
    assert loaded_by(f"worker.{module}") & set(HEAVY) == set()


def test_request_loads_no_network_and_no_imaging_either() -> None:
    unwanted = {"requests", "urllib3", "boto3", "botocore", "numpy", "PIL", "av"}
    assert loaded_by("worker.request.parse") & unwanted == set()


def test_importing_the_handler_loads_no_model_and_not_the_sdk() -> None:
    assert loaded_by("handler") & set(HEAVY) == set()


def test_the_probe_sees_what_a_heavy_module_loads() -> None:
    assert "torch" in loaded_by("torch")


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module


def test_only_the_handler_and_the_command_that_sends_jobs_import_runpod() -> None:
    files = [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py"), *(ROOT / "builder").rglob("*.py")]
    importers = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(name.partition(".")[0] == "runpod" for name in imports(file))
    }
    assert importers == {"handler.py", "worker/cli/submit.py"}
