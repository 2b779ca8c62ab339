"""The outbox: final webhook events that are not known to have arrived, one small file each on STATE_DIR.

An event is put here before its first attempt and removed when it has arrived, so that neither a dead receiver nor a
killed worker loses it. The next job, or any worker that shares the folder, sends what is left: each under its first
event id, those of one job to one receiver in their order, and to a silent receiver at longer and longer intervals. Two
workers never send one event at the same time: the sender holds a lock on its file. Events expire after 7 days.

A file is named LINE-NUMBER-EVENT_ID.json, where LINE stands for the job and its receiver. The files hold the receiver's
URL and the body, so they have mode 0600 and neither is ever logged.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from worker.base import files, locks
from worker.base.log import job_scope
from worker.delivery.webhooks.letter import Letter, Outcome, Round

logger = logging.getLogger(__name__)

_FOLDER = "outbox"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{5,})-(.+)\.json")
_FIRST_REST_S = 5.0
_LONGEST_REST_S = 900.0


class Outbox:
    """The undelivered events of every job. Thread-safe; blocks, so call it from a thread of its own."""

    def __init__(
        self,
        state: files.StateFolder,
        *,
        now: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._now = state.now if now is None else now
        self._clock = clock
        self._rests: dict[str, tuple[int, float]] = {}
        self._rests_lock = threading.Lock()

    def put(self, letter: Letter) -> Path | None:
        """Keep `letter`, last in its line; one of the same event id stays as it is.

        Returns its place, or None where it cannot be written.
        """
        try:
            known = next(self._state.folder(_FOLDER).glob(f"*-{letter.event_id}.json"), None)
            if known is not None:
                return known
            line = self._places(_line(letter))
            number = int(line[-1].name.split("-")[1]) + 1 if line else 0
            place = self._state.folder(_FOLDER) / f"{_line(letter)}-{number:05d}-{letter.event_id}.json"
            # The age of an event is judged by the clock of the volume, whichever worker made it.
            _write(place, letter.model_copy(update={"created_at": letter.created_at + self._state.ahead_s()}))
        except (OSError, ValueError) as failure:
            self._state.cannot(failure)
            return None
        return place

    def drain(self, sending: Round, *, of: Letter | None = None) -> dict[str, Outcome]:
        """Send what waits until the round is over; returns what became of the events that had their turn, by event id.

        With `of`: the line of that letter only, up to its first failure, whatever the receiver's record. Without: every
        line in random order, leaving out receivers that failed lately.
        """
        outcomes: dict[str, Outcome] = {}
        try:
            for line in self._lines() if of is None else [_line(of)]:
                for place in self._places(line):
                    if sending.is_over():
                        return outcomes
                    outcome = self._forward(place, sending, late=of is None)
                    if outcome is None:
                        continue
                    outcomes[place.stem.split("-", 2)[2]] = outcome
                    if not outcome.settled:
                        break
        except OSError as failure:
            self._state.cannot(failure)
        return outcomes

    def count(self) -> int:
        """How many events wait, of every job and worker. Raises nothing."""
        try:
            return sum(1 for _ in self._state.folder(_FOLDER).glob("*.json"))
        except OSError as failure:
            self._state.cannot(failure)
            return 0

    def sweep(self) -> None:
        """Remove what is too old to be sent. Bounded in time; raises nothing."""
        try:
            files.sweep(self._state.folder(_FOLDER), now=self._now())
        except OSError as failure:
            self._state.cannot(failure)

    def _forward(self, place: Path, sending: Round, *, late: bool) -> Outcome | None:
        """Send the first letter of a line, if its time has come; None where there is nothing to send any more."""
        try:
            with locks.claimed(place) as content:
                try:
                    letter = Letter.model_validate_json(content)
                except ValidationError:
                    files.set_aside(place)
                    return None
                with job_scope(letter.job_id):  # that of the letter, which is seldom the job that is running
                    return self._send(place, letter, sending, late=late)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return Outcome("waits", "another worker is sending it")

    def _send(self, place: Path, letter: Letter, sending: Round, *, late: bool) -> Outcome | None:
        if self._now() - letter.created_at > files.KEEP_S:
            logger.warning("webhook %s is dropped: it could not be delivered for 7 days", letter.event_id)
            place.unlink(missing_ok=True)
            return None
        if letter.not_before > self._now():
            return Outcome("waits", "the receiver asked to be left alone")
        if late and self._rests_now(letter):
            return Outcome("waits", "its receiver failed a moment ago")
        outcome = sending.deliver(letter)
        try:
            if outcome.settled:
                place.unlink(missing_ok=True)
            elif outcome.retry_after_s > 0:
                _write(place, letter.model_copy(update={"not_before": self._now() + outcome.retry_after_s}))
        except OSError as failure:
            self._state.cannot(failure)
        if outcome.settled:
            self._forgive(letter)
        if late and outcome.settled:
            logger.info("webhook %s, kept in the outbox: %s", letter.event_id, outcome.kind)
        elif late:
            self._rest(letter)
        return outcome

    def _lines(self) -> list[str]:
        lines = [line for line, _ in itertools.groupby(self._places(), key=lambda place: place.name.partition("-")[0])]
        # Several workers that wake together should not queue for the same letters.
        random.shuffle(lines)
        return lines

    def _places(self, line: str = "") -> list[Path]:
        """The files of one line, or of all, in their order. A file that no worker can have named is set aside."""
        places = []
        for place in sorted(self._state.folder(_FOLDER).glob(f"{line}*.json")):
            if _NAME.fullmatch(place.name):
                places.append(place)
            else:
                files.set_aside(place)
        return places

    def _rests_now(self, letter: Letter) -> bool:
        with self._rests_lock:
            _, until = self._rests.get(_receiver(letter), (0, 0.0))
        return self._clock() < until

    def _rest(self, letter: Letter) -> None:
        """Leave the receiver alone for a while: 5 s at first, twice as long after each failure, 15 minutes at most."""
        with self._rests_lock:
            failures = self._rests.get(_receiver(letter), (0, 0.0))[0]
            rest_s = min(_FIRST_REST_S * 2.0 ** min(failures, 16), _LONGEST_REST_S)
            self._rests[_receiver(letter)] = (failures + 1, self._clock() + rest_s)

    def _forgive(self, letter: Letter) -> None:
        with self._rests_lock:
            self._rests.pop(_receiver(letter), None)


def _write(place: Path, letter: Letter) -> None:
    files.write_atomically(place, letter.model_dump_json().encode())


def _line(letter: Letter) -> str:
    """What waits for each other: events of one job to one receiver. Anybody may send a job_id that another one used."""
    return files.file_key(f"{letter.job_id}\n{letter.url}")


def _receiver(letter: Letter) -> str:
    """Host and port: what is silent or busy as one."""
    return urlsplit(letter.url).netloc.rpartition("@")[2].lower()
