"""Whole jobs on the demo model: the real engine, storage, network and webhooks, over loopback."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.kits import cli_kit
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID, EndpointDouble
from tests.kits.engine_kit import PLANNER, demo_source
from tests.kits.platform_double import Platform
from tests.kits.s3_double import Double, serving
from tests.kits.seeing import logged
from tests.kits.seeing import server as server  # a fixture
from videogen_client import core
from worker.base import folders, settings
from worker.base.files import StateFolder
from worker.base.sigterm import Shutdown
from worker.base.stop import Stop
from worker.cli import submit
from worker.delivery import journal, spool, storage
from worker.delivery.kept_segments import KeptSegments
from worker.delivery.webhooks import outbox
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.engine import Engine, Rendering, Video
from worker.engine.models.components import quiet_libraries
from worker.jobs import flow
from worker.jobs.services import Services
from worker.media.marks.marker import Marker
from worker.net import opener as net
from worker.weights.loras import store
from worker.weights.sources import demo

Answer = dict[str, Any]


@pytest.fixture(scope="session")
def engine() -> Engine:
    quiet_libraries()
    return Engine(demo_source(), demo.catalogue(), PLANNER)


@dataclass
class Receiver:
    """A webhook receiver on loopback that keeps what it was sent."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@pytest.fixture
def receiver(httpserver: HTTPServer) -> Receiver:
    kept = Receiver(httpserver.url_for("/hook"))

    def take(request: Request) -> Response:
        kept.bodies.append(request.get_data())
        kept.headers.append(dict(request.headers))
        kept.events.append(request.get_json())
        return Response("ok")

    httpserver.expect_request("/hook", method="POST").respond_with_handler(take)
    return kept


@pytest.fixture
def picture_url(httpserver: HTTPServer) -> str:
    """A 640 x 480 PNG behind a URL on loopback."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(stream, "PNG")
    httpserver.expect_request("/person.png").respond_with_data(stream.getvalue(), content_type="image/png")
    return httpserver.url_for("/person.png")


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the worker logs, a line of JSON each."""
    with logged(level="INFO") as stream:
        yield stream


@dataclass
class Runner:
    """Runs payloads through the whole flow in this process."""

    worker: Services
    reports: list[ProgressEvent] = field(default_factory=list)

    def __call__(self, payload: object, *, job_id: str = "rp-1") -> Answer:
        return asyncio.run(self.start(payload, job_id=job_id))

    async def start(self, payload: object, *, job_id: str = "rp-1") -> Answer:
        return await flow.run({"id": job_id, "input": payload}, self.worker, self.reports.append)


Make = Callable[[Mapping[str, str]], Runner]


@pytest.fixture
def make_runner(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A runner with the given environment variables beside the scrubbed ones."""
    pools: list[ThreadPoolExecutor] = []

    def make(environment: Mapping[str, str]) -> Runner:
        for name, value in {"PRIVATE_URL_ALLOWLIST": "localhost,127.0.0.1", **environment}.items():
            monkeypatch.setenv(name, value)
        loaded = settings.load()
        state = StateFolder(folders.state_dir(loaded))
        opener = net.Opener(loaded.private_url_allowlist)
        pools.append(ThreadPoolExecutor(1, thread_name_prefix="gpu"))
        return Runner(
            Services(
                settings=loaded,
                engine=engine,
                opener=opener,
                loras=store.LoraStore.of(loaded, opener),
                storage=storage.open_storage(loaded),
                journal=journal.Journal(state),
                outbox=outbox.Outbox(state),
                spool=spool.Spool(state, journal.Journal(state)),
                segments=KeptSegments(state),
                gpu=pools[-1],
                shutdown=Shutdown(loaded.shutdown_grace_s),
                marker=Marker.from_settings(loaded),
            )
        )

    yield make
    for pool in pools:
        pool.shutdown()


@pytest.fixture
def run(make_runner: Make) -> Runner:
    return make_runner({})


def small(**fields: Any) -> dict[str, Any]:
    """The smallest video request."""
    return {
        "prompt": "a cat on a sofa",
        "height": 256,
        "width": 256,
        "num_frames": 5,
        "num_inference_steps": 2,
        "seed": 1,
        **fields,
    }


def local_path(url: str) -> Path:
    assert url.startswith("file://")
    return Path(url.removeprefix("file://"))


def probe(url: str) -> tuple[str, str, float, int, int, int]:
    with av.open(str(local_path(url))) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        context = stream.codec_context
        size = context.width, context.height
        return context.name, str(context.pix_fmt), float(stream.average_rate or 0), *size, frames


class Watched:
    """Keeps each segment that the engine makes, and its rendering; before number `at` it does `what`."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Video] = []
        self.rendered: list[Rendering] = []
        self.at: int | None = None
        self.what: Callable[[Stop], None] = lambda stop: None
        self._generate = engine.generate
        monkeypatch.setattr(engine, "generate", self)

    def __call__(self, video: Video, *, watcher: Any, stop: Stop) -> Rendering:
        if len(self.made) == self.at:
            self.what(stop)
        self.made.append(video)
        self.rendered.append(self._generate(video, watcher=watcher, stop=stop))
        return self.rendered[-1]


@pytest.fixture
def watched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(engine, monkeypatch)


def only_video(answer: Mapping[str, Any]) -> dict[str, Any]:
    (video,) = answer["videos"]
    assert video["status"] == "completed", video
    return dict(video)


@pytest.fixture
def bucket() -> Iterator[Double]:
    with serving() as running:
        yield running


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EndpointDouble]:
    """What `videogen submit` finds in place of RunPod; files go to the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", API_KEY)
    monkeypatch.setattr(submit, "TIMING", cli_kit.TIMING)
    with EndpointDouble() as double:
        monkeypatch.setattr(core, "RUNPOD_URL", double.url)
        yield double


@pytest.fixture
def send(capsys: pytest.CaptureFixture[str]) -> Callable[..., cli_kit.Done]:
    """`videogen submit` with these arguments."""

    def run(*arguments: str, endpoint_id: str = ENDPOINT_ID) -> cli_kit.Done:
        return cli_kit.command(capsys, "submit", "--endpoint", endpoint_id, *arguments)

    return run
