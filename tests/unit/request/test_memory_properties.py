"""What the memory plan promises for every GPU, model, setting and size."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import hypothesis
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.base.errors import InvalidRequest, Unsupported
from worker.base.settings import Settings
from worker.request import CATALOGUE, ModelSpec
from worker.request.plan import STANDARD, Gpu, MemoryPlan, Planner, Shape, size_of

GIB = 1024**3
SLOWNESS = ("resident", "swap", "group_offload", "sequential")
QUALITY = {"bf16": 0, "fp8": 1, "int8": 1}
specs = st.sampled_from(CATALOGUE)
sizes = st.tuples(st.integers(8, 60), st.integers(8, 60)).map(lambda pair: (pair[0] * 32, pair[1] * 32))
shapes = st.builds(
    lambda size, steps, loras: Shape(*size, 4 * steps + 1, loras),
    sizes,
    st.integers(1, 60),
    st.integers(0, 3),
)

vrams = st.integers(4 * GIB, 200 * GIB)
capabilities = st.sampled_from([(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
offloads = st.sampled_from([None, True, False])
EXAMPLES = hypothesis.settings(max_examples=30)  # each makes many plans
settings_values = st.builds(
    lambda cpu, sequential, tiling, quantization: Settings(
        enable_cpu_offload=cpu,
        enable_sequential_cpu_offload=sequential,
        enable_vae_tiling=tiling,
        quantization=quantization,
    ),
    offloads,
    offloads,
    st.sampled_from(["true", "always", "false"]),
    st.sampled_from(["auto", "none", "int8"]),
)


def planned(
    gpu: Gpu | None, spec: ModelSpec, settings: Settings, shape: Shape, **options: Any
) -> MemoryPlan | InvalidRequest | Unsupported:
    try:
        return Planner(gpu, settings).plan(spec, shape, **options)
    except (InvalidRequest, Unsupported) as refusal:
        return refusal


@EXAMPLES
@given(vrams, capabilities, specs, settings_values, shapes)
def test_a_plan_stays_within_the_budget_and_a_refusal_names_what_fits(vram, capability, spec, settings, shape):
    gpu = Gpu("some", vram, capability)
    answer = planned(gpu, spec, settings, shape, path="job_request_params[0].width")
    if isinstance(answer, MemoryPlan):
        assert 0 < answer.estimated_peak_bytes <= gpu.budget_bytes < vram
        assert answer.rung in Planner(gpu, settings).ladder(spec)
    elif isinstance(answer, Unsupported):
        assert all(
            rung.peak_bytes(size_of(spec), dataclasses.replace(shape, num_frames=5, loras=0)) > gpu.budget_bytes
            for rung in Planner(gpu, settings).ladder(spec)
        )
    else:
        assert answer.path == "job_request_params[0].width"
        offered = re.findall(r"(\d+)x(\d+) with (\d+) frames", answer.message)[1:]
        assert offered or "LoRAs" in answer.message
        for width, height, frames in offered:
            offer = dataclasses.replace(shape, width=int(width), height=int(height), num_frames=int(frames))
            assert offer.pixels * offer.num_frames < shape.pixels * shape.num_frames
            assert Planner(gpu, settings).plan(spec, offer).estimated_peak_bytes <= gpu.budget_bytes


@EXAMPLES
@given(vrams, vrams, capabilities, specs, shapes)
def test_more_vram_never_gives_a_worse_precision_nor_within_it_a_slower_residency(one, other, capability, spec, shape):
    less, more = sorted((one, other))
    small = planned(Gpu("small", less, capability), spec, Settings(), shape)
    assume(isinstance(small, MemoryPlan))
    large = Planner(Gpu("large", more, capability), Settings()).plan(spec, shape)
    rank = [(QUALITY[made.precision], SLOWNESS.index(made.residency)) for made in (small, large)]
    assert rank[1] <= rank[0]


@EXAMPLES
@given(vrams, vrams, capabilities, specs)
def test_more_vram_never_slows_the_standard_request_down(one, other, capability, spec):
    less, more = sorted((one, other))
    small = planned(Gpu("small", less, capability), spec, Settings(), STANDARD)
    assume(isinstance(small, MemoryPlan))
    large = Planner(Gpu("large", more, capability), Settings()).plan(spec, STANDARD)
    assert SLOWNESS.index(large.residency) <= SLOWNESS.index(small.residency)


@EXAMPLES
@given(specs, shapes, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), capabilities)
def test_a_larger_request_never_has_a_smaller_estimate(spec, shape, wider, higher, longer, capability):
    larger = Shape(shape.width + 32 * wider, shape.height + 32 * higher, shape.num_frames + 4 * longer, shape.loras)
    size = size_of(spec)
    for rung in Planner(Gpu("some", 24 * GIB, capability), Settings()).ladder(spec):
        assert rung.peak_bytes(size, larger) >= rung.peak_bytes(size, shape)
        assert rung.peak_bytes(size, dataclasses.replace(shape, loras=shape.loras + 1)) >= rung.peak_bytes(size, shape)


@EXAMPLES
@given(vrams, capabilities, specs, settings_values, shapes)
def test_each_lower_plan_needs_less_and_the_ladder_ends(vram, capability, spec, settings, shape):
    gpu = Gpu("some", vram, capability)
    made = planned(gpu, spec, settings, shape)
    assume(isinstance(made, MemoryPlan))
    for _ in Planner(gpu, settings).ladder(spec):
        below = Planner(gpu, settings).lower(made, spec, shape)
        if below is None:
            return
        assert below.estimated_peak_bytes < made.estimated_peak_bytes
        assert below.precision == made.precision
        made = below
    pytest.fail("lower never ended")


@EXAMPLES
@given(vrams, capabilities, specs, settings_values)
def test_the_largest_request_fits_and_respects_the_limits(vram, capability, spec, settings):
    gpu = Gpu("some", vram, capability)
    limited = settings.model_copy(update={"max_pixels": 832 * 480, "max_frames": 81})
    found = Planner(gpu, limited).largest(spec)
    if found is not None:
        assert found.pixels <= 832 * 480
        assert found.num_frames <= 81
        assert Planner(gpu, limited).plan(spec, found).estimated_peak_bytes <= gpu.budget_bytes
