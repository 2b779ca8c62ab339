"""The trained demo weights as the worker loads them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.kits.videos import given
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine
from worker.engine.device import planner_for
from worker.engine.models.components import Components
from worker.request import ModelSpec, choose
from worker.request.catalogue import DEMO_EXTENT, I2V_A14B, T2V_A14B, TI2V_5B, with_distilled_fused
from worker.request.parse import parse
from worker.weights.sources import demo, demo_trained
from worker.weights.sources.demo_trained import WEIGHTS

_LARGEST_MB = 25
_RANK = 2


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the weights, with distilled LoRAs of chance."""
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder, ignore=shutil.ignore_patterns("loras"))
    (folder / "loras").mkdir()
    module = "transformer.blocks.0.attn1.to_q"
    for key in ("t2v", "i2v"):
        for side in ("high", "low"):
            width = load_file(WEIGHTS / "experts" / side / "diffusion_pytorch_model.safetensors")[
                "blocks.0.attn1.to_q.weight"
            ].shape[0]
            factors = {
                f"{module}.lora_A.weight": torch.ones(_RANK, width),
                f"{module}.lora_B.weight": torch.ones(width, _RANK),
            }
            save_file(factors, folder / "loras" / f"turbo-{key}-{side}.safetensors")
    return folder


@pytest.fixture
def source(weights: Path) -> Iterator[demo.DemoSource]:
    made = demo.DemoSource(weights=weights)
    yield made
    made.close()


def trained(spec: ModelSpec) -> ModelSpec:
    return replace(spec, extent=DEMO_EXTENT)


def load(source: demo.DemoSource, spec: ModelSpec) -> Components:
    """The parts of `spec` as the engine has them in memory."""
    engine = Engine(source, (spec,), planner_for(Settings()))
    engine.preload([spec.key], Stop())
    return engine.models[spec.key].components


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "channels"), [(T2V_A14B, 16), (I2V_A14B, 36)])
def test_each_task_gets_the_experts_with_its_channels(source: demo.DemoSource, spec: ModelSpec, channels: int) -> None:
    parts = load(source, trained(spec))
    assert parts.transformer_2 is not None
    for expert, side in ((parts.transformer, "high"), (parts.transformer_2, "low")):
        stored = load_file(WEIGHTS / "experts" / side / "diffusion_pytorch_model.safetensors")
        assert expert.config.in_channels == channels
        weight = expert.patch_embedding.weight
        assert torch.equal(weight, stored["patch_embedding.weight"][:, :channels].float())


@pytest.mark.slow
def test_distilled_loras_are_merged_into_the_experts_of_turbo(source: demo.DemoSource) -> None:
    plain, fused = load(source, trained(T2V_A14B)), load(source, trained(with_distilled_fused(T2V_A14B)))
    before, after = plain.transformer.state_dict(), fused.transformer.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["blocks.0.attn1.to_q.weight"]
    assert torch.allclose(after[changed[0]], before[changed[0]] + _RANK)


def test_the_catalogue_serves_turbo_by_models_of_its_own_where_it_was_distilled(weights: Path) -> None:
    made = {spec.key: spec for spec in demo.catalogue(trained=True, weights=weights)}
    assert list(made) == ["i2v-any", "t2v-any", "5b", "i2v", "t2v", "i2v-turbo", "t2v-turbo"]
    assert [key for key, spec in made.items() if spec.turbo] == ["i2v-any", "t2v-any", "i2v-turbo", "t2v-turbo"]
    (weights / "loras" / "turbo-i2v-low.safetensors").unlink()
    assert "i2v-turbo" not in [spec.key for spec in demo.catalogue(trained=True, weights=weights)]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, "t2v"),
        ({"width": 320}, "t2v"),
        ({"width": 336}, "t2v-any"),
        ({"num_frames": 13}, "t2v"),
        ({"num_frames": 9}, "t2v-any"),
        ({"num_frames": 21}, "t2v"),
        ({"num_frames": 25}, "t2v-any"),
        ({"quality_preset": "turbo"}, "t2v-turbo"),
        ({"quality_preset": "turbo", "num_frames": 25}, "t2v-any"),
        ({"quality_preset": "turbo", "turbo_variant": "hybrid"}, "t2v-any"),
        ({"model": "5b"}, "5b"),
    ],
)
def test_trained_weights_serve_the_size_they_were_made_for(weights: Path, fields: dict[str, Any], key: str) -> None:
    catalogue = demo.catalogue(trained=True, weights=weights)
    payload = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 17, **fields}
    assert choose(catalogue, parse(payload, default_job_id="j").videos[0]).key == key


def test_the_same_words_are_read_by_each_models_own_encoder(weights: Path) -> None:
    catalogue = demo.catalogue(trained=True, weights=weights)
    engine = Engine(demo.DemoSource(weights=weights), catalogue, planner_for(Settings()))
    for num_frames in (13, 5, 13):
        payload = {"prompt": "a ball", "height": 256, "width": 256, "num_frames": num_frames, "num_inference_steps": 1}
        video = parse(payload, default_job_id="j").videos[0]
        rendering = engine.generate(given(engine, video), watcher=_Unwatched(), stop=Stop())
        assert rendering.shape.num_frames == num_frames


class _Unwatched:
    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...


def test_without_weights_the_model_is_random_and_tiny(tmp_path: Path) -> None:
    source = demo.DemoSource(weights=tmp_path)
    assert load(source, T2V_A14B).transformer.config.num_layers == 1
    source.close()
    assert demo.catalogue(trained=True, weights=tmp_path) == demo.catalogue()


def test_the_5b_model_is_not_trained() -> None:
    assert not demo_trained.has(replace(TI2V_5B), WEIGHTS)


def test_the_weights_are_small_enough_for_a_repository() -> None:
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size <= _LARGEST_MB * 1e6
