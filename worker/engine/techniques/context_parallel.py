"""Context parallelism: each GPU of a crew computes its share of the tokens, in attention of the heads (Ulysses).

Source: DeepSpeed-Ulysses, arXiv:2309.14509, through Diffusers' `enable_parallelism`. Every process holds the whole
latents and steps its own scheduler, so that all see the same numbers. Any number of tokens and heads can be shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, WanTransformer3DModel
from diffusers.models._modeling_parallel import ParallelConfig

from worker.engine.techniques.base import Run, Technique
from worker.request.plan import MemoryPlan


class ContextParallel(Technique):
    """On where the worker has a crew (`GPUS`)."""

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:  # noqa: ARG002 - for every plan
        if self.setup.crew_size > 1:
            enable(expert, self.setup.crew_size)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        run.parameters["context_parallel"] = self.setup.crew_size
        yield


def enable(expert: WanTransformer3DModel, size: int) -> None:
    """Share each forward of `expert` with the other processes of the process group, `size` in all; once a model."""
    if torch.accelerator.device_count() == 0:
        # Diffusers asks for an accelerator when it makes the mesh; with one of our own it needs none.
        expert._resolve_parallel_config = lambda config: _resolve_on_cpu(expert, config)
    expert.enable_parallelism(config=ContextParallelConfig(ulysses_degree=size, ulysses_anything=True))


def _resolve_on_cpu(expert: WanTransformer3DModel, config: ContextParallelConfig) -> ParallelConfig:
    """What Diffusers does for an accelerator, on the CPU: so that it can be tested without several GPUs."""
    mesh = dist.device_mesh.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    resolved = ParallelConfig(context_parallel_config=config)
    resolved.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
    expert._parallel_config = resolved
    return resolved
