"""`benchmarks/on_gpu`: every stage at a tiny size on the CPU, by the script that runs on the GPU machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What is installed on the GPU machine beside torch: what prepare.sh says, and what that needs itself.
INSTALLED = {
    *("accelerate", "huggingface-hub", "peft", "pillow", "psutil", "requests", "safetensors", "torch", "transformers"),
    *("annotated-doc", "anyio", "certifi", "charset-normalizer", "click", "colorama", "cuda-bindings"),
    *("cuda-pathfinder", "filelock", "fsspec", "h11"),
    *("hf-xet", "idna", "iniconfig", "jinja2", "markupsafe", "mpmath", "networkx", "numpy", "packaging", "pluggy"),
    *(
        "prometheus-client",
        "protobuf",
        "pygments",
        "pytest",
        "python-dateutil",
        "pyyaml",
        "regex",
        "rich",
        "setuptools",
    ),
    *("shellingham", "six", "sympy", "tokenizers", "tqdm", "triton", "typer", "typing-extensions", "urllib3"),
}
IMPORTED = """
import importlib.metadata, pathlib, sys
import benchmarks.on_gpu.measure
for file in pathlib.Path("tests/gpu").glob("test_*.py"):
    __import__(f"tests.gpu.{file.stem}")
found = importlib.metadata.packages_distributions()
print(*{each for name in {name.split(".")[0] for name in sys.modules} for each in found.get(name, ())})
"""
STAGES = (
    "facts,race,job480,attention,decode,decode_profile,pass,linear,turbo480,profile,weights,pinned,fp8,stock480,swap48"
)


@pytest.mark.slow
def test_all_that_is_imported_is_packed_or_installed_there() -> None:
    """A measurement on a GPU was lost to a package that nobody had packed."""
    packed = re.findall(r"\$\(pin ([a-z0-9-]+)", Path(ROOT / "benchmarks/on_gpu/prepare.sh").read_text())
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name.lower().replace("_", "-") for name in done.stdout.split()}
    # Taken where they are found, by packages that do without.
    optional = {
        "backports.zstd",
        "bcrypt",
        "brotli",
        "cffi",
        "chardet",
        "coverage",  # of `make coverage`
        "cryptography",
        *("google-auth", "google-genai", "googleapis-common-protos"),  # all are of the package `google`
        "sniffio",
    }
    assert (
        found - INSTALLED - {*packed, "imageio-ffmpeg", "fa3-fwd", "pytest-asyncio", "hypothesis", "sortedcontainers"}
        <= optional
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_but_compile_runs_at_a_tiny_size(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TINY": "1",
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "PARTS": "main",
        "MAIN": STAGES,
        "MAIN_SECONDS": "800",
        "SECONDS_IN_ALL": "850",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = ["bash", "benchmarks/on_gpu/measure.sh", str(tmp_path / "nothing carried")]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line["what"] in ("FAILED", "left out")], done.stdout
    assert [line["stage"] for line in lines if line["what"] == "stage, s"] == STAGES.split(",")
    assert "| job480 | step, s (median; all) |" in done.stdout
