"""The process group of a crew: how its processes find each other, on CUDA and, for tests, on the CPU."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # not in the stubs
HOST = "127.0.0.1"
# No shared step takes as long: whoever waits longer waits for a process that has ended.
STEP_TIMEOUT = timedelta(minutes=10)
JOIN_TIMEOUT = timedelta(minutes=3)


def open_store() -> Any:
    """The leader's store, on a free port of the loopback interface."""
    return _TCPStore(HOST, 0, is_master=True, timeout=JOIN_TIMEOUT, wait_for_workers=False)


def reach_store(port: int) -> Any:
    return _TCPStore(HOST, port, is_master=False, timeout=JOIN_TIMEOUT)


def join(store: Any, rank: int, size: int, device: torch.device) -> None:
    """Become process `rank` of `size`. Tensors on the GPU travel by NCCL, flags by gloo."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Diffusers reads from this text where sizes may be gathered: "gloo" alone would be the GPU wherever torch is built
    # for one.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STEP_TIMEOUT)


def share_flag(raised: bool) -> bool:
    """The leader's `raised`, in every process. Blocks until all have called this."""
    flag = torch.tensor([int(raised)])
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def abort() -> None:
    """End collectives of this process that wait for a process that has ended: gloo notices by itself, NCCL does not."""
    if dist.is_initialized() and torch.cuda.is_available():
        dist.distributed_c10d._abort_process_group()  # torch's only way to end a collective from another thread


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
