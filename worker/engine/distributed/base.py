"""What the engine asks of a crew, and the crew of one."""

from __future__ import annotations

from typing import Protocol

from worker.base.stop import Stop


class CrewLost(Exception):
    """A process of the crew has died, failed or does not respond: its shared work cannot be finished or repeated."""


class Dismissed(Exception):
    """The leader dropped an order; its followers wait for the next one. Raised in followers only."""


class Crew(Protocol):
    """The processes that make a video together.

    The leader calls `begin` with an order. Then each process loads what the order needs and calls `agree`, with its
    failure or None. Each calls `step` after every denoising step, and `done` at the end. All of them block and raise
    CrewLost once a process is gone.
    """

    @property
    def size(self) -> int: ...

    def begin(self, order: object) -> None: ...

    def agree(self, failure: Exception | None) -> None:
        """Raise `failure`, or return once every process is ready."""

    def step(self, stop: Stop) -> None:
        """Raise the reason of the leader's `stop` in every process after the same step, or return."""

    def done(self) -> None: ...

    def disband(self) -> None:
        """End the followers after a failure within shared work: they wait for a result that is never sent."""


class Alone:
    """A single process: there is no one to wait for."""

    size = 1

    def begin(self, order: object) -> None:
        pass

    def agree(self, failure: Exception | None) -> None:
        if failure is not None:
            raise failure

    def step(self, stop: Stop) -> None:
        stop.check()

    def done(self) -> None:
        pass

    def disband(self) -> None:
        pass


ALONE = Alone()
