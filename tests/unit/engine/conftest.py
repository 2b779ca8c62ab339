"""What tests of several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.kits.attention_kit import backends_as_they_were as backends_as_they_were  # a fixture
from tests.kits.engine_kit import MODES, engine_with, pixels, plan, render
from tests.kits.loading_kit import Frames
from tests.kits.loading_kit import reading as reading  # a fixture
from tests.kits.lora_kit import assert_equal, load, outputs
from worker.engine.models.components import Components
from worker.engine.techniques import lora


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """Its latents have a mean and a deviation of their own in each channel: a grey frame is no zeros in them."""
    torch.manual_seed(7)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.5, -0.25, 1.0, 0.125],
        latents_std=[2.0, 0.5, 1.5, 4.0],
    ).eval()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Components:
    """The experts of the demo model; who puts a LoRA on them uses `nothing_is_left`."""
    return load(tmp_path_factory.mktemp("model") / "t2v")


@pytest.fixture
def nothing_is_left(model: Components) -> Iterator[None]:
    """After every test the shared experts answer as before it, bit for bit, and hold no module of PEFT's."""
    lora.contents.clear()
    names = [sorted(name for name, _ in expert.named_modules()) for expert in (model.transformer, model.transformer_2)]
    before = outputs(model)
    yield
    assert_equal(outputs(model), before)
    after = [sorted(name for name, _ in expert.named_modules()) for expert in (model.transformer, model.transformer_2)]
    assert after == names
    assert not hasattr(model.transformer, "peft_config")


@pytest.fixture(scope="session")
def whole() -> Frames:
    """The frames of each mode by a model that was loaded whole, and alone: the demo's text encoders differ."""
    frames: Frames = {}
    for name in ("text", "image", "video"):
        engine = engine_with(plan("resident"))
        engine.models._overlap = False
        frames[name] = pixels(render(engine, *MODES[name]))
    return frames
