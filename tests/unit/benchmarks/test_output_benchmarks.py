"""The benchmarks of the output files run, and hold what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import encode_codecs, interpolate
from worker.media import formats


@pytest.mark.slow  # its runs are by hand
def test_the_interpolation_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interpolate.main(["--quick", "--output", str(tmp_path)]) == 0
    assert "beats repeating and blending: yes" in capsys.readouterr().out
    (written,) = tmp_path.glob("interpolate-*.json")
    found = json.loads(written.read_text())
    assert {row["clip"] for row in found["likeness"]} > {"textured pan", "mean"}
    assert found["costs"][0]["cpu_seconds"] > 0


@pytest.mark.slow  # the next test encodes with the same code
def test_the_codec_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.encode", "--codecs", "--quick", "--output", str(tmp_path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert all(f"| `{codec}` |" in answer.stdout for codec in formats.CODECS)
    (written,) = tmp_path.glob("encode-codecs-*.json")
    assert len(json.loads(written.read_text())["runs"]) == 2 * len(formats.CODECS)


@pytest.mark.slow
def test_every_codec_is_as_like_as_h264_at_the_same_quality() -> None:
    """On the clip that is easy to compress, short and small; the benchmark holds both clips at full size."""
    source = encode_codecs.clips(quick=True)["scene"]
    for quality in encode_codecs.QUALITIES:
        exact = encode_codecs.measure("scene", source, "h264", quality).ssim
        for codec in encode_codecs.HELD_ALIKE:
            assert encode_codecs.measure("scene", source, codec, quality).ssim > exact - 0.004, (codec, quality)
