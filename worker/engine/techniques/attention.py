"""Which kernel computes attention: one that agrees with torch's plain arithmetic, and the fastest of the exact ones.

Chosen once, when the first expert is loaded. A probe calls each candidate of `BACKENDS` on the device and compares the
result with `REFERENCE`. A quantised backend that passes is used for self-attention. Otherwise the exact ones that pass
are timed on a GPU, and the fastest is used; a CPU takes the first. Nothing is downloaded and nothing patched: the
backend of every attention layer is set by Diffusers' `set_attention_backend`. ENABLE_SAGE_ATTENTION=false leaves the
quantised ones out.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import (
    _HUB_KERNELS_REGISTRY,
    AttentionBackendName,
    _resolve_kernel_attr,
    dispatch_attention_fn,
)
from diffusers.utils import is_flash_attn_3_available
from packaging.version import Version

from worker.base import folders
from worker.engine.techniques.base import Run, Setup, Technique
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)

# Torch's own choice. It is cuDNN on Hopper and Blackwell, so it is no reference there.
NATIVE = "native"
# Plain products and a softmax: too slow and too large for a video.
REFERENCE = "_native_math"
# What is used where the latents were no picture: another kernel than any that is chosen before it.
FALLBACK = "_native_flash"
_PROBE_TOKENS = 1024
# 832x480x81, some 35 ms a call on an H200. A quarter of them does not rank the kernels as a video does: there torch's
# own was level with FlashAttention 3 (2.12 and 2.16 ms), which takes 14% less at this size (31.6 and 36.8 ms).
_TIMED_TOKENS = 32_760
_TIMED_CALLS = 3
# Of the norm of the result. bf16 rounds to 0.4%; int8 and fp8 products of random numbers are off by about 4%.
_EXACT_TOLERANCE = 0.02
_QUANTISED_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend by Diffusers' name. `missing` returns why it is not here, or None.

    quantised: not exact, and used for self-attention alone. Cross-attention is 2% of the work, and its 512 keys are
    mostly padding of zeros, which quantisation by blocks handles worst.
    """

    name: str
    quantised: bool = False
    missing: Callable[[Setup], str | None] = lambda _: None

    @property
    def tolerance(self) -> float:
        return _QUANTISED_TOLERANCE if self.quantised else _EXACT_TOLERANCE


def _package(name: str, least: str) -> Callable[[Setup], str | None]:
    def missing(_: Setup) -> str | None:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"the package {name} is not installed"
        return None if Version(found) >= Version(least) else f"{name} {found} is too old, {least} or newer is needed"

    return missing


def _flash_3(_: Setup) -> str | None:
    """Diffusers looks for a package `flash_attn_3` and calls the module `flash_attn_interface`."""
    if is_flash_attn_3_available() and importlib.util.find_spec("flash_attn_interface") is not None:
        return None
    return "the modules flash_attn_3 and flash_attn_interface are not installed"


def _kernel(backend: str, folder: str) -> Callable[[Setup], str | None]:
    """A kernel of the hub that the operator put into {MODEL_CACHE_DIR}/kernels/FOLDER; it is never fetched here."""

    def missing(setup: Setup) -> str | None:
        place = folders.model_cache_dir(setup.settings) / "kernels" / folder
        if not place.is_dir():
            return f"no kernel is in MODEL_CACHE_DIR/kernels/{folder}"
        if (reason := _package("kernels", "0.12")(setup)) is not None:
            return reason
        module = importlib.import_module("kernels").get_local_kernel(place)
        known = _HUB_KERNELS_REGISTRY[AttentionBackendName(backend)]
        # With these set, Diffusers asks no hub.
        for attribute, target in (
            (known.function_attr, "kernel_fn"),
            (known.wrapped_forward_attr, "wrapped_forward_fn"),
            (known.wrapped_backward_attr, "wrapped_backward_fn"),
        ):
            if attribute is not None:
                setattr(known, target, _resolve_kernel_attr(module, attribute))
        return None

    return missing


# Quantised ones best first, then exact ones in the order of a CPU.
# Source of the least version of SageAttention: Diffusers' own check.
BACKENDS: tuple[Backend, ...] = (
    Backend("sage", quantised=True, missing=_package("sageattention", "2.1.1")),
    Backend("sage_hub", quantised=True, missing=_kernel("sage_hub", "sage-attention")),
    Backend("_flash_3", missing=_flash_3),
    Backend("_flash_3_hub", missing=_kernel("_flash_3_hub", "flash-attn3")),
    Backend(NATIVE),
    Backend(FALLBACK),
)


class Attention(Technique):
    """`backend` is the one in use, None before the first expert was loaded; `reason` says why it was chosen."""

    def __init__(self, setup: Setup, backends: Sequence[Backend] | None = None) -> None:
        super().__init__(setup)
        self._backends = BACKENDS if backends is None else backends
        self._experts: weakref.WeakSet[WanTransformer3DModel] = weakref.WeakSet()
        self._replaced: tuple[Backend, str] | None = None
        self.backend: Backend | None = None
        self.reason = "no expert was loaded"

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:  # noqa: ARG002 - serves every plan
        if self.backend is None:
            self.backend = self._choose(expert)
        self._experts.add(expert)
        _set(expert, self.backend)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        yield
        # Now that every expert that ran was loaded, and with it the choice made.
        run.parameters["attention_backend"] = NATIVE if self.backend is None else self.backend.name
        run.parameters["attention_reason"] = self.reason

    def fall_back(self) -> str | None:
        if self.backend is None or self.backend.name == FALLBACK:
            return None
        self._replaced = self.backend, self.reason
        self._use(Backend(FALLBACK), f"the latents were no picture with {self.backend.name}")
        return (
            f"the latents were no picture with {self._replaced[0].name} attention: the video was made again with "
            f"{FALLBACK} attention, which this worker keeps to from now on"
        )

    def take_back(self) -> None:
        if self._replaced is not None:
            logger.info("%s attention made no picture either: %s is used again", FALLBACK, self._replaced[0].name)
            self._use(*self._replaced)
            self._replaced = None

    def _use(self, backend: Backend, reason: str) -> None:
        self.backend, self.reason = backend, reason
        for expert in self._experts:
            _set(expert, backend)

    def _choose(self, expert: WanTransformer3DModel) -> Backend:
        """The backend to use, logged with what was passed over."""
        passed_over: list[str] = []
        exact: list[Backend] = []
        for backend in self._backends:
            if backend.quantised and not self.setup.settings.enable_sage_attention:
                passed_over.append(f"{backend.name}: ENABLE_SAGE_ATTENTION is false")
            elif (reason := _unusable(backend, expert, self.setup)) is not None:
                passed_over.append(f"{backend.name}: {reason}")
            elif backend.quantised:
                exact = [backend]
                break
            else:
                exact.append(backend)
        chosen, self.reason = _fastest(exact, expert, self.setup)
        where = "self-attention, native for the rest" if chosen.quantised else "all attention"
        rest = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
        logger.info("attention backend %s for %s: %s%s", chosen.name, where, self.reason, rest)
        return chosen


def _fastest(backends: Sequence[Backend], expert: WanTransformer3DModel, setup: Setup) -> tuple[Backend, str]:
    """Of backends that passed the probe, the one to use, and why."""
    if not backends:
        return Backend(NATIVE), "no backend passed the probe"
    if len(backends) == 1 or setup.device.type != "cuda":
        return backends[0], "the first that passed the probe"
    times = {backend: _time_ms(backend.name, expert, setup) for backend in backends}
    ranked = sorted(backends, key=lambda each: times[each])
    told = ", ".join(f"{each.name} {times[each]:.2f} ms" for each in ranked)
    return ranked[0], f"the fastest at {_TIMED_TOKENS} tokens: {told}"


@torch.no_grad()
def _time_ms(name: str, expert: WanTransformer3DModel, setup: Setup) -> float:
    """Milliseconds of one call at `_TIMED_TOKENS` tokens on the GPU, the least of a few; infinite where it fails."""
    try:
        given = _inputs(expert, setup, _TIMED_TOKENS)
        _attend(name, *given)  # the first call loads the kernel
        found = []
        for _ in range(_TIMED_CALLS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            _attend(name, *given)
            end.record()
            end.synchronize()
            found.append(float(begin.elapsed_time(end)))
        return min(found)
    except Exception as failure:  # noqa: BLE001 - whatever a foreign kernel raises
        logger.warning("attention backend %s failed at %d tokens: %s", name, _TIMED_TOKENS, failure)
        return float("inf")


def _unusable(backend: Backend, expert: WanTransformer3DModel, setup: Setup) -> str | None:
    """Why a backend cannot be used here, or None."""
    try:
        if (reason := backend.missing(setup)) is not None:
            return reason
        expert.set_attention_backend(backend.name)  # Diffusers' own checks
        off = probe(backend.name, expert, setup)
    except Exception as failure:  # noqa: BLE001 - whatever a foreign kernel raises
        # A device that an illegal access has ended fails here, and with it the start.
        _attend(REFERENCE, *_inputs(expert, setup))
        return f"it failed with {type(failure).__name__} ({str(failure).splitlines()[0][:120] if str(failure) else ''})"
    if not off <= backend.tolerance:  # NaN too
        return f"its result is off by {off:.1%} where {backend.tolerance:.0%} is allowed"
    return None


@torch.no_grad()
def probe(name: str, expert: WanTransformer3DModel, setup: Setup) -> float:
    """How far the backend's result is from `REFERENCE`'s, as a share of its norm; NaN where it holds no numbers."""
    query, key, value = _inputs(expert, setup)
    wanted = _attend(REFERENCE, query, key, value)
    got = _attend(name, query, key, value)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(f"it returns {list(got.shape)} {got.dtype}")
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def _inputs(
    expert: WanTransformer3DModel, setup: Setup, tokens: int = _PROBE_TOKENS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value with the heads of the expert, [1, tokens, heads, head_dim]."""
    shape = (3, 1, tokens, expert.config.num_attention_heads, expert.config.attention_head_dim)
    source = torch.Generator(setup.device).manual_seed(0)
    numbers = torch.randn(shape, generator=source, device=setup.device, dtype=setup.dtype)
    return numbers[0], numbers[1], numbers[2]


def _attend(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


def _set(expert: WanTransformer3DModel, backend: Backend) -> None:
    # The active backend is one for the process, and `reset_attention_backend` leaves it: native is always named.
    expert.set_attention_backend(NATIVE if backend.quantised else backend.name)
    if backend.quantised:
        for block in expert.blocks:
            block.attn1.set_attention_backend(backend.name)
