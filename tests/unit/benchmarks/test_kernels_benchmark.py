"""The count of what a block moves: the fused one moves a fifth."""

from __future__ import annotations

import pytest

from benchmarks import kernels


def test_the_fused_block_moves_a_fifth_of_the_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    kernels.main([])
    printed = capsys.readouterr().out
    assert "480p, a block, fused: 8.2 GB moved, 49 B an element, 10 kernels" in printed
    assert "480p, a block, fused, fp8 by torch: 19.9 GB moved, 119 B an element, 66 kernels" in printed
    assert "480p, a block, fused, fp8: 10.3 GB moved, 61 B an element, 16 kernels" in printed
    found = kernels.count(kernels.TOKENS["480p"])
    assert found["fused"].bytes < found["Diffusers"].bytes / 5
