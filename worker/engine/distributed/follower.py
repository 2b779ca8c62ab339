"""A follower's side: takes part in what the lead orders, until the lead is gone."""

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
_LOOKS_FOR_ITS_LEAD_EVERY_S = 1.0


class Follower:
    """Process 1 or higher of a crew: says what the lead waits to hear, hears what the lead decides."""

    def __init__(self, pipe: Connection, size: int) -> None:
        self._pipe = pipe
        self.size = size

    def begin(self, order: object) -> None:
        """The order came from the lead."""

    def agree(self, failure: Exception | None) -> None:
        """Raises Dismissed where the lead, or this process, could not get ready."""
        if failure is not None:
            logger.error("a process of the crew could not get ready", exc_info=failure)
        self._pipe.send(READY if failure is None else f"not ready: {type(failure).__name__}")
        if self._pipe.recv() != GO or failure is not None:
            raise Dismissed from failure

    def step(self, stop: Stop) -> None:  # noqa: ARG002 - the lead's decides
        if group.share_flag(False):
            self._pipe.send(DONE)
            raise Dismissed

    def done(self) -> None:
        self._pipe.send(DONE)

    def disband(self) -> None:
        """The lead's to do."""


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

    `prepare(crew, device, *arguments)` answers the function that carries an order out. Whatever that raises but
    Dismissed ends the process, and with it the crew: the lead notices.
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
            logger.info("process %d: the order was given up", rank)


def _end_with(lead: int) -> None:
    """Do not outlive the lead, not even in a collective that nothing else interrupts."""

    def look() -> None:
        while os.getppid() == lead:
            time.sleep(_LOOKS_FOR_ITS_LEAD_EVERY_S)
        os._exit(1)

    threading.Thread(target=look, name="lead-watch", daemon=True).start()
