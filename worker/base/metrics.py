"""What the worker counts and measures, for Prometheus: `serve` opens METRICS_PORT, and until then nothing is recorded.

Every function below may be called from any thread, costs next to nothing and raises nothing. Labels take values from
small fixed sets alone: never a job id, a URL or a prompt. docs/metrics.md explains each metric.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import threading
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

ADDRESS = "0.0.0.0"
NO_CODE = "none"
GIB = 1024**3
_STAGE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
# Between the sizes of the GPUs that the worker runs on: 24, 32, 48, 80, 96 and 141 GB.
_VRAM_BUCKETS = tuple(size * float(GIB) for size in (4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192))

Cache = Literal["text", "lora", "journal", "hub"]
CostOf = Literal["completed", "failed", "left", "cold_start"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`labels` in their order; `buckets` of a histogram."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE: Mapping[str, Metric] = {
    "videogen_jobs_total": Metric("counter", "Jobs that ended.", ("status", "code")),
    "videogen_job_seconds": Metric(
        "histogram", "Seconds of a job, from its event to its answer.", (), _STAGE_BUCKETS_S
    ),
    "videogen_videos_total": Metric("counter", "Videos that ended.", ("mode", "model", "outcome", "code")),
    "videogen_stage_seconds": Metric("histogram", "Seconds of one stage of a video.", ("stage",), _STAGE_BUCKETS_S),
    "videogen_gpu_seconds_total": Metric("counter", "Seconds for which the GPU was held.", ("held_by",)),
    "videogen_cost_usd_total": Metric("counter", "What those seconds cost at GPU_HOURLY_USD.", ("held_by",)),
    "videogen_peak_vram_bytes": Metric("histogram", "Most GPU memory in use in a video.", ("model",), _VRAM_BUCKETS),
    "videogen_webhook_attempts_total": Metric("counter", "Attempts to deliver an event.", ("event", "result")),
    "videogen_upload_attempts_total": Metric("counter", "Files handed to the storage.", ("file", "result")),
    "videogen_stored_bytes_total": Metric("counter", "Bytes that the storage took.", ("file",)),
    "videogen_cache_lookups_total": Metric("counter", "Lookups that could save work.", ("cache", "result")),
    "videogen_outbox_events": Metric("gauge", "Final events that wait to be sent, on all of STATE_DIR."),
    "videogen_spool_videos": Metric("gauge", "Videos that wait for the storage, on all of STATE_DIR."),
    "videogen_spool_bytes": Metric("gauge", "Bytes of the files that wait for the storage."),
    "videogen_cold_start_seconds": Metric("gauge", "Seconds of each part of this worker's start.", ("part",)),
}


class Server:
    """An open METRICS_PORT. `close` ends it and the recording with it."""

    def __init__(self, http: WSGIServer, thread: threading.Thread) -> None:
        self._http = http
        self._thread = thread
        self.port: int = http.server_port

    def close(self) -> None:
        global _collectors
        _collectors = {}
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


_collectors: Mapping[str, Any] = {}
_server: Server | None = None
_sizes: Mapping[str, Callable[[], int]] = {}


def serve(port: int | None, *, address: str = ADDRESS) -> Server | None:
    """Serve the metrics of this process at `port`, from now on recorded in a registry of their own; None does nothing.

    A port that cannot be opened is said once in the log and the worker goes on without metrics. Port 0 takes any free
    one. Call it in the process that makes the videos: a process that is forked later closes its copy of the port.
    """
    global _collectors, _server
    if port is None:
        return None
    from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server

    # A second series for each, which only OpenMetrics has a use for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        server = Server(*start_http_server(port, addr=address, registry=registry))
    except OSError as failure:
        logger.error(
            "METRICS_PORT %d cannot be opened (%s): the worker goes on without metrics. Choose a free port above 1023",
            port,
            failure.strerror or type(failure).__name__,
        )
        return None
    _close_in_children(server)
    _collectors, _server = _made(registry), server
    watch(_sizes)
    logger.info("metrics at port %d, path /metrics", server.port)
    return server


def is_served() -> bool:
    return bool(_collectors)


def watch(sizes: Mapping[str, Callable[[], int]]) -> None:
    """Ask for these gauges, by their names, when they are scraped. The functions may block for a folder's listing."""
    global _sizes
    _sizes = dict(sizes)
    for name, size in _sizes.items():
        if name in _collectors:
            _collectors[name].set_function(size)


def _made(registry: CollectorRegistry) -> dict[str, Any]:
    from prometheus_client import Counter, Gauge, Histogram

    kinds: Mapping[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
    return {
        name: kinds[metric.kind](
            name,
            metric.help,
            metric.labels,
            registry=registry,
            **({"buckets": metric.buckets} if metric.buckets else {}),
        )
        for name, metric in TABLE.items()
    }


def _close_in_children(server: Server) -> None:
    """RunPod's SDK forks its heartbeat, which would hold the port for as long as it outlives a killed worker."""
    held = weakref.ref(server)

    def close() -> None:
        if (forked := held()) is not None:
            forked._http.socket.close()

    os.register_at_fork(after_in_child=close)


def _of(name: str, *labels: str) -> Any:
    return _collectors[name].labels(*labels) if labels else _collectors[name]


def job(status: str, code: str, seconds: float) -> None:
    """A job ended: `completed`, `partial`, `failed` or `left` (to another worker), with an error code or NO_CODE."""
    if _collectors:
        _of("videogen_jobs_total", status, code).inc()
        _of("videogen_job_seconds").observe(seconds)


def video(mode: str, model: str, outcome: str, code: str = NO_CODE) -> None:
    """A video ended: `completed`, `failed`, `again` (made by an earlier delivery of its job) or `left`."""
    if _collectors:
        _of("videogen_videos_total", mode, model, outcome, code).inc()


def stage(name: str, seconds: float) -> None:
    if _collectors:
        _of("videogen_stage_seconds", name).observe(seconds)


def peak_vram(model: str, size_bytes: int | None) -> None:
    if _collectors and size_bytes is not None:
        _of("videogen_peak_vram_bytes", model).observe(size_bytes)


def gpu_held(held_by: CostOf, seconds: float, cost_usd: float | None) -> None:
    """The GPU was held and paid for, by a video or by the start of the worker."""
    if _collectors:
        _of("videogen_gpu_seconds_total", held_by).inc(max(0.0, seconds))
        if cost_usd is not None:
            _of("videogen_cost_usd_total", held_by).inc(max(0.0, cost_usd))


def webhook_attempt(event: str, result: str) -> None:
    if _collectors:
        _of("videogen_webhook_attempts_total", event, result).inc()


UploadedFile = Literal["video", "poster", "frames", "preview", "lora"]


def upload_attempt(file: UploadedFile, size_bytes: int | None) -> None:
    """The storage took so many bytes, or None: it did not."""
    if _collectors:
        _of("videogen_upload_attempts_total", file, "failed" if size_bytes is None else "stored").inc()
        if size_bytes is not None:
            _of("videogen_stored_bytes_total", file).inc(size_bytes)


def cache(name: Cache, *, hit: bool) -> None:
    if _collectors:
        _of("videogen_cache_lookups_total", name, "hit" if hit else "miss").inc()


def cold_start(seconds: Mapping[str, float], cost_usd: float | None) -> None:
    """The worker is ready; `seconds` by part, and `total` of them."""
    if _collectors:
        for part, value in seconds.items():
            _of("videogen_cold_start_seconds", part).set(value)
        gpu_held("cold_start", seconds["total"], cost_usd)
