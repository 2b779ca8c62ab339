"""MagCache, a rule of the step cache: a curve of the model says which passes leave their blocks out.

Ma et al., arXiv:2506.09045. How the length of the residual behind all blocks changes from step to step is nearly the
same for every prompt. The ratio of the length now to that at the last computed step says how wrong that step's residual
is by now: |1 - ratio|, added up over the steps since. A pass is left out while the sum is below a limit, and for at
most `MOST_IN_A_ROW` steps. Diffusers' own hooks keep the residual and add it.

The curve is over the noise level and not over the steps, so that one measurement serves every number of steps and every
flow shift. Each expert has one of its passes with the prompt and one of those without. They are measured by
`videogen calibrate` and stored beside the weights.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import MagCacheConfig, WanTransformer3DModel
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK
from pydantic import BaseModel, ConfigDict, ValidationError

from worker.base import files, folders
from worker.base.settings import Settings
from worker.request import ModelSpec

logger = logging.getLogger(__name__)

# K of the paper, which takes 2 to 6 for videos.
MOST_IN_A_ROW = 4
# What a video must be to measure curves on it.
NEEDS = "they are measured on a guided video made from noise alone or a picture, of all its steps, without LoRAs"
_FOLDER = "step-cache"
# Of Diffusers' hooks: a threshold that no error is below, and more steps than any run has.
_COMPUTE = -1.0
_STEPS = 1000


class Curve(BaseModel):
    """`logs`: the logarithm of the length of the residual, less that of the first step, at each of `timesteps`.

    The timesteps are those of the scheduler, 1000 to 0, and fall.
    """

    model_config = ConfigDict(frozen=True)

    timesteps: tuple[float, ...]
    logs: tuple[float, ...]

    def ratio(self, now: float, before: float) -> float:
        """The length at the timestep `now` over that at `before`; NaN, below no limit, beyond what was measured."""
        logs = np.interp((now, before), self.timesteps[::-1], self.logs[::-1], left=math.nan, right=math.nan)
        return float(np.exp(logs[0] - logs[1]))


class Curves(BaseModel):
    """Of each expert two curves: of the passes with the prompt, and of those without."""

    model_config = ConfigDict(frozen=True)

    experts: tuple[tuple[Curve, Curve], ...]


@dataclass(slots=True)
class Turn:
    """Whose turn an expert's pass is: its timestep, and its number within the step."""

    timestep: float = math.nan
    number: int = 0

    def next(self, arguments: Mapping[str, torch.Tensor]) -> None:
        """To be called before each pass, with the arguments that the expert is called with."""
        timestep = float(arguments["timestep"].flatten()[-1])
        self.number = self.number + 1 if timestep == self.timestep else 0
        self.timestep = timestep


@dataclass(slots=True)
class Rule:
    """Decides about the passes of one kind, of one expert, in one run."""

    curve: Curve
    limit: float
    _computed_at: float | None = None
    _error: float = 0.0
    _row: int = 0

    def leaves_out(self, timestep: float, *, allowed: bool) -> bool:
        """Whether the pass at `timestep` is left out; to be called once for each pass, in their order."""
        if self._computed_at is not None:
            self._error += abs(1 - self.curve.ratio(timestep, self._computed_at))
            self._row += 1
            if allowed and self._error < self.limit and self._row <= MOST_IN_A_ROW:
                return True
        self._computed_at, self._error, self._row = timestep, 0.0, 0
        return False


class ByCurves:
    """Decides about all passes of one expert in one run: with and without the prompt by a curve each."""

    hook = _MAG_CACHE_LEADER_BLOCK_HOOK

    def __init__(self, curves: tuple[Curve, Curve], limit: float) -> None:
        self._rules = [Rule(curve, limit) for curve in curves]
        self._turn = Turn()

    @property
    def config(self) -> MagCacheConfig:
        """Hooks whose own curve is flat: only their threshold, which `decide` sets for each pass, counts."""
        return MagCacheConfig(
            threshold=_COMPUTE,
            max_skip_steps=_STEPS,
            retention_ratio=0.0,
            num_inference_steps=_STEPS,
            mag_ratios=[1.0] * _STEPS,
        )

    def decide(self, leader: Any, arguments: Mapping[str, torch.Tensor], *, full: bool) -> None:
        self._turn.next(arguments)
        left_out = self._rules[self._turn.number].leaves_out(self._turn.timestep, allowed=not full)
        leader.config.threshold = math.inf if left_out else _COMPUTE


def path(settings: Settings, spec: ModelSpec) -> Path:
    """Where the curves of a model are stored: by its version, its weights and the id that the settings give them."""
    name = re.sub(r"[^\w.]+", "-", f"{spec.version}-{spec.key}-{settings.model_ids[spec.base]}")
    return folders.model_cache_dir(settings) / _FOLDER / f"{name}.json"


def stored(settings: Settings, spec: ModelSpec) -> Curves | None:
    """The curves of a model, None where there are none that can be read."""
    source = path(settings, spec)
    try:
        return Curves.model_validate_json(source.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as failure:
        logger.warning("the curves of the step cache in %s cannot be read (%s)", source, type(failure).__name__)
        return None


def store(settings: Settings, spec: ModelSpec, curves: Curves) -> Path:
    """Replace the stored curves of a model. Raises OSError."""
    target = path(settings, spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(target, curves.model_dump_json().encode(), mode=0o666)
    return target


@dataclass(slots=True)
class Measuring:
    """Writes the curves down while a run is computed in full."""

    # Of each expert and number of a pass within its step: timesteps, and logarithms of ratios to the step before.
    _found: dict[tuple[int, int], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def of(self, number: int, expert: WanTransformer3DModel) -> Iterator[None]:
        """In effect on the expert of this number."""
        lengths: dict[int, torch.Tensor] = {}
        turn = Turn()
        given: list[torch.Tensor] = []

        def before(_: object, __: object, arguments: dict[str, torch.Tensor]) -> None:
            turn.next(arguments)

        def first(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
            given[:] = arguments[:1]

        def last(_: object, __: object, output: torch.Tensor) -> None:
            length = (output - given.pop()).float().norm(dim=-1)
            ratio = (length / lengths.get(turn.number, length)).mean()
            self._found[number, turn.number].append((turn.timestep, float(ratio.log())))
            lengths[turn.number] = length

        hooks = (
            expert.register_forward_pre_hook(before, with_kwargs=True),
            expert.blocks[0].register_forward_pre_hook(first),
            expert.blocks[-1].register_forward_hook(last),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def curves(self, experts: int) -> Curves | None:
        """The curves of so many experts; None where one had no pass with the prompt, or none without."""
        if len(self._found) < 2 * experts:
            return None
        return Curves(experts=tuple((self._curve(number, 0), self._curve(number, 1)) for number in range(experts)))

    def _curve(self, expert: int, number: int) -> Curve:
        timesteps, logs = zip(*self._found[expert, number], strict=True)
        return Curve(timesteps=timesteps, logs=tuple(np.cumsum(logs).tolist()))
