"""The settings against section 7 of the public contract, variable by variable, and the one module that reads them."""

from __future__ import annotations

import ast
import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.kits.settings_kit import problems, with_env
from worker.base.settings import Settings, load, variables_of

ROOT = Path(__file__).parents[3]

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()

# variable, field, default, a text that sets it, the value read from that text
CONTRACT: list[tuple[str, str, Any, str, Any]] = [
    ("I2V_MODEL_ID", "i2v_model_id", "Wan-AI/Wan2.2-I2V-A14B", "me/mine", "me/mine"),
    ("T2V_MODEL_ID", "t2v_model_id", "Wan-AI/Wan2.2-T2V-A14B", "me/mine", "me/mine"),
    ("TI2V_MODEL_ID", "ti2v_model_id", "Wan-AI/Wan2.2-TI2V-5B", "me/mine", "me/mine"),
    ("MODEL_PROFILE", "model_profile", None, "demo", "demo"),
    ("PRELOAD", "preload", ("i2v",), "t2v, 5b", ("t2v", "5b")),
    ("MODEL_CACHE_DIR", "model_cache_dir", None, "/data/models", Path("/data/models")),
    ("ENABLE_VAE_TILING", "enable_vae_tiling", "true", "always", "always"),
    ("ENABLE_CPU_OFFLOAD", "enable_cpu_offload", None, "false", False),
    ("ENABLE_SEQUENTIAL_CPU_OFFLOAD", "enable_sequential_cpu_offload", None, "true", True),
    ("ENABLE_SAGE_ATTENTION", "enable_sage_attention", True, "false", False),
    ("ENABLE_FUSED_KERNELS", "enable_fused_kernels", True, "false", False),
    ("ENABLE_TORCH_COMPILE", "enable_torch_compile", False, "true", True),
    ("QUANTIZATION", "quantization", "auto", "fp8", "fp8"),
    ("QUANTIZED_COMPUTE", "quantized_compute", "off", "Middle", "middle"),
    ("GPUS", "gpus", 1, "ALL", "all"),
    ("HF_TOKEN", "hf_token", None, "hf_abc", SecretStr("hf_abc")),
    ("RUNPOD_API_KEY", "runpod_api_key", None, "rp_abc", SecretStr("rp_abc")),
    ("DIGITAL_OCEAN_BUCKET_URL", "storage_public_url", None, "https://cdn.test", "https://cdn.test"),
    ("DIGITAL_OCEAN_REGION", "storage_region", None, "fra1", "fra1"),
    ("STORAGE_ACL", "storage_acl", "public-read", "private", "private"),
    ("PRESIGN_EXPIRY_S", "presign_expiry_s", 86_400, "60", 60),
    ("OUTPUT_DIR", "output_dir", Path("./outputs"), "/data/out", Path("/data/out")),
    ("WEBHOOK_SECRET", "webhook_secret", None, SECRET, SecretStr(SECRET)),
    ("STATE_DIR", "state_dir", None, "/data/state", Path("/data/state")),
    ("PRIVATE_URL_ALLOWLIST", "private_url_allowlist", (), "localhost, 10.0.0.0/8", ("localhost", "10.0.0.0/8")),
    ("JOB_TIMEOUT_S", "job_timeout_s", 3600, "90.5", 90.5),
    ("MAX_VIDEOS_PER_JOB", "max_videos_per_job", 16, "4", 4),
    ("MAX_PIXELS", "max_pixels", 921_600, "400000", 400_000),
    ("MAX_FRAMES", "max_frames", 161, "81", 81),
    ("LORA_MAX_BYTES", "lora_max_bytes", 2_000_000_000, "1500000000", 1_500_000_000),
    ("TRAINING_MAX_BYTES", "training_max_bytes", 5_000_000_000, "100000000", 100_000_000),
    ("GPU_HOURLY_USD", "gpu_hourly_usd", None, "3.59", 3.59),
    ("LOG_LEVEL", "log_level", "INFO", "debug", "DEBUG"),
    ("LOG_FORMAT", "log_format", "text", "json", "json"),
    ("METRICS_PORT", "metrics_port", None, "9464", 9464),
]


@pytest.fixture(autouse=True)
def nothing_set(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIR", "OUTPUT_DIR", "MODEL_CACHE_DIR"):
        monkeypatch.delenv(name)


# --- every variable


@pytest.mark.parametrize(("variable", "field", "default", "text", "value"), CONTRACT, ids=[row[0] for row in CONTRACT])
def test_each_variable_and_its_default(
    monkeypatch: pytest.MonkeyPatch, variable: str, field: str, default: object, text: str, value: object
) -> None:
    assert getattr(load(), field) == default
    assert getattr(with_env(monkeypatch, **{variable: ""}), field) == default  # empty counts as unset
    assert getattr(with_env(monkeypatch, **{variable: text}), field) == value
    assert variables_of(field)[0] == variable


@pytest.mark.parametrize("name", ["STORAGE_BUCKET", "STORAGE_ACCESS_KEY", "RUNPOD_JOB_URL", "SDK_LOG_LEVEL"])
def test_the_name_of_a_field_is_no_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert with_env(monkeypatch, **{name: "x"}) == Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().max_frames = 5


def test_the_platform_is_seen_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load().on_platform
    assert with_env(monkeypatch, RUNPOD_WEBHOOK_GET_JOB="https://example.com/job").on_platform


# --- values that can and cannot be read


GOOD: list[tuple[str, str, Any]] = [
    ("PRESIGN_EXPIRY_S", "1", 1),
    ("PRESIGN_EXPIRY_S", "604800", 604_800),
    ("MAX_VIDEOS_PER_JOB", "1", 1),
    ("MAX_PIXELS", "65536", 65_536),
    ("MAX_FRAMES", "5", 5),
    ("LORA_MAX_BYTES", "1", 1),
    ("TRAINING_MAX_BYTES", "1", 1),
    ("JOB_TIMEOUT_S", "0.001", 0.001),
    ("SHUTDOWN_GRACE_S", "0", 0),
    ("GPU_HOURLY_USD", "0", 0),
    ("PRELOAD", "none", ()),
    ("PRELOAD", "NONE", ()),
    ("PRELOAD", "i2v,t2v,5b", ("i2v", "t2v", "5b")),
    ("PRELOAD", " I2V , i2v ", ("i2v",)),
    ("MODEL_PROFILE", "DEMO", "demo"),
    ("MODEL_PROFILE", "wan2.2", "wan2.2"),
    ("ENABLE_VAE_TILING", "TRUE", "true"),
    ("ENABLE_VAE_TILING", "1", "true"),
    ("ENABLE_VAE_TILING", "no", "false"),
    ("ENABLE_VAE_TILING", "Always", "always"),
    ("ENABLE_SAGE_ATTENTION", "0", False),
    ("ENABLE_CPU_OFFLOAD", "True", True),
    ("QUANTIZATION", "NONE", "none"),
    ("QUANTIZATION", "int8", "int8"),
    ("STORAGE_ACL", "Private", "private"),
    ("LOG_FORMAT", "JSON", "json"),
    ("LOG_LEVEL", "Warning", "WARNING"),
    ("METRICS_PORT", "1", 1),
    ("METRICS_PORT", "65535", 65_535),
    ("METRICS_PORT", "", None),
]

BAD: list[tuple[str, str]] = [
    ("PRESIGN_EXPIRY_S", "0"),
    ("PRESIGN_EXPIRY_S", "604801"),
    ("PRESIGN_EXPIRY_S", "1.5"),
    ("PRESIGN_EXPIRY_S", "a day"),
    ("MAX_VIDEOS_PER_JOB", "0"),
    ("MAX_VIDEOS_PER_JOB", "1e3"),
    ("MAX_PIXELS", "65535"),
    ("MAX_FRAMES", "4"),
    ("LORA_MAX_BYTES", "0"),
    ("TRAINING_MAX_BYTES", "0"),
    ("JOB_TIMEOUT_S", "0"),
    ("JOB_TIMEOUT_S", "-1"),
    ("JOB_TIMEOUT_S", "inf"),
    ("JOB_TIMEOUT_S", "nan"),
    ("SHUTDOWN_GRACE_S", "-0.1"),
    ("GPU_HOURLY_USD", "-0.01"),
    ("GPU_HOURLY_USD", "inf"),
    ("GPU_HOURLY_USD", "nan"),
    ("GPU_HOURLY_USD", "$3"),
    ("PRELOAD", "i2v,none"),
    ("PRELOAD", "i2v t2v"),
    ("PRELOAD", "a14b"),
    ("MODEL_PROFILE", "wan"),
    ("ENABLE_VAE_TILING", "sometimes"),
    ("ENABLE_CPU_OFFLOAD", "maybe"),
    ("ENABLE_SEQUENTIAL_CPU_OFFLOAD", "2"),
    ("ENABLE_SAGE_ATTENTION", "x"),
    ("ENABLE_TORCH_COMPILE", "x"),
    ("QUANTIZATION", "int4"),
    ("STORAGE_ACL", "public"),
    ("LOG_LEVEL", "LOUD"),
    ("LOG_FORMAT", "xml"),
    ("METRICS_PORT", "0"),
    ("METRICS_PORT", "65536"),
    ("METRICS_PORT", "on"),
    ("DIGITAL_OCEAN_BUCKET_URL", "cdn.example.com"),
    ("DIGITAL_OCEAN_BUCKET_URL", "https://"),
    ("DIGITAL_OCEAN_BUCKET_URL", "ftp://example.com"),
]


def field_of(variable: str) -> str:
    return next(name for name in Settings.model_fields if variable in variables_of(name))


@pytest.mark.parametrize(("variable", "text", "value"), GOOD)
def test_what_can_be_read(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, value: object) -> None:
    assert getattr(with_env(monkeypatch, **{variable: text}), field_of(variable)) == value


@pytest.mark.parametrize(("variable", "text"), BAD)
def test_what_cannot_be_read_stops_the_worker(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    (line,) = problems(monkeypatch, **{variable: text})
    assert line.startswith(f"{variable}: ")


def test_every_problem_is_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = problems(
        monkeypatch,
        MAX_FRAMES="many",
        PRELOAD="everything",
        WEBHOOK_SECRET="#",
        PRIVATE_URL_ALLOWLIST="a b, *.example.com, localhost",
        DIGITAL_OCEAN_BUCKET_NAME="videos",
        DIGITAL_OCEAN_ENDPOINT_URL="nyc3",
        LOG_LEVEL="loud",
    )
    found = {line.split(":")[0] for line in lines}
    assert found == {
        "MAX_FRAMES",
        "PRELOAD",
        "WEBHOOK_SECRET",
        "PRIVATE_URL_ALLOWLIST",
        "DIGITAL_OCEAN_ENDPOINT_URL",
        "LOG_LEVEL",
        "storage is configured in part",
    }
    storage = next(line for line in lines if line.startswith("storage"))
    assert "DIGITAL_OCEAN_BUCKET_ACCESS_KEY, DIGITAL_OCEAN_BUCKET_SECRET_KEY too" in storage
    allowlist = next(line for line in lines if line.startswith("PRIVATE_URL_ALLOWLIST"))
    assert "'a b', '*.example.com'" in allowlist
    assert "localhost" not in allowlist


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("8", 8), (" 2 ", 2), ("all", "all")])
def test_a_number_of_gpus_or_all(monkeypatch: pytest.MonkeyPatch, text: str, value: object) -> None:
    assert with_env(monkeypatch, GPUS=text).gpus == value


@pytest.mark.parametrize("text", ["0", "9", "-1", "1.5", "some", "²"])
def test_other_numbers_of_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (problem,) = problems(monkeypatch, GPUS=text)
    assert problem == "GPUS: write all, or a number from 1 to 8"


# --- the sole reader


def test_no_other_module_reads_the_environment() -> None:
    for file in (ROOT / "worker").rglob("*.py"):
        if file.name == "settings.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            read = (
                isinstance(node, ast.Attribute)
                and node.attr in ("environ", "getenv")
                and isinstance(node.ctx, ast.Load)
            )
            assert not read, f"{file.relative_to(ROOT)}:{node.lineno}"
