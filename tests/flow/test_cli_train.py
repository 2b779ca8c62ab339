"""`train` on the demo model: the real flow, and what a person reads."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kits.cli_kit import Done, command
from worker import start
from worker.engine import Engine

SMALL = ("--steps", "10", "--rank", "4", "--num-frames", "5", "--seed", "1", "--experts", "high")


@pytest.fixture
def train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine
) -> Callable[..., Done]:
    """Runs the command on a folder of five pictures, with the engine of the session instead of a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "build_engine", lambda *_: engine)
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        picture = io.BytesIO()
        Image.fromarray(noise).resize((256, 256)).save(picture, "PNG")
        Path("clips").mkdir(exist_ok=True)
        Path("clips", f"{number}.png").write_bytes(picture.getvalue())
        Path("clips", f"{number}.txt").write_text(f"squares, number {number}", encoding="utf-8")
    return lambda *arguments: command(capsys, "train", "--data", "clips", "--out", "style", *SMALL, *arguments)


@pytest.mark.slow
def test_a_folder_becomes_a_lora_and_its_plan_is_shown_first(train: Callable[..., Done]) -> None:
    done = train("--gpu-hourly-usd", "2")
    assert (done.status, done.err) == (0, "")
    assert Path("style/high.safetensors").is_file()
    lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert [label for label, _ in lines] == ["data", "size", "steps", "memory", "seconds", "high", "lora", "seconds"]
    shown = dict(lines[:5])
    assert shown["data"] == "4 clips, 1 held out, 0 refused"
    assert shown["steps"] == "high 10, rank 4, seed 1"
    assert "style/high.safetensors" in done.out


@pytest.mark.slow  # test_training_job has a dry run
def test_a_dry_run_trains_nothing(train: Callable[..., Done]) -> None:
    answer = json.loads(train("--dry-run", "--json").out)
    assert (answer["dry_run"], answer["seed"]) == (True, 1)
    assert not Path("style").exists()


def test_what_is_wrong_is_said_in_a_line(train: Callable[..., Done], capsys: pytest.CaptureFixture[str]) -> None:
    nothing = command(capsys, "train", "--data", "nowhere", "--out", "style")
    assert (nothing.status, nothing.err) == (2, "error: --data: there is no folder or file nowhere\n")
    for text in Path("clips").glob("*.txt"):
        text.unlink()
    done = train()
    assert (done.status, done.out) == (1, "")
    assert "has no caption" in done.err
