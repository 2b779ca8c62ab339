"""The ways in which an expert is read whole: the worker's, those of others, and those that were weighed up."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "worker"
STAGED = "from_pretrained, through staging", "worker, through staging"
WAYS = ("cat", "from_pretrained", OURS, *STAGED)
CANDIDATES = (
    "safetensors, 4 files at once",
    "mmap, warmed by 8 threads",
    "readinto, 1 thread",
    "worker, 1 reader",
    "worker, 4 readers",
    "worker, 16 readers",
    "worker, blocks of 4 MiB",
    "worker, blocks of 16 MiB",
    "worker, blocks of 64 MiB",
)
CONVERTED = ("from_pretrained, fp32 to bf16", "worker, fp32 to bf16")


@dataclass(frozen=True)
class Run:
    way: str
    seconds: float
    cpu_seconds: float
    peak_gb: float


def load_expert(way: str, folder: Path) -> Any:
    """Read an expert whole, into memory of its own. What is answered must be held until the time was taken."""
    files = sorted(folder.glob("*.safetensors"))
    if way == "cat":
        return subprocess.run(["cat", *map(str, files)], stdout=subprocess.DEVNULL, check=True)
    if way == "readinto, 1 thread":
        return [_readinto(path) for path in files]
    if way == "safetensors, 4 files at once":
        return _by_safetensors(files)
    if way.startswith("mmap, warmed"):
        _warm(files)
    if way == STAGED[0]:
        return _staged_from_pretrained(folder)
    if way == STAGED[1]:
        return _staged_by_worker(folder)
    if way.startswith(("from_pretrained", "mmap")):
        return _by_from_pretrained(folder)
    return _by_worker(folder, way)


def _by_from_pretrained(folder: Path) -> Any:
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)
    if torch.cuda.is_available():
        return model.to("cuda")
    return [parameter.detach().clone() for parameter in model.parameters()]


def _staged_from_pretrained(folder: Path) -> Any:
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)
    block = torch.empty(2**26, dtype=torch.uint8)
    for parameter in model.parameters():
        flat = parameter.detach().view(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), block.numel()):
            part = flat[begin : begin + block.numel()]
            block[: part.numel()].copy_(part)
    return model


def _staged_by_worker(folder: Path) -> Any:
    import torch

    from worker.engine.models import skeletons
    from worker.weights.tensors import reading

    skeleton = skeletons.expert(folder, torch.bfloat16)
    block = torch.empty(max(tensor.nbytes for tensor in skeleton.stored.values()), dtype=torch.uint8)
    targets = [
        reading.Target(tensor, block[: tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        for tensor in skeleton.stored.values()
    ]
    reading.read(targets)
    return skeleton.module


def _by_worker(folder: Path, way: str) -> Any:
    import functools

    import torch

    from worker.engine.models import skeletons
    from worker.weights.tensors import reading

    options: dict[str, Any] = {}
    if way.endswith(("reader", "readers")):
        options["readers"] = int(way.split()[1])
    if way.endswith("MiB"):
        options["block_bytes"] = int(way.split()[-2]) * 2**20
    skeleton = skeletons.expert(folder, torch.bfloat16)
    place = skeletons.Place(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    skeleton.fill(place, functools.partial(reading.read, **options), lambda: None, lambda _: None)
    return skeleton.module


def _by_safetensors(files: Sequence[Path]) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    from safetensors.torch import load_file

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda path: {key: value.clone() for key, value in load_file(path).items()}, files))


def _readinto(path: Path) -> bytearray:
    content = bytearray(path.stat().st_size)
    view, at = memoryview(content), 0
    with path.open("rb", buffering=0) as file:
        while at < len(view):
            at += file.readinto(view[at : at + 2**24]) or 0
    return content


def _warm(files: Sequence[Path]) -> None:
    """Have 8 threads pull the files into the page cache, 16 MiB at a time."""
    from concurrent.futures import ThreadPoolExecutor

    def pull(part: tuple[Path, int]) -> None:
        path, begin = part
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            buffer = bytearray(2**20)
            for _ in range(16):
                file.readinto(buffer)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pull, [(path, at) for path in files for at in range(0, path.stat().st_size, 2**24)]))


def measure(way: str, folder: Path) -> Run:
    """One way, once, in this process, which should be fresh."""
    import diffusers  # noqa: F401 - its import is not what is measured
    from diffusers import WanTransformer3DModel  # noqa: F401

    before, began = _cpu_seconds(), time.perf_counter()
    held = load_expert(way, folder)
    seconds = time.perf_counter() - began
    cpu = _cpu_seconds() - before
    del held
    return Run(way, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
