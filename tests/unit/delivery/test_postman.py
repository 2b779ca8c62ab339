from __future__ import annotations

import threading

import pytest

from tests.kits.webhooks import Network
from worker.base.errors import Cancelled, InputBlocked, InvalidRequest
from worker.delivery.webhooks.letter import Letter, Outcome
from worker.delivery.webhooks.postman import Postman
from worker.net import PostAnswer, PostFailed

LETTER = Letter(job_id="abc", event_id="evt_1", url="https://one.example/hook", body="{}", created_at=0.0)


def outcome_of(answer: int | PostAnswer | Exception, secrets: tuple[str, ...] = ()) -> Outcome:
    return Postman(Network(answer), secrets, threading.Event())(LETTER, 1.0)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (InputBlocked("must be a public address", path="webhook_url"), "blocked"),
        (InvalidRequest("is not a URL", path="webhook_url"), "blocked"),
        (PostFailed("refused or broke the connection"), "failed"),
        (Cancelled(), "stopped"),
        (RuntimeError("https://one.example/hook"), "failed"),
    ],
)
def test_no_exception_leaves_the_postman_and_no_reason_names_the_url(failure: Exception, kind: str) -> None:
    outcome = outcome_of(failure)
    assert outcome.kind == kind
    assert outcome.reason
    assert "one.example" not in outcome.reason
    assert outcome.settled is (kind == "blocked")


def test_a_secret_that_cannot_sign_is_a_failure() -> None:
    assert outcome_of(200, secrets=("whsec_",)).kind == "failed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(199, "failed"), (200, "delivered"), (299, "delivered"), (300, "failed"), (409, "failed"), (410, "gone")],
)
def test_the_status_decides(status: int, kind: str) -> None:
    assert outcome_of(status).kind == kind


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("999999", 21_600.0),
        ("Sat, 01 Mar 2025 00:00:00 GMT", 0.0),
        ("x", 0.0),
    ],
)
def test_retry_after_is_read_up_to_six_hours(wish: str, seconds: float) -> None:
    assert outcome_of(PostAnswer(429, {"Retry-After": wish})).retry_after_s == seconds
