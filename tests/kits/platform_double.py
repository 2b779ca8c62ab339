"""RunPod's platform on loopback, and the real handler.py as a worker of it.

    with Platform() as platform, WorkerProcess(platform, home) as worker:
        job = platform.submit({"prompt": "a cat"})
        answer = platform.wait_result(job, 60)

The double speaks what the SDK (1.12.0) speaks: it hands out jobs to a long poll, each once, signals stops on a second
one, and takes results and progress. A job that a worker was given and did not answer is not given out again by itself:
`submit` it anew, under its id, as RunPod does when a worker has died.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.kits.worker_process import WorkerProcess

__all__ = ["Platform", "Post", "WorkerProcess"]

_LOOK_S = 0.2


@dataclass(frozen=True)
class Post:
    """What a worker sent to the output endpoint; `at` is on the monotonic clock."""

    job_id: str
    worker_id: str
    body: bytes
    at: float

    @property
    def data(self) -> dict[str, Any]:
        """The body as JSON by the letter: NaN and Infinity raise ValueError."""
        found: dict[str, Any] = json.loads(self.body, parse_constant=_no_json)
        return found

    @property
    def is_progress(self) -> bool:
        return self.data.get("status") == "IN_PROGRESS"


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


class Platform:
    """Endpoint, queue and records. `poll_s` is how long a poll is held open when there is nothing to say.

    `result_status` other than 200 refuses every post to the output endpoint with that status; what came is then in
    `refused`, not in `posts`. `progress_takes_s` is how long the endpoint takes over the next progress updates.
    """

    def __init__(self, *, poll_s: float = 30.0) -> None:
        self.poll_s = poll_s
        self.result_status = 200
        self.progress_takes_s: list[float] = []
        self.posts: list[Post] = []
        self.refused: list[Post] = []
        self.taken: dict[str, str] = {}
        self.pings: list[str] = []
        self.changed = threading.Condition()
        self.closed = False
        self._queue: list[dict[str, Any]] = []
        self._stops: list[str] = []
        self._polled: set[str] = set()
        self._submitted_at: dict[str, int] = {}
        self._servers: dict[str, _Server] = {}

    def submit(self, payload: object, job_id: str | None = None) -> str:
        """Queue a job; under the `job_id` of an earlier one it is a redelivery. Answers RunPod's id of it."""
        job_id = job_id if job_id is not None else f"rp-{uuid.uuid4().hex[:12]}"
        with self.changed:
            self._submitted_at[job_id] = len(self.posts)
            self.taken.pop(job_id, None)
            self._queue.append({"id": job_id, "input": payload})
            self.changed.notify_all()
        return job_id

    def stop(self, job_id: str) -> None:
        """Tell the worker to stop the job, as a cancellation does."""
        with self.changed:
            self._stops.append(job_id)
            self.changed.notify_all()

    @property
    def queued(self) -> list[str]:
        with self.changed:
            return [job["id"] for job in self._queue]

    @property
    def results(self) -> dict[str, list[dict[str, Any]]]:
        """By job id what its results were: `{"output": ..., "error": ...}`."""
        return self._by_job(progress=False)

    @property
    def progress(self) -> dict[str, list[dict[str, Any]]]:
        """By job id the progress updates, in the order in which they arrived."""
        return {job_id: [data["output"] for data in posts] for job_id, posts in self._by_job(progress=True).items()}

    def _by_job(self, *, progress: bool) -> dict[str, list[dict[str, Any]]]:
        with self.changed:
            chosen = [post for post in self.posts if post.is_progress == progress]
        return {
            job_id: [post.data for post in chosen if post.job_id == job_id] for job_id in {p.job_id for p in chosen}
        }

    def wait_taken(self, job_id: str, timeout_s: float = 200.0) -> str:
        """Wait until a worker has been given the job; answers the worker's id."""
        self.wait_for(lambda: job_id in self.taken, timeout_s, f"{job_id} was not taken")
        return self.taken[job_id]

    def wait_result(self, job_id: str, timeout_s: float = 200.0) -> dict[str, Any]:
        """The first result that was posted since the job was submitted last."""

        def results() -> list[Post]:
            return [p for p in self.posts[self._submitted_at[job_id] :] if p.job_id == job_id and not p.is_progress]

        self.wait_for(lambda: bool(results()), timeout_s, f"{job_id} has no result")
        return results()[0].data

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        """Wait for what a request changes. Raises TimeoutError."""
        with self.changed:
            if not self.changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"{complaint} within {timeout_s:g} s")

    def has_polled(self, worker_id: str) -> bool:
        """The worker has asked for a job: it is ready."""
        return worker_id in self._polled

    @contextmanager
    def results_down(self) -> Iterator[None]:
        """Inside, connections to the output endpoint are refused."""
        server = self._servers.pop("done")
        server.close()
        try:
            yield
        finally:
            self._servers["done"] = _Server(self, server.port)

    def environment(self, worker_id: str) -> dict[str, str]:
        """What RunPod sets on a worker of this endpoint."""
        base, done = (f"http://127.0.0.1:{self._servers[name].port}/v2/double" for name in ("main", "done"))
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{done}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_AI_API_KEY": "a-key",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def __enter__(self) -> Platform:
        self._servers = {name: _Server(self, 0) for name in ("main", "done")}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for server in self._servers.values():
            server.close()

    def take_job(self, worker_id: str, is_gone: Callable[[], bool]) -> dict[str, Any] | None:
        """The next job for a worker whose poll lasts; None where there is none. Never one for a worker that is gone."""
        with self.changed:
            self._polled.add(worker_id)
            self.changed.notify_all()
            if not self._hold(lambda: bool(self._queue), is_gone):
                return None
            job = self._queue.pop(0)
            self.taken[job["id"]] = worker_id
            self.changed.notify_all()
            return job

    def take_stops(self, worker_id: str, is_gone: Callable[[], bool]) -> list[str]:
        def mine() -> list[str]:
            return [job_id for job_id in self._stops if self.taken.get(job_id) == worker_id]

        with self.changed:
            self._hold(lambda: bool(mine()), is_gone)
            stops = mine()
            self._stops = [job_id for job_id in self._stops if job_id not in stops]
            return stops

    def _hold(self, is_there: Callable[[], bool], is_gone: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.poll_s
        while not self.closed and time.monotonic() < deadline and not is_gone():
            if is_there():
                return True
            self.changed.wait(_LOOK_S)
        return False

    def take_output(self, post: Post) -> int:
        if post.is_progress and self.progress_takes_s:
            time.sleep(self.progress_takes_s.pop(0))
        with self.changed:
            (self.posts if self.result_status == 200 else self.refused).append(post)
            self.changed.notify_all()
            return self.result_status


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        platform = self.server.platform
        verb, worker_id = self.path.partition("?")[0].split("/")[3:5]
        if verb == "job-take":
            job = platform.take_job(worker_id, self._is_gone)
            self._answer(204) if job is None else self._answer(200, job)
        elif verb == "job-stop":
            self._answer(200, {"jobsToStop": platform.take_stops(worker_id, self._is_gone)})
        else:
            platform.pings.append(self.path)
            self._answer(200, {})

    def do_POST(self) -> None:
        worker_id, job_id = self.path.partition("?")[0].split("/")[4:6]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.server.platform.take_output(Post(job_id, worker_id, body, time.monotonic())), {})

    def _is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def _answer(self, status: int, content: object = None) -> None:
        body = b"" if status == 204 else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, platform: Platform, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.platform = platform
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the worker was killed, or hung up
