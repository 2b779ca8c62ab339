"""The outbox with real files; its receivers do as they are set to, and its clock stands still until it is moved."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kits.webhooks import Clock
from worker.base import locks
from worker.base.files import StateFolder
from worker.base.log import current_job_id, job_scope
from worker.delivery.webhooks.letter import Arrivals, Letter, Outcome, Round
from worker.delivery.webhooks.outbox import SIDE_BY_SIDE, Outbox

URL = "https://one.example/hook"
DELIVERED, FAILED = Outcome("delivered"), Outcome("failed", "no answer")


class Journal:
    """Stands for the journal."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str]] = []

    def has_arrived(self, job_id: str, event_id: str) -> bool:
        return (job_id, event_id) in self.arrived

    def record_arrived(self, job_id: str, event_id: str) -> None:
        self.arrived.append((job_id, event_id))


class Receivers:
    """Sends to receivers that work, but for those in `answers`, by URL."""

    def __init__(self) -> None:
        self.answers: dict[str, Outcome] = {}
        self.sent: list[str] = []
        self.timeouts: list[float] = []
        self.on_send: Callable[[], None] = lambda: None

    def __call__(self, letter: Letter, timeout_s: float) -> Outcome:
        self.sent.append(letter.event_id)
        self.timeouts.append(timeout_s)
        self.on_send()
        return self.answers.get(letter.url, DELIVERED)


class Scene:
    """One volume, its outbox as one worker sees it, and the receivers."""

    def __init__(self, folder: Path) -> None:
        self.times, self.receivers, self.root = Clock(), Receivers(), folder
        self.outbox = self.another_worker()

    def another_worker(self) -> Outbox:
        return Outbox(StateFolder(self.root), now=self.times)

    @property
    def files(self) -> list[Path]:
        return sorted((self.root / "outbox").iterdir())

    def letter(self, event_id: str, job_id: str = "abc", url: str = URL) -> Letter:
        return Letter(job_id=job_id, event_id=event_id, url=url, body='{"a":"é"}', created_at=self.times.now)

    def put(self, event_id: str, job_id: str = "abc", url: str = URL) -> Path:
        place = self.outbox.put(self.letter(event_id, job_id, url))
        assert place is not None
        return place

    def drain(
        self,
        *,
        job_id: str | None = None,
        outbox: Outbox | None = None,
        arrivals: Arrivals | None = None,
        stop: threading.Event | None = None,
        budget_s: float = 30.0,
        attempt_s: float = 15.0,
    ) -> list[str]:
        """The events that were settled in one round."""
        stop = threading.Event() if stop is None else stop
        sending = Round(self.receivers, stop, self.times.now + budget_s, attempt_s, arrivals=arrivals, clock=self.times)
        of = None if job_id is None else self.letter("", job_id)
        outcomes = (self.outbox if outbox is None else outbox).drain(sending, of=of)
        return [event_id for event_id, outcome in outcomes.items() if outcome.settled]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_is_put_in_comes_out_once_in_the_order_of_its_job(scene: Scene) -> None:
    ids = [f"evt_{99 - number}" for number in range(12)]
    for event_id in ids:
        scene.put(event_id)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in scene.files)
    journal = Journal()
    assert scene.drain(arrivals=journal) == scene.receivers.sent == ids
    assert journal.arrived == [("abc", event_id) for event_id in ids]
    assert scene.files == []
    assert scene.drain() == []


def test_an_event_put_in_again_keeps_its_place_and_its_bytes(scene: Scene) -> None:
    first = scene.put("evt_1")
    content = first.read_bytes()
    scene.put("evt_2")
    scene.times.now += 60
    assert scene.put("evt_1") == first
    assert first.read_bytes() == content
    assert len(scene.files) == 2


def test_what_is_put_in_after_a_part_of_its_line_was_delivered_stays_behind_the_rest(scene: Scene) -> None:
    for event_id in ("evt_9", "evt_5"):
        scene.put(event_id)
    scene.drain(budget_s=1.0, stop=ended_after(scene, 1))
    scene.put("evt_1")
    scene.drain()
    assert scene.receivers.sent == ["evt_9", "evt_5", "evt_1"]


def ended_after(scene: Scene, sends: int) -> threading.Event:
    """A stop that is set once so many attempts were made."""
    stop = threading.Event()
    scene.receivers.on_send = lambda: stop.set() if len(scene.receivers.sent) == sends else None
    return stop


def test_a_failure_holds_up_its_own_job_and_receiver_only(scene: Scene) -> None:
    dead, live = "https://dead.example/hook?k=1", "https://live.example/hook"
    for job in range(4):
        for number in range(2):
            scene.put(f"evt_{job}{number}", f"job{job}", dead if job < 2 else live)
    scene.receivers.answers[dead] = FAILED
    assert sorted(scene.drain()) == ["evt_20", "evt_21", "evt_30", "evt_31"]
    assert [event in scene.receivers.sent for event in ("evt_01", "evt_11")] == [False, False]
    assert len(scene.receivers.sent) == 5  # one attempt at a dead receiver, whatever waits for it


def test_an_event_does_not_wait_for_those_of_another_receiver(scene: Scene) -> None:
    """Anybody may send a payload with the job_id of somebody else, and a dead URL in it."""
    scene.put("evt_1", url="https://dead.example/hook")
    scene.put("evt_2")
    scene.receivers.answers["https://dead.example/hook"] = FAILED
    assert scene.drain(job_id="abc") == ["evt_2"]
    assert scene.receivers.sent == ["evt_2"]


def rests(scene: Scene, count: int) -> list[float]:
    """Seconds between so many attempts of rounds that are a second apart."""
    seconds, last = [], scene.times.now
    for _ in range(count):
        before = len(scene.receivers.sent)
        while len(scene.receivers.sent) == before:
            scene.times.now += 1.0
            scene.drain()
        seconds.append(scene.times.now - last)
        last = scene.times.now
    return seconds


def test_a_silent_receiver_rests_longer_and_longer(scene: Scene) -> None:
    scene.put("evt_1")
    scene.receivers.answers[URL] = FAILED
    assert rests(scene, 5) == [1.0, 5.0, 10.0, 20.0, 40.0]
    for _ in range(8):
        scene.times.now += 900
        scene.drain()
    assert len(scene.receivers.sent) == 13
    scene.times.now += 899
    scene.drain()
    assert len(scene.receivers.sent) == 13
    scene.times.now += 1
    scene.drain()
    assert len(scene.receivers.sent) == 14


@pytest.mark.parametrize("by", ["a round", "its own job"])
def test_a_receiver_that_answers_again_is_forgiven(scene: Scene, by: str) -> None:
    scene.put("evt_1")
    scene.receivers.answers[URL] = FAILED
    rests(scene, 4)
    if by == "a round":
        scene.times.now += 40
    scene.receivers.answers.clear()
    assert scene.drain(job_id="abc" if by == "its own job" else None) == ["evt_1"]
    scene.put("evt_2")
    assert scene.drain() == ["evt_2"]
    scene.put("evt_3")
    scene.receivers.answers[URL] = FAILED
    assert rests(scene, 2) == [1.0, 5.0]


def test_every_worker_knows_who_rests_and_asks_the_healthy_first(scene: Scene) -> None:
    dead = "https://dead.example/hook"
    scene.put("evt_dead", "a", dead)
    scene.receivers.answers[dead] = FAILED
    scene.drain()
    scene.put("evt_live", "b")
    other = scene.another_worker()
    scene.times.now += 4.9
    assert scene.drain(outbox=other) == ["evt_live"]
    assert scene.receivers.sent == ["evt_dead", "evt_live"]
    scene.times.now += 0.1
    scene.drain(outbox=other)
    assert scene.receivers.sent[2:] == ["evt_dead"]


def test_one_bad_url_does_not_silence_its_host(scene: Scene) -> None:
    for number, failure in enumerate((Outcome("failed", "HTTP 404", answered=True), FAILED)):
        bad, good = f"https://{number}.example/gone", f"https://{number}.example/here"
        scene.put(f"evt_bad{number}", "a", bad)
        scene.receivers.answers[bad] = failure
        scene.drain()
        scene.put(f"evt_good{number}", "b", good)
        assert scene.drain() == ([f"evt_good{number}"] if failure.answered else [])


def test_attempts_while_draining_are_short_at_first(scene: Scene) -> None:
    scene.put("evt_1")
    scene.receivers.answers[URL] = FAILED
    for _ in range(5):
        scene.drain()
        scene.times.now += 900
    assert scene.receivers.timeouts == [2.0, 4.0, 8.0, 15.0, 15.0]


def test_silent_receivers_are_asked_side_by_side(scene: Scene) -> None:
    together = threading.Barrier(SIDE_BY_SIDE)
    scene.receivers.on_send = lambda: together.wait(30) and None
    for number in range(SIDE_BY_SIDE):
        scene.put(f"evt_{number}", f"job{number}", f"https://{number}.example/hook")
    assert len(scene.drain()) == SIDE_BY_SIDE


def test_a_job_s_own_line_knows_no_rest_and_stops_at_the_first_failure(scene: Scene) -> None:
    for number in range(3):
        scene.put(f"evt_{number}")
    scene.put("evt_9", "other")
    scene.receivers.answers[URL] = FAILED
    for _ in range(3):
        assert scene.drain(job_id="abc") == []
    assert scene.receivers.sent == ["evt_0"] * 3
    scene.receivers.answers.clear()
    assert set(scene.drain()) == {"evt_0", "evt_1", "evt_2", "evt_9"}  # and left no rest behind


@pytest.mark.parametrize(("kind", "arrived"), [("gone", True), ("blocked", False)])
def test_what_the_receiver_does_not_want_is_removed(scene: Scene, kind: str, arrived: bool) -> None:
    scene.put("evt_1")
    journal = Journal()
    scene.receivers.answers[URL] = Outcome(kind)
    scene.drain(arrivals=journal)
    assert scene.files == []
    assert journal.arrived == ([("abc", "evt_1")] if arrived else [])


def test_retry_after_is_kept_by_every_worker(scene: Scene) -> None:
    scene.put("evt_1")
    scene.receivers.answers[URL] = Outcome("failed", "HTTP 429", retry_after_s=100.0)
    scene.drain()
    other = scene.another_worker()
    scene.receivers.answers.clear()
    scene.times.now += 99
    assert scene.drain(outbox=other) == scene.drain(outbox=other, job_id="abc") == []
    scene.times.now += 1
    assert scene.drain(outbox=other) == ["evt_1"]
    assert scene.receivers.sent == ["evt_1", "evt_1"]


@pytest.mark.parametrize(("late_s", "sent"), [(0, ["evt_1"]), (1, [])])
def test_an_event_expires_after_seven_days(scene: Scene, late_s: int, sent: list[str]) -> None:
    scene.put("evt_1")
    scene.times.now += 7 * 86400 + late_s
    scene.drain()
    assert scene.receivers.sent == sent
    assert scene.files == []


def test_the_sweep_removes_old_files(scene: Scene) -> None:
    place = scene.put("evt_1")
    os.utime(place, (scene.times.now, scene.times.now))
    scene.times.now += 7 * 86400
    scene.outbox.sweep()
    assert scene.files == [place]
    scene.times.now += 1
    scene.outbox.sweep()
    assert scene.files == []


def test_a_damaged_letter_is_set_aside_and_holds_nobody_up(scene: Scene) -> None:
    place = scene.put("evt_1")
    scene.put("evt_2")
    place.write_bytes(b'{"job_id":')
    assert scene.drain() == ["evt_2"]
    assert [path.name for path in scene.files] == [place.name + ".damaged"]


def test_a_file_of_another_name_is_set_aside_and_holds_nobody_up(scene: Scene) -> None:
    place = scene.put("evt_1")
    line = place.name.partition("-")[0]
    for name in (f"{line}-abc.json", "notes.json"):
        place.with_name(name).write_text("{}")
    scene.put("evt_2")
    assert scene.drain() == ["evt_1", "evt_2"]
    assert sorted(path.name for path in scene.files) == [f"{line}-abc.json.damaged", "notes.json.damaged"]


def test_a_letter_that_is_being_sent_is_left_alone_with_its_whole_line(scene: Scene) -> None:
    place = scene.put("evt_1")
    scene.put("evt_2")
    with locks.claimed(place):
        assert scene.drain() == scene.drain(job_id="abc") == []
    assert scene.drain() == ["evt_1", "evt_2"]


def test_workers_that_drain_at_once_send_each_event_once(scene: Scene) -> None:
    ids = [f"evt_{job}{number}" for job in range(6) for number in range(3)]
    for event_id in ids:
        scene.put(event_id, f"job{event_id[4]}")
    gate = threading.Barrier(4, timeout=20)

    def work(box: Outbox) -> None:
        gate.wait()
        scene.drain(outbox=box)

    threads = [threading.Thread(target=work, args=(scene.another_worker(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scene.drain()  # a line that was busy is left to the worker that has it, or to the next round
    assert sorted(scene.receivers.sent) == ids
    for job in range(6):
        own = [event for event in scene.receivers.sent if event[4] == str(job)]
        assert own == sorted(own)


def test_a_round_ends_with_its_budget_and_with_a_stop(scene: Scene) -> None:
    for number in range(10):
        scene.put(f"evt_{number}")

    def four_seconds() -> None:
        scene.times.now += 4.0

    scene.receivers.on_send = four_seconds
    scene.drain(budget_s=9.0, attempt_s=5.0)
    assert scene.receivers.timeouts == [2.0, 2.0, 1.0]
    stop = threading.Event()
    stop.set()
    assert scene.drain(stop=stop) == []
    assert len(scene.drain(budget_s=100.0)) == 7


def test_an_unusable_folder_costs_only_the_protection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    scene = Scene(tmp_path / "file")
    assert scene.outbox.put(scene.letter("evt_1")) is None
    assert scene.drain() == []
    assert scene.outbox.count() == 0
    scene.outbox.sweep()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_neither_the_url_nor_the_body_is_logged_or_shown(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    scene.drain()
    assert caplog.records == []  # an empty outbox is nothing to speak of
    url = "https://one.example/token-in-path"
    scene.put("evt_1", url=url)
    scene.drain()
    place = scene.put("evt_1", url=url)
    place.write_bytes(place.read_bytes()[:-20])
    scene.drain()
    shown = caplog.text + repr(scene.letter("evt_1", url=url))
    assert "evt_1" in caplog.text
    assert "one.example" not in shown
    assert "é" not in shown


def test_what_waits_is_counted(scene: Scene) -> None:
    assert scene.outbox.count() == 0
    for job_id in ("abc", "abd"):
        for number in range(2):
            scene.put(f"evt_{job_id}{number}", job_id)
    assert scene.outbox.count() == 4
    scene.drain(job_id="abc")
    assert scene.outbox.count() == 2


def test_an_event_of_another_job_is_logged_under_its_own(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[str | None] = []
    scene.put("evt_1")
    scene.receivers.on_send = lambda: seen.append(current_job_id())
    with job_scope("running"):
        scene.drain()
    assert seen == ["abc"]
    assert "webhook evt_1, kept in the outbox: delivered" in caplog.text


@pytest.mark.parametrize("days", [8, -8])
def test_a_worker_whose_clock_is_days_off_loses_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """It drops none of the others', and the others drop none of its own."""
    receivers, true = Receivers(), time.time

    def letter(event_id: str) -> Letter:
        return Letter(job_id="abc", event_id=event_id, url=URL, body="{}", created_at=time.time())

    def drain() -> None:
        outbox = Outbox(StateFolder(tmp_path))
        outbox.sweep()
        outbox.drain(Round(receivers, threading.Event(), time.monotonic() + 30, 15.0))

    Outbox(StateFolder(tmp_path)).put(letter("evt_0"))
    with monkeypatch.context() as other:
        other.setattr(time, "time", lambda: true() + days * 24 * 3600)
        Outbox(StateFolder(tmp_path)).put(letter("evt_1"))
        if days > 0:
            drain()
    drain()
    assert receivers.sent == ["evt_0", "evt_1"]
