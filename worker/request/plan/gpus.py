"""GPUs by name, and how much of one a plan may use.

`GPUS` is what the README's table is made from. VRAM is what torch reports as `total_memory`, a little less than the
label says. Those of L4, RTX 4090, RTX 5090, L40, L40S, RTX 6000 Ada, H100 NVL and B200 were compared with reports in
public issue threads and are at or under them; the others are allowances of the same kind that nobody compared. A worker
plans with what its own GPU reports, never with this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_GIB = 1024**3

# CUDA context and the kernels of torch, cuBLAS and cuDNN: outside torch's allocator. 0.45 to 0.6 GB is usual.
CONTEXT_BYTES = 600_000_000
# What the allocator cannot use because of fragmentation.
FRAGMENTATION = 0.03

BF16_SINCE = (8, 0)
FP8_SINCE = (8, 9)
_SIZE = re.compile(r" \d+GB$")


@dataclass(frozen=True, slots=True)
class Gpu:
    """`vram_bytes` is torch's `total_memory`; `compute_capability` is (major, minor)."""

    name: str
    vram_bytes: int
    compute_capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        return self.compute_capability >= BF16_SINCE

    @property
    def has_fp8(self) -> bool:
        """Ada, Hopper and Blackwell."""
        return self.compute_capability >= FP8_SINCE

    @property
    def budget_bytes(self) -> int:
        """What torch may allocate: the VRAM less the CUDA context and a share lost to fragmentation."""
        return max(0, int(self.vram_bytes * (1 - FRAGMENTATION)) - CONTEXT_BYTES)


def _gpu(name: str, gib: float, capability: tuple[int, int]) -> Gpu:
    return Gpu(name, int(gib * _GIB), capability)


GPUS: tuple[Gpu, ...] = (
    _gpu("L4", 22.03, (8, 9)),
    _gpu("RTX A5000", 23.57, (8, 6)),
    _gpu("RTX 3090", 23.57, (8, 6)),
    _gpu("RTX 4090", 23.52, (8, 9)),
    _gpu("RTX 5090", 31.36, (12, 0)),
    _gpu("A100 40GB", 39.38, (8, 0)),
    _gpu("A40", 44.34, (8, 6)),
    _gpu("RTX A6000", 47.40, (8, 6)),
    _gpu("L40", 44.39, (8, 9)),
    _gpu("L40S", 44.39, (8, 9)),
    _gpu("RTX 6000 Ada", 44.43, (8, 9)),
    _gpu("A100 80GB", 79.14, (8, 0)),
    _gpu("H100 80GB", 79.10, (9, 0)),
    _gpu("H100 NVL", 93.00, (9, 0)),
    _gpu("RTX PRO 6000", 94.90, (12, 0)),
    _gpu("H200", 139.70, (9, 0)),
    _gpu("B200", 178.30, (10, 0)),
)


def from_name(name: str) -> Gpu:
    """The GPU of the table with that name. Case, spaces and the words NVIDIA, GeForce and RTX do not matter, nor does
    the size in GB where the table has one size of that GPU: `h100` is the H100 80GB.

    Raises KeyError where none fits or several do (`A100`); its argument is a sentence with the names.
    """
    wanted = _plain(name)
    exact = [gpu for gpu in GPUS if wanted in (_plain(gpu.name), _plain(_SIZE.sub("", gpu.name)))]
    similar = [gpu for gpu in GPUS if wanted and _plain(gpu.name).startswith(wanted)]
    found = exact or similar or [gpu for gpu in GPUS if wanted and _plain(gpu.name).removeprefix("rtx") == wanted]
    if len(found) > 1:
        raise KeyError(f"{name!r} may be {' or '.join(gpu.name for gpu in found)}: write which")
    if not found:
        raise KeyError(f"no GPU {name!r} in the table: {', '.join(gpu.name for gpu in GPUS)}")
    return found[0]


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower().replace("nvidia", "").replace("geforce", "") if sign.isalnum())
