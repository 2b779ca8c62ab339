"""Freed memory goes back to the machine."""

from __future__ import annotations

import ctypes
import multiprocessing
from multiprocessing.connection import Connection

import psutil
import pytest

from worker.jobs import tidy


def free_every_second(told: Connection) -> None:
    """Sends what `give_back_memory` returned, and how many bytes it freed.

    Blocks below the threshold for maps of their own come from the heap; every second one stays, so that only the holes
    between are free and the heap's end cannot move.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    tidy.give_back_memory()  # what the tests before have left
    blocks = [libc.malloc(100_000) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[::2]:
        libc.free(block)
    before = psutil.Process().memory_info().rss
    gives = tidy.give_back_memory()
    told.send((gives, before - psutil.Process().memory_info().rss))


def test_holes_in_the_heap_go_back_to_the_machine() -> None:
    """In a process of its own: the threads of this one would blur the figure."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=free_every_second, args=(there,))
    process.start()
    there.close()
    gives, freed_bytes = here.recv()
    process.join()
    here.close()
    assert gives is True
    assert freed_bytes > 80_000_000  # of 100 MB that were free


def test_a_c_library_without_trim_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "_trim", None)
    assert tidy.give_back_memory() is False
