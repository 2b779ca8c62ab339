"""One STATE_DIR with its spool, its real journal and a folder storage, as the workers of an endpoint share them."""

from __future__ import annotations

import datetime
import threading
import time
from pathlib import Path
from typing import Any

from tests.kits.delivery import make_video, result_of
from worker.base.files import StateFolder
from worker.base.stop import Flag
from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import BOUNDS, Bounds, Found, Spool
from worker.delivery.storage import Storage, video_key
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.local import LocalStorage
from worker.media import VideoFile

DAY = datetime.date(2026, 11, 21)
JOB, DIGEST = "abc-123", "d" * 64
NEVER = threading.Event()


class Place:
    """Its clock can be moved ahead, and a file in the way takes its storage out of order."""

    def __init__(self, root: Path) -> None:
        self.root, self.ahead_s = root, 0.0
        self.storage = LocalStorage(root / "out")
        self.journal = Journal(StateFolder(root / "state"), now=self.now)
        self.spool = self.another_worker()

    def now(self) -> float:
        return time.time() + self.ahead_s

    def another_worker(self, bounds: Bounds = BOUNDS) -> Spool:
        state = StateFolder(self.root / "state")
        return Spool(state, Journal(state, now=self.now), bounds=bounds, now=self.now)

    def accept(self, job_id: str = JOB, digest: str = DIGEST) -> Entry:
        return self.journal.accept(job_id, digest, today=DAY, seeds=[1])

    def storage_is_down(self) -> None:
        (self.root / "out").write_text("a file in the way")

    def storage_is_back(self) -> None:
        (self.root / "out").unlink()

    @property
    def folder(self) -> Path:
        return self.root / "state" / "spool"

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def kept(self) -> list[int]:
        """The indexes of the videos that are kept."""
        return sorted(int(name[-6:-4]) for name in self.files if name.endswith(".mp4") and name[0] != ".")

    def stored(self, index: int = 0) -> bytes:
        return (self.root / "out" / f"{video_key(JOB, index, DAY)}.mp4").read_bytes()

    def keep(
        self, content: bytes = b"video bytes", index: int = 0, *, spool: Spool | None = None, **options: Any
    ) -> VideoFile:
        video = make_video(self.root / "job", content, **options)
        (self.spool if spool is None else spool).keep(video, self.accept(), index, result_of(video, index))
        return video

    def found(self, index: int = 0) -> Found:
        kept = self.spool.find(JOB, index)
        assert kept is not None
        return kept

    def upload(self, found: Found, storage: Storage | None = None, **options: Any) -> dict[str, Any]:
        storage = self.storage if storage is None else storage
        return self.spool.upload(found, storage, **{"stop": NEVER, **options})

    def finished(self) -> dict[int, dict[str, Any]]:
        entry = self.journal.entry(JOB)
        assert entry is not None
        return entry.finished


class Slow:
    """A storage whose uploads wait for `go_on`, and that counts them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.stored: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        self.stored.append(key)
        self.begun.set()
        assert self.go_on.wait(20)
        return self._storage.store(video, key, stop=stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
