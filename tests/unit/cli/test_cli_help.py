"""Help, examples and schemas, and that a command loads nothing heavy for them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kits.cli_kit import command
from tests.kits.slow import slow
from worker.cli.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[3]


def test_without_a_command_help_and_examples_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys)
    assert done.status == 0
    assert "examples:" in done.out
    assert done == command(capsys, "--help")


def test_the_examples_of_the_help_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip() for line in command(capsys).out.splitlines() if line.startswith("  videogen ")]
    assert len(lines) >= 5
    parser = build_parser()
    for line in lines:
        words = shlex.split(line)
        assert parser.parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("of", ["input", "answer", "webhook"])
def test_the_schemas_are_the_published_ones(of: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "schema", *([] if of == "input" else [of]))
    assert done.status == 0
    assert done.out == (ROOT / "docs" / "schemas" / f"{of}.schema.json").read_text(encoding="utf-8")


PROBE = """
import json, sys
from worker.cli.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
sys.stderr.write(json.dumps({"status": status, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def probed(home: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What a command reports of itself, in a process of its own, and all that it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=home,
        env={"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}", "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "absent"),
    [
        (["generate", "--help"], 0, ("torch", "diffusers", "runpod", "requests", "PIL")),
        (["generate", "--prompt", "a", "--dry-run", "--gpu", "H100"], 0, ("torch", "diffusers", "runpod")),
        (["submit", "--endpoint", "e", "--prompt", "a"], 1, ("torch", "diffusers", "transformers", "runpod")),
        *slow(
            ([], 0, ("torch", "diffusers", "runpod", "requests", "PIL")),
            (["schema"], 0, ("torch", "diffusers", "runpod", "requests", "PIL")),
        ),
    ],
    ids=str,
)
def test_nothing_heavy_is_loaded_for_little(
    arguments: list[str], status: int, absent: tuple[str, ...], tmp_path: Path
) -> None:
    report, _ = probed(tmp_path, *arguments)
    assert report["status"] == status
    assert set(absent) & set(report["loaded"]) == set()


@pytest.mark.slow  # test_nothing_heavy_is_loaded_for_little uses it
def test_the_probe_sees_what_submit_loads(tmp_path: Path) -> None:
    report, said = probed(tmp_path, "submit", "--endpoint", "e", "--prompt", "a")
    assert "videogen_client" in report["loaded"]
    assert "RUNPOD_API_KEY is not set" in said
