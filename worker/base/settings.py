"""The worker's settings: the sole reader of the environment.

Names, defaults and meanings are those of section 7 of the public contract. An empty variable counts as unset, so
that a template with blank fields starts. `load` reports every unreadable value at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from worker.base import setting_texts as texts
from worker.base.errors import SettingsError
from worker.base.mark_settings import MarkSettings
from worker.base.storage_settings import StorageSettings

MAX_GPUS = texts.MAX_GPUS
PRELOADABLE = texts.PRELOADABLE

Preload = Literal["i2v", "t2v", "5b"]
Lowered = BeforeValidator(texts.lower)


class Settings(StorageSettings, MarkSettings):
    """One frozen value for the whole process; field names are the variables in lower case unless an alias says more."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        case_sensitive=False,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    i2v_model_id: str = Field(
        "Wan-AI/Wan2.2-I2V-A14B",
        description="Image-to-video weights: a hub id (the original id stands for its -Diffusers twin) or a folder",
    )
    t2v_model_id: str = Field("Wan-AI/Wan2.2-T2V-A14B", description="Text-to-video weights, written alike")
    ti2v_model_id: str = Field("Wan-AI/Wan2.2-TI2V-5B", description="Weights of model 5b, written alike")
    model_profile: Annotated[Literal["wan2.2", "demo"], Lowered] | None = Field(
        None,
        description="wan2.2 serves the real models, demo the small built-in one. Unset: wan2.2, but demo in local mode "
        "on a machine without a CUDA GPU",
    )
    preload: Annotated[tuple[Preload, ...], NoDecode, BeforeValidator(texts.preload)] = Field(
        ("i2v",), description="What is loaded before the first job: any of i2v,t2v,5b with commas between, or none"
    )
    model_cache_dir: Path | None = Field(
        None,
        description="Where weights are kept. Unset: /workspace/models, else /runpod-volume/models, else "
        "~/.cache/videogen/models; a path under /workspace is looked for on /runpod-volume too",
    )

    enable_vae_tiling: Annotated[Literal["true", "always", "false"], BeforeValidator(texts.tiling)] = Field(
        "true",
        description="true tiles the VAE where it would not fit otherwise (slower, changes pixels); or always, false",
    )
    enable_cpu_offload: bool | None = Field(
        None, description="true swaps whole models between host and GPU, false keeps all on the GPU; unset: as planned"
    )
    enable_sequential_cpu_offload: bool | None = Field(
        None, description="true moves layer by layer: least memory, slowest; false forbids that; unset: as planned"
    )
    enable_sage_attention: bool = Field(True, description="SageAttention where the package is installed")
    enable_fused_kernels: bool = Field(
        True, description="Triton kernels for the elementwise work of the experts' blocks and of the VAE's decode"
    )
    enable_torch_compile: bool = Field(
        False, description="Compile the experts' blocks: a slow first video, faster ones"
    )
    quantization: Annotated[Literal["auto", "none", "fp8", "int8"], Lowered] = Field(
        "auto", description="How the experts are held; auto leaves bf16 only where it does not fit the GPU"
    )
    quantized_compute: Annotated[Literal["off", "on", "middle"], Lowered] = Field(
        "off",
        description="on: the experts' linear layers multiply in fp8 (Ada and newer) or int8 (Ampere), and auto "
        "quantises for it; middle: but for the first and the last step",
    )
    enable_image_encode_reuse: bool = Field(
        True, description="Encode the reference picture without repeating work for the blank frames behind it; exact"
    )
    vae_decode_dtype: Annotated[Literal["fp32", "bf16"], Lowered] = Field(
        "fp32", description="bf16 decodes with half the memory and work, at some cost in quality; encoding stays fp32"
    )
    gpus: Annotated[Literal["all"] | int, BeforeValidator(texts.gpus)] = Field(
        1, description="GPUs that share each video, one process a GPU: all, or how many"
    )

    hf_token: SecretStr | None = Field(None, description="Sent to the model hub, for gated or private repositories")
    runpod_api_key: SecretStr | None = Field(
        None, description="Set by RunPod; kept out of the log, and used by python -m worker.cli submit"
    )

    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks: whsec_ and base64 of 24 to 64 bytes; several, with spaces between, while one "
        "replaces another",
    )
    state_dir: Path | None = Field(
        None,
        description="Journal, outbox and videos that wait for the storage (5 GiB at most). "
        "Unset: state beside the model cache on a volume, else ./.state",
    )
    private_url_allowlist: Annotated[tuple[str, ...], NoDecode, BeforeValidator(texts.openings)] = Field(
        (),
        description="Hosts, host:port or CIDRs with commas between that requests may reach though they are not public",
    )

    job_timeout_s: float = Field(3600.0, gt=0, description="Seconds after which a job is stopped and answers timeout")
    shutdown_grace_s: float = Field(20.0, ge=0, description="Seconds that a running job has after SIGTERM")
    max_videos_per_job: int = Field(16, ge=1, description="Video requests in one job")
    max_pixels: int = Field(921_600, ge=256 * 256, description="Width x height of a video; the default is 1280 x 720")
    max_frames: int = Field(161, ge=5, description="Frames of a video")
    max_total_frames: int = Field(1_000, ge=5, description="Frames of a video of several segments")
    lora_max_bytes: int = Field(
        2_000_000_000, ge=1, description="Bytes of a LoRA from a URL or the hub; the operator's own files have no limit"
    )
    training_max_bytes: int = Field(5_000_000_000, ge=1, description="Bytes of the ZIP of a training")
    inline_max_bytes: int = Field(
        7_000_000, ge=100_000, le=10_000_000, description="Bytes of a file that is in the answer as base64"
    )

    prompt_expansion_url: str | None = Field(
        None, description="Base of an OpenAI-compatible chat endpoint, such as https://api.openai.com/v1"
    )
    prompt_expansion_model: str | None = Field(None, description="The model that is asked for there")
    prompt_expansion_api_key: SecretStr | None = Field(None, description="Its key, where it needs one")

    gpu_hourly_usd: float | None = Field(
        None, ge=0, description="What the GPU costs an hour: results then have cost_usd"
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(texts.upper)] = Field(
        "INFO", description="The least level that is logged"
    )
    log_format: Annotated[Literal["text", "json"], Lowered] = Field(
        "text", description="json writes one object a line, with the job's id"
    )

    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="Serves Prometheus metrics at this port, to all addresses; unset: none"
    )

    sdk_log_level: str | None = Field(
        None,
        validation_alias=AliasChoices("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"),
        description="What RunPod's SDK logs. Unset: INFO on the platform, WARN elsewhere. DEBUG shows prompts and URLs",
    )
    runpod_job_url: str | None = Field(
        None,
        validation_alias="RUNPOD_WEBHOOK_GET_JOB",
        description="Set by RunPod's platform on every worker; unset means local mode. Do not set it",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # A field's name is for code: a variable STORAGE_BUCKET of some other program must not configure this one.
        env_settings.config = {**settings_cls.model_config, "populate_by_name": False}
        return init_settings, env_settings

    @property
    def model_ids(self) -> Mapping[str, str]:
        """The id or folder of each model's weights, by the model's key."""
        return {"i2v": self.i2v_model_id, "t2v": self.t2v_model_id, "5b": self.ti2v_model_id}

    @property
    def on_platform(self) -> bool:
        return self.runpod_job_url is not None

    @property
    def lacks_bucket(self) -> bool:
        """On the platform without a bucket: nobody can fetch what is on the worker's own disk."""
        return self.on_platform and not self.storage_is_remote

    @property
    def hub_token(self) -> str | None:
        return self.hf_token.get_secret_value() if self.hf_token is not None else None

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        return tuple(self.webhook_secret.get_secret_value().split()) if self.webhook_secret else ()

    def secret_values(self) -> tuple[str, ...]:
        """Every value that must not appear in a log."""
        holders = (
            *(self.hf_token, self.runpod_api_key, self.prompt_expansion_api_key),
            *(self.storage_access_key, self.storage_secret_key, self.c2pa_private_key),
        )
        return (*(held.get_secret_value() for held in holders if held is not None), *self.webhook_secrets)

    @field_validator("webhook_secret")
    @classmethod
    def _secrets_are_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(map(texts.is_secret, value.get_secret_value().split() or [""])):
            raise ValueError(
                "each secret must be whsec_ and base64 of 24 to 64 bytes, such as one made by: "
                "python -c \"import base64,os;print('whsec_'+base64.b64encode(os.urandom(24)).decode())\""
            )
        return value


def load() -> Settings:
    """Read the process's environment. Raises SettingsError with one line for each value that cannot be read."""
    problems: list[str] = []
    unreadable: set[str] = set()
    try:
        settings = Settings()
    except ValidationError as failure:
        entries = failure.errors(include_input=False, include_url=False)
        unreadable = {_field_of(str(entry["loc"][0])) for entry in entries}
        problems = [_problem(str(entry["loc"][0]), entry["msg"]) for entry in entries]
        # The readable values are judged too, so that one start shows all there is to fix.
        settings = Settings(**{name: Settings.model_fields[name].default for name in unreadable})
    if settings.storage_bucket is None and (bucket := texts.bucket_in_endpoint(settings.storage_endpoint_url)):
        settings = settings.model_copy(update={"storage_bucket": bucket})
    given = {name for name in texts.REMOTE_STORAGE if name in unreadable or getattr(settings, name) is not None}
    problems += texts.storage_problems(given)
    if problems:
        raise SettingsError(problems)
    return settings


def quiet_imports() -> None:
    """Call before transformers is imported: it would remark on torchvision, which nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _field_of(location: str) -> str:
    """The field that pydantic's complaint is about: it names the field or one of its variables."""
    return next(name for name in Settings.model_fields if location in (name, *variables_of(name)))


def _problem(location: str, reason: str) -> str:
    variable = variables_of(location)[0] if location in Settings.model_fields else location
    return f"{variable}: {reason.removeprefix('Value error, ')}"


def variables_of(field_name: str) -> tuple[str, ...]:
    """The environment variables that set a field, the one of the contract first."""
    alias = Settings.model_fields[field_name].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (alias,) if isinstance(alias, str) else (field_name.upper(),)
