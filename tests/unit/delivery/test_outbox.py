"""The outbox with real files: the order of its letters, what removes one, damage, and several workers at once."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from tests.kits.webhooks import URL, Receivers, Scene
from worker.base import locks
from worker.base.files import StateFolder
from worker.base.log import current_job_id, job_scope
from worker.delivery.webhooks.letter import Letter, Outcome, Round
from worker.delivery.webhooks.outbox import Outbox


class Journal:
    """Stands for the journal."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str]] = []

    def has_arrived(self, job_id: str, event_id: str) -> bool:
        return (job_id, event_id) in self.arrived

    def record_arrived(self, job_id: str, event_id: str) -> None:
        self.arrived.append((job_id, event_id))


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


@pytest.mark.parametrize(("kind", "arrived"), [("gone", True), ("blocked", False)])
def test_what_the_receiver_does_not_want_is_removed(scene: Scene, kind: str, arrived: bool) -> None:
    scene.put("evt_1")
    journal = Journal()
    scene.receivers.answers[URL] = Outcome(kind)
    scene.drain(arrivals=journal)
    assert scene.files == []
    assert journal.arrived == ([("abc", "evt_1")] if arrived else [])


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
