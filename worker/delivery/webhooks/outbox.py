"""The outbox: final webhook events that are not known to have arrived, one small file each on STATE_DIR.

An event is put here before its first attempt and removed when it has arrived, so that neither a dead receiver nor a
killed worker loses it. The next job, or any worker that shares the folder, sends what is left: each under its first
event id, those of one job to one receiver in their order, several receivers side by side, those that did not fail
lately first, and to a silent one at longer and longer intervals. Two workers never send one event at the same time: the
sender holds a lock on its file. Events expire after 7 days.

A file is named LINE-NUMBER-EVENT_ID.json, where LINE stands for the job and its receiver. The files hold the receiver's
URL and the body, so they have mode 0600 and neither is ever logged.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from worker.base import files, locks
from worker.base.log import job_scope
from worker.delivery.webhooks import rests
from worker.delivery.webhooks.letter import Letter, Outcome, Round

logger = logging.getLogger(__name__)

_FOLDER = "outbox"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{5,})-(.+)\.json")
# 400 silent receivers take 25 s of the 30 that a round has; each failure doubles what the next attempt may take.
SIDE_BY_SIDE = 32
_FIRST_ATTEMPT_S = 2.0


class Outbox:
    """The undelivered events of every job. Thread-safe; blocks, so call it from a thread of its own."""

    def __init__(self, state: files.StateFolder, *, now: Callable[[], float] | None = None) -> None:
        self._state = state
        self._now = state.now if now is None else now
        self._rests = rests.Rests(state, self._now)

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
        line, one receiver beside the other, leaving out those that failed lately.
        """
        outcomes: dict[str, Outcome] = {}
        try:
            if of is not None:
                self._drain_lines([_line(of)], sending, outcomes, late=False)
                return outcomes
            receivers = self._by_receiver()
            with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="webhook-outbox") as threads:
                for lines in receivers:
                    threads.submit(copy_context().run, self._drain_lines, lines, sending, outcomes, late=True)
        except OSError as failure:
            self._state.cannot(failure)
        return outcomes

    def _drain_lines(self, lines: Sequence[str], sending: Round, outcomes: dict[str, Outcome], *, late: bool) -> None:
        """Send the lines of one receiver; each ends at its first failure."""
        try:
            for line in lines:
                for place in self._places(line):
                    if sending.is_over():
                        return
                    outcome = self._forward(place, sending, late=late)
                    if outcome is None:
                        continue
                    outcomes[place.stem.split("-", 2)[2]] = outcome
                    if not outcome.settled:
                        break
        except OSError as failure:
            self._state.cannot(failure)

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
            self._rests.sweep()
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
        if late:
            rest = self._rests.of(letter.url)
            if self._now() < rest.until:
                return Outcome("waits", "its receiver failed a moment ago")
            sending = replace(
                sending, attempt_s=min(sending.attempt_s, _FIRST_ATTEMPT_S * 2.0 ** min(rest.failures, 16))
            )
        outcome = sending.deliver(letter)
        try:
            if outcome.settled:
                place.unlink(missing_ok=True)
            elif outcome.retry_after_s > 0:
                _write(place, letter.model_copy(update={"not_before": self._now() + outcome.retry_after_s}))
        except OSError as failure:
            self._state.cannot(failure)
        if outcome.settled:
            self._rests.forgive(letter.url)
        if late and outcome.settled:
            logger.info("webhook %s, kept in the outbox: %s", letter.event_id, outcome.kind)
        elif late and outcome.kind == "failed":
            self._rests.failed(letter.url, answered=outcome.answered)
        return outcome

    def _by_receiver(self) -> list[list[str]]:
        """The lines of each receiver, those first that failed the least."""
        receivers: dict[str, list[str]] = defaultdict(list)
        failures: dict[str, int] = {}
        for line, places in itertools.groupby(self._places(), key=lambda place: place.name.partition("-")[0]):
            try:
                url = Letter.model_validate_json(next(places).read_bytes()).url
            except (OSError, ValidationError):
                url = ""  # sent, or set aside, meanwhile or in its turn
            receivers[rests.host(url)].append(line)
            failures[rests.host(url)] = max(failures.get(rests.host(url), 0), self._rests.of(url).failures)
        # Several workers that wake together should not queue for the same letters.
        order = sorted(receivers, key=lambda receiver: (failures[receiver], random.random()))
        return [receivers[receiver] for receiver in order]

    def _places(self, line: str = "") -> list[Path]:
        """The files of one line, or of all, in their order. A file that no worker can have named is set aside."""
        places = []
        for place in sorted(self._state.folder(_FOLDER).glob(f"{line}*.json")):
            if _NAME.fullmatch(place.name):
                places.append(place)
            else:
                files.set_aside(place)
        return places


def _write(place: Path, letter: Letter) -> None:
    files.write_atomically(place, letter.model_dump_json().encode())


def _line(letter: Letter) -> str:
    """What waits for each other: events of one job to one receiver. Anybody may send a job_id that another one used."""
    return files.file_key(f"{letter.job_id}\n{letter.url}")
