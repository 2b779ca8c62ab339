"""The memory plan of each known GPU, and how each setting changes it; GPUs by the names people write."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from worker.base.errors import InvalidRequest, SettingsError, Unsupported
from worker.base.settings import Settings
from worker.request import CATALOGUE
from worker.request.catalogue import I2V_A14B, T2V_A14B, TI2V_5B
from worker.request.plan import GPUS, STANDARD, Gpu, Planner, Shape, from_name, size_of
from worker.request.plan.gpus import CONTEXT_BYTES, FRAGMENTATION

GIB = 1024**3
ADA = (8, 9)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.key)
def test_every_gpu_of_the_table_serves_the_standard_request_with_whole_experts(gpu, spec):
    made = Planner(gpu, Settings()).plan(spec, STANDARD)
    assert made.residency in ("resident", "swap")
    assert not made.vae_tiling


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("RTX 4090", STANDARD, ("fp8", "swap")),
        ("RTX 3090", STANDARD, ("int8", "swap")),
        ("RTX 4090", Shape(1280, 720, 81), ("fp8", "group_offload")),
        ("L40S", STANDARD, ("bf16", "swap")),
        ("A6000", Shape(1280, 720, 81), ("bf16", "swap")),
        ("H100", STANDARD, ("bf16", "resident")),
        ("H200", Shape(1280, 720, 161), ("bf16", "resident")),
        ("B200", STANDARD, ("bf16", "resident")),
    ],
)
def test_known_gpus_get_the_plan_of_the_readme(name, shape, expected):
    made = Planner(from_name(name), Settings()).plan(I2V_A14B, shape)
    assert (made.precision, made.residency) == expected


def test_the_text_encoder_stays_only_where_it_leaves_room():
    """Weights that are loaded beside a running video lie in pieces: a GPU that is full to 97% runs out of memory."""
    h100, h200 = from_name("H100 80GB"), from_name("H200")
    for shape in (STANDARD, Shape(1280, 720, 81)):
        assert Planner(h100, Settings()).plan(I2V_A14B, shape).text_encoder == "offloaded"
        assert Planner(h200, Settings()).plan(I2V_A14B, shape).text_encoder == "resident"
    needed = Planner(h200, Settings()).plan(I2V_A14B, STANDARD).estimated_peak_bytes
    for share, place in ((0.93, "offloaded"), (0.91, "resident")):
        vram = int((needed / share + CONTEXT_BYTES) / (1 - FRAGMENTATION))
        made = Planner(Gpu("edge", vram, ADA), Settings()).plan(I2V_A14B, STANDARD)
        assert (made.residency, made.text_encoder) == ("resident", place)


def test_the_budget_is_the_border():
    needed = Planner(from_name("L40S"), Settings()).ladder(T2V_A14B)[2].peak_bytes(size_of(T2V_A14B), STANDARD)
    vram = next(vram for vram in range(needed, 2 * needed, 10**6) if Gpu("edge", vram, ADA).budget_bytes >= needed)
    assert Planner(Gpu("edge", vram, ADA), Settings()).plan(T2V_A14B, STANDARD).precision == "bf16"
    assert Planner(Gpu("edge", vram - 10**7, ADA), Settings()).plan(T2V_A14B, STANDARD).precision == "fp8"


@pytest.mark.parametrize(
    ("changes", "residencies"),
    [
        ({"enable_cpu_offload": True}, {"swap"}),
        ({"enable_cpu_offload": False}, {"resident"}),
        ({"enable_sequential_cpu_offload": True}, {"sequential"}),
        ({"enable_sequential_cpu_offload": True, "enable_cpu_offload": False}, {"sequential"}),
        ({"enable_sequential_cpu_offload": False}, {"resident", "swap", "group_offload"}),
        ({}, {"resident", "swap", "group_offload", "sequential"}),
    ],
)
def test_offload_settings_overrule_the_plan_where_they_are_set(changes, residencies):
    rungs = Planner(from_name("H200"), Settings(**changes)).ladder(I2V_A14B)
    assert {rung.residency for rung in rungs} == residencies
    made = Planner(from_name("H200"), Settings(**changes)).plan(I2V_A14B, STANDARD)
    for name in changes:
        assert any(name.upper() in reason for reason in made.reasons)


def test_without_offload_the_text_encoder_stays_too_and_small_gpus_serve_little_or_nothing():
    settings = Settings(enable_cpu_offload=False)
    assert Planner(from_name("H100 80GB"), settings).plan(I2V_A14B, STANDARD).text_encoder == "resident"
    with pytest.raises(InvalidRequest, match="what fits: 832x480 with"):
        Planner(from_name("L40S"), settings).plan(I2V_A14B, STANDARD)
    with pytest.raises(Unsupported, match="at any size"):
        Planner(from_name("RTX 5090"), settings).plan(I2V_A14B, STANDARD)


@pytest.mark.parametrize(("word", "precision"), [("none", "bf16"), ("fp8", "fp8"), ("int8", "int8")])
def test_quantization_is_taken_at_its_word(word, precision):
    for gpu in ("H200", "RTX 4090"):
        made = Planner(from_name(gpu), Settings(quantization=word)).plan(I2V_A14B, STANDARD)
        assert made.precision == precision


@pytest.mark.parametrize(
    ("gpu", "arithmetic", "precisions"),
    [
        # The best quality first; fp8 where the GPU has it.
        ("H200", "off", {"bf16"}),
        ("RTX 4090", "off", {"fp8"}),
        ("RTX 3090", "off", {"int8"}),
        ("H200", "on", {"fp8"}),
        ("A100 80GB", "on", {"int8"}),
    ],
)
def test_the_ladder_has_one_precision_the_best_that_holds(gpu, arithmetic, precisions):
    rungs = Planner(from_name(gpu), Settings(quantized_compute=arithmetic)).ladder(I2V_A14B)
    assert {rung.precision for rung in rungs} == precisions


def test_sequential_by_order_is_not_quantised_behind_the_operators_back():
    made = Planner(from_name("RTX 4090"), Settings(enable_sequential_cpu_offload=True)).plan(I2V_A14B, STANDARD)
    assert made.precision == "bf16"


def test_what_the_gpu_cannot_do_stops_the_worker_at_start():
    with pytest.raises(SettingsError, match="QUANTIZATION"):
        Planner(Gpu("A40", 48 * GIB, (8, 6)), Settings(quantization="fp8")).ladder(I2V_A14B)
    assert Planner(Gpu("L40", 48 * GIB, ADA), Settings(quantization="fp8")).ladder(I2V_A14B)
    with pytest.raises(SettingsError, match="Ampere"):
        Planner(Gpu("T4", 16 * GIB, (7, 5)), Settings()).ladder(TI2V_5B)
    assert Planner(Gpu("A2", 16 * GIB, (8, 0)), Settings()).ladder(TI2V_5B)


def test_tiling_follows_its_setting():
    small = Gpu("small", 16 * GIB, ADA)
    wanted = Shape(1280, 704, 121)
    assert Planner(small, Settings()).plan(TI2V_5B, wanted).vae_tiling
    assert Planner(from_name("H200"), Settings(enable_vae_tiling="always")).plan(TI2V_5B, wanted).vae_tiling
    with pytest.raises(InvalidRequest, match="what fits: 832x480 with 121 frames"):
        Planner(small, Settings(enable_vae_tiling="false")).plan(TI2V_5B, wanted)


def test_a_portrait_request_is_offered_portrait_sizes():
    with pytest.raises(InvalidRequest, match="what fits: 480x832 with 121 frames"):
        Planner(Gpu("small", 16 * GIB, ADA), Settings(enable_vae_tiling="false")).plan(TI2V_5B, Shape(704, 1280, 121))


def test_host_memory_that_cannot_hold_the_weights_leads_to_quantised_and_resident():
    l40s = from_name("L40S")
    assert Planner(l40s, Settings(), 80 * 10**9).plan(I2V_A14B, STANDARD).precision == "bf16"
    made = Planner(l40s, Settings(), 60 * 10**9).plan(I2V_A14B, STANDARD)
    assert (made.precision, made.residency, made.text_encoder) == ("fp8", "resident", "offloaded")
    assert made.host_bytes <= 60 * 10**9


def test_host_bytes_are_the_weights_that_wait():
    on_h200 = Planner(from_name("H200"), Settings()).plan(I2V_A14B, STANDARD)
    assert on_h200.host_bytes == 0
    swapped = Planner(from_name("L40S"), Settings()).plan(I2V_A14B, STANDARD)
    assert 2 * 28.5e9 + 11.3e9 < swapped.host_bytes < 70e9


def test_too_many_loras_are_named_as_the_cause():
    with pytest.raises(InvalidRequest, match="200 LoRAs"):
        Planner(from_name("RTX 4090"), Settings(enable_cpu_offload=True)).plan(
            TI2V_5B, dataclasses.replace(STANDARD, loras=200)
        )


def test_without_a_gpu_everything_is_resident_in_fp32_and_nothing_is_refused():
    made = Planner(None, Settings()).plan(TI2V_5B, Shape(1920, 1088, 241))
    assert (made.precision, made.residency, made.text_encoder, made.vae_tiling) == (
        "fp32",
        "resident",
        "resident",
        False,
    )
    assert Planner(None, Settings(enable_vae_tiling="always")).plan(TI2V_5B, STANDARD).vae_tiling
    assert Planner(None, Settings()).lower(made, TI2V_5B, STANDARD) is None
    assert Planner(None, Settings()).largest(TI2V_5B) == Shape(1280, 704, 161)


def test_other_weights_can_stand_for_the_catalogues():
    tiny = dataclasses.replace(
        size_of(TI2V_5B),
        expert_params=10**6,
        block_params=9 * 10**5,
        linear_params=9 * 10**5,
        text_encoder_params=10**6,
        vae_params=10**6,
    )
    gpu = Gpu("small", 12 * GIB, ADA)
    assert Planner(gpu, Settings()).plan(TI2V_5B, Shape(256, 256, 5), size=tiny).residency == "resident"
    assert Planner(gpu, Settings()).plan(TI2V_5B, Shape(256, 256, 5)).residency != "resident"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("L40S", "L40S"),
        ("l40", "L40"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("A100 80GB", "A100 80GB"),
        ("H100", "H100 80GB"),
        ("a100-40gb", "A100 40GB"),
        ("h100 nvl", "H100 NVL"),
    ],
)
def test_gpus_are_found_by_the_names_people_write(written, name):
    assert from_name(written).name == name


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "no GPU '' in the table: L4, "),
        ("NVIDIA", "no GPU 'NVIDIA' in the table"),
        ("RX 7900", "no GPU 'RX 7900' in the table"),
        ("A100", "'A100' may be A100 40GB or A100 80GB: write which"),
        ("nvidia a100", "'nvidia a100' may be A100 40GB or A100 80GB"),
        ("RTX A", "may be RTX A5000 or RTX A6000"),
    ],
)
def test_a_name_of_no_gpu_or_of_several_is_a_key_error(written, said):
    with pytest.raises(KeyError) as caught:
        from_name(written)
    assert said in caught.value.args[0]


def test_importing_the_plan_loads_neither_torch_nor_diffusers():
    check = "import sys, worker.request.plan; sys.exit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
