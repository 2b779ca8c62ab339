"""`benchmarks.vae` at a tiny size: it runs, and holds the encodes to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.vae import main
from worker.engine.techniques import image_encode

TINY = ["--frames", "17", "--pixels", "32", "--repeats", "1", "--threads", str(torch.get_num_threads())]


@pytest.mark.slow
def test_it_prints_and_writes_a_line_for_each_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--output", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("17 frames of 32 x 32 on cpu")
    assert len(lines) == 1 + 2 * (2 + 3) + 2
    assert sum("layer passes 35 and 33; same bits" in line for line in lines) == 1
    assert sum("layer passes 65 and 64; same bits" in line for line in lines) == 1
    assert sum("99 dB" in line for line in lines) == 2
    assert sum("by torch's convolutions" in line for line in lines) == 2
    (written,) = tmp_path.glob("vae-*.json")
    medians = json.loads(written.read_text(encoding="utf-8"))["medians"]
    assert [f"{name}: {line}" for name, told in medians.items() for line in told] == lines[1:]


def test_an_encode_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = image_encode.encode
    monkeypatch.setattr(image_encode, "encode", lambda *arguments: encode(*arguments) + 1e-6)
    with pytest.raises(AssertionError, match="differ"):
        main([*TINY, "--output", str(tmp_path)])
