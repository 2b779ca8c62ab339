"""A worker on this machine: `handler.py --rp_serve_api` as a process of its own, on a free port."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_WITHIN_S = 600.0
_STOP_WITHIN_S = 10.0


class LocalWorker:
    """`command` runs handler.py; what it writes goes to `home`. `secret` signs the events that it sends to loopback."""

    def __init__(self, command: Sequence[str], home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode("ascii")
        self.url = f"http://127.0.0.1:{free_port()}"
        self._command = [*command, "--rp_serve_api", "--rp_api_host", "127.0.0.1"]
        self._command += ["--rp_api_port", self.url.rpartition(":")[2]]
        self._home = home
        self._environment = {
            **os.environ,
            "PRIVATE_URL_ALLOWLIST": "127.0.0.1",
            "STATE_DIR": str(home / "state"),
            "OUTPUT_DIR": str(home / "outputs"),
            "WEBHOOK_SECRET": self.secret,
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes jobs. Raises RuntimeError, with the end of its log, where it does not."""
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / "worker.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._home, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._home / "worker.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the local worker does not start:\n{said[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the job that is under way too."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _is_up(self) -> bool:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
        return True

    def __enter__(self) -> LocalWorker:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
