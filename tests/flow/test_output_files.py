"""The files that a request asks for, made by the real engine on the demo model."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.flow.conftest import Runner, small
from tests.kits.slow import slow
from tests.kits.videos import given
from worker.base.errors import Cancelled
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.jobs.make import Made, make
from worker.jobs.progress import Progress
from worker.jobs.report import VideoReport
from worker.media import formats
from worker.request.parse import parse


def _made(
    engine: Engine, folder: Path, picture: Image.Image | None = None, *, stop: Stop | None = None, **fields: Any
) -> Made:
    image = {} if picture is None else {"reference_image_url": "https://a.test/person.png"}
    (request,) = parse(small(**image, **fields), default_job_id="j").videos
    video = given(engine, request, Conditioning(picture))
    return make(video, folder, VideoReport(request, Progress(1, [])), engine=engine, stop=stop or Stop())


@pytest.mark.parametrize(
    ("fields", "name", "codec"),
    [
        ({"output_codec": "hevc"}, "0.mp4", "hevc"),
        *slow(
            ({"output_format": "webm", "video_quality": "low"}, "0.webm", "vp9"),
            ({"output_format": "gif"}, "0.gif", "gif"),
        ),
    ],
)
def test_the_file_has_the_format_and_the_codec(
    engine: Engine, tmp_path: Path, fields: dict[str, Any], name: str, codec: str
) -> None:
    made = _made(engine, tmp_path, thumbnail=False, **fields)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(made.file.path)) as container:
        assert container.streams.video[0].codec_context.name == codec
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_every_file_of_one_video(engine: Engine, tmp_path: Path) -> None:
    """16 to 24 frames a second: 5 frames become 8, whose last two are one, and the ZIP holds those of the file."""
    picture = Image.linear_gradient("L").resize((256, 256)).convert("RGB")
    made = _made(engine, tmp_path, picture, output_format="webp", target_fps=24, frames_zip=True, fps=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jpg", "0.webp", "0.zip"]
    assert (made.file.num_frames, made.file.fps, made.file.duration_seconds) == (
        8,
        24,
        pytest.approx(5 / 16, abs=1 / 48),
    )
    assert made.file.frames == tmp_path / "0.zip"
    with Image.open(made.file.path) as shown:
        assert (shown.format, shown.n_frames) == ("WEBP", 7)
    with zipfile.ZipFile(made.file.frames) as archive:
        frames = [np.asarray(Image.open(archive.open(name)), float) for name in archive.namelist()]
    assert len(frames) == 8
    with Image.open(tmp_path / "0.jpg") as poster:
        nearest = [np.abs(np.asarray(poster).astype(float) - frame).mean() for frame in frames]
    assert int(np.argmin(nearest)) == 0


def test_a_stop_while_frames_are_interpolated_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    stop = Stop()

    class StopsWhileEncoding(VideoReport):
        def progress(self, status: Any, fraction: float = 0.0) -> None:
            if status == "encoding":
                stop.request(Cancelled())

    (request,) = parse(small(target_fps=60, frames_zip=True), default_job_id="j").videos
    report = StopsWhileEncoding(request, Progress(1, []))
    with pytest.raises(Cancelled):
        make(given(engine, request), tmp_path, report, engine=engine, stop=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_result_tells_the_file_and_what_was_generated(run: Runner) -> None:
    (video,) = run(small(target_fps=32))["videos"]
    assert (video["num_frames"], video["fps"], video["duration_seconds"]) == (10, 32, 0.312)
    assert {name: video["parameters"][name] for name in ("num_frames", "fps", "target_fps")} == {
        "num_frames": 5,
        "fps": 16,
        "target_fps": 32,
    }


def test_a_codec_that_ffmpeg_lacks_is_refused_before_the_gpu_is_used(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(formats.CODECS["hevc"], encoder="libx266")
    monkeypatch.setattr(formats, "CODECS", {**formats.CODECS, "hevc": absent})
    monkeypatch.setattr(Engine, "generate", lambda *_: pytest.fail("the GPU was used"))
    answer = run({"job_request_params": [small(output_codec="hevc")]})
    error = answer["videos"][0]["error"]
    assert (error["code"], error["path"]) == ("unsupported", "job_request_params[0].output_codec")
    assert "libx266" in error["message"]


@pytest.mark.slow  # tests/unit/media/test_formats.py has the rates
def test_a_rate_above_what_a_gif_shows_is_lowered_with_a_warning(run: Runner) -> None:
    (video,) = run(small(output_format="gif", fps=60))["videos"]
    assert (video["num_frames"], video["fps"]) == (4, 50)
    assert "fps: 60 lowered to 50, the highest rate of a GIF" in video["warnings"]
