"""The flag that ends a job's work."""

from __future__ import annotations

import threading

import pytest

from worker.base.errors import Cancelled, JobTimeout
from worker.base.stop import Stop


def test_nothing_is_asked_at_first() -> None:
    stop = Stop()
    assert not stop.requested
    assert not stop.event.is_set()
    stop.check()


def test_check_raises_the_reason_each_time() -> None:
    stop = Stop()
    reason = JobTimeout("too long")
    stop.request(reason)
    assert stop.requested
    assert stop.event.is_set()
    for _ in range(2):
        with pytest.raises(JobTimeout) as caught:
            stop.check()
        assert caught.value is reason


def test_the_first_reason_stays() -> None:
    stop = Stop()
    stop.request(JobTimeout("too long"))
    stop.request(Cancelled())
    assert isinstance(stop.reason, JobTimeout)


def test_an_event_set_by_itself_is_a_cancellation() -> None:
    stop = Stop()
    stop.event.set()
    with pytest.raises(Cancelled):
        stop.check()


def test_a_request_reaches_a_thread_that_waits() -> None:
    stop = Stop()
    seen: list[Exception] = []

    def work() -> None:
        stop.event.wait(timeout=60)
        try:
            stop.check()
        except Cancelled as reason:
            seen.append(reason)

    thread = threading.Thread(target=work)
    thread.start()
    stop.request(Cancelled())
    thread.join(timeout=60)
    assert seen == [stop.reason]


def test_stops_do_not_share_their_state() -> None:
    one, other = Stop(), Stop()
    one.request(Cancelled())
    assert not other.requested
