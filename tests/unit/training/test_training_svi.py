"""The training of SVI's LoRAs: scenes cut as the worker cuts a video, and the worker's own condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training import experts, lora, scenes, svi, vae
from training.clips import clip
from training.running import Run
from worker.engine.modes.svi import condition
from worker.weights.sources.demo_trained import WEIGHTS


@pytest.fixture(scope="module")
def data() -> svi.Scenes:
    return svi.draw(3, WEIGHTS, size=64)


def test_a_clip_begins_with_five_frames_of_the_one_before(data: svi.Scenes) -> None:
    assert data.latents.shape == data.first.shape == (3, 16, 5, 8, 8)
    # What is handed over is in the clip's second latent frame.
    assert torch.equal(data.before, data.latents[:, :, 1:2])
    assert len(data.lengths) == 4


@pytest.mark.slow
@torch.no_grad()
def test_the_condition_is_the_workers() -> None:
    scene = scenes.draw(np.random.default_rng(3), held_out=False)
    frames = clip(scene, height=48, width=64)
    encoder = vae.new()
    pixels = vae.to_pixels(frames)[None]
    latents = encoder.encode(pixels).latent_dist.mode()
    before = torch.randn(1, 16, 1, 6, 8)
    workers = condition(encoder, pixels[:, :, 0], before.numpy(), 5, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(svi.conditions(latents[:, :, :1], before, 5), workers)


def test_an_adapter_learns_and_is_saved_for_the_worker(data: svi.Scenes, tmp_path: Path) -> None:
    model = experts.new(experts.IMAGE_CHANNELS)
    torch.nn.init.normal_(model.proj_out.weight, std=0.05)
    svi.train(Run("svi-high", tmp_path), lora.LoraPlan(steps=2, batch=2), "high", model, data)
    lora.save(model, tmp_path / "svi-high.safetensors")
    saved = load_file(tmp_path / "svi-high.safetensors")
    assert len(saved) == 2 * 10 * experts.CONFIG["num_layers"]
    assert max(float(value.abs().max()) for name, value in saved.items() if "lora_B" in name) > 0
