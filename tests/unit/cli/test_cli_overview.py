"""What a command shows before it works: plan, estimate, cost and prompt, for this machine's GPU or another."""

from __future__ import annotations

import json
import stat
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


def test_without_a_price_there_is_no_cost(dry: Any) -> None:
    assert "cost" not in rows(dry("--gpu", "L40S"))


def test_the_price_of_the_settings_counts(dry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_HOURLY_USD", "3.6")
    assert "$3.6 an hour" in rows(dry("--gpu", "H200"))["cost"][0]


def test_the_prompt_is_left_alone_on_request(dry: Any) -> None:
    assert rows(dry("--no-enhance"))["prompt"] == [PROMPT]


def test_two_scales_of_guidance_are_shown(dry: Any) -> None:
    assert "guidance 4 and 3," in rows(dry("--guidance-scale", "4", "--guidance-scale-2", "3"))["model"][0]


def test_corrections_are_noted_in_the_words_of_the_flags(dry: Any) -> None:
    assert rows(dry("--frames", "82", "--gpu", "H100"))["note"] == [
        "--num-frames: 82 lowered to 81 (the model makes 4k + 1 frames)"
    ]


def test_json_is_all_there_is(dry: Any) -> None:
    done = dry("--gpu", "H200", "--json", "--gpu-hourly-usd", "3.6", "--seed", "0")
    seen = json.loads(done.out)
    assert done.err == ""
    assert (seen["seed"], seen["gpu"], seen["memory_plan"]) == (0, "H200", "bf16, resident")
    low, high = seen["estimate"]["seconds"]["total"]
    assert 212 < low < 264 < high
    assert seen["estimate"]["cost_usd"] == pytest.approx([low / 1000, high / 1000], abs=2e-4)


def test_without_a_gpu_the_demo_model_is_named(dry: Any) -> None:
    shown = rows(dry())
    assert shown["model"][0].startswith("demo, ")
    assert "estimate" not in shown
    assert "memory" not in shown
    assert "--gpu H100" in shown["note"][0]


def test_a_gpu_is_read_from_the_drivers_own_tool(dry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 9.0'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = rows(dry())
    assert shown["memory"] == ["bf16, resident, text encoder offloaded: 72 of 82 GB on NVIDIA H100 80GB HBM3"]
    assert "on NVIDIA H100 80GB HBM3" in shown["estimate"][0]


@pytest.mark.parametrize("text", ["exit 9", "echo 'No devices were found'", "echo 'NVIDIA H100, [N/A], 9.0'", "true"])
def test_a_driver_that_names_no_gpu_is_none(
    text: str, dry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rows(dry())["model"][0].startswith("demo, ")


def test_a_gpu_of_unknown_speed_has_a_plan_and_no_estimate(
    dry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GH200 480GB, 97871, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = rows(dry())
    assert "on NVIDIA GH200 480GB" in shown["memory"][0]
    assert shown["note"] == ["no estimate: the speed of NVIDIA GH200 480GB is not known"]


def test_a_gpu_without_its_dry_run_is_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "generate", "--prompt", PROMPT, "--gpu", "H100")
    assert done.status == 2
    assert "--dry-run" in done.err


def test_an_unknown_gpu_is_a_wrong_flag(dry: Any) -> None:
    done = dry("--gpu", "H1000")
    assert done.status == 2
    assert "no GPU 'H1000' in the table: L4, " in done.err


def test_what_cannot_be_served_fails_with_its_flag(dry: Any) -> None:
    done = dry("--model", "5b", "--video", "https://example.com/a.mp4", "--gpu", "H100")
    assert done.status == 1
    assert done.err.startswith("error: --model: ")
    assert "video_to_video" in done.err
    done = dry("--model", "5b", "--preset", "turbo", "--gpu", "H100")
    assert done.status == 1
    assert done.err.startswith("error: --preset: ")


def test_limits_of_the_settings_are_those_of_the_worker(dry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_FRAMES", "81")
    assert dry("--frames", "81", "--gpu", "H100").status == 0
    done = dry("--frames", "85", "--gpu", "H100")
    assert (done.status, done.out) == (2, "")
    assert done.err == "error: --num-frames: must be 5 to 81, not 85\n"


def test_a_failure_as_json_names_the_field(dry: Any) -> None:
    done = dry("--width", "100", "--json")
    assert done.status == 2
    error = json.loads(done.out)["error"]
    assert (error["code"], error["path"]) == ("invalid_request", "width")


def test_the_size_follows_an_image_of_this_machine(dry: Any, tmp_path: Path) -> None:
    Image.new("RGB", (600, 800)).save(tmp_path / "a.png")
    assert ", 544x720, " in rows(dry("--image", str(tmp_path / "a.png"), "--gpu", "H100"))["video"][0]
    done = dry("--image", "https://example.com/a.png", "--gpu", "H100")
    assert ", 832x480, " in rows(done)["video"][0]
    assert "the size follows the image" in rows(done)["note"][0]


def test_a_file_that_is_no_image_is_told_by_its_flag(dry: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no pixels")
    done = dry("--image", str(tmp_path / "a.png"), "--gpu", "H100")
    assert done.status == 1
    assert done.err.startswith("error: --image: not an image that can be read")


@pytest.mark.parametrize(
    ("timeout_s", "word"), [("100", "will stop it"), ("600", "may stop it"), ("86400", None)], ids=str
)
def test_a_time_limit_that_is_too_short_is_noted(
    timeout_s: str, word: str | None, dry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_TIMEOUT_S", timeout_s)
    notes = rows(dry("--gpu", "H100")).get("note", [])
    assert [word in note for note in notes] == ([] if word is None else [True])


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
