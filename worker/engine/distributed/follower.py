"""A follower's side: carries out the leader's orders until the leader has ended."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from worker.base.stop import Stop
from worker.engine.distributed import group
from worker.engine.distributed.base import Dismissed
from worker.engine.distributed.leader import DONE, GO, READY

logger = logging.getLogger(__name__)
_LOOKS_FOR_ITS_LEADER_EVERY_S = 1.0


class Follower:
    """Process 1 or higher of a crew: sends the messages that the leader waits for, receives what it decides."""

    def __init__(self, pipe: Connection, size: int) -> None:
        self._pipe = pipe
        self.size = size

    def begin(self, order: object) -> None:
        """The order came from the leader."""

    def agree(self, failure: Exception | None) -> None:
        """Raises Dismissed where the leader, or this process, could not get ready."""
        if failure is not None:
            logger.error("a process of the crew could not get ready", exc_info=failure)
        self._pipe.send(READY if failure is None else f"not ready: {type(failure).__name__}")
        if self._pipe.recv() != GO or failure is not None:
            raise Dismissed from failure

    def step(self, stop: Stop) -> None:  # noqa: ARG002 - the leader's decides
        if group.share_flag(False):
            self._pipe.send(DONE)
            raise Dismissed

    def done(self) -> None:
        self._pipe.send(DONE)

    def disband(self) -> None:
        """Only the leader does this."""


Follow = Callable[[object], None]


def serve(
    number: int,
    pipes: list[Connection],
    port: int,
    size: int,
    device_type: str,
    prepare: Callable[..., Follow],
    *arguments: object,
) -> None:
    """The life of follower `number`, counted from 0: get ready, meet the crew, then do each order.

    `prepare(crew, device, *arguments)` returns the function that carries an order out. Whatever that raises but
    Dismissed ends the process, and with it the crew: the leader notices.
    """
    rank = number + 1
    for other, pipe in enumerate(pipes):
        if other != number:
            pipe.close()
    own = pipes[number]
    _end_with(os.getppid())
    device = torch.device("cuda", rank) if device_type == "cuda" else torch.device("cpu")
    follow = prepare(Follower(own, size), device, *arguments)
    own.send(READY)
    group.join(group.reach_store(port), rank, size, device)
    own.send(READY)
    while True:
        try:
            order = own.recv()
        except (EOFError, OSError):
            return
        try:
            follow(order)
        except Dismissed:
            logger.info("process %d: the order was dropped", rank)


def _end_with(leader: int) -> None:
    """End this process when the leader has ended, even in a collective that nothing else interrupts."""

    def look() -> None:
        while os.getppid() == leader:
            time.sleep(_LOOKS_FOR_ITS_LEADER_EVERY_S)
        os._exit(1)

    threading.Thread(target=look, name="leader-watch", daemon=True).start()
