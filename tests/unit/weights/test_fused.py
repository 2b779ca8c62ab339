"""Weights with the distilled LoRAs fused in: made by `builder.prepare --turbo`, found by a worker, never mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.prepare import main, prepare_model, prepare_turbo
from tests.kits import distilled_kit, lora_kit, weights_kit
from tests.kits.engine_kit import PLANNER, pixels, render, request
from tests.kits.hub_server import HubServer
from tests.kits.slow import slow
from tests.kits.weights_kit import place
from worker.base.errors import ModelUnavailable
from worker.base.settings import Settings
from worker.engine import Engine
from worker.request import CATALOGUE
from worker.request.catalogue import T2V_A14B
from worker.weights import ModelFolder, verify
from worker.weights.folder import fused
from worker.weights.folder import record as records
from worker.weights.loras import fuse
from worker.weights.sources import demo, volume

REPO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
PLAIN = "Wan2.2-T2V-A14B-Diffusers"
TURBO = request(quality_preset="turbo")
HYBRID = request(quality_preset="turbo", turbo_variant="hybrid")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A model cache with the built-in small model in the place of the real one."""
    folder = tmp_path / "models" / PLAIN
    demo.build(T2V_A14B, folder)
    return tmp_path / "models"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with weights_kit.served(monkeypatch) as server:
        distilled_kit.serve(server, lora_kit.load(cache / PLAIN))
        yield server


def prepared(cache: Path, hub: HubServer, dtype: Any = "bf16") -> ModelFolder:
    return prepare_turbo(place(cache, endpoint=hub.url), REPO, dtype, distilled_kit.SETS)


def stored(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted((folder / name).glob("*.safetensors")):
        found |= load_file(path)
    return found


def settings_for(cache: Path) -> Settings:
    return Settings(model_cache_dir=cache, t2v_model_id=REPO)


def engine_on(cache: Path) -> Engine:
    settings = settings_for(cache)
    catalogue = [spec if spec.fused else replace(spec, distilled=()) for spec in volume.catalogue(settings)]
    return Engine(volume.VolumeSource(settings), catalogue, PLANNER)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_each_expert_has_its_own_lora_in_its_weights(cache: Path, hub: HubServer) -> None:
    folder = prepared(cache, hub).path
    assert folder.name.endswith("-bf16-turbo")
    assert verify(folder) == []
    record = records.read(folder)
    assert record is not None
    assert (record.dtype, record.fused) == ("bf16", distilled_kit.REPO)
    for seed, name in enumerate(("transformer", "transformer_2")):
        before, after = stored(cache / PLAIN, name), stored(folder, name)
        pairs = lora_kit.factors(lora_kit.load(cache / PLAIN).transformer, *lora_kit.ORIGINAL, seed=seed)
        deltas = lora_kit.deltas(pairs, scale=0.5)
        assert before.keys() == after.keys()
        for key, weight in before.items():
            wanted = weight + deltas.get(key, 0.0)
            assert torch.equal(after[key], wanted.to(after[key].dtype)), key


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp8", 4.0), *slow(("bf16", 0.5))])
def test_fused_weights_make_what_the_loras_make(cache: Path, hub: HubServer, dtype: str, tolerance: float) -> None:
    plain = engine_on(cache)
    files = distilled_kit.store(cache, hub).fetch_distilled(distilled_kit.SETS, path="quality_preset")
    hot, undistilled = pixels(render(plain, TURBO, distilled=files)), pixels(render(plain, TURBO))
    prepared(cache, hub, dtype)
    engine = engine_on(cache)
    rendering = render(engine, TURBO)
    frames = pixels(rendering)
    assert rendering.parameters["distilled_weights"] == "fused"
    assert difference(frames, hot) <= tolerance
    assert difference(frames, hot) < difference(undistilled, hot) / 2


@pytest.mark.slow  # test_plain_and_fused_weights_are_never_taken_for_each_other
def test_other_videos_of_that_worker_are_made_from_the_plain_weights(cache: Path, hub: HubServer) -> None:
    prepare_model(place(cache), REPO, "bf16")  # whose text encoder is the fused weights' too
    video = request(num_inference_steps=8)
    wanted = {name: pixels(render(engine_on(cache), one)) for name, one in (("plain", video), ("hybrid", HYBRID))}
    prepared(cache, hub)
    engine = engine_on(cache)
    turbo = pixels(render(engine, TURBO))
    assert (pixels(render(engine, video)) == wanted["plain"]).all()
    assert (pixels(render(engine, HYBRID)) == wanted["hybrid"]).all()
    assert (pixels(render(engine, TURBO)) == turbo).all()
    parts = [engine.models[key].components for key in ("t2v", "t2v-turbo")]
    assert parts[0].shared is parts[1].shared


def test_plain_and_fused_weights_are_never_taken_for_each_other(cache: Path, hub: HubServer, tmp_path: Path) -> None:
    def found(dtype: Any) -> list[Path | None]:
        plain = place(cache).locate(REPO, prepared=dtype)
        turbo = fused.find(place(cache), REPO, dtype)
        return [folder.path if folder is not None else None for folder in (plain, turbo)]

    assert found("bf16") == [cache / PLAIN, None]
    turbo = prepared(cache, hub).path
    assert found("bf16") == found("fp8") == [cache / PLAIN, turbo]
    plain = prepare_model(place(cache), REPO, "bf16").path
    assert found("bf16") == [plain, turbo]
    narrow = prepared(cache, hub, "fp8").path
    assert found("bf16") == [plain, turbo]
    assert found("fp8") == [plain, narrow]
    assert place(cache).locate(REPO, prepared=None) is not None


def test_a_worker_serves_turbo_from_fused_weights_that_lie_there_at_its_start(cache: Path, hub: HubServer) -> None:
    assert volume.catalogue(settings_for(cache)) == CATALOGUE
    prepared(cache, hub)
    assert [spec.key for spec in volume.catalogue(settings_for(cache))] == ["i2v", "t2v", "5b", "t2v-turbo"]


def test_it_can_be_made_of_bf16_weights_once_the_originals_are_gone(cache: Path, hub: HubServer) -> None:
    prepare_model(place(cache), REPO, "bf16", replace=True)
    folder = prepared(cache, hub).path
    assert verify(folder) == []
    rendering = render(engine_on(cache), TURBO)
    assert rendering.parameters["distilled_weights"] == "fused"


def test_the_loras_stay_for_hybrid(cache: Path, hub: HubServer) -> None:
    prepared(cache, hub)
    asked = len(hub.hits)
    files = distilled_kit.store(cache, hub).fetch_distilled(distilled_kit.SETS, path="quality_preset")
    assert files.repo == distilled_kit.REPO
    assert len(hub.hits) == asked


def test_preparing_again_does_nothing(cache: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepared(cache, hub)
    stamp = (first.path / records.RECORD_NAME).stat().st_mtime_ns
    assert prepared(cache, hub).path == first.path
    assert (first.path / records.RECORD_NAME).stat().st_mtime_ns == stamp
    assert "with its distilled LoRAs already" in capsys.readouterr().out


def test_a_lora_that_does_not_fit_leaves_nothing_behind(cache: Path, hub: HubServer) -> None:
    distilled_kit.serve_misfit(hub)
    with pytest.raises(ModelUnavailable, match=r"does not fit this model: blocks\.7\.attn1\.to_q\.weight"):
        prepared(cache, hub)
    assert list((cache / f"Wan-AI--{PLAIN}").glob("*")) == []


def test_damaged_fused_weights_are_refused_with_the_remedy(cache: Path, hub: HubServer) -> None:
    folder = prepared(cache, hub).path
    engine = engine_on(cache)
    weights_kit.flip(next((folder / "transformer").glob("*.safetensors")), 3)
    with pytest.raises(ModelUnavailable, match=r"delete the folder .*-bf16-turbo and run python -m builder.prepare"):
        render(engine, TURBO)
    assert len(pixels(render(engine, request()))) == 5


def test_the_command_refuses_what_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    for options, reason in (
        (["--model", "5b", "--turbo"], "--turbo needs --model i2v or t2v"),
        (["--model", REPO, "--turbo"], "--turbo needs --model i2v or t2v"),
        (["--model", "t2v", "--turbo", "--replace"], "--replace goes with the plain prepared weights"),
    ):
        with pytest.raises(SystemExit):
            main([*options, "--dtype", "bf16"])
        assert reason in capsys.readouterr().err


WHOLE = {
    "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    "diffusion_model.head.head.diff_b": "proj_out.bias",
    "diffusion_model.blocks.0.diff_m": "blocks.0.scale_shift_table",
    "diffusion_model.blocks.0.norm3.diff": "blocks.0.norm2.weight",
}


@pytest.mark.parametrize("key", WHOLE)
def test_whole_differences_are_added(cache: Path, tmp_path: Path, key: str) -> None:
    weights = stored(cache / PLAIN, "transformer")
    weight = weights[WHOLE[key]]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    save_file({key: change}, tmp_path / "lora.safetensors")
    made = fuse.changes(tmp_path / "lora.safetensors", {name: tensor.shape for name, tensor in weights.items()})
    assert made.keys() == {WHOLE[key]}
    assert torch.equal(made[WHOLE[key]](weight), weight + change)


def test_factors_of_a_convolution_are_multiplied_into_its_shape(cache: Path, tmp_path: Path) -> None:
    weights = stored(cache / PLAIN, "transformer")
    weight = weights["patch_embedding.weight"]
    down, up = torch.randn(2, *weight.shape[1:]), torch.randn(weight.shape[0], 2, 1, 1, 1)
    tensors = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    save_file({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    made = fuse.changes(tmp_path / "lora.safetensors", {name: tensor.shape for name, tensor in weights.items()})
    wanted = weight + torch.einsum("or,rithw->oithw", up[:, :, 0, 0, 0], down)
    torch.testing.assert_close(made["patch_embedding.weight"](weight), wanted)


@pytest.mark.parametrize("how", ["shape", "unknown", "one factor", "nothing", "no file"])
def test_what_fits_in_part_is_refused(cache: Path, tmp_path: Path, how: str) -> None:
    weights = stored(cache / PLAIN, "transformer")
    good = lora_kit.as_original(lora_kit.factors(lora_kit.load(cache / PLAIN).transformer, *lora_kit.ORIGINAL))
    name = "diffusion_model.blocks.0.self_attn.q"
    bad: dict[str, dict[str, torch.Tensor]] = {
        "shape": {f"{name}.lora_down.weight": torch.ones(2, 7)},
        "unknown": {"diffusion_model.blocks.0.something.diff": torch.ones(3)},
        "one factor": {"diffusion_model.blocks.0.cross_attn.norm_q.lora_down.weight": torch.ones(2, 24)},
        "nothing": {},
        "no file": {},
    }
    tensors = {**good, **bad[how]} if how != "nothing" else {f"{name}.diff": torch.zeros(24, 24)}
    if how != "no file":
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelUnavailable):
        fuse.changes(tmp_path / "lora.safetensors", {key: tensor.shape for key, tensor in weights.items()})
