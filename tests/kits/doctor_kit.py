"""What the doctor's tests share: a deployment made of plain values, rows of findings, and the servers around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kits import s3_double
from tests.kits.loopback import serving
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import I2V
from worker.doctor.deployment import Deployment, Device, Driver, Host, readable_settings
from worker.doctor.report import Finding, Status
from worker.request.plan import Gpu, Planner, from_name

GIB = 1024**3
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PLATFORM = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID"}
WAN = {"MODEL_PROFILE": "wan2.2"}
H100 = from_name("H100 80GB")
Patch = pytest.MonkeyPatch


def device_of(gpu: Gpu | None, **changes: Any) -> Device:
    """A healthy GPU as torch's CUDA build sees it."""
    facts: dict[str, Any] = {
        "count": 1 if gpu is not None else 0,
        "torch_cuda": "12.8",
        "architectures": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        "driver": Driver((12, 8), "570.86.15"),
        "free_bytes": gpu.vram_bytes - GIB if gpu is not None else None,
        "failure": None,
        **changes,
    }
    return Device(gpu, **facts)


def deployment(home: Path, gpu: Gpu | str | None = None, **changes: Any) -> Deployment:
    """The settings of the environment, on a machine that is described here and has no volume but `home`."""
    if isinstance(gpu, str):
        gpu = from_name(gpu)
    settings, problems = readable_settings()
    host_limit = changes.pop("host_limit", None)
    facts: dict[str, Any] = {
        "settings": settings,
        "problems": problems,
        "planner": Planner(gpu, settings, host_limit),
        "device": device_of(gpu) if gpu is not None else Device(None),
        "host": Host(256 * GIB, 200 * GIB),
        "model_cache": home / "models",
        "state": home / "state",
        "volumes": (home / "workspace", home / "runpod-volume"),
        "runpod_cache": home / "runpod-volume" / "huggingface-cache" / "hub",
        "temporary": home,
        "hub": NOWHERE,
        **changes,
    }
    return Deployment(**facts)


class Bucket(s3_double.Handler):
    """The S3 double, with what customers and the doctor do besides storing: read and delete."""

    def do_GET(self) -> None:
        self.serve("get", self.show_content)

    def do_DELETE(self) -> None:
        self.serve("abort" if "uploadId" in self.query() else "delete", self.remove)

    def show_content(self, path: str, body: bytes) -> None:
        stored = self.double.objects.get(path)
        if stored is None:
            self.error(404, "NoSuchKey")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(stored.body)))
        self.end_headers()
        self.wfile.write(stored.body)

    def remove(self, path: str, body: bytes) -> None:
        if "uploadId" in self.query():
            self.abort_upload(path, body)
            return
        self.double.objects.pop(path, None)
        self.answer(204)


def configure(patch: Patch, endpoint_url: str) -> None:
    """Make the S3 server at this address the storage."""
    for name, value in s3_double.Double(endpoint_url=endpoint_url).environment().items():
        patch.setenv(name, value)


def key_of(handler: s3_double.Handler) -> str:
    return urlsplit(handler.path).path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that gave up


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server whose every GET and HEAD is answered so; yields its address."""

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET  # noqa: N815 - the name is that of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(_Server(("127.0.0.1", 0), Answering)) as url:
        yield url


def say(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer; `Date` among the headers takes the place of the server's own."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


@dataclass(frozen=True)
class Row:
    """What a check finds and advises. `given` is what the deployment differs in; `before` arranges its folder.

    `{home}` in `found` and in the environment's values is that folder.
    """

    check: Callable[[Deployment], Finding]
    status: Status
    found: str
    advice: str = ""
    stops: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    gpu: Gpu | str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Path, Patch], object] = lambda _home, _patch: None

    def holds(self, home: Path, patch: Patch) -> None:
        for variable, value in self.env.items():
            patch.setenv(variable, value.replace("{home}", str(home)))
        self.before(home, patch)
        before = _files_of(home)
        found = self.check(deployment(home, self.gpu, **self.given))
        assert (found.status, found.stops_jobs) == (self.status, self.stops), found
        assert self.found.replace("{home}", str(home)) in found.found, found
        assert self.advice in found.advice, found
        assert bool(found.advice) == (found.status != "OK")
        assert _files_of(home) == before


def _files_of(home: Path) -> set[Path]:
    return {path for path in home.rglob("*") if path.name != "state"}


def i2v(check: Callable[[Deployment, str], Finding]) -> Callable[[Deployment], Finding]:
    return lambda there: check(there, "i2v")


def copied(home: Path, _: Patch) -> Path:
    """The tiny I2V model in MODEL_CACHE_DIR, put there by hand."""
    place = home / "models" / I2V.replace("/", "--")
    shutil.copytree(tiny_repos() / "i2v", place)
    return place
