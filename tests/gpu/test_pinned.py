"""Host memory in slabs is locked by the driver, holds the same bits, and is given back."""

from __future__ import annotations

import gc

import torch

from worker.engine.models import pinned

GPU = torch.device("cuda", 0)


def test_copies_are_locked_exact_and_given_back() -> None:
    given = [torch.randn(13824, 512, device=GPU).to(torch.bfloat16) for _ in range(24)]
    given.append(torch.randn(96, 96, 3, 3, 3, device=GPU).to(memory_format=torch.channels_last_3d))
    kept = pinned.copies(given, GPU)
    assert not pinned._refused
    assert all(each.is_pinned() for each in kept)
    assert all(each.pin_memory() is each for each in kept)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(given, kept, strict=True))
    assert kept[-1].stride() == given[-1].stride()
    assert all(torch.equal(each.to(GPU, non_blocking=True), one) for each, one in zip(kept, given, strict=True))
    assert pinned._locked
    del kept
    gc.collect()
    assert not pinned._locked


def test_a_slab_goes_only_after_the_copies_from_it() -> None:
    source = torch.arange(200_000_000, dtype=torch.int32, device=GPU)
    (kept,) = pinned.copies([source], GPU)
    back = kept.to(GPU, non_blocking=True)
    del kept
    assert torch.equal(back, source)
