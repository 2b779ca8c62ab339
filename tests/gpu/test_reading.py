"""Weights are whole when they are read while the device is busy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.weights.tensors import reading
from worker.weights.tensors.headers import stored_tensors
from worker.weights.tensors.reading import Target

SIZE = 6144
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("stored_as", [torch.bfloat16, torch.float32])
def test_memory_that_queued_kernels_still_write_is_not_read_into_before_them(
    tmp_path: Path, stored_as: torch.dtype
) -> None:
    wanted = torch.randn(SIZE, SIZE).to(stored_as)
    file = tmp_path / "weights.safetensors"
    save_file({"weight": wanted}, file)
    (stored,) = stored_tensors(file)
    busy = torch.randn(SIZE, SIZE, device=GPU).to(torch.bfloat16)
    reading.read([Target(stored, torch.empty_like(busy))])  # kernels, streams and staging blocks are loaded now
    torch.cuda.synchronize()
    reused = 0
    for _ in range(4):
        places = set()
        for _ in range(600):  # half a second of work behind the CPU
            product = busy @ busy
            places.add(product.data_ptr())
            del product
        target = torch.empty_like(busy)
        reused += target.data_ptr() in places
        reading.read([Target(stored, target)])
        assert torch.equal(target.cpu(), wanted.to(torch.bfloat16))
        del target
    assert reused == 4, "the test is only good where the target has the memory of the products"
