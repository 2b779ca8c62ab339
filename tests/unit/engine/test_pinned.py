"""Host memory for weights in slabs: the bytes of the weights and hardly more, whatever shapes they have."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from benchmarks import memory_on_meta
from benchmarks.gpu_models import UMT5_XXL
from worker.engine.models import pinned
from worker.request.plan import SIZES
from worker.request.plan.peak import expert_bytes, text_encoder_bytes


def real_shapes(part: str) -> list[torch.Tensor]:
    """The tensors of a part of A14B, without memory."""
    from transformers import UMT5Config, UMT5EncoderModel

    size = SIZES["t2v"]
    with torch.device("meta"):
        if part == "text encoder":
            return [each.to(torch.bfloat16) for each in UMT5EncoderModel(UMT5Config(**UMT5_XXL)).parameters()]
        expert = memory_on_meta.expert(size, layers=size.layers)
        kept = set(expert._keep_in_fp32_modules)
        return [
            each if not kept.isdisjoint(name.split(".")) else each.to(torch.bfloat16)
            for name, each in expert.named_parameters()
        ]


@pytest.mark.parametrize("part", ["expert", "text encoder"])
def test_the_weights_of_a14b_take_what_the_plan_counts(part: str) -> None:
    taken: list[int] = []

    def count(nbytes: int) -> torch.Tensor:
        taken.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")

    tensors = real_shapes(part)
    planned = (expert_bytes if part == "expert" else text_encoder_bytes)(SIZES["t2v"], "bf16")
    found, slabs = pinned.empty(tensors, count)
    assert [each.shape for each in found] == [each.shape for each in tensors]
    assert 1.0 <= sum(taken) / planned <= 1.03
    assert len(slabs) < 40
    assert max(taken) <= max(pinned.SLAB_BYTES, *(each.nbytes for each in tensors))


def test_tensors_in_slabs_keep_shape_type_and_layout_and_none_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "SLAB_BYTES", 1000)
    likes = [
        torch.randn(7, 5),
        torch.randn(3).to(torch.float8_e4m3fn),
        torch.randn(()).to(torch.bfloat16),
        torch.empty(0, 4),
        torch.randn(4, 3, 2, 3, 3).to(memory_format=torch.channels_last_3d),
        torch.randn(40, 40),
        torch.randn(6, 4).t()[::2],
    ]
    found, slabs = pinned.empty(likes)
    assert len(slabs) == 4
    for one, like in zip(found, likes, strict=True):
        one.copy_(like)
    for one, like in zip(found, likes, strict=True):
        assert (one.shape, one.dtype) == (like.shape, like.dtype)
        assert one.stride() == torch.empty_like(like).stride()
        assert one.data_ptr() % 64 == 0 or one.numel() == 0
        assert torch.equal(one.float(), like.float())


def test_a_slab_goes_with_its_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    slabs: list[weakref.ref[object]] = []
    make = pinned._Slab

    def noted(nbytes: int) -> pinned._Slab:
        slab = make(nbytes)
        slabs.append(weakref.ref(slab))
        return slab

    monkeypatch.setattr(pinned, "_Slab", noted)
    (one, other), flats = pinned.empty([torch.zeros(10), torch.zeros(20)])
    del flats, one
    gc.collect()
    assert slabs[0]() is not None
    other.fill_(1)
    del other
    gc.collect()
    assert slabs[0]() is None


class FakeRuntime:
    """The two calls of CUDA's runtime."""

    def __init__(self, result: int) -> None:
        self.result = result
        self.calls: list[tuple[str, int]] = []

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        self.calls.append(("lock", address))
        return self.result

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unlock", address))
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    from contextlib import nullcontext

    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(pinned, "_refused", [])
    return torch.device("cuda", 0)


def test_a_locked_slab_is_unlocked_before_it_is_unmapped(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    tensors, slabs = pinned.empty([torch.zeros(10)])
    address = slabs[0].data_ptr()
    pinned.lock(slabs, gpu)
    assert runtime.calls == [("lock", address)]
    del tensors, slabs
    gc.collect()
    assert runtime.calls == [("lock", address), ("unlock", address)]


def test_where_memory_cannot_be_locked_the_log_says_so_once_and_nothing_is_unlocked(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = FakeRuntime(2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    for _ in range(2):
        _, slabs = pinned.empty([torch.empty(10)])
        pinned.lock(slabs, gpu)
        del slabs, _
    gc.collect()
    assert [name for name, _ in runtime.calls] == ["lock"]
    assert caplog.text.count("cannot be page-locked") == 1
    assert not pinned.is_wanted(torch.empty(3), gpu)
