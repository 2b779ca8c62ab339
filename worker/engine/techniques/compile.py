"""Regional compilation of the experts' blocks, with the compiler's results kept on the volume.

All blocks of an expert are one graph, compiled when the first step runs: minutes on a GPU. What that gave is kept as
one file for each combination of torch, GPU and Diffusers, so that the next cold worker does not compile it again.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from weakref import WeakSet

import torch
from diffusers import WanTransformer3DModel

from worker.base.files import write_atomically
from worker.base.folders import model_cache_dir
from worker.engine.techniques.base import Run, Setup, Technique
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)
_COMPILERS = ("cc", "gcc", "clang")
FOLDER = "compiled"


def refusal(plan: MemoryPlan, device: torch.device) -> str | None:
    """Why the experts of this plan cannot be compiled here, or None."""
    if plan.residency in ("group_offload", "sequential"):
        return f"the weights are streamed through the GPU ({plan.residency}), which a compiled graph cannot follow"
    if not any(map(shutil.which, _COMPILERS)):
        return "there is no C compiler: build the image with --build-arg WITH_COMPILER=1"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs compute capability 7.0"
    return None


def enable(expert: WanTransformer3DModel) -> None:
    """Have each block of `expert` compiled when it is first called. A new video size compiles once more."""
    expert.compile_repeated_blocks(fullgraph=True)


class Compile(Technique):
    """`ENABLE_TORCH_COMPILE`: compiled blocks for every video that leaves the blocks as they are.

    LoRA layers and the hooks of the step cache change the blocks for one video only: it runs them uncompiled, because
    compiling for it would take longer than it saves.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._compiled: WeakSet[WanTransformer3DModel] = WeakSet()
        self._cache: CompilerCache | None = None

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:
        if not self.setup.settings.enable_torch_compile:
            return
        reason = refusal(plan, self.setup.device)
        if reason is not None:
            logger.warning("torch.compile is off: %s", reason)
            return
        if self._cache is None:
            self._cache = CompilerCache(model_cache_dir(self.setup.settings) / FOLDER, self.setup.device)
            if self._cache.load():
                logger.info("compiled code of an earlier start is loaded")
        enable(expert)
        self._compiled.add(expert)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        run.parameters["torch_compile"] = False
        # An expert that is still on its way is prepared when it arrives.
        if not self.setup.settings.enable_torch_compile or refusal(run.plan, self.setup.device) is not None:
            yield
            return
        changed = "LoRAs" if run.adapters else "the step cache" if _step_cache_is_on(run) else None
        if changed is not None:
            logger.info("torch.compile is off for this video: %s change the blocks", changed)
            with torch.compiler.set_stance("force_eager"):
                yield
            return
        run.parameters["torch_compile"] = True
        yield
        if self._cache is not None:
            self._cache.keep()


def _step_cache_is_on(run: Run) -> bool:
    return bool(run.parameters.get("step_cache", "off") != "off")


class CompilerCache:
    """What the compiler gave, as one file below `folder` (a place on the volume)."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        parts = f"torch-{torch.__version__}-diffusers-{version('diffusers')}-{gpu}"
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', parts)}.bin"
        self._kept_bytes = 0

    def load(self) -> bool:
        """Give torch what an earlier worker compiled; False where there is nothing that can be read."""
        try:
            artifacts = self.path.read_bytes()
        except OSError:
            return False
        self._kept_bytes = len(artifacts)
        if torch.compiler.load_cache_artifacts(artifacts) is not None:
            return True
        self._kept_bytes = 0
        logger.warning("compiled code of an earlier start cannot be read, so it is compiled again")
        return False

    def keep(self) -> None:
        """Write what was compiled since the last call, if anything. A volume that cannot be written costs only that."""
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or len(saved[0]) <= self._kept_bytes:
            return
        artifacts = saved[0]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, artifacts)
        except OSError as failure:
            logger.warning("compiled code could not be kept on the volume: %s", failure.strerror)
            return
        self._kept_bytes = len(artifacts)
        logger.info("kept %.1f MB of compiled code for the next start", len(artifacts) / 1e6)
