"""A request becomes a video: model and plan chosen, pictures fetched and fitted, texts of the next videos found."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.base.errors import InputInvalid, Unsupported
from worker.base.settings import Settings
from worker.engine import Engine, Video
from worker.engine.device import planner_for
from worker.jobs.prepare import prepare
from worker.net import Opener
from worker.request import VideoRequest
from worker.request.parse import parse
from worker.weights.loras import LoraStore
from worker.weights.sources import demo


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    source = demo.DemoSource()
    yield Engine(source, demo.catalogue(), planner_for(Settings()))
    source.close()


def requests(*videos: dict[str, Any]) -> tuple[VideoRequest, ...]:
    plain = {"prompt": "a cat", "seed": 1, "num_frames": 5, "enhance_prompt": False}
    return parse({"job_request_params": [{**plain, **video} for video in videos]}, default_job_id="j").videos


def picture(colour: str, size: tuple[int, int] = (64, 48)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def prepared(engine: Engine, home: Path, of: Sequence[VideoRequest]) -> Video:
    opener = Opener("")
    store = LoraStore(home, opener, token=None)
    return prepare(of[0], of[1:], engine=engine, opener=opener, loras=store, stop=threading.Event())


def test_first_and_last_image_have_their_places(engine: Engine, tmp_path: Path) -> None:
    wanted = requests({"reference_image_url": picture("red"), "last_image_url": picture("blue")})
    found = prepared(engine, tmp_path, wanted).conditioning
    assert found.image is not None
    assert found.last_image is not None
    assert found.image.getpixel((0, 0)) == (255, 0, 0)
    assert found.last_image.getpixel((0, 0)) == (0, 0, 255)


def test_model_plan_and_size_are_settled(engine: Engine, tmp_path: Path) -> None:
    video = prepared(engine, tmp_path, requests({"reference_image_url": picture("red", (640, 480))}))
    assert (video.request.width, video.request.height) == (video.shape.width, video.shape.height)
    assert video.shape.width / video.shape.height == pytest.approx(4 / 3, rel=0.03)
    assert video.conditioning.image is not None
    assert video.conditioning.image.size == (video.shape.width, video.shape.height)
    assert (video.spec.key, video.prompt) == ("i2v", "a cat")
    assert video.plan == engine.planner.plan(video.spec, video.shape)


def test_what_no_model_serves_is_refused_before_anything_is_fetched(engine: Engine, tmp_path: Path) -> None:
    broken = "data:image/png;base64,AAAA"
    with pytest.raises(InputInvalid):
        prepared(engine, tmp_path, requests({"reference_image_url": broken}))
    with pytest.raises(Unsupported) as caught:
        prepared(engine, tmp_path, requests({"model": "5b", "reference_image_url": broken, "last_image_url": broken}))
    assert caught.value.path == "job_request_params[0].model"


def test_texts_of_the_next_videos_of_the_same_model_are_known(engine: Engine, tmp_path: Path) -> None:
    following = (
        {"prompt": "a dog", "negative_prompt": "cats"},
        {"prompt": "a bird", "negative_prompt": "unguided", "guidance_scale": 1.0},
        {"prompt": "a fish", "negative_prompt": "another size", "num_frames": 9},
    )
    later = prepared(engine, tmp_path, requests({}, *following)).later
    assert set(later) == {"a dog", "a bird", "cats"}
