"""The router from a shell, and in the place of a client for the facade."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.kits.facade_kit import FacadeServer
from tests.kits.router_kit import ENVIRON, backend_table, policy_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, RunPodDouble
from videogen_client import CancelRefused, Job, JobNotFound, JobRefused
from videogen_client.router.__main__ import main
from videogen_client.router.serving import RoutedClient
from videogen_client.serve.__main__ import main as serve
from worker.cli.__main__ import main as videogen

REQUEST: Any = {"prompt": "a fox", "tier": "draft", "job_id": "order-1"}
TOML = """
store = "sqlite:///{store}"
[backends.fal]
kind = "fal"
model = "{app}"
base_url = "{url}"
api_key_env = "SERVICE_KEY"
start_s = [0, 1]
seconds_per_video_second = [0, 1]
poll_s = 0.01
[[prices]]
backend = "fal"
usd = [0.2, 0.4]
per = "video"
as_of = 2026-11-01
source = "a test"
[tiers.draft]
candidates = ["fal"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "router.toml"


@pytest.fixture
def fal(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FalDouble]:
    """The service of the policy in `file`."""
    monkeypatch.setenv("SERVICE_KEY", ENVIRON["SERVICE_KEY"])
    with FalDouble() as running:
        file.write_text(TOML.format(store=tmp_path / "store", app=running.app, url=running.base_url))
        yield running


def test_a_dry_run_prints_the_candidates_and_submits_nothing(
    file: Path, fal: FalDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = '{"prompt": "a fox", "tier": "draft"%s}'
    assert main(["route", str(file), request % "", "--dry-run"]) == 0
    assert "-> fal: the first candidate that fits: 0.2000 to 0.4000 USD, 0 to 6 s" in capsys.readouterr().out
    assert main(["route", str(file), request % ', "audio": true', "--dry-run"]) == 1
    assert "   fal: makes no audio" in capsys.readouterr().out
    assert fal.requests == 0
    assert main(["route", str(file), request % "", "--out", str(tmp_path / "fox.mp4")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["route"][0]["backend"] == "fal"
    assert (tmp_path / "fox.mp4").read_bytes() == fal.video


def test_the_workers_command_line_has_the_router_where_it_is_installed(
    file: Path, fal: FalDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = '{"prompt": "a fox", "tier": "draft"}'
    assert videogen(["route", str(file), request, "--dry-run"]) == 0
    assert "-> fal: the first candidate that fits: 0.2000 to 0.4000 USD, 0 to 6 s" in capsys.readouterr().out
    assert fal.requests == 0
    out = tmp_path / "fox.mp4"
    assert videogen(["route", str(file), request, "--key", "order-1", "--out", str(out)]) == 0
    assert out.read_bytes() == fal.video
    assert videogen(["route", str(file), "{}"]) == 2
    monkeypatch.setitem(sys.modules, "videogen_client.router.__main__", None)
    assert videogen(["route", str(file), request, "--dry-run"]) == 1
    assert "pip install './client[router]'" in capsys.readouterr().err


def test_a_wrong_policy_is_a_mistake_of_the_operator(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("backends = 3")
    assert main(["route", str(file), "{}"]) == 2
    assert "backends" in capsys.readouterr().err


async def test_the_facade_gets_what_it_needs(tmp_path: Path) -> None:
    with RunPodDouble() as own:
        client = RoutedClient(router_of(policy_of(tmp_path / "store", {"own": backend_table(own)})))
        job = await client.submit({**REQUEST, "num_inference_steps": 20, "seed": -1}, timeout_s=30)
        assert await client.submit({**REQUEST, "num_inference_steps": 20, "seed": -1}, timeout_s=30) == job
        while not (state := await client.status(job, timeout_s=30)).has_ended:
            pass
        assert state.answer is not None
        (video,) = state.answer["videos"]
        assert video["job_id"] == "order-1"
        assert video["backend"] == "own"  # type: ignore[typeddict-item]
        (made,) = own.jobs.values()
        assert made.fields["num_inference_steps"] == 20
        assert made.fields["seed"] >= 0
        with pytest.raises(JobNotFound):
            await client.status(Job("none"), timeout_s=30)
        with pytest.raises(JobRefused, match="makes no audio"):
            await client.submit({**REQUEST, "audio": True, "job_id": "order-2"}, timeout_s=30)
        with pytest.raises(JobRefused, match="belongs to another request"):
            await client.submit({**REQUEST, "prompt": "a wolf"}, timeout_s=30)
        await client.close()


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openais_client_makes_a_video_through_facade_and_router(tmp_path: Path) -> None:
    with FalDouble() as fal:
        policy = policy_of(tmp_path / "store", {"fal": backend_table(fal)})
        with (
            FacadeServer(tmp_path, backend=lambda: RoutedClient(router_of(policy))) as facade,
            openai.OpenAI(base_url=f"{facade.url}/v1", api_key="key-a", max_retries=0) as client,
        ):
            tier = {"extra_params": {"tier": "draft"}}
            video = client.videos.create_and_poll(prompt="a red fox", seconds="5", extra_body=tier)  # type: ignore[arg-type]
            assert (video.status, video.error) == ("completed", None)
            assert client.videos.download_content(video.id).read() == fal.video
        assert len(fal.jobs) == 1


def test_the_facade_says_every_problem_of_a_policy(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("backends = 3")
    assert serve(["--router", str(file)]) == 2
    assert "backends" in capsys.readouterr().err


async def test_a_file_reaches_the_facade_whole(tmp_path: Path) -> None:
    with FalDouble() as fal:
        client = RoutedClient(router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})))
        job = await client.submit(REQUEST, timeout_s=30)
        while not (state := await client.status(job, timeout_s=30)).has_ended:
            pass
        assert state.answer is not None
        path = await client.download(state.answer["videos"][0], tmp_path / "a.mp4", file="video", timeout_s=30)
        assert path.read_bytes() == fal.video
        await client.close()


async def test_a_cancel_that_nobody_confirms_is_refused(tmp_path: Path) -> None:
    with FalDouble(Order("hang", obeys="never")) as fal:
        client = RoutedClient(router_of(policy_of(tmp_path / "store", {"fal": backend_table(fal)})))
        job = await client.submit(REQUEST, timeout_s=30)
        with pytest.raises(CancelRefused):
            await client.cancel(job, timeout_s=0.3)
        await client.close()


def test_the_client_alone_loads_nothing_of_the_router() -> None:
    code = "import sys, videogen_client; sys.exit(bool({'sqlalchemy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd="client/src", check=False).returncode == 0
