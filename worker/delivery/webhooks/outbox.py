"""The outbox: final webhook events that are not known to have arrived, one small file each on STATE_DIR.

An event is put here before its first attempt and removed when it has arrived, so that neither a dead receiver nor a
killed worker loses it. The next job, or any worker that shares the folder, sends what is left: each under the event id
that it was given at first, those of one job in their order, a silent receiver at longer and longer intervals. Two
workers never send one event at the same time: the sender holds a lock on its file. Events expire after 7 days.

The files hold the receiver's URL and the body, so they have mode 0600 and neither is ever logged.
"""

from __future__ import annotations

import enum
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.base import files, locks
from worker.base.log import job_scope

_log = logging.getLogger(__name__)

_FOLDER = "outbox"
_FIRST_REST_S = 5.0
_LONGEST_REST_S = 900.0


class Letter(BaseModel):
    """One final event as it is sent: `body` is the text that is signed. `not_before` (epoch): the receiver's wish."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    event_id: str
    url: str = Field(repr=False)
    body: str = Field(repr=False)
    created_at: float
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt.

    `delivered`: 2xx. `gone`: 410, the receiver wants no more. `blocked`: the address may not be reached. `failed`:
    anything else; `retry_after_s` is what the receiver asked for, 0 where it asked for nothing.
    """

    kind: Literal["delivered", "gone", "blocked", "failed"]
    reason: str = ""
    retry_after_s: float = 0.0

    @property
    def settled(self) -> bool:
        """Nothing more is to be sent."""
        return self.kind != "failed"


Send = Callable[[Letter, float], Outcome]
"""Makes one attempt that takes at most so many seconds. Raises nothing."""


class Told(Protocol):
    """Remembers which events need not be sent again (the journal)."""

    def is_told(self, job_id: str, event_id: str) -> bool: ...

    def record_told(self, job_id: str, event_id: str) -> None: ...


class _Step(enum.Enum):
    """What a line of letters does where none was settled: go on to the next letter, or wait for another time."""

    GOES_ON = enum.auto()
    WAITS = enum.auto()


class Outbox:
    """The undelivered events of every job. Thread-safe; blocks, so call it from a thread of its own."""

    def __init__(
        self,
        state: files.StateFolder,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._now = now
        self._clock = clock
        self._rests: dict[str, tuple[int, float]] = {}
        self._rests_lock = threading.Lock()

    def put(self, letter: Letter) -> Path | None:
        """Keep `letter`, last in its job's line; one of the same event id stays as it is.

        Answers its place, or None where it cannot be written.
        """
        try:
            line = self._line(letter.job_id)
            for path in line:
                if path.stem.endswith(letter.event_id):
                    return path
            number = _number(line[-1]) + 1 if line else 0
            key, event_id = files.file_key(letter.job_id), letter.event_id
            path = self._state.folder(_FOLDER) / f"{key}-{number:05d}-{event_id}.json"
            _write(path, letter)
        except (OSError, ValueError) as failure:
            self._state.cannot(failure)
            return None
        return path

    def is_first(self, place: Path) -> bool:
        """No earlier event of the same job waits."""
        line = self._job_paths(place.name.partition("-")[0])
        return not line or line[0] >= place

    @contextmanager
    def claim(self, place: Path) -> Iterator[Letter | None]:
        """The letter at `place`, which no other worker sends meanwhile; None where it is damaged.

        Raises BlockingIOError where another worker is sending it, FileNotFoundError where it has been settled.
        """
        with locks.claimed(place) as content:
            try:
                letter = Letter.model_validate_json(content)
            except ValidationError:
                files.set_aside(place)
                letter = None
            yield letter

    def settle(self, place: Path, letter: Letter, outcome: Outcome) -> None:
        """Act on an attempt's outcome, inside the claim: remove the letter, or note when the receiver wants it."""
        if outcome.settled:
            self._wake(letter)
        try:
            if outcome.settled:
                place.unlink(missing_ok=True)
            elif outcome.retry_after_s > 0:
                _write(place, letter.model_copy(update={"not_before": self._now() + outcome.retry_after_s}))
        except OSError as failure:
            self._state.cannot(failure)

    def drain(
        self,
        send: Send,
        *,
        told: Told | None,
        budget_s: float,
        attempt_s: float,
        job_id: str | None = None,
        stop: threading.Event | None = None,
    ) -> dict[str, Outcome]:
        """Send what waits, each at most once, for about `budget_s`; answers what was settled, by event id.

        With `job_id`: that job's line only, up to its first failure, whatever the receiver's record. Without: every
        job's in random order, leaving out receivers that failed lately. `told` is informed of each event that need
        not be sent again.
        """
        deadline = self._clock() + budget_s
        settled: dict[str, Outcome] = {}
        try:
            keys = [files.file_key(job_id)] if job_id is not None else self._jobs()
            for key in keys:
                for place in self._job_paths(key):
                    left_s = deadline - self._clock()
                    if left_s <= 0 or (stop is not None and stop.is_set()):
                        return settled
                    step = self._forward(place, send, min(attempt_s, left_s), told, patient=job_id is None)
                    if step is _Step.WAITS:
                        break
                    if isinstance(step, Outcome):
                        settled[place.stem.rpartition("-")[2]] = step
        except OSError as failure:
            self._state.cannot(failure)
        return settled

    def count(self) -> int:
        """How many events wait, of every job and worker. Raises nothing."""
        try:
            return sum(1 for _ in self._state.folder(_FOLDER).glob("*.json"))
        except OSError as failure:
            self._state.cannot(failure)
            return 0

    def sweep(self) -> int:
        """Remove what is too old to be sent; bounded in time. Answers how many files went."""
        try:
            return files.sweep(self._state.folder(_FOLDER), now=self._now())
        except OSError as failure:
            self._state.cannot(failure)
            return 0

    def _forward(
        self, place: Path, send: Send, attempt_s: float, told: Told | None, *, patient: bool
    ) -> Outcome | _Step:
        """Deal with the first letter of a line: send it if its time has come."""
        try:
            with self.claim(place) as letter:
                if letter is None:
                    return _Step.GOES_ON
                with job_scope(letter.job_id):  # that of the letter, which is seldom the job that is running
                    return self._forward_claimed(place, letter, send, attempt_s, told, patient=patient)
        except FileNotFoundError:
            return _Step.GOES_ON
        except BlockingIOError:
            return _Step.WAITS

    def _forward_claimed(
        self, place: Path, letter: Letter, send: Send, attempt_s: float, told: Told | None, *, patient: bool
    ) -> Outcome | _Step:
        if self._now() - letter.created_at > files.KEEP_S:
            _log.warning("webhook %s is given up: it could not be delivered for 7 days", letter.event_id)
            place.unlink(missing_ok=True)
            return _Step.GOES_ON
        if letter.not_before > self._now() or (patient and self._rests_now(letter)):
            return _Step.WAITS
        outcome = send(letter, attempt_s)
        self.settle(place, letter, outcome)
        if not outcome.settled:
            if patient:
                self._rest(letter)
            return _Step.WAITS
        if told is not None and outcome.kind != "blocked":
            told.record_told(letter.job_id, letter.event_id)
        _log.info("webhook %s, kept in the outbox: %s", letter.event_id, outcome.kind)
        return outcome

    def _jobs(self) -> list[str]:
        paths = sorted(self._state.folder(_FOLDER).glob("*.json"))
        keys = [key for key, _ in itertools.groupby(paths, key=lambda path: path.name.partition("-")[0])]
        # Several workers that wake together should not queue for the same letters.
        random.shuffle(keys)
        return keys

    def _line(self, job_id: str) -> list[Path]:
        return self._job_paths(files.file_key(job_id))

    def _job_paths(self, key: str) -> list[Path]:
        return sorted(self._state.folder(_FOLDER).glob(f"{key}-*.json"))

    def _rests_now(self, letter: Letter) -> bool:
        with self._rests_lock:
            _, until = self._rests.get(_receiver(letter.url), (0, 0.0))
        return self._clock() < until

    def _rest(self, letter: Letter) -> None:
        """Leave the receiver alone for a while: 5 s at first, twice as long after each failure, 15 minutes at most."""
        receiver = _receiver(letter.url)
        with self._rests_lock:
            failures = self._rests.get(receiver, (0, 0.0))[0]
            rest_s = min(_FIRST_REST_S * 2.0 ** min(failures, 16), _LONGEST_REST_S)
            self._rests[receiver] = (failures + 1, self._clock() + rest_s)

    def _wake(self, letter: Letter) -> None:
        with self._rests_lock:
            self._rests.pop(_receiver(letter.url), None)


def _write(place: Path, letter: Letter) -> None:
    files.write_atomically(place, letter.model_dump_json().encode())


def _number(place: Path) -> int:
    return int(place.name.split("-")[1])


def _receiver(url: str) -> str:
    """Host and port: what is silent or busy as one."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()
