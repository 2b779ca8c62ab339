"""Everything that a run writes is searched for what must not be in it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Receiver, Runner, small
from tests.kits import seeing
from tests.kits.slow import slow
from worker.base.errors import WorkerError
from worker.delivery.shapes import Code

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENVIRONMENT = {
    "WEBHOOK_SECRET": SECRET,
    "HF_TOKEN": "hf_very_secret_token_1",
    "RUNPOD_API_KEY": "rpa_very_secret_key_2",
}
PROMPT = "a heron stands in the reeds of the Müritz"
NEGATIVE = "no boats on the water please"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the worker logs, as `log.configure` writes it, at DEBUG."""
    secrets = [value for text in ENVIRONMENT.values() for value in (text, text.removeprefix("whsec_"))]
    with seeing.logged(level="DEBUG", secrets=secrets) as stream:
        yield stream


def test_no_secret_prompt_or_signature_is_written(
    make_runner: Make,
    receiver: Receiver,
    picture_url: str,
    httpserver: HTTPServer,
    written: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_NEIGHBOURS_SECRET", "not-for-anyone")
    run = make_runner(ENVIRONMENT)
    signed = picture_url + "?X-Amz-Signature=0123456789abcdef&token=letmein"
    missing = httpserver.url_for("/missing.png") + "?X-Amz-Signature=fedcba987654"
    answer = run(
        {
            "job_id": "private",
            "webhook_url": receiver.url + "?key=hooksecret",
            "job_request_params": [
                small(prompt=PROMPT, negative_prompt=NEGATIVE, reference_image_url=signed),
                small(prompt=PROMPT, reference_image_url=missing),
            ],
        }
    )
    assert answer["status"] == "partial"
    logged = written.getvalue()
    assert "private" in logged  # the job id: the log was really kept
    told = b"".join(receiver.bodies).decode()
    answered = json.dumps(answer)
    for text in (*ENVIRONMENT.values(), SECRET.removeprefix("whsec_"), "not-for-anyone"):
        for place in (logged, told, answered):
            assert text not in place
    for text in ("0123456789abcdef", "letmein", "fedcba987654", "hooksecret"):
        for place in (logged, told, answered):
            assert text not in place
    for text in (PROMPT, PROMPT.upper(), NEGATIVE, json.dumps(PROMPT)[1:-1]):
        assert text not in logged


def test_what_is_not_foreseen_tells_the_job_id_and_nothing_else(
    run: Runner, receiver: Receiver, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"cannot do {PROMPT} in {Path.cwd()}")

    monkeypatch.setattr(type(run.worker.engine), "generate", fail)
    answer = run({"job_id": "odd", "webhook_url": receiver.url, "job_request_params": [small(prompt=PROMPT)]})
    error = json.loads(answer["error"])
    assert error == {"code": "internal", "message": "unexpected failure in job odd", "path": None, "retryable": True}
    for place in (json.dumps(answer), b"".join(receiver.bodies).decode()):
        assert "Traceback" not in place
        assert "RuntimeError" not in place
        assert str(Path.cwd()) not in place
    assert "RuntimeError" in written.getvalue()
    assert PROMPT not in written.getvalue()


def every_error(kind: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    for child in kind.__subclasses__():
        yield child
        yield from every_error(child)


def test_every_error_has_a_code_of_the_contract() -> None:
    assert {error.code for error in every_error()} == set(get_args(Code))


@pytest.mark.parametrize(
    "library", ["torch", "requests", "ssl", *slow("botocore.exceptions", "PIL", "huggingface_hub.errors")]
)
def test_every_exception_of_a_library_ends_as_an_error_of_the_contract(
    run: Runner, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever escapes a boundary by mistake is still answered; a sample of each library's own exceptions."""
    module = __import__(library, fromlist=["x"])
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert kinds
    for number, kind in enumerate(kinds):
        failure = kind.__new__(kind)

        def fail(*_: object, _failure: Exception = failure, **__: object) -> None:
            raise _failure

        monkeypatch.setattr(type(run.worker.engine), "generate", fail)
        answer = run({"job_id": f"{library}-{number}", "job_request_params": [small()]})
        error = json.loads(answer["error"])
        assert error["code"] in ("internal", "out_of_memory")
        assert not re.search(r'File "|Traceback', error["message"])
