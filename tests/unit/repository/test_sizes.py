"""A file and a function are short enough to be read in one go, and every file of the worker has a room."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MOST_OF_A_FILE, MOST_OF_A_FUNCTION = 320, 60


def test_no_file_is_longer_than_it_may_be() -> None:
    files = [path for room in ("worker", "tests", "builder") for path in (ROOT / room).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 500
    assert {name: length for name, length in lengths.items() if length > MOST_OF_A_FILE} == {}


def test_no_function_of_the_worker_is_longer_than_it_may_be() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in (ROOT / "worker").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 1000
    assert {name: length for name, length in lengths.items() if length > MOST_OF_A_FUNCTION} == {}


def test_start_is_the_one_loose_file_of_the_worker() -> None:
    assert {path.name for path in (ROOT / "worker").glob("*.py")} == {"__init__.py", "start.py"}
