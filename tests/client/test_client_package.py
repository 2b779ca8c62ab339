"""The package itself: small, light, on its own."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "client" / "src"
PROBE = """
import json, sys, time
before = time.process_time()
import videogen_client
print(json.dumps([time.process_time() - before, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "numpy", "diffusers", "transformers", "runpod", "pydantic", "requests", "boto3", "fastapi", "worker"}


def probe() -> tuple[float, set[str]]:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=SOURCE, check=True, capture_output=True, text=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_importing_it_is_cheap() -> None:
    """0.3 s of CPU alone; a busy machine has slower seconds."""
    found = [probe() for _ in range(3)]
    assert min(seconds for seconds, _ in found) < 0.6
    assert found[0][1] & HEAVY == set()


@pytest.mark.parametrize("extra", ["", "serve", "page"])
def test_it_imports_what_it_declares_and_nothing_of_the_worker(extra: str) -> None:
    """A folder that needs an extra may also import what that extra itself stands on."""
    project = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = names_of(project["dependencies"])
    extras = {name: names_of(listed) for name, listed in project["optional-dependencies"].items()}
    package = SOURCE / "videogen_client"
    imported = set()
    for file in (package / extra).glob("*.py") if extra else package.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    imported -= set(sys.stdlib_module_names)
    if extra:
        assert imported <= declared | extras[extra] | BROUGHT[extra]
    else:
        assert imported == declared


# What an extra's packages themselves stand on, and hand on.
BROUGHT = {"serve": {"starlette"}, "page": {"fastapi", "uvicorn"}}


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[>=<]", requirement)[0].replace("-", "_") for requirement in requirements}


@pytest.mark.slow
def test_the_wheel_is_small(tmp_path: Path) -> None:
    source = tmp_path / "client"
    for path in (ROOT / "client").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".toml", ".md", ".typed"):
            target = source / path.relative_to(ROOT / "client")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "out"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    (wheel,) = (tmp_path / "out").iterdir()
    assert wheel.stat().st_size < 200_000
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"videogen_client/__init__.py", "videogen_client/types.py", "videogen_client/py.typed"} <= names
    assert not any(name.startswith(("worker", "tests")) for name in names)


# A line that must not pass is marked: mypy's strict mode refuses a mark that nothing needs.
USER = """
from pathlib import Path

from videogen_client import AsyncClient, Client, Job, JobState, Progress, VideoFailed, VideoGenError, verify_webhook
from videogen_client.types import Answer, Input, Training, VideoResult


def main() -> Path:
    payload: Input = {"prompt": "a cat", "num_frames": 81, "resolution": "720p"}
    wrong: Input = {"prompt": "a cat", "resolution": "8k"}  # type: ignore[typeddict-item]
    with Client("abc", "key") as client:
        job: Job = client.submit(payload)
        state: JobState = client.status(job)
        for progress in client.stream(job, timeout_s=60):
            shown: Progress = progress
        answer: Answer = client.result(job.id)
        client.result(job, timeout_ms=5)  # type: ignore[call-arg]
        training: Training = client.train({"training_data_url": "https://example.com/a.zip"})
        for video in answer["videos"]:
            if video["status"] == "completed":
                result: VideoResult = video
                return client.download(result, "cat.mp4")
    raise VideoGenError(str([state, shown, training, wrong]))


async def later() -> str:
    async with AsyncClient(base_url="http://localhost:8000") as client:
        try:
            answer = await client.generate({"prompt": "a cat"})
        except VideoFailed as failure:
            return failure.code if failure.retryable else failure.message
    event = verify_webhook(b"{}", {}, "whsec_a")
    return answer["videos"][0]["video_url"]  # type: ignore[return-value, typeddict-item]
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_users_file_is_typed_in_mypys_strict_mode(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    environment = {**os.environ, "MYPYPATH": str(SOURCE), "MYPY_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
