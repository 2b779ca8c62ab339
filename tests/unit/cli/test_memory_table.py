"""`python -m worker.cli plans` and the table of the documentation that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.base.settings import Settings
from worker.cli.__main__ import main
from worker.cli.plans import details, table
from worker.request.plan import GPUS
from worker.request.plan.gpus import from_name

DOCUMENT = Path(__file__).parents[3] / "docs" / "memory-plan.md"
VARIABLES = ("ENABLE_CPU_OFFLOAD", "ENABLE_SEQUENTIAL_CPU_OFFLOAD", "ENABLE_VAE_TILING", "QUANTIZATION")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (*VARIABLES, "MAX_PIXELS", "MAX_FRAMES"):
        monkeypatch.delenv(name, raising=False)


def test_the_documented_table_is_the_generated_one():
    text = DOCUMENT.read_text(encoding="utf-8")
    documented = text.split("<!-- table -->\n")[1].split("<!-- /table -->")[0]
    assert documented == table(Settings())


def test_without_a_name_the_table_has_every_gpu(capsys):
    assert main(["plans"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [gpu.name for gpu in GPUS]


def test_a_gpu_prints_its_plans_and_the_largest_request(capsys):
    assert main(["plans", "--gpu", "L40S"]) == 0
    text = capsys.readouterr().out
    assert "bf16, swap: peak" in text
    assert text.count("largest request that fits:") == 3
    assert "1280x720 with 161 frames" in text


def test_the_environment_is_heard(capsys, monkeypatch):
    monkeypatch.setenv("ENABLE_CPU_OFFLOAD", "false")
    main(["plans", "--gpu", "RTX 4090"])
    text = capsys.readouterr().out
    assert "refused: unsupported" not in text
    assert "refused: model a14b does not fit" in text
    assert "largest request that fits: none" in text


def test_refusals_stand_in_the_table():
    assert "| refused |" in table(Settings(enable_cpu_offload=False))
    assert "refused" not in table(Settings())


@pytest.mark.parametrize(
    ("gpu", "quantization", "status", "said"),
    [
        ("RX 7900", "auto", 2, "no GPU 'RX 7900' in the table: L4, "),
        ("A100", "auto", 2, "--gpu: 'A100' may be A100 40GB or A100 80GB: write which"),
        ("RTX 3090", "fp8", 1, "error: QUANTIZATION: RTX 3090 has no fp8"),
    ],
)
def test_what_cannot_be_answered_ends_with_a_message(gpu, quantization, status, said, capsys, monkeypatch):
    monkeypatch.setenv("QUANTIZATION", quantization)
    assert main(["plans", "--gpu", gpu]) == status
    assert said in capsys.readouterr().err


def test_an_overruling_setting_is_a_reason():
    text = details(from_name("H200"), Settings(quantization="fp8"))
    assert "QUANTIZATION=fp8 overrules the plan" in text


def test_a_gpu_without_fp8_does_not_take_the_table_away_from_the_others(capsys, monkeypatch):
    monkeypatch.setenv("QUANTIZATION", "fp8")
    assert main(["plans"]) == 0
    rows = {row.split("|")[1].strip(): row for row in capsys.readouterr().out.splitlines()}
    assert "not possible" in rows["RTX 3090"]
    assert "fp8, resident" in rows["H100 80GB"]
