"""The real handler.py in a process of its own, for tests that stop and kill it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kits.platform_double import Platform

ROOT = Path(__file__).resolve().parents[2]
HANDLER = ROOT / "handler.py"
START_WITHIN_S = 120.0
# What takes long to import and reads nothing of the environment; never runpod itself, which does.
_IMPORTED_BEFORE = (
    "worker.engine.engine",
    "worker.weights.sources.demo",
    "worker.jobs.flow",
    "boto3",
    "cpuinfo",
    "aiohttp_retry",
    "fastapi",
)


class WorkerProcess:
    """handler.py in a process of its own, on the demo model, with everything it writes under `home`.

    Its clock, `time.time`, is `clock_ahead_s` ahead.

    Entered when it has asked for its first job; killed, with its children, on the way out. `environment` comes on top
    of what the platform sets; nothing of this process's own environment reaches the worker.

    The process is forked from a server that has imported torch and the like already, which saves seconds of each start.
    `fresh` starts a new interpreter instead.
    """

    def __init__(
        self,
        platform: Platform,
        home: Path,
        environment: Mapping[str, str] | None = None,
        *,
        fresh: bool = False,
        clock_ahead_s: float = 0.0,
    ) -> None:
        self.worker_id = f"worker-{uuid.uuid4().hex[:8]}"
        self.temporary = home / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._platform = platform
        self._log = home / f"{self.worker_id}.log"
        variables = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "MODEL_PROFILE": "demo",
            "STATE_DIR": str(home / "state"),
            "OUTPUT_DIR": str(home / "outputs"),
            "MODEL_CACHE_DIR": str(home / "models"),
            "PRIVATE_URL_ALLOWLIST": "localhost,127.0.0.1",
            **platform.environment(self.worker_id),
            **(environment if environment is not None else {}),
        }
        self.process = forked().Process(
            target=become_handler, args=(variables, home, self._log, fresh, (), clock_ahead_s)
        )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def __enter__(self) -> WorkerProcess:
        self.process.start()
        try:
            self.wait_until(lambda: self._platform.has_polled(self.worker_id), START_WITHIN_S)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def terminate(self) -> None:
        """SIGTERM to the worker alone, as to the first process of a container."""
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the worker and every child of it, as when a container is killed."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self.process.join(30)

    def wait(self, timeout_s: float = 200.0) -> int:
        """The exit status, negative for a signal. Raises AssertionError, with the log, where it does not end."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still there after {timeout_s:g} s:\n{self.log}"
        return self.process.exitcode

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 200.0, every_s: float = 0.005) -> None:
        """Wait for `condition`; raises AssertionError, with the log, where time passes or the worker ends first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.is_alive, f"the worker ended:\n{self.log}"
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s:\n{self.log}"
            time.sleep(every_s)

    @property
    def _pid(self) -> int:
        pid = self.process.pid
        assert pid is not None, "the worker was not started"
        return pid


@functools.cache
def forked() -> ForkServerContext:
    """Whose processes have torch and the like imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED_BEFORE))
    return context


def become_handler(
    variables: Mapping[str, str],
    home: Path,
    log: Path,
    fresh: bool = False,
    arguments: Sequence[str] = (),
    clock_ahead_s: float = 0.0,
) -> None:
    """Runs in the new process: handler.py with these environment variables, in the folder `home`."""
    os.setsid()
    os.chdir(home)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    if fresh:
        os.execve(sys.executable, [sys.executable, str(HANDLER), *arguments], dict(variables))
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    if clock_ahead_s:
        true = time.time
        time.time = lambda: true() + clock_ahead_s
    multiprocessing.set_start_method("fork", force=True)  # Python's own default here, which the SDK relies on
    sys.argv = [str(HANDLER), *arguments]
    runpy.run_path(str(HANDLER), run_name="__main__")
