"""The videos that were asked for, in a file of SQLite: a facade that starts again finds them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_TABLE = """
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    record TEXT NOT NULL,
    payload TEXT NOT NULL,
    result TEXT
)
"""
_ENDED = ("completed", "failed")


@dataclass(frozen=True)
class Record:
    """One video. `id` is also the job's `job_id`, `run_id` the endpoint's id once the job was sent.

    `owner` stands for the API key that asked for it. `shown` goes into the answer as it is. Times are Unix seconds.
    """

    id: str
    owner: str
    created_at: int
    model: str
    prompt: str
    size: str | None
    seconds: str | None
    status: str = "queued"
    run_id: str | None = None
    completed_at: int | None = None
    error: dict[str, Any] | None = None
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED


class Store:
    """One process, one thread. Payloads and results stay on the disk: pictures and whole files may be in them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_TABLE)
        self._db.execute("CREATE INDEX IF NOT EXISTS by_owner ON videos (owner, number)")
        path.chmod(0o600)

    def add(self, record: Record, payload: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO videos (id, owner, status, created_at, record, payload) VALUES (?, ?, ?, ?, ?, ?)",
            (record.id, record.owner, record.status, record.created_at, _text(asdict(record)), _text(payload)),
        )

    def save(self, record: Record, result: Mapping[str, Any] | None = None) -> None:
        """Nothing happens where the video was deleted meanwhile."""
        self._db.execute(
            "UPDATE videos SET status = ?, record = ?, result = coalesce(?, result) WHERE id = ?",
            (record.status, _text(asdict(record)), None if result is None else _text(result), record.id),
        )

    def get(self, video_id: str) -> Record | None:
        row = self._db.execute("SELECT record FROM videos WHERE id = ?", (video_id,)).fetchone()
        return None if row is None else Record(**json.loads(row[0]))

    def payload(self, video_id: str) -> dict[str, Any]:
        return self._column("payload", video_id)

    def result(self, video_id: str) -> dict[str, Any]:
        """The worker's `VideoResult` of a completed video."""
        return self._column("result", video_id)

    def page(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> list[Record]:
        """The records after that of `after`, or the first ones."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = "owner = ?", [owner]
        if after is not None:
            where += f" AND number {sign} (SELECT number FROM videos WHERE id = ?)"
            values.append(after)
        rows = self._db.execute(
            f"SELECT record FROM videos WHERE {where} ORDER BY number {order} LIMIT ?", (*values, limit)
        )
        return [Record(**json.loads(row[0])) for row in rows]

    def unfinished(self) -> list[Record]:
        rows = self._db.execute("SELECT record FROM videos WHERE status NOT IN (?, ?) ORDER BY number", _ENDED)
        return [Record(**json.loads(row[0])) for row in rows]

    def counts(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT status, count(*) FROM videos GROUP BY status").fetchall())

    def remove(self, video_id: str) -> None:
        self._db.execute("DELETE FROM videos WHERE id = ?", (video_id,))

    def remove_ended_before(self, created_at: int) -> None:
        self._db.execute("DELETE FROM videos WHERE status IN (?, ?) AND created_at < ?", (*_ENDED, created_at))

    def close(self) -> None:
        self._db.close()

    def _column(self, name: str, video_id: str) -> dict[str, Any]:
        row = self._db.execute(f"SELECT {name} FROM videos WHERE id = ?", (video_id,)).fetchone()
        found: dict[str, Any] = json.loads(row[0])
        return found


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
