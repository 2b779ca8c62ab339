"""The facade in front of the real handler.py on the demo model, as other programs see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.kits.facade_kit import FacadeServer
from videogen_client import Timing
from videogen_client.page.local_worker import LocalWorker

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def facade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacadeServer]:
    home = tmp_path_factory.mktemp("facade")
    command = [sys.executable, str(ROOT / "handler.py")]
    with (
        LocalWorker(command, home / "worker", {"PYTHONPATH": str(ROOT), "MODEL_PROFILE": "demo"}) as worker,
        FacadeServer(home, worker_url=worker.url, timing=Timing()) as server,
    ):
        yield server


def test_openais_client_makes_a_video(facade: FacadeServer) -> None:
    with openai.OpenAI(base_url=f"{facade.url}/v1", api_key="key-a", max_retries=0) as client:
        video = client.videos.create_and_poll(
            prompt="A red ball moves left over rippling water",
            size="256x256",  # type: ignore[arg-type]
            seconds="1",  # type: ignore[arg-type]
            poll_interval_ms=100,
            extra_body={"num_inference_steps": 1, "fps": 8, "preview": "strip", "seed": 3},
        )
        assert (video.status, video.size, video.seconds, video.error) == ("completed", "256x256", "1.125", None)
        files = {name: client.videos.download_content(video.id, variant=name) for name in ("video", "thumbnail")}
        assert files["video"].content[4:8] == b"ftyp"
        assert files["thumbnail"].content[:3] == b"\xff\xd8\xff"
        failed = client.videos.create_and_poll(prompt="a", size="64x64", poll_interval_ms=100)  # type: ignore[arg-type]
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "invalid_request")
        assert "width" in failed.error.message


SPEAKS = """
import sys, time, litellm
how = {"api_base": sys.argv[1], "api_key": "key-a", "custom_llm_provider": "openai"}
fields = {"num_inference_steps": 1, "fps": 8, "seed": 4}
video = litellm.video_generation(
    model="wan2.2-a14b", prompt="A blue box moves up", size="256x256", seconds="1", extra_body=fields, **how
)
while (state := litellm.video_status(video_id=video.id, **how)).status not in ("completed", "failed"):
    time.sleep(0.1)
content = litellm.video_content(video_id=video.id, **how)
print(state.status, content[4:8].decode())
"""


def test_litellm_makes_a_video(facade: FacadeServer) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS, f"{facade.url}/v1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "completed ftyp\n", done.stderr
