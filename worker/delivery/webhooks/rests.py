"""Receivers that failed lately and are left alone: a small file each beside the events, so that every worker knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from worker.base import files

_FOLDER = "outbox-rests"
_FIRST_S = 5.0
_LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Rest:
    """How often a receiver failed in a row, and until when (seconds since the epoch) it is left alone."""

    failures: int = 0
    until: float = 0.0


class Rests:
    """A host that does not answer rests as a whole; one that answers with a failure rests for that URL alone.

    Safe to use from several threads and workers: of two that write at once, one wins. An unusable folder costs the
    memory alone.
    """

    def __init__(self, state: files.StateFolder, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now

    def of(self, url: str) -> Rest:
        """The longer rest of the URL's and its host's."""
        return max((self._read(key) for key in (url, host(url))), key=lambda rest: rest.until)

    def failed(self, url: str, *, answered: bool) -> None:
        """Leave it alone: 5 s at first, twice as long after each failure, 15 minutes at most."""
        key = url if answered else host(url)
        failures = self._read(key).failures
        rest = Rest(failures + 1, self._now() + min(_FIRST_S * 2.0 ** min(failures, 16), _LONGEST_S))
        try:
            place = self._state.folder(_FOLDER) / _name(key)
            files.write_atomically(place, json.dumps([rest.failures, rest.until]).encode())
        except OSError as failure:
            self._state.cannot(failure)

    def forgive(self, url: str) -> None:
        """It answered."""
        for key in (url, host(url)):
            with suppress(OSError):
                (self._state.folder(_FOLDER) / _name(key)).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what is too old to matter. Raises OSError."""
        files.sweep(self._state.folder(_FOLDER), now=self._now())

    def _read(self, key: str) -> Rest:
        try:
            failures, until = json.loads((self._state.folder(_FOLDER) / _name(key)).read_bytes())
            return Rest(int(failures), float(until))
        except (OSError, ValueError, TypeError):
            return Rest()


def host(url: str) -> str:
    """Host and port: what is silent as one."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _name(key: str) -> str:
    return f"{files.file_key(key)}.json"
