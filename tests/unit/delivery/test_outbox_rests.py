"""Receivers that do not answer: how long each rests, whom it holds up, and what ends its rest."""

from __future__ import annotations

import threading

import pytest

from tests.kits.webhooks import FAILED, URL, Scene
from worker.delivery.webhooks.letter import Outcome
from worker.delivery.webhooks.outbox import SIDE_BY_SIDE


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
