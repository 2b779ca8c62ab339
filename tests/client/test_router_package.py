"""What the router imports: what its extras declare, and nothing of the worker."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "client"
# Both are parts of one package of that name.
IMPORTED_AS = {"google_auth": "google", "google_genai": "google"}
ROUTER = CLIENT / "src" / "videogen_client" / "router"


def imports_of(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in plain | froms} - set(sys.stdlib_module_names)


def declared_by(*extras: str) -> set[str]:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name])]
    names = {re.split(r"[>=<\[]", each)[0].replace("-", "_") for each in listed}
    return {IMPORTED_AS.get(each, each) for each in names}


def test_the_router_needs_its_own_extra_alone() -> None:
    for file in ROUTER.glob("*.py"):
        extras = ("router", "quality") if file.name == "quality.py" else ("router",)
        assert imports_of(file) <= declared_by(*extras), file


def test_each_service_needs_its_own_extra() -> None:
    for file in (ROUTER / "backends").glob("*.py"):
        extras = () if file.stem in ("__init__", "service", "runpod") else (file.stem,)
        assert imports_of(file) <= declared_by("router", *extras), file
