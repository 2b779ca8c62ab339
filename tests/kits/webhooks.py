"""Outboxes with receivers, and networks without sockets; their seconds pass where a test or a silence says so."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kits.webhook_receiver import Behaviour, Handler, Received, Receiver
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.envelopes import final_event_id
from worker.delivery.webhooks.letter import Arrivals, Letter, Outcome, Round
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import Patience, redeliver
from worker.net import Opener, PostAnswer, PostFailed

OPENER = Opener(("127.0.0.1",))
Open = Callable[..., Channel]
ALL = frozenset({"progress", "completed", "failed"})
QUICK = Patience(waits_s=(0.01,) * 4, attempt_s=5.0, event_s=10.0, job_s=20.0, least_s=0.0, progress_every_s=0.0)

URL = "https://one.example/hook"
DELIVERED, FAILED = Outcome("delivered"), Outcome("failed", "no answer")


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Volume:
    """A worker's view of a shared STATE_DIR."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder = folder
        state = StateFolder(folder)
        self.journal = Journal(state)
        self.outbox = Outbox(state, now=now)

    def waiting(self) -> list[str]:
        """The ids of the events in the outbox, those of one job in their order."""
        paths = sorted((self.folder / "outbox").glob("*.json"))
        return [json.loads(path.read_text())["event_id"] for path in paths]


class Network:
    """Stands for `net.Opener`. `timeouts` are the seconds that each attempt was allowed; a silent one uses them all.

    Each answer is a status or a whole answer, None for silence, or an exception; the last one repeats.
    """

    def __init__(self, *answers: int | PostAnswer | Exception | None, clock: Clock | None = None) -> None:
        self._answers = list(answers)
        self._clock = clock
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.timeouts: list[float] = []

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> PostAnswer:
        self.bodies.append(body)
        self.headers.append(headers)
        self.timeouts.append(timeout_s)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:  # silent
            if self._clock is not None:
                self._clock.now += timeout_s
            raise PostFailed("did not answer in time")
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, PostAnswer) else PostAnswer(answer, {})

    @property
    def ids(self) -> list[str]:
        return [json.loads(body)["event_id"] for body in self.bodies]


def event_id(index: int, job_id: str = "abc") -> str:
    """That of the completed video `index` of a job whose payload has the digest `d1`."""
    return final_event_id(job_id, "d1", index, "completed")


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


async def send_rest(volume: Volume, opener: object = OPENER) -> None:
    """What each job and worker does beside its work: send what is left in the outbox."""
    await redeliver(volume.outbox, opener=opener, secrets=(), journal=volume.journal, patience=QUICK)  # type: ignore[arg-type]


async def arrived(receiver: Receiver, count: int = 1) -> None:
    await asyncio.to_thread(receiver.wait_for, count)


def hang(handler: Handler, received: Received, number: int) -> None:
    handler.hang()


def failing(times: int, status: int = 500) -> Behaviour:
    def behave(handler: Handler, received: Received, number: int) -> None:
        handler.answer(status if number <= times else 200)

    return behave


def dead_port() -> int:
    with Receiver() as receiver:
        return receiver.port


def hook(port: int) -> str:
    return f"http://127.0.0.1:{port}/hook"
