"""The error tree against section 4 of the public contract."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from worker.base.errors import (
    Cancelled,
    InputBlocked,
    InputRefused,
    Internal,
    InvalidRequest,
    Problem,
    SettingsError,
    WorkerError,
)
from worker.base.sigterm import ShuttingDown

ROOT = Path(__file__).parents[3]

CONTRACT = {
    ("invalid_request", 400, False),
    ("unsupported", 400, False),
    ("input_blocked", 400, False),
    ("input_failed", 422, True),
    ("input_invalid", 422, False),
    ("cancelled", 499, True),
    ("internal", 500, True),
    ("encode_failed", 500, True),
    ("upload_failed", 502, True),
    ("model_unavailable", 503, True),
    ("timeout", 504, True),
    ("out_of_memory", 507, False),
}


KINDS = sorted(WorkerError.__subclasses__(), key=lambda kind: kind.__name__)


def test_codes_are_those_of_the_contract() -> None:
    found = [(kind.code, kind.http_code, kind.retryable) for kind in KINDS]
    assert set(found) == CONTRACT
    assert len(found) == len(CONTRACT)


def test_a_kind_without_a_code_is_a_narrower_kind_of_its_base() -> None:
    class Narrower(InputBlocked):
        pass

    for kind in (Narrower, ShuttingDown):
        base = kind.__bases__[0]
        assert (kind.code, kind.http_code, kind.retryable) == (base.code, base.http_code, base.retryable)
    assert (InputRefused.code, InputRefused.http_code, InputRefused.retryable) == ("input_failed", 422, False)


def test_no_other_module_adds_to_the_contract() -> None:
    """A module may make a narrower kind of one of these errors for itself, but none with a code of its own."""
    kinds = {kind.__name__ for kind in (WorkerError, *KINDS)}
    for file in [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]:
        if file.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base).rpartition(".")[2] for base in node.bases} & kinds:
                assert not node.keywords, f"{file.name}: {node.name}"
                assert "WorkerError" not in map(ast.unparse, node.bases), f"{file.name}: {node.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_makes_an_error_object(kind: type[WorkerError]) -> None:
    error = {"Cancelled": Cancelled, "Internal": lambda: Internal("job-7")}.get(
        kind.__name__, lambda: kind("went wrong", path="job_request_params[2].fps")
    )()
    told = error.as_dict()
    assert set(told) == {"code", "message", "path", "retryable"}
    assert (told["code"], error.http_code, told["retryable"]) in CONTRACT
    assert told["message"] == str(error)
    json.dumps(told, allow_nan=False)
    if told["path"] is not None:
        assert str(error) == "job_request_params[2].fps: went wrong"


def test_an_internal_error_carries_only_the_job_id() -> None:
    assert str(Internal("job-7")) == "unexpected failure in job job-7"


def test_an_error_without_a_path_is_its_message() -> None:
    error = WorkerError("went wrong")
    assert (str(error), error.path, error.as_dict()["path"]) == ("went wrong", None, None)


def test_problems_of_one_request_are_told_together() -> None:
    problems = [Problem("a", "is wrong"), Problem(None, "so is all"), Problem("b[1].c", "is missing")]
    error = InvalidRequest.of(problems)
    assert error.problems == tuple(problems)
    assert error.path == "a"
    assert str(error) == "a: is wrong; so is all; b[1].c: is missing"


def test_a_single_complaint_is_a_problem_too() -> None:
    assert InvalidRequest("is wrong", path="a").problems == (Problem("a", "is wrong"),)


def test_settings_error_lists_each_problem_on_a_line() -> None:
    error = SettingsError(["A: bad", "B: worse"])
    assert error.problems == ("A: bad", "B: worse")
    assert str(error) == "the worker cannot start:\n  - A: bad\n  - B: worse"
    assert not isinstance(error, WorkerError)
