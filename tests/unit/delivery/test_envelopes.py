from __future__ import annotations

import base64
import json
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from worker.base.version import VERSION
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.progress_sender import ProgressEvent

MOMENT = datetime(2025, 3, 1, 12, 30, 45, 678_000, tzinfo=UTC)
SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 24).decode() for number in (1, 2, 3))


def test_a_timestamp_is_utc_to_the_millisecond() -> None:
    east = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    event = ProgressEvent(42, "generating", 0)
    envelope = envelopes.progress(event, job_id="abc", event_id="evt_1", timestamp=east, total=1)
    assert envelope["timestamp"] == "2025-03-01T12:30:45.678Z"


def test_a_final_event_has_one_id_for_ever_and_no_other_event_has_it() -> None:
    first = envelopes.final_event_id("abc", "d1", 0, "completed")
    assert first == envelopes.final_event_id("abc", "d1", 0, "completed")
    assert first.startswith("evt_")
    assert len(first) == 36
    others = {
        envelopes.final_event_id("abd", "d1", 0, "completed"),
        envelopes.final_event_id("abc", "d2", 0, "completed"),
        envelopes.final_event_id("abc", "d1", 1, "completed"),
        envelopes.final_event_id("abc", "d1", None, "completed"),
        envelopes.final_event_id("abc", "d1", 0, "failed"),
        envelopes.progress_event_id(),
        envelopes.progress_event_id(),
    }
    assert len(others | {first}) == 8


@pytest.mark.parametrize("text", ["été 雪 🎬", "\ud800 alone", 'a "quote"\n'])
def test_any_text_is_serialised_to_utf_8_that_reads_back(text: str) -> None:
    body = envelopes.serialised({"data": {"prompt": text}}).encode()
    assert json.loads(body) == {"data": {"prompt": text}}
    assert b": " not in body


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        envelopes.serialised({"data": value})


def test_each_secret_signs_and_a_receiver_with_any_of_them_verifies() -> None:
    body = '{"a":"été"}'
    headers = envelopes.headers(body, event_id="evt_1", now=datetime.now(UTC), secrets=SECRETS[:2])
    assert headers["webhook-id"] == "evt_1"
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in SECRETS[:2]:
        assert Webhook(secret).verify(body.encode(), headers) == {"a": "été"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[2]).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(body + " ", headers)


def test_the_timestamp_is_the_moment_in_whatever_zone_it_is_given() -> None:
    west = MOMENT.astimezone(timezone(timedelta(hours=-8)))
    assert envelopes.headers("{}", event_id="e", now=west, secrets=SECRETS[:1]) == envelopes.headers(
        "{}", event_id="e", now=MOMENT, secrets=SECRETS[:1]
    )
    headers = envelopes.headers("{}", event_id="e", now=west, secrets=SECRETS[:1])
    assert headers["webhook-timestamp"] == str(int(MOMENT.timestamp()))


def test_without_a_secret_nothing_is_signed() -> None:
    headers = envelopes.headers("{}", event_id="evt_1", now=MOMENT, secrets=())
    assert headers == {"Content-Type": "application/json", "User-Agent": f"videogen-runpod/{VERSION}"}


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
