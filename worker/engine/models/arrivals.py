"""Parts of a model on their way into memory: read one after the other in the background, waited for one by one.

A part is a module whose weights are not there yet. Whoever needs it waits for it, with an eye on the stop of its job;
what went wrong on the way is raised there. The reading goes on when a job ends: the next one will need the weights.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from weakref import WeakSet

from torch import nn

from worker.base.errors import Cancelled, ModelUnavailable
from worker.base.stop import Stop

logger = logging.getLogger(__name__)
_LOOKS_EVERY_S = 0.05

# Held by whoever replaces layers of a module. While PEFT adds those of a LoRA, torch makes every new parameter of the
# process an empty one, those of an expert that is being quantised in the background among them.
LAYERS = threading.Lock()

Check = Callable[[], None]
OnBytes = Callable[[int], None]
Fill = Callable[[Check, OnBytes], None]


class Part:
    """A module and its way into memory. `nbytes` is what has to be read for it.

    on_arrival: called once, in the thread that first waits for the part, when its weights are there.
    """

    def __init__(self, name: str, module: nn.Module, nbytes: int, fill: Fill) -> None:
        self.name = name
        self.module = module
        self.nbytes = nbytes
        self.read_bytes = 0
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.on_arrival: Callable[[], None] | None = None
        self.stop: Stop | None = None
        self.waited_s = 0.0
        self.owner: Arrivals | None = None
        self._fill = fill
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._counting = threading.Lock()

    @property
    def there(self) -> bool:
        return self._over.is_set() and self._failure is None

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def wait(self) -> None:
        """Return when the weights are there. Raises what went wrong with them, and the reason of the job's `stop`."""
        if not self._over.is_set():
            self._wait(lambda: None)
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self.on_arrival is not None:
            called, self.on_arrival = self.on_arrival, None
            called()

    def wait_watched(self, told: Callable[[], None]) -> None:
        """`wait`, with `told` called all the while."""
        if not self._over.is_set():
            self._wait(told)
        self.wait()

    def _wait(self, told: Callable[[], None]) -> None:
        began = time.monotonic()
        if self.owner is not None:
            self.owner.hurry()
        try:
            while not self._over.wait(_LOOKS_EVERY_S):
                if self.stop is not None:
                    self.stop.check()
                told()
        finally:
            self.waited_s += time.monotonic() - began

    def load(self, check: Check) -> None:
        """Read the weights. Called by the loading thread; whatever it raises reaches those who wait."""
        self.began_at = time.time()
        self._fill(check, self._count)
        self.ended_at = time.time()
        seconds = max(1e-3, self.ended_at - self.began_at)
        gigabytes = self.nbytes / 1e9
        logger.info("%s: %.2f GB in %.1f s (%.2f GB/s)", self.name, gigabytes, seconds, gigabytes / seconds)
        self._over.set()

    def fail(self, failure: Exception) -> None:
        if not self._over.is_set():
            self._failure = failure
            self._over.set()

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self.read_bytes += nbytes


class Turns:
    """One part is read at a time, whichever model it belongs to: two would share the volume and both be late."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._first: object | None = None
        self._done: WeakSet[object] = WeakSet()

    def prefer(self, who: object) -> None:
        """The next turns are those of `who`, until it is `done`."""
        with self._changed:
            if who not in self._done:
                self._first = who
            self._changed.notify_all()

    @contextmanager
    def taken(self, who: object, check: Check) -> Iterator[None]:
        """A turn, as soon as there is one. `check` ends the waiting for it by raising; see `prefer`."""
        with self._changed:
            while self._busy or self._first not in (None, who):
                check()
                self._changed.wait()
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def done(self, who: object) -> None:
        """`who` takes no more turns."""
        with self._changed:
            self._done.add(who)
            if self._first is who:
                self._first = None
            self._changed.notify_all()


class Arrivals:
    """Loads `parts` in their order in a thread of its own. `cancel` ends it after the current block."""

    def __init__(self, label: str, parts: Sequence[Part], turns: Turns) -> None:
        self.label = label
        self.parts = tuple(parts)
        self._turns = turns
        self._cancelled = threading.Event()
        for part in self.parts:
            part.owner = self
        # The lines of the log belong to the job that asked for the model.
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=f"weights-{label}")

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Somebody waits for a part: it comes before those of other models."""
        self._turns.prefer(self)

    def cancel(self) -> None:
        """End the reading; what is not loaded yet never will be. Waits for the current block."""
        self._cancelled.set()
        self.hurry()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for part in self.parts:
                with self._turns.taken(self, self._check):
                    self._check()
                    part.load(self._check)
            total = sum(part.nbytes for part in self.parts)
            seconds = time.monotonic() - began
            logger.info("%s: all weights are there, %.2f GB in %.1f s", self.label, total / 1e9, seconds)
        except Exception as failure:
            if not isinstance(failure, Cancelled):
                logger.error("%s: the weights could not be loaded", self.label, exc_info=failure)
            _let_go(failure)
            known = _told(failure)
            for part in self.parts:
                part.fail(known)
        finally:
            self._turns.done(self)

    def _check(self) -> None:
        """Raise where the weights are not wanted any more, or the process is on its way out."""
        if self._cancelled.is_set() or not threading.main_thread().is_alive():
            raise Cancelled


@dataclass(frozen=True, slots=True)
class Progress:
    """How a wait is watched: the job's stop, and what is called with the share of the bytes that is loaded, 0 to 1."""

    stop: Stop
    told: Callable[[float], None] = lambda _: None


def wait_for(parts: Iterable[Part], progress: Progress) -> None:
    """Until all of `parts` are there. Raises what went wrong with one of them, and the reason of the stop."""
    parts = list(parts)
    needed = [part for part in parts if not part.there]
    total = max(1, sum(part.nbytes for part in needed))
    for part in parts:
        part.stop = progress.stop
        part.wait_watched(lambda: progress.told(sum(each.read_bytes for each in needed) / total))


def _told(failure: Exception) -> Exception:
    """The error that those who wait get: one of the volume becomes the model's."""
    if isinstance(failure, Cancelled):
        return ModelUnavailable("the model was unloaded while it was being loaded: send the job again")
    if isinstance(failure, OSError | ValueError):
        return ModelUnavailable("the model's files could not be read: check the volume of MODEL_CACHE_DIR")
    return failure


def _let_go(failure: BaseException | None) -> None:
    """Frames that a kept exception remembers would keep the weights that were read so far."""
    while failure is not None:
        traceback.clear_frames(failure.__traceback__)
        failure = failure.__cause__ if failure.__cause__ is not None else failure.__context__
