"""docs/configuration.md: every variable with its second names, default, values and meaning."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from builder.docs.markdown import page, table
from builder.docs.readme import not_carried_out
from worker.base.settings import Settings, variables_of

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Models": (
        *("i2v_model_id", "t2v_model_id", "ti2v_model_id", "model_profile", "preload", "model_cache_dir", "hf_token"),
    ),
    "Memory and speed": (
        *("enable_vae_tiling", "enable_cpu_offload", "enable_sequential_cpu_offload", "quantization"),
        *("quantized_compute", "enable_sage_attention", "enable_fused_kernels", "enable_torch_compile", "gpus"),
        *("enable_image_encode_reuse", "vae_decode_dtype"),
    ),
    "Storage": (
        *("storage_endpoint_url", "storage_access_key", "storage_secret_key", "storage_bucket", "storage_public_url"),
        *("storage_region", "storage_acl", "presign_expiry_s", "output_dir"),
    ),
    "Webhooks, state and network": ("webhook_secret", "state_dir", "private_url_allowlist"),
    "Limits": (
        *("job_timeout_s", "shutdown_grace_s", "max_videos_per_job", "max_pixels", "max_frames", "max_total_frames"),
        *("lora_max_bytes", "training_max_bytes", "inline_max_bytes"),
    ),
    "Prompt expansion": ("prompt_expansion_url", "prompt_expansion_model", "prompt_expansion_api_key"),
    "Marks of AI origin": ("ai_mark", "c2pa_cert_chain", "c2pa_private_key", "c2pa_tsa_url", "aigc_producer"),
    "Reports": ("gpu_hourly_usd", "log_level", "log_format", "metrics_port", "sdk_log_level"),
    "Set by RunPod": ("runpod_api_key", "runpod_job_url"),
}
_INTRODUCTION = """
The worker is configured by environment variables alone. An empty variable counts as unset. Case does not matter,
neither in names nor in words such as `true`, `demo` or `info`. A value that cannot be read stops the worker at start,
with every problem listed at once. Where a variable has second names, the first one of the row that is set counts.
"""
_STORAGE = """
With endpoint, key id, key and bucket set, videos are uploaded; with none of them they are written to `OUTPUT_DIR`. With
some but not all of them the worker does not start. How S3-compatible servers are addressed:
[adding a storage](adding-a-storage.md#how-spaces-behaves).
"""


def render() -> str:
    grouped = {name for names in _GROUPS.values() for name in names}
    rest = tuple(name for name in Settings.model_fields if name not in grouped)
    parts, unused = [], not_carried_out()
    for heading, names in {**_GROUPS, **({"Other": rest} if rest else {})}.items():
        rows = [_row(name, Settings.model_fields[name], unused) for name in names]
        parts += [f"## {heading}", table(("Variable", "Default", "Values", "Meaning"), rows)]
        if heading == "Storage":
            parts.append(_STORAGE)
    return page("worker/base/settings.py", "# Configuration", _INTRODUCTION, *parts)


def _row(name: str, field: FieldInfo, unused: frozenset[str]) -> tuple[str, str, str, str]:
    first, *others = variables_of(name)
    sentences = [field.description or ""]
    if name in unused:
        sentences.append("**Checked, but not carried out yet**")
    if others:
        sentences.append(f"Second names: {', '.join(f'`{other}`' for other in others)}")
    return f"`{first}`", _default(field.default), _values(field), ". ".join(sentences)


def _default(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`" if value else "empty"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`./{value}`" if isinstance(value, Path) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    bounds = [text for item in field.metadata if (text := _bound(item)) is not None]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in typing.get_args(annotation) if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if origin is tuple:
        return "list"
    names: Mapping[Any, str] = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}
    return "secret" if annotation is SecretStr else names[annotation]


def _bound(item: object) -> str | None:
    match item:
        case annotated_types.Ge(ge=low):
            return f"at least {low}"
        case annotated_types.Gt(gt=low):
            return f"more than {low}"
        case annotated_types.Le(le=high):
            return f"at most {high}"
    return None
