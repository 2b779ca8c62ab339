"""The examples that make a video, run against RunPod's API on loopback; and the code of docs/client.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID
from tests.kits.paid_endpoint import PaidEndpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"generate.py": [sys.executable], "generate.mjs": ["node"], "curl.sh": ["sh"]}
NEEDS = {"generate.py": (), "generate.mjs": ("node",), "curl.sh": ("curl", "jq", "sha256sum")}
PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")


def run(command: list[str], endpoint: PaidEndpoint, home: Path) -> subprocess.CompletedProcess[str]:
    endpoint.on_the_way = []  # a look takes two seconds
    variables = {"ENDPOINT_ID": ENDPOINT_ID, "RUNPOD_API_KEY": API_KEY, "RUNPOD_URL": endpoint.url}
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT / "client" / "src"), "no_proxy": "*"}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_makes_one_video_and_fetches_it(name: str, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    if any(shutil.which(tool) is None for tool in NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} are not there")
    done = run([*EXAMPLES[name], str(ROOT / "examples" / name)], endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    ((job_id, count),) = endpoint.paid.items()
    assert count == 1
    assert (tmp_path / "fox.mp4").read_bytes() == endpoint.files[f"{job_id}.mp4"]


@pytest.mark.parametrize("code", re.findall(r"```python run\n(.*?)```", PAGE, re.DOTALL))
def test_the_code_of_the_page_runs(code: str, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    code = code.replace('"your-endpoint-id"', f'"{ENDPOINT_ID}", base_url="{endpoint.url}"')
    done = run([sys.executable, "-c", code], endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(endpoint.paid.values()) == [1]


def test_the_page_names_every_error_and_call() -> None:
    source = (ROOT / "client" / "src" / "videogen_client" / "errors.py").read_text(encoding="utf-8")
    calls = (ROOT / "client" / "src" / "videogen_client" / "client.py").read_text(encoding="utf-8")
    names = re.findall(r"^class (\w+)\(", source, re.MULTILINE) + re.findall(r"    def ([a-z]\w+)\(\s*self\b", calls)
    assert len(names) > 18
    assert [name for name in names if f"`{name}" not in PAGE] == []
