from __future__ import annotations

import logging
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from worker.base.files import StateFolder
from worker.base.log import current_job_id, job_scope
from worker.delivery.webhooks.outbox import Letter, Outbox, Outcome

DELIVERED = Outcome("delivered")
FAILED = Outcome("failed", "no answer")


class Times:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Journal:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def is_told(self, job_id: str, event_id: str) -> bool:
        return (job_id, event_id) in self.told

    def record_told(self, job_id: str, event_id: str) -> None:
        self.told.append((job_id, event_id))


class Receiver:
    """A sender whose receivers answer as they are told to."""

    def __init__(self) -> None:
        self.answers: dict[str, Outcome] = {}
        self.sent: list[str] = []
        self.timeouts: list[float] = []

    def __call__(self, letter: Letter, timeout_s: float) -> Outcome:
        self.sent.append(letter.event_id)
        self.timeouts.append(timeout_s)
        return self.answers.get(letter.url, DELIVERED)


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def outbox(tmp_path: Path, times: Times) -> Outbox:
    return Outbox(StateFolder(tmp_path), now=times, clock=times)


def letter(job_id: str, event_id: str, times: Times, url: str = "https://one.example/hook") -> Letter:
    return Letter(job_id=job_id, event_id=event_id, url=url, body='{"a":"é"}', created_at=times.now)


def drain(outbox: Outbox, receiver: Receiver, **options: object) -> frozenset[str]:
    arguments: dict[str, object] = {"told": None, "budget_s": 30.0, "attempt_s": 15.0, **options}
    return frozenset(outbox.drain(receiver, **arguments))


def files(folder: Path) -> list[Path]:
    return sorted((folder / "outbox").iterdir())


def test_what_is_put_in_comes_out_once_in_the_order_of_its_job(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    for number in range(12):
        assert outbox.put(letter("abc", f"evt_{99 - number}", times)) is not None
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files(tmp_path))
    receiver, journal = Receiver(), Journal()
    settled = drain(outbox, receiver, told=journal)
    assert receiver.sent == [f"evt_{99 - number}" for number in range(12)]
    assert settled == frozenset(receiver.sent)
    assert journal.told == [("abc", event_id) for event_id in receiver.sent]
    assert files(tmp_path) == []
    assert drain(outbox, receiver) == frozenset()


def test_an_event_put_in_again_keeps_its_place_and_its_bytes(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    first = outbox.put(letter("abc", "evt_1", times))
    outbox.put(letter("abc", "evt_2", times))
    assert first is not None
    content = first.read_bytes()
    times.now += 60
    assert outbox.put(letter("abc", "evt_1", times)) == first
    assert first.read_bytes() == content
    assert len(files(tmp_path)) == 2
    assert outbox.is_first(first)


def test_only_the_first_of_a_job_is_first(outbox: Outbox, times: Times) -> None:
    one = outbox.put(letter("abc", "evt_9", times))
    two = outbox.put(letter("abc", "evt_1", times))
    other = outbox.put(letter("abd", "evt_5", times))
    assert one is not None
    assert two is not None
    assert other is not None
    assert [outbox.is_first(place) for place in (one, two, other)] == [True, False, True]
    drain(outbox, Receiver(), job_id="abc")
    third = outbox.put(letter("abc", "evt_0", times))
    assert third is not None
    assert outbox.is_first(third)


def test_a_failure_holds_up_its_own_job_and_receiver_only(outbox: Outbox, times: Times) -> None:
    dead, live = "https://dead.example/hook?k=1", "https://live.example/hook"
    for job in range(10):
        url = dead if job < 5 else live
        for number in range(2):
            outbox.put(letter(f"job{job}", f"evt_{job}{number}", times, url))
    receiver = Receiver()
    receiver.answers[dead] = FAILED
    drain(outbox, receiver)
    to_dead = [event for event in receiver.sent if event[4] in "01234"]
    assert len(to_dead) == 1  # one knock at a dead receiver, whatever waits for it
    assert to_dead[0].endswith("0")
    assert sorted(set(receiver.sent) - set(to_dead)) == [f"evt_{job}{n}" for job in range(5, 10) for n in range(2)]


def test_a_silent_receiver_rests_longer_and_longer_and_is_forgiven(outbox: Outbox, times: Times) -> None:
    url = "https://one.example/hook"
    outbox.put(letter("abc", "evt_1", times))
    receiver = Receiver()
    receiver.answers[url] = FAILED
    rests = []
    for _ in range(10):
        count = len(receiver.sent)
        began = times.now
        while len(receiver.sent) == count:
            drain(outbox, receiver)
            times.now += 1.0
        rests.append(times.now - began - 1.0)
    assert rests[:5] == [0.0, 4.0, 9.0, 19.0, 39.0]
    assert max(rests) == 899.0
    receiver.answers.clear()
    times.now += 900
    assert drain(outbox, receiver) == {"evt_1"}
    outbox.put(letter("abd", "evt_2", times))
    assert drain(outbox, receiver) == {"evt_2"}


def test_a_job_s_own_line_knows_no_rest_and_stops_at_the_first_failure(outbox: Outbox, times: Times) -> None:
    for number in range(3):
        outbox.put(letter("abc", f"evt_{number}", times))
    outbox.put(letter("other", "evt_9", times))
    receiver = Receiver()
    receiver.answers["https://one.example/hook"] = FAILED
    for _ in range(3):
        drain(outbox, receiver, job_id="abc")
    assert receiver.sent == ["evt_0"] * 3
    receiver.answers.clear()
    assert drain(outbox, receiver) == {"evt_0", "evt_1", "evt_2", "evt_9"}  # and left no rest behind


@pytest.mark.parametrize(("kind", "told"), [("gone", True), ("blocked", False)])
def test_what_the_receiver_does_not_want_is_removed(tmp_path: Path, outbox: Outbox, times: Times, kind, told) -> None:
    outbox.put(letter("abc", "evt_1", times))
    receiver, journal = Receiver(), Journal()
    receiver.answers["https://one.example/hook"] = Outcome(kind)
    drain(outbox, receiver, told=journal)
    assert files(tmp_path) == []
    assert journal.told == ([("abc", "evt_1")] if told else [])


def test_retry_after_is_kept_by_every_worker(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    outbox.put(letter("abc", "evt_1", times))
    receiver = Receiver()
    receiver.answers["https://one.example/hook"] = Outcome("failed", "HTTP 429", retry_after_s=100.0)
    drain(outbox, receiver)
    other = Outbox(StateFolder(tmp_path), now=times, clock=times)
    receiver.answers.clear()
    times.now += 99
    assert drain(other, receiver) == frozenset()
    assert drain(other, receiver, job_id="abc") == frozenset()
    times.now += 1
    assert drain(other, receiver) == {"evt_1"}
    assert receiver.sent == ["evt_1", "evt_1"]


@pytest.mark.parametrize(("age_s", "sent"), [(7 * 86400, ["evt_1"]), (7 * 86400 + 1, [])])
def test_an_event_expires_after_seven_days(
    tmp_path: Path, outbox: Outbox, times: Times, age_s: int, sent: list[str]
) -> None:
    outbox.put(letter("abc", "evt_1", times))
    times.now += age_s
    receiver = Receiver()
    drain(outbox, receiver)
    assert receiver.sent == sent
    assert files(tmp_path) == []


def test_the_sweep_removes_old_files(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    place = outbox.put(letter("abc", "evt_1", times))
    assert place is not None
    os.utime(place, (times.now, times.now))
    times.now += 7 * 86400
    assert outbox.sweep() == 0
    times.now += 1
    assert outbox.sweep() == 1


def test_a_damaged_letter_is_set_aside_and_holds_nobody_up(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    place = outbox.put(letter("abc", "evt_1", times))
    outbox.put(letter("abc", "evt_2", times))
    assert place is not None
    place.write_bytes(b'{"job_id":')
    assert drain(outbox, Receiver()) == {"evt_2"}
    assert [path.name for path in files(tmp_path)] == [place.name + ".damaged"]


def test_a_letter_that_is_being_sent_is_left_alone_with_its_whole_line(outbox: Outbox, times: Times) -> None:
    place = outbox.put(letter("abc", "evt_1", times))
    outbox.put(letter("abc", "evt_2", times))
    assert place is not None
    receiver = Receiver()
    with outbox.claim(place):
        assert drain(outbox, receiver) == frozenset()
        assert drain(outbox, receiver, job_id="abc") == frozenset()
    assert drain(outbox, receiver) == {"evt_1", "evt_2"}


def test_workers_that_drain_at_once_send_each_event_once(tmp_path: Path, times: Times) -> None:
    boxes = [Outbox(StateFolder(tmp_path), now=times) for _ in range(4)]
    for job in range(10):
        for number in range(4):
            boxes[0].put(letter(f"job{job}", f"evt_{job}{number}", times))
    receiver = Receiver()

    def slow(sent: Letter, timeout_s: float) -> Outcome:
        time.sleep(0.002)
        return receiver(sent, timeout_s)

    threads = [
        threading.Thread(target=box.drain, args=(slow,), kwargs={"told": None, "budget_s": 30.0, "attempt_s": 15.0})
        for box in boxes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A line that was busy when a worker came by is left to the worker that was at it, or to the next round.
    drain(boxes[0], receiver)
    assert sorted(receiver.sent) == [f"evt_{job}{number}" for job in range(10) for number in range(4)]
    for job in range(10):
        own = [event for event in receiver.sent if event[4] == str(job)]
        assert own == sorted(own)


def test_a_round_ends_with_its_budget_and_with_a_stop(outbox: Outbox, times: Times) -> None:
    for number in range(10):
        outbox.put(letter("abc", f"evt_{number}", times))
    receiver, stop = Receiver(), threading.Event()

    def slow(sent: Letter, timeout_s: float) -> Outcome:
        times.now += 4.0
        return receiver(sent, timeout_s)

    outbox.drain(slow, told=None, budget_s=10.0, attempt_s=5.0)
    assert receiver.timeouts == [5.0, 5.0, 2.0]
    stop.set()
    assert drain(outbox, receiver, stop=stop) == frozenset()
    assert len(drain(outbox, receiver)) == 7


def test_an_unusable_folder_costs_only_the_protection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    times = Times()
    outbox = Outbox(StateFolder(tmp_path / "file"), now=times)
    assert outbox.put(letter("abc", "evt_1", times)) is None
    assert drain(outbox, Receiver()) == frozenset()
    assert outbox.sweep() == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_an_empty_outbox_is_nothing_to_speak_of(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    assert drain(outbox, Receiver()) == frozenset()
    assert drain(outbox, Receiver(), job_id="abc") == frozenset()
    assert caplog.records == []


def test_neither_the_url_nor_the_body_is_logged_or_shown(
    outbox: Outbox, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = letter("abc", "evt_1", times, "https://one.example/token-in-path")
    place = outbox.put(secret)
    assert place is not None
    drain(outbox, Receiver())
    outbox.put(secret)
    place.write_bytes(place.read_bytes()[:-20])
    drain(outbox, Receiver())
    shown = caplog.text + repr(secret)
    assert "evt_1" in caplog.text
    assert "one.example" not in shown
    assert "é" not in shown


def test_what_waits_is_counted(tmp_path: Path, outbox: Outbox, times: Times) -> None:
    assert outbox.count() == 0
    for job_id in ("abc", "abd"):
        for number in range(2):
            outbox.put(letter(job_id, f"evt_{number}", times))
    assert outbox.count() == 4
    drain(outbox, Receiver(), job_id="abc")
    assert outbox.count() == 2
    (tmp_path / "file").write_text("in the way")
    assert Outbox(StateFolder(tmp_path / "file")).count() == 0


def test_an_event_of_another_job_is_logged_under_its_own(
    outbox: Outbox, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[str | None] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(current_job_id())

    outbox.put(letter("abc", "evt_1", times))
    noting = Noting()
    logging.getLogger("worker.delivery.webhooks.outbox").addHandler(noting)
    try:
        with job_scope("running"):
            drain(outbox, Receiver())
    finally:
        logging.getLogger("worker.delivery.webhooks.outbox").removeHandler(noting)
    assert seen == ["abc"]
