"""`generate` on the demo model: the real flow, real files, and what a person reads."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import pytest
from PIL import Image

from tests.kits.cli_kit import Done, command
from tests.kits.engine_kit import demo_source
from worker import start
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.cli import local_files
from worker.delivery import storage
from worker.engine import Engine
from worker.engine.device import planner_for
from worker.jobs import flow
from worker.weights.sources import demo

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--width", "256", "--height", "256", "--frames", "5", "--steps", "2", "--seed", "1")


@pytest.fixture
def generate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine
) -> Callable[..., Done]:
    """Runs the command in a folder of its own, with the engine of the session instead of a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "build_engine", lambda *_: engine)

    def run(*arguments: str, prompt: str = "a cat on a sofa") -> Done:
        return command(capsys, "generate", "--prompt", prompt, *SMALL, *arguments)

    return run


@pytest.fixture
def calibrate(
    generate: Callable[..., Done], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Done]:
    """As `generate`, for curves, which no other engine may find."""
    engine = Engine(demo_source(), demo.catalogue(), planner_for(Settings(model_cache_dir=tmp_path / "models")))
    monkeypatch.setattr(start, "build_engine", lambda *_: engine)
    return lambda *arguments: command(capsys, "calibrate", "--prompt", "a cat", *SMALL, *arguments)


def outputs() -> list[Path]:
    return sorted(Path("outputs").rglob("*.mp4"))


def test_a_video_and_its_poster_come_to_the_place_that_was_named(generate: Callable[..., Done]) -> None:
    done = generate("--out", "clip.mp4", "--gpu-hourly-usd", "2")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "  video     text_to_video, 256x256, 5 frames at 16 fps (0.31 s)"
    assert lines[1] == "  model     demo, 2 steps, guidance 3, seed 1"
    assert "  memory    fp32, resident" in lines
    assert "  video 0   clip.mp4" in lines
    assert "  poster    clip.jpg" in lines
    assert any(line.startswith("  cost      ") for line in lines)
    with av.open("clip.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    with Image.open("clip.jpg") as poster:
        assert poster.size == (256, 256)
    (stored,) = outputs()
    assert stored.read_bytes() == Path("clip.mp4").read_bytes()


def test_without_a_place_it_stays_in_the_output_folder(generate: Callable[..., Done]) -> None:
    done = generate("--no-thumbnail")
    (stored,) = outputs()
    assert f"  video 0   {stored}" in done.out.splitlines()
    assert "poster" not in done.out
    assert list(Path("outputs").rglob("*.jpg")) == []


def test_json_is_the_answer_of_the_job_and_a_folder_gets_its_name(generate: Callable[..., Done]) -> None:
    done = generate("--out", "clips/", "--json")
    assert (done.status, done.err) == (0, "")
    answer = json.loads(done.out)
    (video,) = answer["videos"]
    assert (answer["status"], video["seed"], video["model_version"]) == ("completed", 1, "demo")
    assert answer["files"] == [f"clips/{answer['job_id']}{suffix}" for suffix in (".mp4", ".jpg")]
    clip, poster = map(Path, answer["files"])
    assert hashlib.sha256(clip.read_bytes()).hexdigest() == video["sha256"]
    assert sorted(Path("clips").iterdir()) == sorted([clip, poster])


def test_the_seed_that_is_shown_is_the_one_that_is_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "build_engine", lambda *_: engine)
    without = SMALL[: SMALL.index("--seed")]
    done = command(capsys, "generate", "--prompt", "a cat", *without)
    shown, used = re.findall(r"seed (\d+)", done.out)
    assert shown == used


def test_a_picture_of_this_machine_is_the_first_frame_and_opens_no_port(
    generate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_server: local_files.FileServer, file: Path) -> str:
        raise AssertionError(f"{file} was served")

    monkeypatch.setattr(local_files.FileServer, "serve", refuse)
    Image.linear_gradient("L").resize((400, 400)).save("person.png")
    done = generate("--image", "person.png", "--last-image", "person.png", "--json")
    assert done.status == 0
    assert json.loads(done.out)["videos"][0]["mode"] == "first_last_frame"


@pytest.mark.slow
def test_a_video_of_this_machine_is_read_over_loopback(generate: Callable[..., Done]) -> None:
    assert generate("--frames", "9", "--out", "first.mp4").status == 0
    done = generate("--video", "first.mp4", "--strength", "0.5", "--json")
    assert done.status == 0
    (video,) = json.loads(done.out)["videos"]
    assert (video["mode"], video["parameters"]["strength"]) == ("video_to_video", 0.5)


def test_a_bucket_of_the_settings_is_left_alone(
    generate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "BUCKET_NAME": "videos",
        "BUCKET_ACCESS_KEY": "key",
        "BUCKET_SECRET_KEY": "secret",
    }.items():
        monkeypatch.setenv(f"DIGITAL_OCEAN_{name}", value)
    seen: list[Any] = []
    build = start.build_worker
    monkeypatch.setattr(start, "build_worker", lambda settings: seen.append(build(settings)) or seen[-1])
    assert generate("--out", "clip.mp4").status == 0
    assert isinstance(seen[0].storage, storage.local.LocalStorage)
    # Videos that wait for the worker's bucket lie in the worker's own state.
    assert seen[0].settings.state_dir == tmp_path / "state" / "command-line"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["command-line"]


def test_nothing_is_written_over(generate: Callable[..., Done]) -> None:
    Path("clip.jpg").write_bytes(b"mine")
    done = generate("--out", "clip.mp4")
    assert (done.status, done.out) == (2, "")
    assert "clip.jpg is there already" in done.err
    assert not Path("outputs").exists()
    assert generate("--out", "clip.mp4", "--force").status == 0
    assert Path("clip.jpg").read_bytes() != b"mine"


def test_a_wrong_value_fails_before_anything_is_loaded(generate: Callable[..., Done]) -> None:
    done = generate("--width", "100", "--fps", "61")
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: --width: must be 256 to 1920, not 100",
        "error: --fps: must be 1 to 60, not 61",
    ]


def test_a_failure_of_the_flow_names_the_flag(generate: Callable[..., Done]) -> None:
    done = generate("--lora", "no-such-file.safetensors", "--json")
    assert done.status == 1
    assert json.loads(done.out)["error"]["path"] == "loras[0].source"
    assert done.err.startswith("error: --lora: ")
    done = generate("--image", "http://127.0.0.1:9/a.png")
    assert done.status == 1
    assert done.err.startswith("error: --image: this URL may not be fetched")


def test_what_cannot_be_written_to_its_place_is_not_lost(
    generate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flow.run

    async def then_take_the_folder_away(*arguments: Any) -> Any:
        answer = await run(*arguments)
        Path("there").rmdir()
        Path("there").write_bytes(b"in the way")
        return answer

    Path("there").mkdir()
    monkeypatch.setattr(flow, "run", then_take_the_folder_away)
    done = generate("--out", "there/clip.mp4")
    assert done.status == 1
    assert "error: --out: there/clip.mp4 could not be written" in done.err
    (stored,) = outputs()
    assert f"the video is there: {stored.resolve()}" in done.err


@pytest.mark.slow
def test_what_the_output_folder_does_not_take_is_kept_for_the_next_run(
    generate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(storage.local.LocalStorage, "store", Mock(side_effect=UploadFailed("disk full")))
        done = generate()
    assert done.status == 1
    assert done.err.startswith("error: disk full\nthe video is kept in ")
    assert outputs() == []
    stored = threading.Event()
    put = storage.local.LocalStorage.store

    def store(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = put(self, *arguments, **options)
        if len(outputs()) == 2:
            stored.set()
        return answer

    monkeypatch.setattr(storage.local.LocalStorage, "store", store)
    assert generate().status == 0
    assert stored.wait(30)


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("no\n", 1), ("", 1)])
def test_it_asks_where_it_is_told_to(
    typed: str, status: int, generate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    done = generate("--confirm")
    assert done.status == status
    assert "  memory    " in done.out
    assert done.err.startswith("go on? [y/N] ")
    assert len(outputs()) == (status == 0)


@contextmanager
def screen() -> Iterator[tuple[int, int]]:
    """A terminal of 40 x 100: the side of the person, and the side of the program."""
    person, program = os.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    try:
        yield person, program
    finally:
        os.close(person)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_within_a_step(tmp_path: Path) -> None:
    """At a terminal, in a process of its own with an engine of its own: nothing is replaced here."""
    arguments = ["--prompt", "a cat", "--width", "256", "--height", "256", "--steps", "100", "--frames", "81"]
    with screen() as (person, program):
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "generate", *arguments, "--out", "clip.mp4"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MODEL_PROFILE": "demo"},
            stdout=program,
            stderr=program,
        )
        os.close(program)
        seen = ""
        try:
            while "  generating  " not in seen:
                seen += os.read(person, 4096).decode(errors="replace")
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # how a terminal says that the program is gone
                while piece := os.read(person, 4096):
                    seen += piece.decode(errors="replace")
            assert process.wait(60) == 130, seen
        finally:
            process.kill()
            process.wait()
    assert "  starting      0%|" in seen
    assert "  queued        0%|" in seen
    assert "  stopping  " in seen
    assert "stopping: the current step is finished first\r\n" in seen
    assert "  memory    fp32, resident\r\n" in seen
    assert seen.splitlines()[-1].strip() == "cancelled"
    assert "Traceback" not in seen
    assert not (tmp_path / "clip.mp4").exists()
    assert list((tmp_path / "outputs").rglob("*.mp4")) == []


def test_curves_of_the_model_are_measured_on_a_video_and_stored(calibrate: Callable[..., Done]) -> None:
    done = calibrate("--steps", "4", "--out", "clip.mp4")
    assert (done.status, done.err) == (0, "")
    line = next(line for line in done.out.splitlines() if line.startswith("  curves    "))
    assert Path(line.split()[1]).is_file()
    assert Path("clip.mp4").is_file()


@pytest.mark.slow
def test_step_cache_is_off_where_curves_are_measured(calibrate: Callable[..., Done]) -> None:
    parameters = json.loads(calibrate("--steps", "4", "--step-cache", "fast", "--json").out)["videos"][0]["parameters"]
    assert (parameters["step_cache"], Path(parameters["step_cache_curves"]).is_file()) == ("off", True)


@pytest.mark.slow  # test_magcache has the refusal
def test_a_video_that_shows_no_curves_fails_with_the_reason(calibrate: Callable[..., Done]) -> None:
    done = calibrate("--steps", "2")
    assert done.status == 1
    assert done.err.startswith("error: no curves were stored: they are measured on a guided video")
