"""The most GPU memory that was in use at once, as PyTorch's allocator counts it; None on a CPU."""

from __future__ import annotations

import torch


def reset() -> None:
    """Count anew from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """The most bytes in tensors since `reset`. What the driver, its libraries and the cache take comes on top."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
