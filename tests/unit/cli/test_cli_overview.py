"""What a command shows before it works: plan, estimate, cost and prompt, for this machine's GPU or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.kits.cli_kit import Done, command
from worker.cli import overview
from worker.cli.terminal import dollars
from worker.request.plan.duration import Span

PROMPT = "A paper boat on a pond"


@pytest.fixture
def dry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `generate --dry-run` on a machine without a GPU."""
    monkeypatch.setenv("PATH", "")

    def run(*arguments: str, prompt: str = PROMPT) -> Done:
        return command(capsys, "generate", "--prompt", prompt, "--dry-run", *arguments)

    return run


def rows(done: Done) -> dict[str, list[str]]:
    """The lines by their label."""
    found: dict[str, list[str]] = {}
    for line in done.out.splitlines():
        found.setdefault(line[:12].strip(), []).append(line[12:])
    return found


def test_the_overview_says_what_would_be_done(dry: Any) -> None:
    done = dry("--gpu", "L40S", "--gpu-hourly-usd", "0.86", "--seed", "7", "--camera-motion", "pan_left")
    assert done.status == 0
    assert done.err == ""
    shown = rows(done)
    assert shown["video"] == ["text_to_video, 832x480, 81 frames at 16 fps (5.06 s)"]
    assert shown["model"] == ["wan2.2-t2v-a14b, 50 steps, guidance 5, seed 7"]
    assert shown["prompt"][0].startswith("A paper boat on a pond, camera pans left")
    assert shown["memory"] == ["bf16, swap: 34 of 46 GB on L40S"]
    assert shown["estimate"] == ["12 to 22 min on L40S, 167,828 TFLOP in 100 passes"]
    assert shown["cost"] == ["$0.17 to $0.32, loading $0.04 to $0.15 ($0.86 an hour)"]
    assert "note" not in shown


def test_segments_that_begin_with_words_and_go_on_from_pictures_take_both_models(dry: Any) -> None:
    shown = rows(dry("--gpu", "L40S", "--seed", "7", "--segments", "[{}, {}]"))
    assert shown["model"] == ["wan2.2-t2v-a14b and wan2.2-i2v-a14b, 50 steps, guidance 5, seed 7"]
    assert shown[""] == ["and 5.8 to 21.0 min before, to load the model from a network volume"]
    cuts = rows(dry("--gpu", "L40S", "--seed", "7", "--segments", '[{}, {"transition": "cut"}]'))
    assert cuts["model"] == ["wan2.2-t2v-a14b, 50 steps, guidance 5, seed 7"]


def test_json_is_all_there_is(dry: Any) -> None:
    done = dry("--gpu", "H200", "--json", "--gpu-hourly-usd", "3.6", "--seed", "0")
    seen = json.loads(done.out)
    assert done.err == ""
    assert (seen["seed"], seen["gpu"], seen["memory_plan"]) == (0, "H200", "bf16, resident")
    low, high = seen["estimate"]["seconds"]["total"]
    assert 212 < low < 264 < high
    assert seen["estimate"]["cost_usd"] == pytest.approx([low / 1000, high / 1000], abs=2e-4)


# What nvidia-smi prints -> a label of the overview and a part of its line; None: there is no such line.
H100, GH200 = "echo 'NVIDIA H100 80GB HBM3, 81559, 9.0'", "echo 'NVIDIA GH200 480GB, 97871, 9.0'"
SHOWN: list[tuple[str, dict[str, str], str, str, str | None]] = [
    ("--gpu L40S", {}, "", "cost", None),
    ("--gpu H200", {"GPU_HOURLY_USD": "3.6"}, "", "cost", "$3.6 an hour"),
    ("--no-enhance", {}, "", "prompt", PROMPT),
    ("--guidance-scale 4 --guidance-scale-2 3", {}, "", "model", "guidance 4 and 3,"),
    ("--frames 82 --gpu H100", {}, "", "note", "--num-frames: 82 lowered to 81 (the model makes 4k + 1 frames)"),
    ("--frames 81 --gpu H100", {"MAX_FRAMES": "81"}, "", "video", "81 frames"),
    ("--gpu H100", {"JOB_TIMEOUT_S": "100"}, "", "note", "will stop it"),
    ("--gpu H100", {"JOB_TIMEOUT_S": "600"}, "", "note", "may stop it"),
    ("--gpu H100", {"JOB_TIMEOUT_S": "86400"}, "", "note", None),
    ("--image {home}/a.png --gpu H100", {}, "", "video", ", 544x720, "),
    ("--image https://example.com/a.png --gpu H100", {}, "", "video", ", 832x480, "),
    ("--image https://example.com/a.png --gpu H100", {}, "", "note", "the size follows the image"),
    ("", {}, "", "model", "demo, "),
    ("", {}, "", "estimate", None),
    ("", {}, "", "memory", None),
    ("", {}, "", "note", "--gpu H100"),
    ("", {}, H100, "memory", "bf16, resident, text encoder offloaded: 72 of 82 GB on NVIDIA H100 80GB HBM3"),
    ("", {}, H100, "estimate", "on NVIDIA H100 80GB HBM3"),
    ("", {}, GH200, "memory", "on NVIDIA GH200 480GB"),
    ("", {}, GH200, "note", "no estimate: the speed of NVIDIA GH200 480GB is not known"),
    *(
        ("", {}, script, "model", "demo, ")
        for script in ("exit 9", "echo 'No devices were found'", "echo 'NVIDIA H100, [N/A], 9.0'", "true")
    ),
]


@pytest.mark.parametrize(("arguments", "variables", "nvidia_smi", "label", "text"), SHOWN)
def test_a_line_of_the_overview(
    arguments: str,
    variables: dict[str, str],
    nvidia_smi: str,
    label: str,
    text: str | None,
    dry: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (600, 800)).save(tmp_path / "a.png")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if nvidia_smi:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
    done = dry(*arguments.replace("{home}", str(tmp_path)).split())
    assert (done.status, done.err) == (0, "")
    lines = rows(done).get(label, [])
    assert lines == [] if text is None else len(lines) == 1
    assert text is None or text in lines[0]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--model 5b --video https://example.com/a.mp4 --gpu H100", 1, "error: --model: "),
        ("--model 5b --video https://example.com/a.mp4 --gpu H100", 1, "video_to_video"),
        ("--model 5b --preset turbo --gpu H100", 1, "error: --preset: "),
        ("--frames 85 --gpu H100", 2, "error: --num-frames: must be 5 to 81, not 85\n"),
        ("--image {home}/a.png --gpu H100", 1, "error: --image: not an image that can be read"),
        ("--gpu H1000", 2, "error: --gpu: no GPU 'H1000' in the table: L4, "),
    ],
)
def test_what_cannot_be_done_says_so_by_its_flag(
    arguments: str, status: int, said: str, dry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_FRAMES", "81")
    (tmp_path / "a.png").write_bytes(b"no pixels")
    done = dry(*arguments.replace("{home}", str(tmp_path)).split())
    assert (done.status, done.out) == (status, "")
    assert said in done.err


def test_a_gpu_without_its_dry_run_is_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "generate", "--prompt", PROMPT, "--gpu", "H100")
    assert done.status == 2
    assert "--dry-run" in done.err


def test_a_failure_as_json_names_the_field(dry: Any) -> None:
    done = dry("--width", "100", "--json")
    assert done.status == 2
    error = json.loads(done.out)["error"]
    assert (error["code"], error["path"]) == ("invalid_request", "width")


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span(0.4, 3.2), "0 to 3 s"),
        (Span(35.2, 119.4), "35 to 119 s"),
        (Span(60, 120), "1.0 to 2.0 min"),
        (Span(263, 490), "4.4 to 8.2 min"),
        (Span(833, 1558), "14 to 26 min"),
        (Span(6000, 7200), "1.7 to 2.0 h"),
    ],
)
def test_durations_in_the_unit_that_fits(span: Span, text: str) -> None:
    assert overview.duration(span) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "$0.00"), (12.344, "$12.34"), (0.005, "$0.01"), (0.0012, "$0.0012"), (1e-5, "under $0.0001")],
)
def test_dollars(amount: float, text: str) -> None:
    assert dollars(amount) == text
