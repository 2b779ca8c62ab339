"""Which kernel computes attention: the first of `BACKENDS` that is here and agrees with torch's own.

Chosen once, when the first expert is loaded, by a probe: a small attention call on the device with each candidate,
compared with torch's. Nothing is downloaded and nothing patched: every attention layer of an expert is told its backend
through Diffusers' `set_attention_backend`. ENABLE_SAGE_ATTENTION=false leaves the quantised ones out.
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
from packaging.version import Version

from worker.base import folders
from worker.engine.techniques.base import Run, Setup, Technique
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)

NATIVE = "native"
_PROBE_TOKENS = 1024
# Of the norm of the result. bf16 rounds to 0.4%; int8 and fp8 products of random numbers are off by about 4%.
_EXACT_TOLERANCE = 0.02
_QUANTISED_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend by Diffusers' name. `missing` answers why it is not here, or None.

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


def _module(name: str) -> Callable[[Setup], str | None]:
    return lambda _: None if importlib.util.find_spec(name) is not None else f"the module {name} is not installed"


def _kernel(backend: str, folder: str) -> Callable[[Setup], str | None]:
    """A kernel of the hub that the operator put into {MODEL_CACHE_DIR}/kernels/FOLDER; it is never fetched here."""

    def missing(setup: Setup) -> str | None:
        place = folders.model_cache_dir(setup.settings) / "kernels" / folder
        if not place.is_dir():
            return f"no kernel lies in MODEL_CACHE_DIR/kernels/{folder}"
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


# Best first. Source of the least version of SageAttention: Diffusers' own check.
BACKENDS: tuple[Backend, ...] = (
    Backend("sage", quantised=True, missing=_package("sageattention", "2.1.1")),
    Backend("sage_hub", quantised=True, missing=_kernel("sage_hub", "sage-attention")),
    Backend("_flash_3", missing=_module("flash_attn_interface")),
    Backend("_flash_3_hub", missing=_kernel("_flash_3_hub", "flash-attn3")),
    Backend("_native_cudnn"),
    Backend(NATIVE),
)


class Attention(Technique):
    """`backend` is the one in use, None before the first expert was loaded."""

    def __init__(self, setup: Setup, backends: Sequence[Backend] | None = None) -> None:
        super().__init__(setup)
        self._backends = BACKENDS if backends is None else backends
        self._experts: weakref.WeakSet[WanTransformer3DModel] = weakref.WeakSet()
        self._given_up: Backend | None = None
        self.backend: Backend | None = None

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:  # noqa: ARG002 - serves every plan
        if self.backend is None:
            self.backend = self._choose(expert)
        self._experts.add(expert)
        _set(expert, self.backend)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        yield
        # Now that every expert that ran has arrived, and with it the choice.
        run.parameters["attention_backend"] = NATIVE if self.backend is None else self.backend.name

    def fall_back(self) -> str | None:
        if self.backend is None or self.backend.name == NATIVE:
            return None
        self._given_up = self.backend
        self._use(Backend(NATIVE))
        return (
            f"the latents were no picture with {self._given_up.name} attention: the video was made again with native "
            "attention, which this worker keeps to from now on"
        )

    def take_back(self) -> None:
        if self._given_up is not None:
            logger.info("native attention gave no picture either: %s is used again", self._given_up.name)
            self._use(self._given_up)
            self._given_up = None

    def _use(self, backend: Backend) -> None:
        self.backend = backend
        for expert in self._experts:
            _set(expert, backend)

    def _choose(self, expert: WanTransformer3DModel) -> Backend:
        """The first backend that works, said in the log with what was passed over."""
        passed_over: list[str] = []
        for backend in self._backends:
            if backend.quantised and not self.setup.settings.enable_sage_attention:
                passed_over.append(f"{backend.name}: ENABLE_SAGE_ATTENTION is false")
                continue
            reason = _unusable(backend, expert, self.setup)
            if reason is None:
                where = "self-attention, native for the rest" if backend.quantised else "all attention"
                rest = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
                logger.info("attention backend %s for %s%s", backend.name, where, rest)
                return backend
            passed_over.append(f"{backend.name}: {reason}")
        return Backend(NATIVE)


def _unusable(backend: Backend, expert: WanTransformer3DModel, setup: Setup) -> str | None:
    """Why a backend cannot be used here, or None."""
    if backend.name == NATIVE:
        return None
    try:
        if (reason := backend.missing(setup)) is not None:
            return reason
        expert.set_attention_backend(backend.name)  # Diffusers' own checks
        off = probe(backend.name, expert, setup)
    except Exception as failure:  # noqa: BLE001 - whatever a foreign kernel raises
        # A device that an illegal access has ended fails here, and with it the start.
        _attend(NATIVE, *_inputs(expert, setup))
        return f"it failed with {type(failure).__name__} ({str(failure).splitlines()[0][:120] if str(failure) else ''})"
    if not off <= backend.tolerance:  # NaN too
        return f"its result is off by {off:.1%} where {backend.tolerance:.0%} is allowed"
    return None


@torch.no_grad()
def probe(name: str, expert: WanTransformer3DModel, setup: Setup) -> float:
    """How far the backend's result is from torch's, as a share of its norm; NaN where it holds no numbers."""
    query, key, value = _inputs(expert, setup)
    wanted = _attend(NATIVE, query, key, value)
    got = _attend(name, query, key, value)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(f"it answers {list(got.shape)} {got.dtype}")
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def _inputs(expert: WanTransformer3DModel, setup: Setup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value with the heads of the expert, [1, tokens, heads, head_dim]."""
    shape = (3, 1, _PROBE_TOKENS, expert.config.num_attention_heads, expert.config.attention_head_dim)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(setup.device, setup.dtype)
    return numbers[0], numbers[1], numbers[2]


def _attend(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
    if answer.is_cuda:
        torch.cuda.synchronize(answer.device)
    return answer


def _set(expert: WanTransformer3DModel, backend: Backend) -> None:
    # The active backend is one for the process, and `reset_attention_backend` leaves it: native is always named.
    expert.set_attention_backend(NATIVE if backend.quantised else backend.name)
    if backend.quantised:
        for block in expert.blocks:
            block.attn1.set_attention_backend(backend.name)
