"""The attention backend: chosen by a probe, told to every layer, given up for another kernel."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from tests.kits import lora_kit
from tests.kits.attention_kit import Attend, put, told, torchs_own
from tests.kits.engine_kit import plan
from worker.base.settings import Settings
from worker.engine.techniques import Setup, attention
from worker.engine.techniques.attention import FALLBACK, NATIVE, REFERENCE, Attention, Backend

pytestmark = pytest.mark.usefixtures("backends_as_they_were")
SETUP = Setup(Settings(), torch.device("cpu"), torch.float32)
RESIDENT = plan("resident")


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> WanTransformer3DModel:
    return lora_kit.load(tmp_path_factory.mktemp("model") / "t2v").transformer


def chosen(expert: WanTransformer3DModel, *backends: Backend, setup: Setup = SETUP) -> str:
    technique = Attention(setup, backends)
    technique.prepare(expert, RESIDENT)
    assert technique.backend is not None
    return technique.backend.name


def test_a_backend_that_agrees_with_torchs_is_told_to_every_layer(expert: WanTransformer3DModel) -> None:
    for name in ("_native_math", "_native_flash", NATIVE):
        assert chosen(expert, Backend(name), Backend(NATIVE)) == name
        assert set(told(expert)) == {(name, name)}


def test_a_quantised_backend_serves_self_attention_alone(expert: WanTransformer3DModel) -> None:
    backend = replace(put("sage", torchs_own), quantised=True)
    assert chosen(expert, backend, Backend(NATIVE)) == "sage"
    assert set(told(expert)) == {("sage", NATIVE)}


def test_exact_attention_leaves_quantised_backends_out(
    expert: WanTransformer3DModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    backend = replace(put("sage", torchs_own), quantised=True)
    exact = replace(SETUP, settings=Settings(enable_sage_attention=False))
    assert chosen(expert, backend, Backend("_native_math"), setup=exact) == "_native_math"
    assert set(told(expert)) == {("_native_math", "_native_math")}
    assert "sage: ENABLE_SAGE_ATTENTION is false" in caplog.text


def raising(*_: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


BROKEN: dict[str, tuple[Attend, str]] = {
    "raises": (raising, "no kernel image"),
    "nan": (lambda query, *_: torch.full_like(query, float("nan")), "off by nan%"),
    "zeros": (lambda query, *_: torch.zeros_like(query), "off by 100.0%"),
    "other shape": (lambda query, *_: query[:, :5], "returns [1, 5"),
    "other dtype": (lambda query, *_: query.double(), "torch.float64"),
    "off": (lambda *given: torchs_own(*given) * 1.03, "off by 3.0% where 2% is allowed"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_backend_is_never_chosen_and_the_log_says_why(
    expert: WanTransformer3DModel, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    attend, why = BROKEN[how]
    backend = put("_flash_3", lambda query, key, value: attend(query, key, value))
    assert chosen(expert, backend, Backend(NATIVE)) == NATIVE
    assert set(told(expert)) == {(NATIVE, NATIVE)}
    assert why in caplog.text


def test_quantised_backends_may_be_off_by_more(expert: WanTransformer3DModel) -> None:
    for factor, quantised, good in (
        (1.015, False, True),
        (1.03, True, True),
        (1.03, False, False),
        (1.15, True, False),
    ):
        backend = put("sage", lambda query, key, value, by=factor: torchs_own(query, key, value) * by)
        found = chosen(expert, replace(backend, quantised=quantised), Backend(NATIVE))
        assert (found == "sage") == good


def test_what_is_not_installed_is_passed_over_without_a_call(
    expert: WanTransformer3DModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package, no kernel, no CUDA. FlashAttention 3 comes with torch's CUDA build."""
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: False)
    caplog.set_level(logging.INFO)
    assert chosen(expert, *attention.BACKENDS) == NATIVE
    for reason in (
        "sage: the package sageattention is not installed",
        "sage_hub: no kernel is in MODEL_CACHE_DIR/kernels/sage-attention",
        "_flash_3: the modules flash_attn_3 and flash_attn_interface are not installed",
    ):
        assert reason in caplog.text


@pytest.mark.parametrize(("version", "good"), [("2.1.0", False), ("2.1.1", True), ("2.2.0", True), ("1.0.6", False)])
def test_the_version_of_a_package_counts(
    expert: WanTransformer3DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, good: bool
) -> None:
    installed(tmp_path, "sageattention", version)
    monkeypatch.syspath_prepend(tmp_path)
    put("sage", torchs_own)
    assert (chosen(expert, *attention.BACKENDS) == "sage") == good


def installed(folder: Path, name: str, version: str) -> None:
    """What pip leaves of a package, for importlib.metadata to find."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_kernel_of_the_hub_is_taken_from_the_model_cache_alone(
    expert: WanTransformer3DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    known = attention_dispatch._HUB_KERNELS_REGISTRY[AttentionBackendName.SAGE_HUB]
    monkeypatch.setattr(known, "kernel_fn", None)
    installed(tmp_path, "kernels", "0.14.0")
    (tmp_path / "kernels.py").write_text(
        "import types\n"
        "from torch.nn.functional import scaled_dot_product_attention as attend\n"
        "def sageattn(q, k, v, **_):\n"
        "    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)\n"
        "def get_local_kernel(place):\n"
        "    assert (place / 'build').is_dir()\n"
        "    return types.SimpleNamespace(__name__='sage', sageattn=sageattn)\n"
        "def get_kernel(*_, **__):\n"
        "    raise AssertionError('the hub was asked')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention_dispatch, "is_kernels_available", lambda: True)
    monkeypatch.setattr(attention_dispatch, "is_kernels_version", lambda *_: True)
    setup = replace(SETUP, settings=Settings(model_cache_dir=tmp_path / "models"))
    assert chosen(expert, *attention.BACKENDS, setup=setup) == NATIVE
    (tmp_path / "models" / "kernels" / "sage-attention" / "build").mkdir(parents=True)
    assert chosen(expert, *attention.BACKENDS, setup=setup) == "sage_hub"
    assert set(told(expert)) == {("sage_hub", NATIVE)}


@pytest.mark.parametrize("name", [NATIVE, "_native_math"])
def test_the_fallback_is_another_kernel_than_any_before_it(expert: WanTransformer3DModel, name: str) -> None:
    """Torch's own choice may be cuDNN: falling back to it would change nothing."""
    technique = Attention(SETUP, [Backend(name)])
    technique.prepare(expert, RESIDENT)
    line = technique.fall_back()
    assert line is not None
    assert f"with {name} attention" in line
    assert set(told(expert)) == {(FALLBACK, FALLBACK)}
    assert technique.fall_back() is None
    technique.take_back()
    assert set(told(expert)) == {(name, name)}


def test_the_probe_compares_with_plain_products_and_never_with_torchs_choice(
    expert: WanTransformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert REFERENCE not in {each.name for each in attention.BACKENDS} | {NATIVE}
    put(NATIVE, lambda query, key, value: torchs_own_flash(query, key, value) * 1.5)
    assert attention.probe(NATIVE, expert, SETUP) == pytest.approx(0.5, abs=0.01)


def torchs_own_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attention_dispatch.dispatch_attention_fn(query, key, value, backend=AttentionBackendName._NATIVE_FLASH)


ON_GPU = replace(SETUP, device=torch.device("cuda"))


def timed(monkeypatch: pytest.MonkeyPatch, times_ms: dict[str, float], *wrong: str) -> Attention:
    """A choice between backends of the given times, of which those in `wrong` fail the probe; no GPU is asked."""
    monkeypatch.setattr(attention, "_unusable", lambda backend, *_: "off" if backend.name in wrong else None)
    monkeypatch.setattr(attention, "_time_ms", lambda name, *_: times_ms[name])
    return Attention(ON_GPU, [Backend(name, quantised=name == "sage") for name in times_ms])


def test_on_a_gpu_the_fastest_exact_backend_that_agrees_is_taken(
    expert: WanTransformer3DModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    times = {"_flash_3": 1.9, NATIVE: 2.2, FALLBACK: 3.8}
    for wrong, best in (((), "_flash_3"), (("_flash_3",), NATIVE), (("_flash_3", NATIVE), FALLBACK)):
        technique = timed(monkeypatch, times, *wrong)
        assert technique._choose(expert).name == best
    technique = timed(monkeypatch, {NATIVE: 2.2, FALLBACK: 1.5, "_flash_3": float("inf")})
    assert technique._choose(expert).name == FALLBACK
    assert technique.reason == "the fastest at 32760 tokens: _native_flash 1.50 ms, native 2.20 ms, _flash_3 inf ms"
    assert technique.reason in caplog.text


def test_a_quantised_backend_that_passes_is_taken_before_exact_ones(
    expert: WanTransformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timed(monkeypatch, {"sage": 9.0, NATIVE: 2.2})._choose(expert).name == "sage"
