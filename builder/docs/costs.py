"""What a video takes and costs on each GPU: the table of docs/monitoring-and-cost.md, from the worker's own estimate.

python -m builder.docs.costs                             the table
python -m builder.docs.costs --price "H100 80GB=2.49"    the same with your own prices, in USD an hour
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from builder.docs.markdown import table
from worker.base.errors import WorkerError
from worker.base.settings import Settings
from worker.request import VideoRequest
from worker.request.catalogue import find
from worker.request.parse import parse
from worker.request.plan import Gpu, Planner, Shape, duration
from worker.request.plan.duration import Span
from worker.request.plan.gpus import GPUS

# RunPod's published prices of flex workers a second, as they stood in its documentation when this was written, by the
# hour. They change: they are an input.
USD_PER_HOUR: Mapping[str, float] = {
    name: round(a_second * 3600, 2)
    for name, a_second in (
        *(("L4", 0.00019), ("RTX A5000", 0.00019), ("RTX 3090", 0.00019), ("RTX 4090", 0.00031)),
        *(("A40", 0.00034), ("RTX A6000", 0.00034), ("L40", 0.00053), ("L40S", 0.00053), ("RTX 6000 Ada", 0.00053)),
        *(("A100 80GB", 0.00076), ("H100 80GB", 0.00116), ("RTX PRO 6000", 0.00111)),
        *(("H200", 0.00155), ("B200", 0.00240)),
    )
}
SHOWN: Mapping[str, Mapping[str, Any]] = {
    "a14b 832x480x81, `turbo`": {"quality_preset": "turbo"},
    "a14b 832x480x81, `standard`": {"quality_preset": "standard"},
    "a14b 1280x720x81, `standard`": {"quality_preset": "standard", "width": 1280, "height": 720},
    "5b 1280x704x121, `standard`": {
        **{"model": "5b", "quality_preset": "standard"},
        **{"width": 1280, "height": 704, "num_frames": 121},
    },
}


def render(prices: Mapping[str, float] = USD_PER_HOUR) -> str:
    """One row a GPU that has a price. A cell: seconds on a warm worker, and what they cost; the last one: loading."""
    heads = ("GPU", "USD an hour", *SHOWN, "loading a14b")
    return table(heads, [_row(gpu, prices[gpu.name]) for gpu in GPUS if gpu.name in prices])


def _row(gpu: Gpu, price: float) -> list[str]:
    loading = next((made.load for payload in SHOWN.values() if (made := estimated(gpu, payload)) is not None), None)
    return [gpu.name, f"{price:.2f}", *(cell(gpu, payload, price) for payload in SHOWN.values()), _cell(loading, price)]


def cell(gpu: Gpu, payload: Mapping[str, Any], price: float) -> str:
    """Seconds and USD of one video on a worker whose model is loaded; `price` is USD an hour."""
    made = estimated(gpu, payload)
    return _cell(None if made is None else made.total, price)


def estimated(gpu: Gpu, payload: Mapping[str, Any]) -> duration.Estimate | None:
    """The estimate for a text-to-video request under default settings; None where the GPU cannot make it."""
    request: VideoRequest = parse({"prompt": "a", "seed": 1, **payload}, default_job_id="a").videos[0]
    spec = find(request.model, request.mode)
    assert spec is not None
    assert request.width is not None
    assert request.height is not None
    shape = Shape(request.width, request.height, request.num_frames)
    try:
        plan = Planner(gpu, Settings.model_construct()).plan(spec, shape)
    except WorkerError:
        return None
    return duration.of_request(request, spec, gpu, plan)


def _cell(span: Span | None, price: float) -> str:
    if span is None:
        return "not possible"
    cost = duration.cost_usd(span, price)
    dollars = " to ".join(dict.fromkeys((f"{cost.low:.2f}", f"{cost.high:.2f}")))
    return f"{_seconds(span.low)} to {_seconds(span.high)} s, ${dollars}"


def _seconds(seconds: float) -> str:
    """Two digits count: more would look like knowledge."""
    digits = len(str(int(seconds)))
    return f"{round(seconds, 2 - digits):,.0f}" if digits > 1 else f"{seconds:.0f}"


def _price(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    known = {gpu.name for gpu in GPUS}
    if name not in known:
        raise argparse.ArgumentTypeError(f"write GPU=USD; the GPUs are {', '.join(sorted(known))}")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.docs.costs", description="Seconds and cost of a video.")
    parser.add_argument("--price", action="append", type=_price, default=[], metavar="GPU=USD", help="USD an hour")
    options = parser.parse_args(arguments)
    prices = dict(options.price)
    print(render(prices if prices else USD_PER_HOUR))
    return 0


if __name__ == "__main__":
    sys.exit(main())
