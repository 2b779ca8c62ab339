"""`benchmarks.step_cache` at a tiny size: it runs, and its figures mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.step_cache import MODES, main, psnr_db, ssim

TINY = ("--width", "64", "--height", "64", "--frames", "5", "--steps", "8", "--videos", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--random", "--layers", "3"), {"psnr_db", "ssim"}),
        (("--full-size", "--layers", "2", "--heads", "2"), {"latent_error"}),
    ],
)
def test_it_writes_a_row_for_each_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], kinds: set[str]
) -> None:
    main([*options, *TINY, "--output", str(tmp_path)])
    (file,) = tmp_path.glob("step-cache*-????-??-??.json")
    result = json.loads(file.read_text())
    assert [row["mode"] for row in result["rows"]] == list(MODES)
    exact = result["rows"][0]
    assert exact["share"] == 0
    assert exact["errors"] in ({"psnr_db": None, "ssim": 1.0}, {"latent_error": 0.0})
    for row in result["rows"]:
        assert set(row["errors"]) == kinds
        assert row["seconds"] > 0
        assert (row["share"] > 0) == (row["errors"] != exact["errors"])
    said = capsys.readouterr().out
    assert all(f"| {mode} |" in said for mode in MODES)


def test_psnr_and_ssim_fall_as_frames_differ() -> None:
    generator = np.random.default_rng(0)
    exact = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert psnr_db(exact, exact) == float("inf")
    assert ssim(exact, exact) == pytest.approx(1.0)
    one_level = exact ^ 1
    assert psnr_db(exact, one_level) == pytest.approx(20 * np.log10(255))
    noisy = np.clip(exact + generator.normal(0, 20, exact.shape), 0, 255).astype(np.uint8)
    noisier = np.clip(exact + generator.normal(0, 60, exact.shape), 0, 255).astype(np.uint8)
    assert psnr_db(exact, one_level) > psnr_db(exact, noisy) > psnr_db(exact, noisier)
    assert 1 > ssim(exact, one_level) > ssim(exact, noisy) > ssim(exact, noisier) > 0
    assert ssim(exact, np.full_like(exact, 127)) < 0.05
