"""The previews of a job on their way: each is made into a file, stored and reported, beside the steps of its video.

One thread does so, one preview after the other; the engine's thread only hands them over. A preview that fails is a
line in the warnings of its video.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass

from worker.base import scratch
from worker.base.errors import Cancelled, UploadFailed, WorkerError
from worker.base.stop import Deadline, Stop
from worker.delivery.journal import Entry
from worker.delivery.storage import video_key
from worker.delivery.storage.base import PREVIEW_SUFFIX
from worker.engine import Preview
from worker.jobs.progress import Progress
from worker.jobs.services import Services
from worker.media.marks.provenance import Origin, Provenance
from worker.media.preview_file import MAX_BYTES
from worker.request import VideoRequest, choose

logger = logging.getLogger(__name__)

# Of one preview to the storage, and of those under way once their video is made.
STORING_S = 20.0
WAITING_S = 10.0


@dataclass(frozen=True, slots=True)
class Stored:
    """The last preview of a video in the storage; `sha256` is the hex digest of its bytes."""

    url: str
    size_bytes: int
    sha256: str
    provenance: Provenance | None


class JobPreviews:
    """The previews of the job of `entry`. Thread-safe."""

    def __init__(self, entry: Entry, worker: Services, progress: Progress, stop: Stop) -> None:
        self._entry = entry
        self._worker = worker
        self._progress = progress
        self._stop = stop
        self._in_its_url = worker.settings.lacks_bucket
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._under_way: defaultdict[int, list[Future[None]]] = defaultdict(list)
        self._stored: dict[int, Stored] = {}
        self._failures: dict[int, str] = {}

    def offer(self, request: VideoRequest, preview: Preview) -> None:
        """Store and tell `preview`; returns at once."""
        work = self._thread.submit(copy_context().run, self._one, request, preview)
        self._under_way[request.index].append(work)

    def finished(self, request: VideoRequest) -> tuple[Stored | None, tuple[str, ...]]:
        """The last preview of a video that is made, and warnings. Waits a few seconds for those under way."""
        late = wait(self._under_way.pop(request.index, ()), timeout=WAITING_S).not_done
        for each in late:
            each.cancel()
        failure = "the storage did not take the last one in time" if late else self._failures.get(request.index)
        return self._stored.get(request.index), () if failure is None else (f"{request.at('preview')}: {failure}",)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _one(self, request: VideoRequest, preview: Preview) -> None:
        try:
            stored = self._store(request, preview)
        except Exception as failure:
            if isinstance(failure, Cancelled) and self._stop.requested:
                return
            logger.warning("a preview of video %d failed", request.index, exc_info=failure)
            reason = f": {failure.message}" if isinstance(failure, WorkerError) else ""
            self._failures[request.index] = f"that of step {preview.step} failed{reason}"
            return
        self._stored[request.index] = stored
        self._progress.preview(request.index, stored.url, preview.step)

    def _store(self, request: VideoRequest, preview: Preview) -> Stored:
        worker = self._worker
        origin = Origin(choose(worker.engine.catalogue, request).version, request.shows_sources)
        key = video_key(self._entry.job_id, request.index, self._entry.accepted_on)
        with scratch.folder("job") as folder:
            path = folder / "preview.webp"
            path.write_bytes(preview.webp(MAX_BYTES - worker.marker.unstamped().most_bytes()))
            provenance = worker.marker.mark_preview(path, origin)
            content = path.read_bytes()
            until = Deadline.after(STORING_S, self._stop.event)
            try:
                url = worker.storage.store_file(path, key + PREVIEW_SUFFIX, stop=until)
            except UploadFailed:
                if not self._in_its_url:
                    raise
        if self._in_its_url:  # nobody else can read the worker's own disk
            url = f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
        return Stored(url, len(content), hashlib.sha256(content).hexdigest(), provenance)
