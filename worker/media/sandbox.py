"""One child process that decodes untrusted bytes, bounded in memory, CPU time, output and wall-clock time.

The decoders are C code that has had memory errors, and a few kilobytes can ask for gigabytes. Neither can be caught in
Python, so each decode has a process of its own that inherits no environment. The child limits itself before it becomes
the decoder: a limit that the parent sets on a running child is too late. The kernel kills it when its worker dies.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker.base.errors import Cancelled

_POLL_S = 0.05
_EXIT_GRACE_S = 5.0
# The parent may have died before prctl (1: PR_SET_PDEATHSIG, 9: SIGKILL), which then sends no signal any more. macOS
# has no prctl.
_LAUNCHER = """
import ctypes, os, resource, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
for name, amount in zip(("AS", "CPU", "FSIZE", "CORE"), map(int, sys.argv[2:6])):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (amount, amount))
os.execv(sys.argv[6], sys.argv[6:])
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may use: address space, CPU seconds, bytes of each file that it writes, wall-clock seconds."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    wall_s: float


class TooSlow(Exception):
    """The child did not end within its wall-clock time."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running child. Both methods raise Cancelled once `stop` is set, and TooSlow at `ends_at` (monotonic)."""

    process: subprocess.Popen[bytes]
    ends_at: float
    stop: threading.Event | None

    def wait(self) -> None:
        """Wait for the end of the process; its exit status does not matter."""
        while True:
            self._check()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_POLL_S)
                return

    def blocks(self, size_bytes: int) -> Iterator[bytearray]:
        """Each whole block of its standard output, a pipe. All are one buffer, which the next block overwrites."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        buffer = bytearray(size_bytes)
        filled = 0
        while True:
            self._check()
            if not poll.poll(_POLL_S * 1000):
                continue
            count = os.readv(descriptor, [memoryview(buffer)[filled:]])
            if count == 0:
                return
            filled += count
            if filled == size_bytes:
                yield buffer
                filled = 0

    def ended_well(self) -> bool:
        """Whether the process ends now, with status 0. Call it once the output is read."""
        try:
            return self.process.wait(_EXIT_GRACE_S) == 0
        except subprocess.TimeoutExpired:
            return False

    def _check(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Cancelled
        if time.monotonic() >= self.ends_at:
            raise TooSlow


@contextmanager
def running(
    command: Sequence[str],
    bounds: Bounds,
    *,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.PIPE,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Child]:
    """Run `command` (its first word is a path) within `bounds`; it is killed at the end of the block.

    `environment` is all that it has, nothing by default. Call it from a thread that stays until the end of the block:
    the kernel kills the child with the thread that started it.
    """
    limits = (bounds.memory_bytes, bounds.cpu_s, bounds.file_bytes, 0)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, (os.getpid(), *limits)), *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={} if environment is None else environment,
        cwd=folder,
    ) as process:
        try:
            yield Child(process, time.monotonic() + bounds.wall_s, stop)
        finally:
            process.kill()
