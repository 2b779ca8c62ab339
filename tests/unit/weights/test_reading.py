"""Reading weights in blocks: the same bits whatever the blocks, every failure typed, a stop between two blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.kits.slow import slow
from worker.base.errors import Cancelled, ModelUnavailable
from worker.base.log import current_job_id, job_scope
from worker.weights.tensors import reading
from worker.weights.tensors.headers import stored_tensors
from worker.weights.tensors.reading import Target, read

SHAPES = {"a": (37, 11), "b": (3,), "c": (), "d": (0, 5), "e": (24, 24), "f": (1,)}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with tensors of several types; those of one byte leave the ones behind them on odd offsets."""
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    generator = torch.Generator().manual_seed(0)
    for number, path in enumerate(paths):
        types = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8)
        save_file(
            {
                f"{number}.{name}.{str(dtype)[6:]}": (torch.randn(shape, generator=generator) * 9).to(dtype)
                for name, shape in SHAPES.items()
                for dtype in types
            },
            path,
        )
    return paths


def targets_of(files: Sequence[Path], dtype: torch.dtype | None = None) -> list[Target]:
    stored = [tensor for path in files for tensor in stored_tensors(path)]
    return [Target(tensor, torch.empty(tensor.shape, dtype=dtype or tensor.dtype)) for tensor in stored]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("block_bytes", [7, 1000, *slow(1, 64, 1 << 20)])
@pytest.mark.parametrize("readers", [1, 8])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, *slow(torch.float32)])
def test_the_bits_do_not_depend_on_blocks_and_readers(
    files: list[Path], block_bytes: int, readers: int, dtype: torch.dtype | None
) -> None:
    if block_bytes == 1 and readers == 8:
        files = files[:1]
    targets = targets_of(files, dtype)
    told: list[int] = []
    read(targets, readers=readers, block_bytes=block_bytes, on_bytes=told.append)
    for target in targets:
        assert same_bits(target.tensor, target.stored.load().to(target.tensor.dtype)), target.stored.key
    assert sum(told) == sum(target.stored.nbytes for target in targets)
    assert max(told) <= max(block_bytes, 4)


def test_the_readers_work_within_the_job_that_asked(files: list[Path]) -> None:
    """What they log carries its id."""
    jobs: list[tuple[str, str | None]] = []

    def note() -> None:
        jobs.append((threading.current_thread().name.partition("_")[0], current_job_id()))

    with job_scope("job-1"):
        read(targets_of(files), check=note, block_bytes=1000)
    assert set(jobs) == {("weights-reader", "job-1")}


def test_a_read_that_comes_in_small_pieces_is_gone_on_with(files: list[Path]) -> None:
    def stingy(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(descriptor, [buffers[0][:3]], offset)

    targets = targets_of(files)
    read(targets, preadv=stingy, block_bytes=100)
    assert all(same_bits(target.tensor, target.stored.load()) for target in targets)


def test_many_small_tensors_are_more_than_one_call(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    save_file({f"t{number:04d}": torch.tensor([float(number)]) for number in range(1200)}, path)
    targets = targets_of([path])
    read(targets)
    assert [float(target.tensor) for target in targets] == [float(number) for number in range(1200)]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_file_that_was_cut_short_after_its_header_was_read(files: list[Path], dtype: torch.dtype | None) -> None:
    targets = targets_of(files, dtype)
    os.truncate(files[1], files[1].stat().st_size - 1)
    with pytest.raises(ModelUnavailable, match="it ends within the tensor"):
        read(targets, block_bytes=512)


def test_a_file_that_is_gone(files: list[Path]) -> None:
    targets = targets_of(files)
    files[1].unlink()
    with pytest.raises(ModelUnavailable, match="it is missing"):
        read(targets)


def test_an_error_of_the_volume_passes_through_and_ends_the_reading(files: list[Path]) -> None:
    calls: list[int] = []

    def failing(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        read(targets_of(files), preadv=failing, block_bytes=64, readers=4)
    assert len(calls) <= 4


def test_a_stop_ends_the_reading_before_the_next_block(files: list[Path]) -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled

    done: list[int] = []
    with pytest.raises(Cancelled):
        read(targets_of(files), check=check, on_bytes=done.append, block_bytes=64, readers=1)
    assert len(done) == 2
    assert len(asked) == 3


def test_nothing_is_left_behind(files: list[Path]) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = descriptors(), threading.active_count()
    read(targets_of(files))
    with pytest.raises(Cancelled):
        read(targets_of(files), check=_cancel)
    assert descriptors() == before
    assert threading.active_count() == threads


def _cancel() -> None:
    raise Cancelled


def test_staging_is_bounded(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is converted, a reader has two blocks at most."""
    staged: list[int] = []
    original = torch.empty

    def counted(*arguments: object, **named: object) -> torch.Tensor:
        tensor = original(*arguments, **named)  # type: ignore[call-overload]
        if tensor.dtype == torch.uint8:
            staged.append(tensor.nbytes)
        return tensor  # type: ignore[no-any-return]

    targets = targets_of(files, torch.float16)
    monkeypatch.setattr(torch, "empty", counted)
    read(targets, readers=2, block_bytes=256)
    assert 0 < len(staged) <= 4
    assert max(staged) <= 256 + reading._MAX_PIECES * 64


class FakeStream:
    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def wait_stream(self, other: FakeStream) -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


class FakeCuda:
    """The two calls of torch.cuda that the streams of a reading are made with."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def Stream(self, device: torch.device) -> FakeStream:
        self.calls.append(f"made for {device}")
        return FakeStream(self.calls, f"copies to {device}")

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self.calls, f"the caller's on {device}")


def test_copies_to_a_device_wait_for_what_the_caller_has_queued_there() -> None:
    """The memory of a target may be in use by kernels that were queued before it was freed."""
    cuda = FakeCuda()
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    streams = reading._streams(devices, cuda)
    assert list(streams) == devices
    assert cuda.calls == [
        "made for cuda:0",
        "made for cuda:1",
        "copies to cuda:0 waits for the caller's on cuda:0",
        "copies to cuda:1 waits for the caller's on cuda:1",
    ]
