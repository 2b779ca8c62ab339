"""Weights from the volume to where they are used: many readers, large blocks, bounded memory.

A file is not mapped but read, each block straight into the memory of its tensors. Where the bytes must change on the
way (another precision, another device) they pass through a staging block, two for each reader, pinned where the target
is a GPU, so that a block is filled while the one before is copied. See docs/decisions/0014-reading-weights.md.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from worker.weights.tensors.headers import StoredTensor, unusable

# The kernel takes at most 1,024 buffers a call.
_MAX_PIECES = 512
# Staged tensors of every type begin at a multiple of this.
_ALIGNMENT = 64
# Measured with benchmarks/load.py; a volume on the network gains from more requests under way than a local disk does.
# A staging block has 32 MiB: torch rounds pinned memory up to a power of two.
BLOCK_BYTES = 32 * 1024 * 1024 - _MAX_PIECES * _ALIGNMENT
READERS = 8


@dataclass(frozen=True, slots=True)
class Target:
    """A stored tensor and the contiguous tensor of the same shape that receives it, of any type and on any device."""

    stored: StoredTensor
    tensor: torch.Tensor


class PositionalRead(Protocol):
    """`os.preadv`, or what slows it down for a measurement."""

    def __call__(self, descriptor: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...


def read(
    targets: Sequence[Target],
    *,
    check: Callable[[], None] = lambda: None,
    on_bytes: Callable[[int], None] = lambda _: None,
    readers: int = READERS,
    block_bytes: int = BLOCK_BYTES,
    preadv: PositionalRead = os.preadv,
) -> None:
    """Fill every target, in the order given; when this returns, all of it is there, on a GPU too.

    `check` is called before each block and ends the reading by raising; `on_bytes` gets the bytes of each block
    that is there. Both are called in the readers' threads. The values are those of `stored.load().to(...)`, bit for
    bit. Raises ModelUnavailable for a file that is missing or ends early, OSError where the volume fails, and what
    `check` raised.
    """
    with ExitStack() as stack:
        files = _Files(stack, preadv)
        waiting = deque(_blocks(targets, block_bytes))
        streams = _streams({target.tensor.device for target in targets if target.tensor.is_cuda})
        failed = threading.Event()

        def work() -> None:
            lane = _Lane(streams, block_bytes)
            try:
                while (block := None if failed.is_set() else _next(waiting)) is not None:
                    check()
                    lane.fill(block, files)
                    on_bytes(block.nbytes)
            except BaseException:
                failed.set()
                raise
            finally:
                lane.drain()

        count = max(1, min(readers, len(waiting)))
        with ThreadPoolExecutor(count, thread_name_prefix="weights-reader") as pool:
            running = [pool.submit(copy_context().run, work) for _ in range(count)]
        for each in running:
            each.result()


def _streams(devices: Iterable[torch.device], cuda: Any = torch.cuda) -> dict[torch.device, torch.cuda.Stream]:
    """A stream for the copies to each device, behind all that is queued on the caller's stream there.

    The allocator hands memory that was just freed to a target at once, though kernels that use it may still be queued:
    copies that did not wait for them would be overwritten by their results.
    """
    streams = {device: cuda.Stream(device) for device in devices}
    for device, stream in streams.items():
        stream.wait_stream(cuda.current_stream(device))
    return streams


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements [begin, end) of a target."""

    target: Target
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return (self.end - self.begin) * self.target.stored.dtype.itemsize

    @property
    def destination(self) -> torch.Tensor:
        """The flat part of the target that this piece fills."""
        return self.target.tensor.view(-1)[self.begin : self.end]

    @property
    def is_direct(self) -> bool:
        return not self.target.tensor.is_cuda and self.target.tensor.dtype == self.target.stored.dtype


@dataclass(frozen=True, slots=True)
class _Block:
    """Pieces that follow one another in one file."""

    path: Path
    offset: int
    nbytes: int
    pieces: tuple[_Piece, ...]


def _blocks(targets: Sequence[Target], block_bytes: int) -> Iterator[_Block]:
    pieces: list[_Piece] = []
    offset = end = 0
    path: Path | None = None
    for target in targets:
        stored = target.stored
        for piece in _pieces(target, block_bytes):
            begin = stored.offset + piece.begin * stored.dtype.itemsize
            follows = path == stored.path and begin == end
            if pieces and not (follows and end - offset + piece.nbytes <= block_bytes and len(pieces) < _MAX_PIECES):
                yield _Block(pieces[0].target.stored.path, offset, end - offset, tuple(pieces))
                pieces = []
            if not pieces:
                path, offset = stored.path, begin
            pieces.append(piece)
            end = begin + piece.nbytes
    if pieces:
        yield _Block(pieces[0].target.stored.path, offset, end - offset, tuple(pieces))


def _next(waiting: deque[_Block]) -> _Block | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _pieces(target: Target, block_bytes: int) -> Iterator[_Piece]:
    step = max(1, block_bytes // target.stored.dtype.itemsize)
    for begin in range(0, target.stored.elements, step):
        yield _Piece(target, begin, min(begin + step, target.stored.elements))


class _Files:
    """The files of a reading, each opened once."""

    def __init__(self, stack: ExitStack, preadv: PositionalRead) -> None:
        self._stack = stack
        self._preadv = preadv
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def fill(self, block: _Block, buffers: list[memoryview]) -> None:
        """Read the bytes of `block` into `buffers`, which have its size together."""
        descriptor, offset = self._descriptor(block.path), block.offset
        while buffers:
            count = self._preadv(descriptor, buffers, offset)
            if count == 0:
                raise unusable(block.path, f"it ends within the tensor {block.pieces[-1].target.stored.key}")
            offset += count
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if count:
                buffers[0] = buffers[0][count:]

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as failure:
                    raise unusable(path, "it is missing") from failure
                self._stack.callback(os.close, descriptor)
                self._descriptors[path] = descriptor
            return self._descriptors[path]


class _Lane:
    """What one reader has for itself: two staging blocks, and the copies that are under way from them."""

    def __init__(self, streams: dict[torch.device, torch.cuda.Stream], block_bytes: int) -> None:
        self._streams = streams
        self._nbytes = block_bytes + _MAX_PIECES * _ALIGNMENT
        self._blocks: list[torch.Tensor | None] = [None, None]
        self._copied: list[list[torch.cuda.Event]] = [[], []]
        self._turn = 0

    def fill(self, block: _Block, files: _Files) -> None:
        buffers: list[memoryview] = []
        staged: list[tuple[_Piece, torch.Tensor]] = []
        at = 0
        for piece in block.pieces:
            if piece.is_direct:
                buffers.append(_bytes(piece.destination))
                continue
            slot = self._staging()[at : at + piece.nbytes]
            staged.append((piece, slot.view(piece.target.stored.dtype)))
            buffers.append(_bytes(slot))
            at += -(-piece.nbytes // _ALIGNMENT) * _ALIGNMENT
        files.fill(block, buffers)
        for piece, source in staged:
            self._copy(piece, source)
        if staged:
            self._turn = 1 - self._turn

    def drain(self) -> None:
        """Wait for the copies that are under way."""
        for event in (*self._copied[0], *self._copied[1]):
            event.synchronize()

    def _staging(self) -> torch.Tensor:
        """The staging block whose turn it is, once nothing is copied from it any more."""
        for event in self._copied[self._turn]:
            event.synchronize()
        self._copied[self._turn].clear()
        block = self._blocks[self._turn]
        if block is None:
            block = torch.empty(self._nbytes, dtype=torch.uint8, pin_memory=bool(self._streams))
            self._blocks[self._turn] = block
        return block

    def _copy(self, piece: _Piece, source: torch.Tensor) -> None:
        destination = piece.destination
        stream = self._streams.get(destination.device)
        guard: Any = nullcontext() if stream is None else torch.cuda.stream(stream)
        with torch.no_grad(), guard:
            if source.dtype != destination.dtype:
                # As it is stored first: a copy between devices that also converts would not be asynchronous.
                source = source.to(destination.device, non_blocking=True)
            destination.copy_(source, non_blocking=True)
            if stream is not None:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
                self._copied[self._turn].append(event)


def _bytes(flat: torch.Tensor) -> memoryview:
    """The memory of a flat, contiguous tensor on the CPU."""
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view
