"""The C library's heap: what a job freed goes back to the machine.

glibc keeps freed memory in one heap a thread. Encoding, uploads and tensors of ever different sizes leave holes in
them, and a worker that runs for days grows though nothing is leaked (docs/reliability.md has figures).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl and macOS have none, and need none
        return None
    return trim


_trim = _find_trim()


def give_back() -> bool:
    """Return free memory to the machine; False where the C library has no way to. Milliseconds; releases the GIL."""
    if _trim is None:
        return False
    _trim(0)
    return True
