"""Quantised arithmetic in the experts' linear layers: fp8 on Ada and newer, int8 on Ampere.

`QUANTIZED_COMPUTE=on` for every step; `middle` computes the first and the last step from cast weights, where an error
shows most in the picture. The layers are those of `scaled_linear`, put in by `quantize` when the model is loaded.
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
                stack.callback(expert.register_forward_pre_hook(_CastAtTheEnds(run, layers)).remove)
            stack.callback(_set, layers, "quantized")
            yield


class _CastAtTheEnds:
    """A forward pre-hook of the experts: which arithmetic this step has."""

    def __init__(self, run: Run, layers: list[precision.ScaledLinear]) -> None:
        self._run = run
        self._layers = layers

    def __call__(self, _module: nn.Module, _arguments: Any) -> None:
        done = self._run.steps_done
        last = self._run.request.num_inference_steps - 1 if self._run.steps is None else self._run.steps - 1
        _set(self._layers, "cast" if done in (0, last) else "quantized")


def _set(layers: list[precision.ScaledLinear], arithmetic: precision.Arithmetic) -> None:
    if layers[0].arithmetic != arithmetic:
        for layer in layers:
            layer.arithmetic = arithmetic
