"""A LoRA file read into memory: pairs of factors, LyCORIS' products and whole differences, by what they change.

What was read is kept for the next job, up to a bound: the same LoRA is not read from a slow volume for every video.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError

from worker.base.errors import InputFailed, InputInvalid
from worker.weights.loras.header import check_safetensors
from worker.weights.loras.keys import Place, is_marker, place_of
from worker.weights.loras.lycoris import Product, product_of

# Both files of one distilled set for A14B in bf16 are 1.3 GB.
KEPT_BYTES = 4_000_000_000
_LARGEST = torch.finfo(torch.float32).max
# alpha / rank; files in use have 1/64 to 8. Much more makes NaN of the video, which would be a failure of the worker.
_MAX_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two factors of a change, `scale` * up @ down; scale is alpha / rank. `up_bias` is added to the bias as it is.

    down: [rank, in]; up: [out, rank]; of a convolution down is [rank, in, t, h, w] and up [out, rank, 1, 1, 1].
    """

    down: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor | None
    scale: float
    keys: tuple[str, ...]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def scaled_up(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """`scale` * up, a tensor of its own: multiplied in float32, and rounded once."""
        if self.scale == 1.0:
            return self.up.to(device, dtype, copy=True)
        return (self.up.to(device, torch.float32) * self.scale).to(dtype)

    def with_bias(self, difference: torch.Tensor) -> Pair:
        """This pair, which changes the bias by `difference` too."""
        total = difference if self.up_bias is None else self.up_bias.float() + difference.float()
        return replace(self, up_bias=total)


@dataclass(frozen=True, slots=True)
class Difference:
    """A whole change of the weight (or of the bias, `of_bias`) of `target`; `changes` is False where it is all zero."""

    target: str
    of_bias: bool
    tensor: torch.Tensor
    changes: bool
    key: str


@dataclass(frozen=True, slots=True)
class Content:
    """`unused` holds the keys of no known form and those that lack their counterpart; `total`: of all of the file.

    `of_low`: what the keys of the low-noise expert hold, where there are any. The rest is then the high-noise one's.
    """

    pairs: Mapping[str, Pair]
    products: Mapping[str, Product]
    differences: tuple[Difference, ...]
    unused: tuple[str, ...]
    total: int
    size_bytes: int
    of_low: Content | None = None

    def of(self, expert: Literal["high", "low"]) -> Content:
        """What the file holds for an expert."""
        return self.of_low if expert == "low" and self.of_low is not None else self

    @property
    def is_for_low_alone(self) -> bool:
        return self.of_low is not None and not (self.pairs or self.products or self.differences or self.unused)


class Contents:
    """The files read last, up to `kept_bytes` of tensors; safe to use from several threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[tuple[str, int, int], Content] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, file: Path, path: str) -> Content:
        """What `file` holds. Raises InputInvalid for tensors that cannot be used, InputFailed where it is gone."""
        try:
            state = file.stat()
            key = (str(file), state.st_size, state.st_mtime_ns)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            content = _read(file, path)
        except OSError as failure:
            raise InputFailed("the LoRA's file could not be read: send the request again", path=path) from failure
        with self._lock:
            self._kept[key] = content
            while sum(kept.size_bytes for kept in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
        return content

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


@dataclass(slots=True)
class _Parts:
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def _read(file: Path, path: str) -> Content:
    # Again, though it was judged when it was fetched: it may have changed, or been fetched by an earlier version.
    metadata = check_safetensors(file, path)
    try:
        # Not mapped into memory: over a network volume that is slow, and a file changed in place would end the process.
        # Sorted: the library's order is another one every time, and errors name the first keys.
        tensors = dict(sorted(safetensors.torch.load(file.read_bytes()).items()))
    except SafetensorError as failure:
        raise InputInvalid(
            "a damaged safetensors file: send the LoRA as a whole .safetensors file", path=path
        ) from failure
    tensors = {key: tensor for key, tensor in tensors.items() if not is_marker(key)}
    _check_numbers(tensors, path)
    places = {key: place_of(key) for key in tensors}
    low = {key: place for key, place in places.items() if place is not None and place.low}
    content = _content({key: place for key, place in places.items() if key not in low}, tensors, metadata, path)
    if not low:
        return content
    of_low = _content(low, tensors, metadata, path)
    return replace(content, of_low=of_low, size_bytes=content.size_bytes + of_low.size_bytes)


def _content(
    places: Mapping[str, Place | None], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: str
) -> Content:
    """What the keys of one expert hold."""
    scaling = _Scaling.of(metadata, any(place is not None and place.low for place in places.values()), path)
    found: defaultdict[str, _Parts] = defaultdict(_Parts)
    unused: list[str] = []
    for key, place in places.items():
        if place is None or place.part in found[place.target].tensors:
            unused.append(key)
        else:
            found[place.target].tensors[place.part] = tensors[key]
            found[place.target].keys[place.part] = key
    pairs: dict[str, Pair] = {}
    products: dict[str, Product] = {}
    differences: list[Difference] = []
    for target, parts in found.items():
        used = {"diff", "diff_b"}
        if {"down", "up"} <= parts.tensors.keys():
            pairs[target] = _pair(target, parts, scaling, path)
            used |= {"down", "up", "up_bias", "alpha", "down_scale", "up_scale"}
        elif product := product_of(parts.tensors, parts.keys, path):
            products[target] = replace(product, scale=_alpha_over(product.rank, parts, path))
            used |= {"alpha", *(part for part, key in parts.keys.items() if key in product.keys)}
        unused += [key for part, key in parts.keys.items() if part not in used]
        for part, of_bias in (("diff", False), ("diff_b", True)):
            if part in parts.tensors:
                tensor = parts.tensors[part]
                differences.append(Difference(target, of_bias, tensor, bool(tensor.float().any()), parts.keys[part]))
    size_bytes = sum(tensors[key].nbytes for key in places)
    return Content(pairs, products, tuple(differences), tuple(unused), len(tensors), size_bytes)


def _check_numbers(tensors: Mapping[str, torch.Tensor], path: str) -> None:
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and not key.endswith(".alpha"):
            raise InputInvalid(f"the tensor {key[:100]} holds no floating point numbers: send a LoRA", path=path)
        # One pass over the file: only numbers of no use have an infinite sum.
        total = tensor.sum(dtype=torch.float32) if tensor.itemsize > 1 else tensor.float().sum()
        if not math.isfinite(total):
            raise InputInvalid(f"the tensor {key[:100]} holds NaN or infinity: send a LoRA without them", path=path)


def _pair(target: str, parts: _Parts, scaling: _Scaling, path: str) -> Pair:
    down, up = parts.tensors["down"], parts.tensors["up"]
    if min(down.ndim, up.ndim) < 2 or down.shape[0] == 0 or up.shape[1] != down.shape[0]:
        raise InputInvalid(f"the factors {parts.keys['down'][:100]} and its counterpart do not fit together", path=path)
    rank = down.shape[0]
    scale = _alpha_over(rank, parts, path) if "alpha" in parts.tensors else scaling.of_pair(target, rank)
    for part in ("down_scale", "up_scale"):
        scale *= _single(part, parts, path) if part in parts.tensors else 1.0
    keys = tuple(parts.keys[part] for part in ("down", "up", "up_bias") if part in parts.keys)
    return Pair(down, up, parts.tensors.get("up_bias"), _checked(scale, keys[0], path), keys)


def _alpha_over(rank: int | None, parts: _Parts, path: str) -> float:
    """alpha / rank; 1 where one of the two does not exist."""
    if "alpha" not in parts.tensors:
        return 1.0
    alpha = _single("alpha", parts, path)
    return 1.0 if rank is None else _checked(alpha / rank, parts.keys["alpha"], path)


def _single(part: str, parts: _Parts, path: str) -> float:
    tensor = parts.tensors[part]
    if tensor.numel() != 1:
        raise InputInvalid(f"the tensor {parts.keys[part][:100]} must be a single number", path=path)
    return float(tensor)


def _checked(scale: float, key: str, path: str) -> float:
    if not abs(scale) <= _MAX_SCALE:
        raise InputInvalid(f"the alpha of {key[:100]} is {scale:g} times its rank: send a LoRA", path=path)
    return scale


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What Diffusers writes into a file's metadata where alpha is not the rank."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, str], low: bool, path: str) -> _Scaling:
        written = metadata.get("lora_adapter_metadata")
        if written is None:
            return cls()
        try:
            prefix = "transformer_2." if low else "transformer."
            config: dict[str, Any] = {key.removeprefix(prefix): value for key, value in json.loads(written).items()}
            alpha = config.get("lora_alpha")
            alphas = {name.lstrip("^"): _number(value) for name, value in (config.get("alpha_pattern") or {}).items()}
            return cls(None if alpha is None else _number(alpha), alphas, config.get("use_rslora") is True)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as failure:
            message = "the metadata of this LoRA cannot be read: save it again without lora_adapter_metadata"
            raise InputInvalid(message, path=path) from failure

    def of_pair(self, target: str, rank: int) -> float:
        # PEFT reads these names as regular expressions; one from a stranger's file could run without end.
        named = (alpha for name, alpha in self.alphas.items() if target == name or target.endswith(f".{name}"))
        alpha = next(named, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _number(value: object) -> float:
    """Raises ValueError or OverflowError for what is no number, or one that float32 does not hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(float(value)) <= _LARGEST:
        raise ValueError("not a number")
    return float(value)
