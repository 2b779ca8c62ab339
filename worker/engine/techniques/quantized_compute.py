"""Quantised arithmetic in the experts' linear layers: fp8 on Ada and newer, int8 on Ampere.

`QUANTIZED_COMPUTE=on` for every step; `middle` computes the first and the last step from cast weights, where an error
shows most in the picture. The layers are those of `models.precision`, put in when each block is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from worker.engine.models import precision
from worker.engine.techniques.base import Run, Technique

logger = logging.getLogger(__name__)


class QuantizedCompute(Technique):
    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        layers = [each for expert in run.experts for each in precision.computing(expert)]
        run.parameters["quantized_compute"] = layers[0].format if layers else "off"
        if not layers:
            if self.setup.settings.quantized_compute != "off":
                logger.info("quantized compute is off: the weights are %s under this memory plan", run.plan.precision)
            yield
            return
        if self.setup.settings.quantized_compute != "middle":
            yield
            return
        run.parameters["quantized_compute"] = f"{layers[0].format}, not in the first and last step"
        with ExitStack() as stack:
            for expert in run.experts:
                cast = _CastAtTheEnds(run)
                stack.callback(cast.take_back)
                stack.callback(expert.register_forward_pre_hook(cast).remove)
            yield


class _CastAtTheEnds:
    """A forward pre-hook of an expert: which arithmetic this step has. Its weights may be read after the run began, but
    are there when it is called."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._layers: list[precision.ScaledLinear] = []

    def __call__(self, module: nn.Module, _arguments: Any) -> None:
        self._layers = self._layers or precision.computing(module)
        done = self._run.steps_done
        last = self._run.request.num_inference_steps - 1 if self._run.steps is None else self._run.steps - 1
        self._set("cast" if done in (0, last) else "quantized")

    def take_back(self) -> None:
        self._set("quantized")

    def _set(self, arithmetic: precision.Arithmetic) -> None:
        for layer in self._layers:
            layer.arithmetic = arithmetic
