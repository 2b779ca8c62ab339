"""One worker whose videos go to the S3 double, and a storage that dies and is back on command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.flow.conftest import Answer, Make, Runner
from tests.flow.conftest import small as small_request
from tests.kits.s3_double import BUCKET, Double, Handler, reset
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.spool import Spool
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of
from worker.engine import Engine, Video
from worker.jobs.services import Services

EVERYTHING = ("put", "head", "create", "part", "complete", "abort")


def small(**fields: Any) -> dict[str, Any]:
    return small_request(num_inference_steps=1, **fields)


@dataclass
class Scene:
    """One worker whose videos go to the double, and what its engine has made."""

    run: Runner
    double: Double
    state: Path
    made: list[int] = field(default_factory=list)

    def dies(self, where: str = "") -> None:
        """Every request whose path holds `where` meets a reset connection."""

        def fault(handler: Handler) -> bool:
            return where in handler.path and reset(handler)

        self.double.always.update(dict.fromkeys(EVERYTHING, fault))

    def is_back(self) -> None:
        self.double.always.clear()

    def object(self, job_id: str, index: int = 0) -> bytes:
        (body,) = [s.body for path, s in self.double.objects.items() if path.endswith(f"/{job_id}/{index}.mp4")]
        return body

    @property
    def kept(self) -> list[Path]:
        folder = self.state / "spool"
        return sorted(folder.glob("*.mp4")) if folder.is_dir() else []

    def another_worker(self) -> Services:
        state = StateFolder(self.state)
        return replace(self.run.worker, journal=Journal(state), spool=Spool(state, Journal(state)))


@pytest.fixture
def make_scene(
    bucket: Double, make_runner: Make, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Scene]]:
    clients = []
    generate = Engine.generate

    def make(**options: Any) -> Scene:
        place = place_of(bucket.endpoint_url, BUCKET)
        clients.append(make_client(place, "key", "secret", total_max_attempts=2))
        runner = make_runner({})
        runner.worker = replace(runner.worker, storage=SpacesStorage(clients[-1], place, **options))
        scene = Scene(runner, bucket, tmp_path / "state")

        def counted(self: Engine, video: Video, **more: Any) -> Any:
            scene.made.append(video.request.index)
            return generate(self, video, **more)

        monkeypatch.setattr(Engine, "generate", counted)
        return scene

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()


def error_of(answer: Answer, index: int = 0) -> dict[str, Any]:
    error: dict[str, Any] = answer["videos"][index]["error"]
    return error
