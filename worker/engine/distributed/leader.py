"""The leader's side: starts the followers, sends them orders, and notices when one has ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp

from worker.base.stop import Stop
from worker.engine.distributed import group
from worker.engine.distributed.base import CrewLost

logger = logging.getLogger(__name__)
READY = "ready"
DONE = "done"
GO = "go"
DROP = "drop"
_ENDS_WITHIN_S = 5.0

Serve = Callable[..., None]


class Leader:
    """Process 0 of a crew. Made by `start`; `disband` ends it."""

    def __init__(self, processes: list[Any], pipes: list[Connection]) -> None:
        self._processes = processes
        self._pipes = pipes
        self._lost = threading.Event()
        self._disbanding = threading.Event()
        threading.Thread(target=self._watch, name="crew", daemon=True).start()

    @classmethod
    def start(cls, serve: Serve, size: int, device: torch.device, *arguments: object) -> Leader:
        """Start `size` - 1 followers and meet them.

        Each runs `serve(number, pipes, port, size, device_type, *arguments)`, its rank being `number` + 1, with torch's
        own launcher. `arguments` must pickle. Raises CrewLost where one does not start.
        """
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size - 1)]
        store = group.open_store()
        launch: Any = mp.start_processes  # type: ignore[attr-defined]  # not in the stubs
        followers = launch(
            serve,
            args=([theirs for _, theirs in pairs], store.port, size, device.type, *arguments),
            nprocs=size - 1,
            join=False,
            daemon=True,
            start_method="spawn",
        )
        for _, theirs in pairs:
            theirs.close()
        leader = cls(followers.processes, [ours for ours, _ in pairs])
        try:
            leader._expect(READY)  # one that failed is noticed at once; joining the group would wait for it
            group.join(store, 0, size, device)
            leader._expect(READY)
        except Exception as failure:
            leader.disband()
            raise CrewLost(f"not all of {size} processes came up") from failure
        return leader

    @property
    def size(self) -> int:
        return len(self._pipes) + 1

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def begin(self, order: object) -> None:
        self._send(order)

    def agree(self, failure: Exception | None) -> None:
        """Raises `failure`, once the followers have dropped the order; CrewLost where a follower is not ready."""
        if failure is not None:
            for pipe in self._pipes:
                with suppress(EOFError, OSError):  # whatever it sends, the order is dropped
                    pipe.recv()
            self._send(DROP)
            raise failure
        self._expect(READY)
        self._send(GO)

    def step(self, stop: Stop) -> None:
        if self.lost:
            raise CrewLost("a process of the crew is gone")
        ends = stop.requested
        try:
            group.share_flag(ends)
        except RuntimeError as failure:
            raise CrewLost("a process of the crew is gone") from failure
        if ends:
            self._expect(DONE)
            stop.check()

    def done(self) -> None:
        self._expect(DONE)

    def disband(self) -> None:
        """Ends every follower. The crew cannot be used again: the worker has to restart."""
        self._disbanding.set()
        self._lost.set()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_ENDS_WITHIN_S)
            if process.is_alive():
                process.kill()
                process.join(_ENDS_WITHIN_S)
        for pipe in self._pipes:
            pipe.close()

    def _send(self, message: object) -> None:
        if self.lost:
            raise CrewLost("a process of the crew is gone")
        try:
            for pipe in self._pipes:
                pipe.send(message)
        except OSError as failure:
            raise CrewLost("a process of the crew is gone") from failure

    def _expect(self, expected: str) -> None:
        """Wait until every follower has sent `expected`. Raises CrewLost for anything else."""
        for number, pipe in enumerate(self._pipes, start=1):
            try:
                heard = pipe.recv()
            except (EOFError, OSError) as failure:
                raise CrewLost(f"process {number} of the crew is gone") from failure
            if heard != expected:
                raise CrewLost(f"process {number} of the crew failed: {heard}")

    def _watch(self) -> None:
        """Runs in a thread of its own: a collective of the GPU would wait for a dead process until its time limit."""
        sentinels = [process.sentinel for process in self._processes]
        connection.wait(sentinels)
        if not self._disbanding.is_set():
            self._lost.set()
            logger.error("a process of the crew has ended: the worker has to restart")
            group.abort()
