"""The settings against section 7 of the public contract, variable by variable."""

from __future__ import annotations

import ast
import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from worker.base.errors import SettingsError
from worker.base.settings import Settings, load, variables_of

ROOT = Path(__file__).parents[3]
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 24).decode()

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
STORAGE = {
    "DIGITAL_OCEAN_ENDPOINT_URL": ("storage_endpoint_url", "https://fra1.digitaloceanspaces.com"),
    "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": ("storage_access_key", "ACCESS-KEY-1"),
    "DIGITAL_OCEAN_BUCKET_SECRET_KEY": ("storage_secret_key", "SECRET-KEY-1"),
    "DIGITAL_OCEAN_BUCKET_NAME": ("storage_bucket", "videos"),
}
SECOND_NAMES = {
    "SPACES_ENDPOINT_URL": "storage_endpoint_url",
    "SPACES_ENDPOINT": "storage_endpoint_url",
    "BUCKET_ENDPOINT_URL": "storage_endpoint_url",
    "SPACES_BUCKET_ACCESS_KEY": "storage_access_key",
    "SPACES_ACCESS_KEY": "storage_access_key",
    "SPACES_KEY": "storage_access_key",
    "BUCKET_ACCESS_KEY_ID": "storage_access_key",
    "SPACES_BUCKET_SECRET_KEY": "storage_secret_key",
    "SPACES_SECRET_KEY": "storage_secret_key",
    "SPACES_SECRET": "storage_secret_key",
    "BUCKET_SECRET_ACCESS_KEY": "storage_secret_key",
    "SPACES_BUCKET_NAME": "storage_bucket",
    "SPACES_BUCKET": "storage_bucket",
}


def with_env(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        with_env(monkeypatch, **variables)
    return caught.value.problems


def storage_env(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names or STORAGE:
        monkeypatch.setenv(name, STORAGE[name][1])


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


def test_the_four_storage_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load().storage_is_remote
    storage_env(monkeypatch)
    loaded = load()
    assert loaded.storage_is_remote
    for variable, (field, text) in STORAGE.items():
        value = getattr(loaded, field)
        assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == text
        assert variables_of(field)[0] == variable


@pytest.mark.parametrize(("name", "field"), SECOND_NAMES.items())
def test_second_names(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    first = variables_of(field)[0]
    text = STORAGE[first][1]
    storage_env(monkeypatch, *(STORAGE.keys() - {first}))
    value = getattr(with_env(monkeypatch, **{name: text}), field)
    assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == text


@pytest.mark.parametrize(
    ("name", "field"), [("SPACES_BUCKET_URL", "storage_public_url"), ("SPACES_REGION", "storage_region")]
)
def test_second_names_of_the_rest(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    assert getattr(with_env(monkeypatch, **{name: "https://cdn.test"}), field) == "https://cdn.test"


def test_the_first_name_wins_and_an_empty_one_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    assert with_env(monkeypatch, SPACES_BUCKET_NAME="other").storage_bucket == "videos"
    assert with_env(monkeypatch, DIGITAL_OCEAN_BUCKET_NAME="").storage_bucket == "other"


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


# --- storage


@pytest.mark.parametrize("missing", STORAGE)
def test_storage_without_one_of_the_four_refuses(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    storage_env(monkeypatch, *(STORAGE.keys() - {missing}))
    (line,) = problems(monkeypatch)
    assert f"set {missing} too" in line


@pytest.mark.parametrize("alone", STORAGE)
def test_storage_with_one_of_the_four_refuses(monkeypatch: pytest.MonkeyPatch, alone: str) -> None:
    storage_env(monkeypatch, alone)
    (line,) = problems(monkeypatch)
    assert all(name in line.split(", or unset")[0] for name in STORAGE.keys() - {alone})
    assert f"{alone}," not in line


def test_an_empty_storage_variable_is_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    (line,) = problems(monkeypatch, DIGITAL_OCEAN_BUCKET_NAME="")
    assert "set DIGITAL_OCEAN_BUCKET_NAME too" in line


def test_all_four_empty_is_local_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not with_env(monkeypatch, **dict.fromkeys(STORAGE, "")).storage_is_remote


def test_the_three_names_of_runpod_with_the_bucket_in_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = with_env(
        monkeypatch,
        BUCKET_ENDPOINT_URL="https://videos.fra1.digitaloceanspaces.com",
        BUCKET_ACCESS_KEY_ID="a",
        BUCKET_SECRET_ACCESS_KEY="b",
    )
    assert loaded.storage_bucket == "videos"


# --- secrets


def test_secrets_are_in_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    loaded = with_env(
        monkeypatch, HF_TOKEN="hf_hidden", RUNPOD_API_KEY="rp_hidden", WEBHOOK_SECRET=f"{SECRET} {OTHER_SECRET}"
    )
    hidden = {"hf_hidden", "rp_hidden", "ACCESS-KEY-1", "SECRET-KEY-1", SECRET, OTHER_SECRET}
    assert set(loaded.secret_values()) == hidden
    for text in (repr(loaded), str(loaded), str(loaded.model_dump()), loaded.model_dump_json()):
        assert not [secret for secret in hidden if secret in text]


def test_every_secret_field_is_among_the_values_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert len(fields) == 7
    values = {name: SECRET if name == "webhook_secret" else f"value-of-{name}" for name in fields}
    assert set(Settings(**values).secret_values()) == set(values.values())  # type: ignore[arg-type]


def test_a_bad_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = problems(monkeypatch, WEBHOOK_SECRET="hunter2!hunter2!")
    assert "hunter2" not in line
    assert "whsec_" in line


def secret_of(length: int, sign: bytes = b"k") -> str:
    return "whsec_" + base64.b64encode(sign * length).decode()


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"{SECRET} {OTHER_SECRET}",
        f"  {SECRET}\t{OTHER_SECRET} ",
        secret_of(24),
        secret_of(25),
        secret_of(26),
        secret_of(64),
        secret_of(24, b"\xfb"),  # with + and / in its base64
    ],
)
def test_webhook_secrets_of_the_contract(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert with_env(monkeypatch, WEBHOOK_SECRET=text).webhook_secrets == tuple(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "my secret",
        "whsec_",
        "whsec_a",
        "whsec_####",
        "not base64!",
        "whsec_YWJj",
        secret_of(23),
        secret_of(65),
        SECRET.removeprefix("whsec_"),
        SECRET.upper(),
        secret_of(25).rstrip("="),
        secret_of(24, b"\xfb").replace("+", "-"),
        secret_of(24) + "=",
        f"{SECRET} whsec_",
        f"{SECRET} {secret_of(23)}",
        f"{SECRET},{SECRET}",
    ],
)
def test_any_other_webhook_secret_stops_the_worker(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (line,) = problems(monkeypatch, WEBHOOK_SECRET=text)
    assert line.startswith("WEBHOOK_SECRET: each secret must be whsec_ and base64 of 24 to 64 bytes")


def test_no_webhook_secret_is_no_secret() -> None:
    assert load().webhook_secrets == ()
    assert load().secret_values() == ()


# --- the allowlist


@pytest.mark.parametrize(
    "entry",
    [
        "localhost",
        "minio.internal",
        "minio.internal:9000",
        "a_b.example-1.com:65535",
        "host:1",
        "10.0.0.0/8",
        "10.1.2.3/8",
        "127.0.0.1",
        "127.0.0.1:8080",
        "fd00::/8",
        "::1",
        "[::1]",
        "[::1]:8080",
        "fe80::1:2:3",
    ],
)
def test_allowlist_entries(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=entry).private_url_allowlist == (entry,)


@pytest.mark.parametrize(
    "entry",
    [
        "http://localhost",
        "localhost/path",
        "*.example.com",
        "a b",
        "-a.com",
        "a-.com",
        "a..b",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:port",
        "host:²",
        ":80",
        "[::1",
        "::1]",
        "[::1]:0",
        "[localhost]",
        "[localhost]:80",
        "10.0.0.0/33",
        "10.0.0.0/x",
        "fd00::/129",
        "user@host",
        "host?x",
    ],
)
def test_allowlist_entries_that_are_none(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    (line,) = problems(monkeypatch, PRIVATE_URL_ALLOWLIST=f"localhost,{entry}")
    assert line.startswith("PRIVATE_URL_ALLOWLIST: ")
    assert repr(entry) in line


def test_blanks_in_the_allowlist_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=" , a ,, b ,").private_url_allowlist == ("a", "b")
    assert with_env(monkeypatch, PRIVATE_URL_ALLOWLIST=",").private_url_allowlist == ()


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


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("8", 8), (" 2 ", 2), ("all", "all")])
def test_a_number_of_gpus_or_all(monkeypatch: pytest.MonkeyPatch, text: str, value: object) -> None:
    assert with_env(monkeypatch, GPUS=text).gpus == value


@pytest.mark.parametrize("text", ["0", "9", "-1", "1.5", "some", "²"])
def test_other_numbers_of_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (problem,) = problems(monkeypatch, GPUS=text)
    assert problem == "GPUS: write all, or a number from 1 to 8"
