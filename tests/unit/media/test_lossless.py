"""Frames come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worker.media import lossless


def test_frames_come_back_bit_for_bit(tmp_path: Path) -> None:
    frames = list(np.random.default_rng(1).integers(0, 256, (5, 6, 8, 3), np.uint8))
    assert lossless.write(iter(frames), tmp_path / "a") == 5
    assert np.array_equal(np.stack(list(lossless.read(tmp_path / "a", 8, 6))), np.stack(frames))


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    lossless.write(np.random.default_rng(1).integers(0, 256, (5, 6, 8, 3), np.uint8), tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-20])
    with pytest.raises(EOFError):
        list(lossless.read(tmp_path / "a", 8, 6))
