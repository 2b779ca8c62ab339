"""Whom to tell of a payload that was refused: what `contact` reads of it, and its digest."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import nested, refusal
from worker.request.contact import Contact, contact, payload_digest
from worker.request.names import MAX_FIELDS

EVENTS = frozenset({"progress", "completed", "failed"})


@pytest.mark.parametrize("payload", [None, [], "x", 5, {}, {"job_id": None, "webhook_url": None}])
def test_contact_of_a_payload_that_names_nobody(payload: object) -> None:
    assert contact(payload, default_job_id="rp-1") == Contact("rp-1", None, EVENTS, 1, (), payload_digest(payload))


def test_contact_reads_what_is_good() -> None:
    videos = [{"prompt": " a cat ", "negative_prompt": "dogs", "num_outputs": 3}, 5, {"prompt": 7, "num_outputs": 9}]
    payload = {
        "job_id": "j-1",
        "webhook_url": "https://example.com/h",
        "webhook_events": ["failed"],
        "prompt": "a bird",
        "job_request_params": videos,
    }
    assert contact(payload, default_job_id="rp-1") == Contact(
        "j-1",
        "https://example.com/h",
        frozenset({"failed"}),
        5,
        ("a bird", "a cat", "dogs"),
        payload_digest(payload),
    )
    refusal(payload)


@pytest.mark.parametrize("job_id", ["..", "a/b", "", "a" * 129, 5, ["a"], {"a": 1}, True])
def test_contact_passes_over_a_bad_job_id(job_id: object) -> None:
    assert contact({"job_id": job_id}, default_job_id="rp-1").job_id == "rp-1"


@pytest.mark.parametrize("url", ["", "no url", 5, ["https://a"], "https://\ud800"])
def test_contact_passes_over_a_bad_url(url: object) -> None:
    assert contact({"webhook_url": url}, default_job_id="rp-1").webhook_url is None


@pytest.mark.parametrize("events", ["failed", None, 5, {}, ["complete"], ["failed", 3], [["failed"]], [{}]])
def test_contact_has_every_event_where_the_choice_cannot_be_read(events: object) -> None:
    assert contact({"webhook_events": events}, default_job_id="rp-1").events == EVENTS


def test_contact_does_no_work_for_the_fields_of_an_object_that_is_refused() -> None:
    def digest(count: int, beyond: str) -> str | None:
        many = {f"x{index}": index for index in range(count)} | {"z": beyond}
        return contact({"job_request_params": [{"loras": [many]}]}, default_job_id="j").digest

    assert digest(MAX_FIELDS - 1, "a") != digest(MAX_FIELDS - 1, "b")
    assert digest(MAX_FIELDS, "a") == digest(MAX_FIELDS, "b")


def test_contact_of_an_empty_choice_is_nothing() -> None:
    assert contact({"webhook_events": []}, default_job_id="rp-1").events == frozenset()


@pytest.mark.parametrize("payload", [nested(100_000), {"prompt": "a", "deep": nested(100_000)}, {1: 2, "a": 3}])
def test_what_cannot_be_written_as_json_has_no_digest(payload: object) -> None:
    found = contact(payload, default_job_id="rp-1")
    assert (found.job_id, found.digest) == ("rp-1", None)
