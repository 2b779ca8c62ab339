"""docs/command-line.md: every command of it is run, and what it shows is what is printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.kits.cli_kit import Done, answer, command, video
from tests.kits.endpoint_double import ENDPOINT_ID, EndpointDouble, completed
from worker import start
from worker.engine import Engine
from worker.request.schema import input_schema

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
KINDS = {"dry", "real", "planned", "endpoint", "schema"}


def commands(kind: str) -> list[list[str]]:
    """The words of each command in the blocks of that kind, without `videogen`."""
    found = []
    for block in re.findall(rf"^```shell {kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" > ")[0])
            assert words[0] == "videogen"
            found.append(words[1:])
    return found


def shown_after(kind: str) -> str:
    """The text block that follows the block of that kind."""
    (text,) = re.findall(rf"^```shell {kind}\n.*?^```$.*?^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


def masked(text: str) -> str:
    """Without what differs from run to run: the job's id, seconds, sizes."""
    text = re.sub(r"cli-[0-9a-f]{8}", "cli-ID", text)
    return re.sub(r"\d+\.\d+ (s\b|MB)(?!\))", r"N \1", text)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[list[str]], Done]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi: a machine without a GPU
    return lambda words: command(capsys, *words)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert set(re.findall(r"^```shell ?(.*)$", PAGE, re.MULTILINE)) == {*KINDS, ""}
    assert all(commands(kind) for kind in KINDS)


def test_the_dry_run_is_the_one_that_is_shown(run: Callable[[list[str]], Done]) -> None:
    (words,) = commands("dry")
    assert run(words) == Done(0, shown_after("dry"), "")


@pytest.mark.slow
def test_the_real_run_is_the_one_that_is_shown(
    run: Callable[[list[str]], Done], monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr(start, "build_engine", lambda *_: engine)
    (words,) = commands("real")
    done = run(words)
    assert (done.status, done.err) == (0, "")
    assert masked(done.out) == masked(shown_after("real"))


@pytest.mark.parametrize("words", commands("planned"), ids=lambda words: words[2])
def test_the_other_runs_are_planned(words: list[str], run: Callable[[list[str]], Done]) -> None:
    """Only planned: at these sizes the demo model on a CPU takes minutes."""
    for name in ("person.png", "bud.png", "flower.png"):
        Image.new("RGB", (800, 600)).save(name)
    Path("street.mp4").write_bytes(b"frames")
    done = run([*words, "--dry-run", "--gpu", "H100"])
    assert (done.status, done.err) == (0, "")
    assert "  estimate  " in done.out


def test_the_error_is_the_one_that_is_shown(run: Callable[[list[str]], Done]) -> None:
    done = run(["generate", "--prompt", "a", "--width", "100", "--frames", "500"])
    assert done.status == 2
    assert f"```text\n{done.err}```" in PAGE
    done = run(["generate", "--prompt", "a", "--widht", "100"])
    assert done.status == 2
    assert f"```text\n{done.err}```" in PAGE


@pytest.mark.parametrize("words", commands("endpoint"), ids=lambda words: " ".join(words[3:5]))
def test_jobs_are_sent_as_shown(words: list[str], run: Callable[[list[str]], Done], endpoint: EndpointDouble) -> None:
    assert words[2] == "$ENDPOINT_ID"
    Path("job.json").write_text(json.dumps({"prompt": "a cat"}))
    endpoint.plays(completed(answer(video(endpoint))))
    done = run([ENDPOINT_ID if word == "$ENDPOINT_ID" else word.replace("$JOB_ID", "rp-1") for word in words])
    assert done.status == 0
    files = list(Path().rglob("*.mp4"))
    assert len(files) == (0 if "--detach" in words else 1)


def test_the_schema_is_printed(run: Callable[[list[str]], Done]) -> None:
    (words,) = commands("schema")
    done = run(words)
    assert json.loads(done.out) == input_schema()
