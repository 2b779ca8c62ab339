"""The journal: one small file a job on STATE_DIR, so that a job delivered again is not made again.

It holds the day on which the job was first accepted, the seeds that were drawn, the results of the videos that are
stored, those of the videos that wait in the spool, and the event ids that are known to have arrived. A failed video is
not in it: a redelivery tries it again. Entries expire after 7 days. An unwritable STATE_DIR costs this protection and
nothing else: only a second payload under one job id is an error.

Several workers may write: every change is read, merged and replaced under a lock. Two workers that run one job at the
same time (RunPod took the first for dead) both draw on the entry of the first, so their seeds, storage keys and event
ids are equal; the first result recorded for a video stays, until a worker finds its video gone and replaces both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.base import files, locks
from worker.base.errors import InvalidRequest

_FOLDER = "jobs"
_CLAIMS = "claims"
_LOCKS = 64


class Entry(BaseModel):
    """What is known of a job.

    `finished` maps a video's index to its result as delivered, `unstored` to that of a video in the spool, which has no
    URLs yet. `told` are the ids of the events that arrived.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    payload_digest: str
    accepted_on: date
    accepted_at: float
    seeds: tuple[int, ...]
    finished: dict[int, dict[str, Any]] = {}
    unstored: dict[int, dict[str, Any]] = {}
    told: frozenset[str] = frozenset()


def stem_of(job_id: str) -> str:
    """How the names of a job's files begin."""
    return f"{files.file_key(job_id)}-{files.readable(job_id)}"


class Journal:
    """The entries of all jobs. Safe to call from several threads and workers; blocks for a small file's time.

    Another worker that holds the lock of an entry is waited for, at most `lock_wait_s`.
    """

    def __init__(
        self, state: files.StateFolder, *, now: Callable[[], float] | None = None, lock_wait_s: float = 5.0
    ) -> None:
        self._state = state
        self._now = state.now if now is None else now
        self._lock_wait_s = lock_wait_s

    def accept(self, job_id: str, payload_digest: str, *, today: date, seeds: Sequence[int]) -> Entry:
        """The job's entry: the one that an earlier delivery left, or a new one with `today` (UTC) and `seeds`.

        Raises InvalidRequest where the job id came with another payload in the last 7 days.
        """
        fresh = Entry(
            job_id=job_id,
            payload_digest=payload_digest,
            accepted_on=today,
            accepted_at=self._now(),
            seeds=tuple(seeds),
        )
        try:
            with self._held(job_id) as path:
                known = self._read(path)
                if known is None:
                    files.write_atomically(path, fresh.model_dump_json().encode())
        except OSError as failure:
            self._state.cannot(failure)
            known = self.entry(job_id)
        if known is None:
            return fresh
        if known.payload_digest != payload_digest:
            raise InvalidRequest("was used with another payload; send a new job_id", path="job_id")
        return known

    def entry(self, job_id: str) -> Entry | None:
        """The entry as it is now, other workers' records included; None where there is none or it cannot be read."""
        try:
            return self.named(stem_of(job_id))
        except OSError as failure:
            self._state.cannot(failure)
            return None

    def named(self, stem: str) -> Entry | None:
        """The entry of the job that `stem_of` gives this stem. Raises OSError where it cannot be read."""
        return self._read(self._state.folder(_FOLDER) / f"{stem}.json")

    def record_result(
        self, job_id: str, index: int, result: Mapping[str, Any], *, replacing: Mapping[str, Any] | None = None
    ) -> None:
        """Record that video `index` is stored: `result` is what the caller gets, and nothing of it is unstored.

        The first record of a video stays, unless it equals `replacing`: the record whose video is gone from the
        storage, as it was when that was seen.
        """

        def recorded(entry: Entry) -> dict[str, object]:
            known = entry.finished.get(index)
            stays = known is not None and known != replacing
            unstored = {other: kept for other, kept in entry.unstored.items() if other != index}
            finished = entry.finished if stays else {**entry.finished, index: dict(result)}
            return {"finished": finished, "unstored": unstored}

        self._change(job_id, recorded)

    def record_unstored(self, entry: Entry, index: int, result: Mapping[str, Any]) -> bool:
        """Record that video `index` of the job of `entry` is made and not stored; its `result` has no URLs yet.

        False where the job has no entry any more, or that of another payload, and where it cannot be written.
        """

        def recorded(now: Entry) -> dict[str, object]:
            same = (now.payload_digest, now.accepted_on) == (entry.payload_digest, entry.accepted_on)
            return {"unstored": {**now.unstored, index: dict(result)}} if same else {}

        return self._change(entry.job_id, recorded)

    def has_arrived(self, job_id: str, event_id: str) -> bool:
        """Whether the event is known to have arrived."""
        entry = self.entry(job_id)
        return entry is not None and event_id in entry.told

    def record_arrived(self, job_id: str, event_id: str) -> None:
        """Record that the event has arrived: a redelivery need not send it again."""
        self._change(job_id, lambda entry: {"told": entry.told | {event_id}})

    @contextmanager
    def storing(
        self, job_id: str, index: int, *, wait_s: float, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Inside, no other thread or worker stores video `index` of the job: what is stored is what is recorded.

        Raises BlockingIOError where another one still does after `wait_s`, or once `stopped`. An unwritable STATE_DIR
        keeps nobody out.
        """
        deadline = time.monotonic() + wait_s
        with ExitStack() as held:
            try:
                place = self._state.folder(_CLAIMS) / f"{stem_of(job_id)}-{index:02d}"
                held.enter_context(locks.sole(place, stopped=lambda: time.monotonic() >= deadline or stopped()))
            except BlockingIOError:
                raise
            except OSError as failure:
                self._state.cannot(failure)
            yield

    def sweep(self) -> None:
        """Remove expired entries and stale temporary files. Bounded in time; raises nothing."""
        try:
            for name in (_FOLDER, _CLAIMS):
                files.sweep(self._state.folder(name), now=self._now())
        except OSError as failure:
            self._state.cannot(failure)

    def _change(self, job_id: str, update: Callable[[Entry], dict[str, object]]) -> bool:
        """Write what `update` changes of the entry; False where it changes nothing or could not be written."""
        try:
            with self._held(job_id) as path:
                entry = self._read(path)
                changes = {} if entry is None else update(entry)  # it never could be written, or has expired
                if entry is None or not changes:
                    return False
                files.write_atomically(path, entry.model_copy(update=changes).model_dump_json().encode())
        except (OSError, ValueError) as failure:
            self._state.cannot(failure)
            return False
        return True

    @contextmanager
    def _held(self, job_id: str) -> Iterator[Path]:
        """The path of the entry, locked. The locks are a fixed few, so that none need ever be removed."""
        number = int(files.file_key(job_id), 16) % _LOCKS
        with locks.locked(self._state.folder("locks") / f"{number:02d}.lock", wait_s=self._lock_wait_s):
            yield self._state.folder(_FOLDER) / f"{stem_of(job_id)}.json"

    def _read(self, path: Path) -> Entry | None:
        try:
            entry = Entry.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            files.set_aside(path)
            return None
        if stem_of(entry.job_id) != path.stem or self._now() - entry.accepted_at > files.KEEP_S:
            return None
        return entry
