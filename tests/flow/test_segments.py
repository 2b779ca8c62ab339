"""Videos of several segments, through whole jobs on the demo model."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Runner, Watched, local_path, only_video, small
from tests.kits.slow import slow
from worker.base.errors import Cancelled, JobTimeout
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop
from worker.engine import Engine, Rendering, Video
from worker.jobs import segments
from worker.media import VideoFile, lossless
from worker.media.color_match import from_linear, to_linear
from worker.media.encode import encode
from worker.media.seams import step

FIVE = [{}, {"prompt": "a dog", "num_frames": 9, "seed": 5}, {}, {"transition": "cut"}, {}]


def frames_of(video: Mapping[str, Any]) -> np.ndarray:
    """uint8 [F, H, W, 3] of the delivered file."""
    return decoded(local_path(video["video_url"]))


def decoded(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_segments_become_one_video_whose_overlap_is_shown_once(run: Runner, watched: Watched) -> None:
    video = only_video(run(small(segments=FIVE)))

    assert (video["num_frames"], video["fps"], video["duration_seconds"]) == (26, 16, 1.625)
    assert len(frames_of(video)) == 26
    assert [(each["first_frame"], each["num_frames"], each["seed"]) for each in video["segments"]] == [
        (0, 5, 1),
        (5, 8, 5),
        (13, 4, 3),
        (17, 5, 4),
        (22, 4, 5),
    ]
    modes = [made.request.mode for made in watched.made]
    assert modes == ["text_to_video", "image_to_video", "image_to_video", "text_to_video", "image_to_video"]
    assert [each["seam"] is None for each in video["segments"]] == [True, False, False, False, False]
    assert "a dog" in video["segments"][1]["prompt"]
    assert {event.progress for event in run.reports} <= set(range(101))


@pytest.mark.slow
def test_the_end_of_a_video_is_read_from_its_last_segment_alone(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    read, files = lossless.read, []

    def counted(path: Path, width: int, height: int) -> Generator[np.ndarray]:
        files.append(path.name)
        return read(path, width, height)

    monkeypatch.setattr(lossless, "read", counted)
    only_video(run(small(segments=FIVE)))
    # Each before the next segment, and all of them for the file.
    assert files == [f"0-{number}.frames" for number in (0, 1, 2, 3, *range(5))]


@pytest.mark.slow
def test_a_worker_that_ends_in_a_segment_goes_on_there_and_the_file_has_the_same_bytes(
    make_runner: Make, watched: Watched
) -> None:
    whole = only_video(make_runner({})(small(segments=FIVE), job_id="whole"))

    def shut_down(stop: Stop) -> None:
        stop.request(ShuttingDown())

    watched.made.clear()
    watched.at, watched.what = 2, shut_down
    with pytest.raises(asyncio.CancelledError):
        make_runner({})(small(segments=FIVE), job_id="broken")
    watched.made.clear()
    watched.at = None
    resumed = only_video(make_runner({})(small(segments=FIVE), job_id="broken"))

    assert len(watched.made) == 3
    assert (resumed["sha256"], resumed["segments"]) == (whole["sha256"], whole["segments"])


@pytest.mark.parametrize(
    "reason", [*slow(JobTimeout("too long")), Cancelled(), *slow(None)], ids=["timeout", "stop", "failure"]
)
def test_what_ends_a_video_behind_its_first_segment_delivers_what_is_finished(
    run: Runner, watched: Watched, reason: JobTimeout | Cancelled | None
) -> None:
    def end(stop: Stop) -> None:
        if reason is None:
            raise RuntimeError("something unforeseen")
        stop.request(reason)

    watched.at, watched.what = 2, end
    answer = run(small(segments=FIVE))

    video = only_video(answer)
    assert (answer["status"], len(video["segments"]), video["num_frames"]) == ("completed", 2, 13)
    assert len(frames_of(video)) == 13
    assert any(line.startswith("segments: 2 of 5 are in the file: ") for line in video["warnings"])


@pytest.mark.parametrize("reason", [Cancelled(), *slow(JobTimeout("too long"))], ids=["stop", "timeout"])
def test_what_ends_a_video_whose_segments_are_all_finished_delivers_it_whole(
    run: Runner, watched: Watched, monkeypatch: pytest.MonkeyPatch, reason: JobTimeout | Cancelled
) -> None:
    """The stop comes while the file is encoded: for a long video that takes a while."""
    encoded, stops = segments.encoded, list[Stop]()

    def stopped(*arguments: Any, **more: Any) -> VideoFile:
        stops[0].request(reason)
        return encoded(*arguments, **more)

    monkeypatch.setattr(segments, "encoded", stopped)
    watched.at, watched.what = 1, stops.append
    video = only_video(run(small(segments=FIVE[:2])))
    assert (len(video["segments"]), len(frames_of(video)), video["warnings"]) == (2, 13, [])


def test_a_failure_in_the_first_segment_is_the_videos(run: Runner, watched: Watched) -> None:
    watched.at, watched.what = 0, lambda stop: stop.request(JobTimeout("too long"))
    answer = run(small(segments=FIVE))
    assert (answer["status"], answer["videos"][0]["error"]["code"]) == ("failed", "timeout")


@pytest.mark.slow
def test_with_keyframes_each_segment_is_between_two_pictures(run: Runner, watched: Watched, picture_url: str) -> None:
    ends = {"last_image_url": picture_url}
    video = only_video(
        run(small(segments=[ends, ends], continuity="keyframes", reference_image_url=picture_url, color_match=False))
    )
    assert video["num_frames"] == 9
    assert [made.request.mode for made in watched.made] == ["first_last_frame"] * 2
    first, second = (made.conditioning for made in watched.made)
    assert first.last_image is not None
    assert first.last_image == second.image


def test_colours_that_drift_from_segment_to_segment_are_held(
    run: Runner, engine: Engine, picture_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment draws again what it was given, a tenth lighter in linear light."""
    generate, made = engine.generate, []

    def lighter(video: Video, **others: Any) -> Rendering:
        levels = np.asarray(video.conditioning.image) / 255
        frame = np.rint(from_linear(1.1 * to_linear(levels)) * 255).astype(np.uint8)
        if not made:
            made.append(generate(video, **others))
        return replace(made[0], frames=lambda: (frame for _ in range(5)))

    monkeypatch.setattr(engine, "generate", lighter)
    request = small(segments=[{}] * 4, reference_image_url=picture_url, num_inference_steps=1)
    held, free = (only_video(run({**request, "color_match": match}, job_id=str(match))) for match in (True, False))

    assert free["segments"][-1]["color_drift"] > 4
    assert held["segments"][-1]["color_drift"] <= free["segments"][-1]["color_drift"] / 2


@pytest.mark.slow
def test_a_loop_ends_on_its_first_frame(run: Runner, watched: Watched) -> None:
    video = only_video(run(small(segments=[{}, {}], loop=True, frames_zip=True)))
    last = watched.made[-1].conditioning.last_image
    assert (watched.made[-1].request.mode, last is None) == ("first_last_frame", False)
    with ZipFile(local_path(video["frames_url"])) as frames, frames.open(frames.namelist()[0]) as first:
        assert step(np.asarray(last), np.asarray(Image.open(first))) == 0


def test_a_video_of_the_callers_is_continued_and_its_own_frames_are_copied(
    run: Runner, watched: Watched, httpserver: HTTPServer, tmp_path: Path
) -> None:
    ramp = np.linspace(40, 200, 272, dtype=np.uint8)
    given = [np.tile(np.roll(ramp, 8 * number)[:, None], (256, 1, 3)) for number in range(6)]
    encode(given, path=tmp_path / "own.mp4", width=272, height=256, num_frames=6, fps=12, poster=None)
    httpserver.expect_request("/own.mp4").respond_with_data((tmp_path / "own.mp4").read_bytes())

    request = small(extend_video_url=httpserver.url_for("/own.mp4"), num_frames=9, frames_zip=True)
    video = only_video(run({**request, "width": None, "height": None}))

    assert (video["num_frames"], video["fps"], video["resolution"]) == (14, 12, "272x256")
    assert [(each["first_frame"], each["num_frames"]) for each in video["segments"]] == [(6, 8)]
    assert max(step(one, other) for one, other in zip(given, frames_of(video), strict=False)) < 3
    # Before they are encoded again they are the caller's to the last bit.
    own = decoded(tmp_path / "own.mp4")
    assert len(own) == len(given)
    with ZipFile(local_path(video["frames_url"])) as frames:
        for name, one in zip(sorted(frames.namelist()), own, strict=False):
            with frames.open(name) as shown:
                assert np.array_equal(np.asarray(Image.open(shown)), one)
    image = watched.made[0].conditioning.image
    assert image is not None
    assert step(np.asarray(image), given[-1]) < 3


def test_with_keyframes_a_video_of_the_callers_is_continued_from_its_last_frame(
    run: Runner, watched: Watched, httpserver: HTTPServer, tmp_path: Path, picture_url: str
) -> None:
    given = [np.full((256, 256, 3), 40 + 4 * number, np.uint8) for number in range(6)]
    encode(given, path=tmp_path / "own.mp4", width=256, height=256, num_frames=6, fps=16, poster=None)
    httpserver.expect_request("/own.mp4").respond_with_data((tmp_path / "own.mp4").read_bytes())

    ends = {"last_image_url": picture_url}
    request = small(extend_video_url=httpserver.url_for("/own.mp4"), continuity="keyframes", segments=[ends, ends])
    video = only_video(run({**request, "width": None, "height": None}))

    assert video["num_frames"] == 14
    first, second = (made.conditioning for made in watched.made)
    assert step(np.asarray(first.image), given[-1]) < 3
    assert first.last_image == second.image
    # The picture between two segments is named where it was sent.
    assert [line.split(":")[0] for line in video["warnings"] if "cropped" in line] == [
        "segments[0].last_image_url",
        "segments[1].last_image_url",
    ]


@pytest.mark.parametrize(("output_format", "codec"), [("webm", "opus"), *slow(("mp4", "aac"), ("gif", None))])
def test_the_sound_of_a_video_that_is_continued_is_kept_where_the_format_has_sound(
    run: Runner, httpserver: HTTPServer, tmp_path: Path, output_format: str, codec: str | None
) -> None:
    own = tmp_path / "own.mp4"
    inputs = ("-f", "lavfi", "-i", "testsrc2=s=256x256:r=16:d=0.5", "-f", "lavfi", "-i", "sine=f=1000:d=0.5")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, own], check=True)
    httpserver.expect_request("/own.mp4").respond_with_data(own.read_bytes())
    request = small(extend_video_url=httpserver.url_for("/own.mp4"), num_frames=5, output_format=output_format)

    video = only_video(run({**request, "width": None, "height": None}))

    assert video["num_frames"] == 12
    with av.open(str(local_path(video["video_url"]))) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ([codec] if codec else [])
        if codec:
            parts = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
            samples = np.concatenate(parts)[:24000]
            assert len(samples) == 24000  # half a second: what was given
            peak = np.abs(np.fft.rfft(samples)).argmax() * 48000 / len(samples)
            assert peak == pytest.approx(1000, abs=5)
    assert any("a GIF has none" in line for line in video["warnings"]) == (codec is None)


@pytest.mark.slow
def test_several_frames_of_a_segment_begin_the_next(run: Runner, watched: Watched) -> None:
    video = only_video(run(small(segments=[{}, {}], num_frames=9, overlap_frames=5)))
    assert [(each["first_frame"], each["num_frames"]) for each in video["segments"]] == [(0, 9), (9, 4)]
    known = watched.made[1].conditioning
    assert known.video is not None
    assert (len(known.video), known.video[0] == known.image) == (5, True)


@pytest.mark.slow
def test_a_long_duration_is_divided(make_runner: Make) -> None:
    run = make_runner({"MAX_FRAMES": "9"})
    video = only_video(run({**small(duration_seconds=1.5), "num_frames": None}))
    assert (video["num_frames"], [each["num_frames"] for each in video["segments"]]) == (25, [9, 8, 8])


def test_several_frames_that_begin_a_segment_are_not_served_by_5b(run: Runner) -> None:
    answer = run(small(segments=[{}, {}], overlap_frames=5, model="5b", num_frames=9))
    error = answer["videos"][0]["error"]
    assert (error["code"], error["path"]) == ("unsupported", "overlap_frames")
