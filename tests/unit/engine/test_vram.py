from __future__ import annotations

import pytest
import torch

from worker.engine import device


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a CPU answers")
def test_on_a_cpu_nothing_is_measured() -> None:
    device.reset_peak()
    assert device.peak_bytes() is None


@pytest.mark.gpu
def test_the_peak_is_that_since_the_reset() -> None:
    megabyte = 2**20
    big = torch.empty(64 * megabyte, dtype=torch.uint8, device="cuda")
    device.reset_peak()
    held = device.peak_bytes()
    assert held is not None
    del big
    more = torch.empty(16 * megabyte, dtype=torch.uint8, device="cuda")
    assert device.peak_bytes() == held  # what was freed made room for less
    device.reset_peak()
    assert device.peak_bytes() == held - 48 * megabyte
    del more
