"""Techniques that make a video sooner, one file each: a literal registry, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from diffusers import WanTransformer3DModel

from worker.engine.techniques.attention import Attention
from worker.engine.techniques.base import Run, Setup, Technique
from worker.engine.techniques.compile import Compile
from worker.engine.techniques.context_parallel import ContextParallel
from worker.engine.techniques.decode_dtype import DecodeDtype
from worker.engine.techniques.fused_kernels import FusedKernels
from worker.engine.techniques.image_encode import ImageEncode
from worker.engine.techniques.lora import Adapters
from worker.engine.techniques.quantized_compute import QuantizedCompute
from worker.engine.techniques.step_cache import StepCache
from worker.engine.techniques.turbo import Turbo
from worker.request.plan import MemoryPlan

__all__ = ["TECHNIQUES", "Run", "Setup", "Technique", "Techniques"]

# Turbo adds to the LoRAs that Adapters puts on; the step cache wraps blocks that are otherwise as they will run.
# The fused forward of a block is below every hook, and so comes before all that put hooks on blocks.
# The crew's share is taken on the attention that was chosen; compiling comes behind them, for what is left as it was
# loaded. The last two are the VAE's.
TECHNIQUES: tuple[type[Technique], ...] = (
    Attention,
    FusedKernels,
    ContextParallel,
    QuantizedCompute,
    Turbo,
    Adapters,
    StepCache,
    Compile,
    ImageEncode,
    DecodeDtype,
)


class Techniques:
    """Those of `registry`, made for one engine. Not thread-safe: the engine calls it under its lock."""

    def __init__(self, setup: Setup, registry: Sequence[type[Technique]] = TECHNIQUES) -> None:
        self._techniques = tuple(technique(setup) for technique in registry)

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:
        """To be called once with every expert that was loaded, before it is arranged as `plan` says."""
        for technique in self._techniques:
            technique.prepare(expert, plan)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        """All of them in effect, in their order. `run` holds what they report, complete when this is left."""
        with ExitStack() as stack:
            for technique in self._techniques:
                stack.enter_context(technique.applied(run))
            yield

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Techniques measure what they go by on the videos that are made meanwhile."""
        for technique in self._techniques:
            technique.calibrating = True
        try:
            yield
        finally:
            for technique in self._techniques:
                technique.calibrating = False

    def fall_back(self) -> tuple[str, ...]:
        """The latents were no picture: what is switched off for the rest of the process, as lines for `warnings`."""
        lines = [technique.fall_back() for technique in self._techniques]
        return tuple(line for line in lines if line is not None)

    def take_back(self) -> None:
        """What `fall_back` switched off was not the reason."""
        for technique in self._techniques:
            technique.take_back()
