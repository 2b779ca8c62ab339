"""Videos of several segments by Stable Video Infinity, through whole jobs on the demo model."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_httpserver import HTTPServer

from tests.flow.conftest import Make, Runner, Watched, only_video, small
from tests.kits import lora_kit
from tests.kits.engine_kit import Quiet
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop
from worker.engine import Engine, Rendering, Video
from worker.media.encode import encode
from worker.media.seams import step
from worker.request import Lora

SVI = {"continuity": "svi", "num_frames": 9, "num_inference_steps": 1}
THREE = [{}, {"seed": 5}, {"num_frames": 13}]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A pair of LoRAs of the image-to-video experts in the operator's folder."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    expert = lora_kit.load(tmp_path / "i2v", "i2v").transformer
    high, low = (
        lora_kit.saved(
            folder,
            lora_kit.as_diffusers(lora_kit.factors(expert, "blocks.0.attn1.to_q", "blocks.0.ffn.net.2", seed=seed)),
            f"svi-{side}",
        )
        for seed, side in enumerate(("high", "low"))
    )
    return high, low


def test_each_segment_is_held_to_the_first_picture_and_begins_with_the_latents_before_it(
    run: Runner, engine: Engine, watched: Watched, picture_url: str, files: tuple[Path, Path]
) -> None:
    video = only_video(run(small(**SVI, segments=THREE, reference_image_url=picture_url)))

    # Five frames of each segment after the first are what was shown already.
    assert [(each["first_frame"], each["num_frames"]) for each in video["segments"]] == [(0, 9), (9, 4), (13, 8)]
    assert [each["seed"] for each in video["segments"]] == [1, 5, 3]
    assert all(each["seam"] is not None for each in video["segments"][1:])
    given = [made.conditioning for made in watched.made]
    assert [each.image == given[0].image for each in given] == [True] * 3
    assert given[0].tail is None
    for before, after in zip(watched.rendered, given[1:], strict=False):
        assert after.tail is not None
        assert np.array_equal(after.tail, before.denoised.latents[:, :, -1:].numpy())
    the_loras_act_beside_the_callers_own_and_are_off_afterwards(engine, watched.made[1], files)


def the_loras_act_beside_the_callers_own_and_are_off_afterwards(
    engine: Engine, video: Video, files: tuple[Path, Path]
) -> None:
    assert video.svi is not None
    assert [file.path for file in video.svi] == list(files)
    before = lora_kit.outputs(engine.models["i2v"].components)
    own = replace(video.request, loras=(Lora("own.safetensors", 3.0, "high"),))
    by_svi, without, with_own, again = (
        engine.generate(each, watcher=Quiet(), stop=Stop()).denoised.latents
        for each in (video, replace(video, svi=None), replace(video, request=own, loras=(video.svi[1],)), video)
    )
    assert not torch.equal(by_svi, without)
    assert not torch.equal(by_svi, with_own)
    assert torch.equal(by_svi, again)
    assert all(map(torch.equal, before, lora_kit.outputs(engine.models["i2v"].components)))


def held_to_the_first_frame(watched: Watched, opening: int, number: int) -> None:
    anchor = watched.made[number].conditioning.image
    assert anchor is not None
    with closing(watched.rendered[opening].frames()) as frames:
        assert step(np.asarray(anchor), next(frames)) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_a_video_of_the_callers_is_continued_from_its_last_frames_and_a_cut_begins_anew(
    run: Runner, watched: Watched, httpserver: HTTPServer, tmp_path: Path
) -> None:
    given = [np.full((256, 256, 3), 40 + 8 * number, np.uint8) for number in range(7)]
    encode(given, path=tmp_path / "own.mp4", width=256, height=256, num_frames=7, fps=16, poster=None)
    httpserver.expect_request("/own.mp4").respond_with_data((tmp_path / "own.mp4").read_bytes())
    four = [{}, {}, {"transition": "cut"}, {}]
    request = small(**SVI, segments=four, extend_video_url=httpserver.url_for("/own.mp4"))

    video = only_video(run({**request, "width": None, "height": None}))

    assert [(each["first_frame"], each["num_frames"]) for each in video["segments"]] == [
        (7, 4),
        (11, 4),
        (15, 9),
        (24, 4),
    ]
    first, second = (made.conditioning for made in watched.made[:2])
    assert first.video is not None
    assert [step(np.asarray(frame), own) < 3 for frame, own in zip(first.video, given[2:], strict=True)] == [True] * 5
    assert (first.image == first.video[0], first.image == second.image, second.video) == (True, True, None)
    assert second.tail is not None
    assert [made.svi is None for made in watched.made] == [False, False, True, False]
    held_to_the_first_frame(watched, 2, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_a_worker_that_ends_in_a_segment_goes_on_there_and_the_file_has_the_same_bytes(
    make_runner: Make, watched: Watched
) -> None:
    two = small(**SVI, segments=[{}, {}])
    whole = only_video(make_runner({})(two, job_id="whole"))
    held_to_the_first_frame(watched, 0, 1)
    assert watched.made[0].svi is None

    def shut_down(stop: Stop) -> None:
        stop.request(ShuttingDown())

    watched.made.clear()
    watched.at, watched.what = 1, shut_down
    with pytest.raises(asyncio.CancelledError):
        make_runner({})(two, job_id="broken")
    watched.made.clear()
    watched.at = None
    resumed = only_video(make_runner({})(two, job_id="broken"))

    assert len(watched.made) == 1
    assert (resumed["sha256"], resumed["segments"]) == (whole["sha256"], whole["segments"])


@pytest.mark.usefixtures("files")
def test_colours_are_held_to_the_frames_shown_again_and_not_to_the_anchor_before_them(
    run: Runner, engine: Engine, picture_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    generate = engine.generate

    def drawn(video: Video, **others: Any) -> Rendering:
        anchor = shown if video.conditioning.tail is None else shown // 2
        return replace(generate(video, **others), frames=lambda: (frame for frame in [anchor, *[shown] * 8]))

    monkeypatch.setattr(engine, "generate", drawn)
    video = only_video(run(small(**SVI, segments=[{}, {}], reference_image_url=picture_url)))
    assert [each["color_drift"] for each in video["segments"]] == [0, 0]


@pytest.mark.parametrize("fields", [{}, {"model": "5b"}], ids=["no files", "5b"])
def test_without_its_files_or_on_another_model_it_is_unsupported(run: Runner, fields: dict[str, object]) -> None:
    error = run(small(**SVI, segments=[{}, {}], **fields))["videos"][0]["error"]
    assert (error["code"], error["path"]) == ("unsupported", "continuity")
    assert ("SVI_v2_PRO_Wan2.2-I2V-A14B_LOW_lora_rank_128_fp16.safetensors" in error["message"]) == (not fields)


def test_a_lora_of_another_model_is_named_at_the_field(run: Runner, files: tuple[Path, Path], picture_url: str) -> None:
    files[0].write_bytes(
        lora_kit.saved(files[0].parent, {"transformer.no.lora_A.weight": torch.zeros(2, 2)}).read_bytes()
    )
    error = run(small(**SVI, segments=[{}, {}], reference_image_url=picture_url))["videos"][0]["error"]
    assert (error["code"], error["path"]) == ("unsupported", "continuity")
