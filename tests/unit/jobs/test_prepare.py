"""A request becomes a video: model and plan chosen, pictures fetched and fitted, texts of the next videos found."""

from __future__ import annotations

import base64
import io
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from PIL import Image

from tests.kits.chat_double import ChatDouble
from tests.kits.engine_kit import PLANNER, demo_source
from tests.kits.loopback import Server, answering, response
from tests.kits.slow import slow
from worker.base.errors import InputInvalid, InvalidRequest, Unsupported
from worker.engine import Engine, Video
from worker.jobs.prepare import prepare
from worker.net import Opener
from worker.net.language_model import LanguageModel
from worker.request import VideoRequest
from worker.request.parse import parse
from worker.weights.loras import LoraStore
from worker.weights.sources import demo


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(demo_source(), demo.catalogue(), PLANNER)


def requests(*videos: dict[str, Any]) -> tuple[VideoRequest, ...]:
    plain = {"prompt": "a cat", "seed": 1, "num_frames": 5, "enhance_prompt": False}
    return parse({"job_request_params": [{**plain, **video} for video in videos]}, default_job_id="j").videos


def picture(colour: str, size: tuple[int, int] = (64, 48)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def prepared(
    engine: Engine,
    home: Path,
    of: Sequence[VideoRequest],
    max_pixels: int = 921_600,
    writer: LanguageModel | None = None,
) -> Video:
    opener = Opener(["127.0.0.1"])
    store = LoraStore(home, opener, token=None)
    stop = threading.Event()
    return prepare(
        of[0], of[1:], engine=engine, opener=opener, loras=store, stop=stop, max_pixels=max_pixels, writer=writer
    )


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


@pytest.mark.parametrize(
    ("size", "width", "height", "expected"),
    [
        ((256, 512), None, 512, (256, 512)),
        ((256, 512), 320, None, (320, 640)),
        *slow(
            ((512, 256), 512, 256, (512, 256)),
            ((1920, 1080), None, None, (832, 464)),
            ((2000, 1000), None, 480, (960, 480)),
        ),
    ],
)
def test_what_is_not_given_of_the_size_follows_the_picture(
    size: tuple[int, int],
    width: int | None,
    height: int | None,
    expected: tuple[int, int],
    engine: Engine,
    tmp_path: Path,
) -> None:
    (plain,) = requests({"reference_image_url": picture("red", size)})
    video = prepared(engine, tmp_path, [replace(plain, width=width, height=height)])
    assert (video.shape.width, video.shape.height) == expected
    assert video.request.warnings == ()


def test_the_size_stays_within_the_pixels_of_the_worker(engine: Engine, tmp_path: Path) -> None:
    (plain,) = requests({"reference_image_url": picture("red", (512, 512))})
    video = prepared(engine, tmp_path, [replace(plain, width=None, height=512)], max_pixels=512 * 320)
    assert (video.shape.width, video.shape.height) == (320, 512)
    with pytest.raises(InvalidRequest, match="height of 512") as caught:
        prepared(engine, tmp_path, [replace(plain, width=None, height=512)], max_pixels=512 * 255)
    assert caught.value.path == "job_request_params[0].height"


@pytest.mark.parametrize(("height", "told"), [(1000, False), (1001, True)])
def test_a_crop_of_more_than_a_twentieth_is_a_warning(height: int, told: bool, engine: Engine, tmp_path: Path) -> None:
    sources = {"reference_image_url": picture("red", (640, 608)), "last_image_url": picture("red", (1000, height))}
    (plain,) = requests(sources)
    warnings = prepared(engine, tmp_path, [replace(plain, width=320, height=304)]).request.warnings
    note = "job_request_params[0].last_image_url: 5% of it is outside of 320x304 and is cropped"
    assert warnings == ((note,) if told else ())


def test_a_portrait_video_is_fetched_once_and_followed(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "portrait.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=s=144x256:r=16:d=0.6", "-pix_fmt", "yuv420p")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(file)], check=True)
    with Server(answering(response(file.read_bytes()))) as server:
        (plain,) = requests({"reference_video_url": server.url("/a.mp4"), "num_frames": 9})
        wanted = [replace(plain, width=None, height=None), replace(plain, width=512, height=256)]
        following, cropped = (prepared(engine, tmp_path, [each]) for each in wanted)
        assert len(server.requests) == 2
    assert (following.shape.width, following.shape.height) == (464, 832)
    assert following.request.warnings == ()
    assert following.conditioning.video is not None
    assert [frame.size for frame in following.conditioning.video] == [(464, 832)] * 9
    assert [note for note in cropped.request.warnings if "cropped" in note] == [
        "job_request_params[0].reference_video_url: 72% of it is outside of 512x256 and is cropped"
    ]


def test_a_short_reference_video_shortens_the_video(engine: Engine, tmp_path: Path) -> None:
    for seconds, count in ((0.5, 5), (0.25, None)):
        file = tmp_path / f"{count}.mp4"
        source = ("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=16:d={seconds}", "-pix_fmt", "yuv420p")
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(file)], check=True)
        with Server(answering(response(file.read_bytes()))) as server:
            wanted = requests({"reference_video_url": server.url("/a.mp4"), "num_frames": 81})
            if count is None:
                with pytest.raises(InputInvalid, match="has 4 frames at 16 fps: send one with at least 5"):
                    prepared(engine, tmp_path, wanted)
            else:
                video = prepared(engine, tmp_path, wanted)
                assert video.request.num_frames == count
                assert any("81 lowered to 5" in note for note in video.request.warnings)


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


def test_a_prompt_is_expanded_before_the_video_is_settled(engine: Engine, tmp_path: Path) -> None:
    said = "A black cat runs along a garden wall at dusk, its tail high, soft light, wide shot."
    wanted = requests({"prompt": "a black cat runs", "prompt_expansion": True, "reference_image_url": picture("red")})
    with ChatDouble(lambda question: said) as double:
        writer = LanguageModel(double.base_url, "m", "k")
        video = prepared(engine, tmp_path, wanted, writer=writer)
    assert (video.prompt, video.request.prompt) == (said, said)
    assert double.questions[0]["messages"][1]["content"][1]["type"] == "image_url"
    with pytest.raises(Unsupported):
        prepared(engine, tmp_path, wanted)
