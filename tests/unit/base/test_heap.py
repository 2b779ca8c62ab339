"""Freed memory goes back to the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.jobs import tidy

# Blocks below the threshold for maps of their own come from the heap; every second one stays, so that only the holes
# between are free and the heap's end cannot move. In a process of its own: what else runs here would blur the figure.
HOLES = """
import ctypes, psutil
from worker.jobs import tidy
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[::2]:
    libc.free(block)
before = psutil.Process().memory_info().rss
gives = tidy.give_back_memory()
print(gives, before - psutil.Process().memory_info().rss)
"""


def test_holes_in_the_heap_go_back_to_the_machine() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    gives, freed = found.stdout.split()
    assert gives == "True"
    assert int(freed) > 80_000_000  # of 100 MB that were free


def test_a_c_library_without_trim_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "_trim", None)
    assert tidy.give_back_memory() is False
