"""What the engine asks of a crew, and the crew of one."""

from __future__ import annotations

from typing import Protocol

from worker.base.stop import Stop


class CrewLost(Exception):
    """A process of the crew has died, failed or fallen silent: what it shared in cannot be ended, nor begun again."""


class Dismissed(Exception):
    """The lead gives an order up; its followers wait for the next one. Raised in followers only."""


class Crew(Protocol):
    """The processes that make a video together.

    The lead calls `begin` with an order. Then each process loads what the order needs and calls `agree`, with what went
    wrong or None. Each calls `step` after every denoising step, and `done` at the end. All of them block and raise
    CrewLost once a process is gone.
    """

    @property
    def size(self) -> int: ...

    def begin(self, order: object) -> None: ...

    def agree(self, failure: Exception | None) -> None:
        """Raise `failure`, or go on once every process is ready."""

    def step(self, stop: Stop) -> None:
        """Raise the reason of the lead's `stop` in every process after the same step, or go on."""

    def done(self) -> None: ...

    def disband(self) -> None:
        """End the followers, for a failure in the midst of shared work: they wait for a part that never comes."""


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
