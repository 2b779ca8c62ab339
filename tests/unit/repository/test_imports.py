"""Which module may load what, and what the face of a room is: the first judged in fresh interpreters."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "diffusers", "transformers", "runpod", "accelerate", "peft"}
LIGHT_ROOMS = ("base", "net", "request", "media", "delivery")
# What each import added to what was loaded before it, and after the last one the packages that are loaded.
PROBE = """
import importlib, json, sys
def loaded():
    return {name.partition(".")[0] for name in sys.modules}
added = {}
for module in sys.argv[1:]:
    before = loaded()
    importlib.import_module(module)
    added[module] = sorted(loaded() - before)
print(json.dumps(added))
"""


def report(script: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", script, *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def modules(folder: Path) -> list[str]:
    """Every module below a folder of the repository."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in sorted(folder.rglob("*.py")))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths if path.stem != "__main__"]


def test_light_rooms_load_no_model_library() -> None:
    """One process for all of them: the first module that loads one is named."""
    light = [module for room in LIGHT_ROOMS for module in modules(ROOT / "worker" / room)]
    assert len(light) > 50
    added = report(PROBE, *light)
    assert {module: found for module, names in added.items() if (found := HEAVY & set(names))} == {}


def test_request_loads_no_network_and_no_imaging_either() -> None:
    unwanted = {"requests", "urllib3", "boto3", "botocore", "numpy", "PIL", "av"}
    assert set(report(PROBE, "worker.request.parse")["worker.request.parse"]) & unwanted == set()


def test_importing_the_handler_loads_no_model_and_not_the_sdk() -> None:
    assert set(report(PROBE, "handler")["handler"]) & HEAVY == set()


@pytest.mark.slow  # test_light_rooms_load_no_model_library uses it
def test_the_probe_sees_what_a_heavy_module_loads() -> None:
    assert "torch" in report(PROBE, "json", "torch")["torch"]


ROOMS = sorted(path.parent for path in (ROOT / "worker").glob("*/__init__.py"))


def test_a_room_s_face_is_what_its_all_says() -> None:
    assert len(ROOMS) == 11
    for room in ROOMS:
        package = importlib.import_module(f"worker.{room.name}")
        shown = getattr(package, "__all__", [])
        assert sorted(set(shown)) == sorted(shown), room.name
        public = {name for name in vars(package) if not name.startswith("_") and name != "annotations"}
        assert {name for name in public if not isinstance(getattr(package, name), ModuleType)} == set(shown), room.name


def test_no_face_exports_a_name_that_one_of_its_files_has() -> None:
    """Importing the file would replace the name, or the name the file: which one depends on the order."""
    for room in ROOMS:
        shown = getattr(importlib.import_module(f"worker.{room.name}"), "__all__", ())
        assert {path.stem for path in room.iterdir()} & set(shown) == set(), room.name


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module


@pytest.mark.slow  # `make check` has the import contract
def test_only_the_handler_imports_runpod() -> None:
    files = [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py"), *(ROOT / "builder").rglob("*.py")]
    importers = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(name.partition(".")[0] == "runpod" for name in imports(file))
    }
    assert importers == {"handler.py"}
