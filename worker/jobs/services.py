"""What every job needs, made once for the process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from worker.base import metrics
from worker.base.settings import Settings
from worker.base.sigterm import Shutdown
from worker.delivery.journal import Journal
from worker.delivery.kept_segments import KeptSegments
from worker.delivery.spool import Spool
from worker.delivery.storage import Storage
from worker.delivery.storage.presigned import PresignedStorage
from worker.delivery.webhooks.outbox import Outbox
from worker.engine import Engine
from worker.media.marks.marker import Marker
from worker.net import Opener
from worker.request import VideoRequest
from worker.weights.loras import LoraStore


@dataclass(frozen=True, slots=True)
class Services:
    """`gpu` has a single thread: whatever touches the device runs there, one video after the other."""

    settings: Settings
    engine: Engine
    opener: Opener
    loras: LoraStore
    storage: Storage
    journal: Journal
    outbox: Outbox
    spool: Spool
    segments: KeptSegments
    gpu: ThreadPoolExecutor
    shutdown: Shutdown
    marker: Marker

    def storage_of(self, request: VideoRequest) -> Storage:
        """Where the video of `request` goes: to the storage, or to the caller's own."""
        if request.output.upload_url is None:
            return self.storage
        return PresignedStorage(
            request.output.upload_url,
            path=request.at("upload_url"),
            opener=self.opener,
            beside=self.storage if self.settings.storage_is_remote else None,
        )

    def __post_init__(self) -> None:
        """Count what waits on STATE_DIR when the metrics are scraped: other workers share it."""
        metrics.watch(
            {
                "videogen_outbox_events": self.outbox.count,
                "videogen_spool_videos": lambda: self.spool.held()[0],
                "videogen_spool_bytes": lambda: self.spool.held()[1],
            }
        )
