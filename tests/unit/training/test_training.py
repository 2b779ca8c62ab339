"""The parts of the training: what they promise about the real classes, and that a run goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file

from training import clips, experts, lora, sampling, scenes, text, vae
from training.experts import Data, ExpertPlan, PaddedCrossAttention
from training.latents import latents_of
from training.running import Run
from worker.engine.modes.known_frames import condition
from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT, T2V_A14B

PLAN = ExpertPlan("high", "both", 0.875, 12.0, steps=4, batch=2)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    scene = scenes.draw(np.random.default_rng(3), held_out=False)
    return clips.clip(scene, height=48, width=64)


@pytest.fixture
def data() -> Data:
    torch.manual_seed(0)
    return Data(
        latents=torch.randn(6, 16, 2, 8, 8).half(),
        blank=torch.zeros(16),
        texts=torch.randn(9, 12, text.TEXT_DIM).half(),
        lengths=torch.tensor([5, 6, 7, 8, 9, 10, 5, 6, 7]),
        captions=torch.arange(6).view(6, 1),
        unasked=torch.tensor([6, 7, 8]),
        opening=torch.tensor([True] * 4 + [False] * 2),
    )


def expert(*, channels: int = experts.TEXT_CHANNELS) -> WanTransformer3DModel:
    """One whose answer is not yet zero everywhere."""
    torch.manual_seed(1)
    model = experts.new(channels)
    torch.nn.init.normal_(model.proj_out.weight, std=0.05)
    return model


def encoded(pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        latents: torch.Tensor = vae.new().encode(pixels[None]).latent_dist.mode()
    return latents


@pytest.mark.slow
def test_the_set_encoder_is_the_block_transform(frames: np.ndarray) -> None:
    by_network = encoded(vae.to_pixels(frames))[0].numpy()
    directly = latents_of(frames)
    assert directly.shape == by_network.shape == (16, 5, 6, 8)
    assert np.abs(by_network - directly).max() < 0.02 * np.abs(directly).max()


@pytest.mark.slow
def test_the_untrained_decoder_paints_the_blocks_back(frames: np.ndarray) -> None:
    latents = torch.from_numpy(latents_of(frames))[None]
    with torch.no_grad():
        painted = vae.new().decode(latents, return_dict=False)[0][0]
    blocks = vae.to_pixels(frames).unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
    painted_blocks = painted.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
    assert float((blocks - painted_blocks).abs().mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_conditions_are_what_the_pipeline_encodes(frames: np.ndarray, *, last: bool) -> None:
    pixels = vae.to_pixels(frames)
    given = torch.zeros_like(pixels)
    given[:, 0] = pixels[:, 0]
    if last:
        given[:, -1] = pixels[:, -1]
    latents = torch.from_numpy(latents_of(frames))[None]
    made = experts.conditions(latents, torch.zeros(16), last=torch.tensor([last]))
    assert made.shape == (1, 20, 5, 6, 8)
    assert made[:, :4].flatten(3).amax(3)[0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, float(last)],
    ]
    exact = encoded(given)
    assert float((exact - made[:, 4:])[:, :12].abs().max()) < 0.04
    assert float((exact - made[:, 4:])[:, 12:].abs().mean()) < 0.02


@pytest.mark.parametrize("known", [1, 5, 9])
def test_several_known_frames_are_what_the_engine_puts_beside_the_noise(frames: np.ndarray, known: int) -> None:
    network = vae.new()
    pictures = [Image.fromarray(frame) for frame in frames[:known]]
    with torch.no_grad():
        engines = condition(network, pictures, None, len(frames), "cpu", torch.float32)
    latents = torch.from_numpy(latents_of(frames))[None]
    made = experts.conditions(latents, torch.zeros(16), known=torch.tensor([(known - 1) // 4 + 1]))
    assert torch.equal(made[:, :4], engines[:, :4])
    assert float((engines - made)[:, 4:16].abs().max()) < 0.04
    assert float((engines - made)[:, 16:].abs().mean()) < 0.02


def test_what_goes_on_is_trained_with_known_frames_alone(data: Data) -> None:
    """Of clips that do not begin at their scene's start the model never has to guess the first frame."""
    seen: list[torch.Tensor] = []
    model = expert(channels=experts.IMAGE_CHANNELS)
    attention = PaddedCrossAttention()
    model.set_attn_processor(attention)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 16]))
    for opening in (True, False):
        some = replace(data, opening=torch.full((6,), opening))
        experts.flow_loss(model, attention, some, replace(PLAN, batch=40))
    begun, gone_on = (masks[:, 0].amax((1, 2)) for masks in seen)
    assert 0 < float(begun.mean()) < 1
    assert torch.all(gone_on == 1)


def test_short_padding_counts_as_the_512_tokens_that_the_worker_sends() -> None:
    model = expert()
    lengths = torch.tensor([4, 9])
    texts = torch.zeros(2, 512, text.TEXT_DIM)
    for row, length in zip(texts, lengths, strict=True):
        row[:length] = torch.randn(int(length), text.TEXT_DIM)
    latents, time = torch.randn(2, 16, 2, 8, 8), torch.tensor([900.0, 400.0])
    with torch.no_grad():
        long = model(latents, time, texts, return_dict=False)[0]
        attention = PaddedCrossAttention()
        attention.set(lengths, 10)
        model.set_attn_processor(attention)
        short = model(latents, time, texts[:, :10], return_dict=False)[0]
    assert torch.allclose(long, short, atol=1e-5)


def test_text_to_video_is_the_expert_without_the_images_channels() -> None:
    both = expert(channels=experts.IMAGE_CHANNELS)
    alone = experts.narrowed(both)
    latents, texts = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 5, text.TEXT_DIM)
    without = torch.cat([latents, torch.zeros(1, 20, 2, 8, 8)], 1)
    with torch.no_grad():
        exact = both(without, torch.tensor([500.0]), texts, return_dict=False)[0]
        assert torch.allclose(alone(latents, torch.tensor([500.0]), texts, return_dict=False)[0], exact, atol=1e-5)


@pytest.mark.parametrize("size", [8, 32])
def test_the_first_block_tells_the_time_of_pure_noise(size: int) -> None:
    model = expert(channels=experts.IMAGE_CHANNELS)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda *called: seen.append(called[2]))
    noise = torch.cat([torch.randn(2, 16, 5, size, size), torch.zeros(2, 20, 5, size, size)], 1)
    with torch.no_grad():
        model(noise, torch.full((2,), 999.0), torch.zeros(2, 3, text.TEXT_DIM), return_dict=False)
    states = seen[0].unflatten(1, (5, -1))
    first = states.shape[-1] // 2 - 2  # two heads of four fill the upper half
    back, ahead = states[..., first].mean((0, 2)), states[..., first + 1].mean((0, 2))
    assert torch.all(back.diff() > 0.2)  # each average is over fewer frames than the one before, or over more
    assert torch.all(ahead.diff() < -0.2)


@pytest.mark.parametrize(("side", "low", "high"), [("high", 0.875, 1.0), ("low", 0.0, 0.875)])
def test_each_side_trains_on_its_own_sigmas(side: experts.Side, low: float, high: float) -> None:
    drawn = experts.sigmas(replace(PLAN, side=side), 4000, torch.device("cpu"))
    assert low <= float(drawn.min()) < low + 0.01
    assert high - 0.01 < float(drawn.max()) <= high


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path: Path, data: Data) -> None:
    run = Run("part", tmp_path)
    model = experts.new(experts.IMAGE_CHANNELS)
    experts.train(run, replace(PLAN, steps=2), model, data)
    kept = torch.load(run.checkpoint, weights_only=False)
    assert kept["step"] == 2
    seen: list[int] = []
    again = Run("part", tmp_path)
    parts = {"model": experts.new(experts.IMAGE_CHANNELS)}
    for step in again.steps(4, parts):
        seen.append(step)
        assert torch.equal(parts["model"].proj_out.bias, kept["model"]["proj_out.bias"])
    assert seen == [2, 3]


def test_the_clock_ends_a_run(tmp_path: Path) -> None:
    run = Run("part", tmp_path, minutes=1e-9)
    assert list(run.steps(100, {})) == [0]


@pytest.mark.slow
def test_the_text_encoder_reads_captions_with_a_tokenizer_of_whole_words(tmp_path: Path) -> None:
    words, model = text.train(Run("text", tmp_path), text.TextPlan(steps=2, batch=4, corpus=200))
    pieces = words.convert_ids_to_tokens(words("A red ball rolls.").input_ids)
    assert pieces[:3] == ["▁A", "▁red", "▁ball"]
    assert pieces[-1] == "</s>"
    assert "<unk>" not in pieces
    known = text.embeddings(words, model, ["A red ball", OFFICIAL_NEGATIVE_PROMPT, ""])
    assert [len(states) for states in known][2] == 1


@pytest.mark.slow
def test_a_lora_is_saved_under_the_names_that_the_worker_reads(tmp_path: Path, data: Data) -> None:
    model = expert()
    pairs = lora.Pairs(
        noise=torch.randn(2, 16, 2, 8, 8),
        clips=torch.randn(2, 16, 2, 8, 8),
        asked=sampling.Asked(data.texts[:2].float(), data.lengths[:2]),
        beside=None,
    )
    lora.distil(Run("turbo", tmp_path), lora.LoraPlan(steps=2, batch=2), model, pairs, lora.turbo_sigmas()[:2])
    lora.save(model, tmp_path / "turbo.safetensors")
    keys = load_file(tmp_path / "turbo.safetensors").keys()
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in keys
    assert len(keys) == 2 * 10 * experts.CONFIG["num_layers"]


def test_turbo_is_distilled_at_the_sigmas_that_the_worker_stops_at() -> None:
    assert lora.turbo_sigmas() == pytest.approx([1.0, 0.9375, 0.8333, 0.625, 0.0], abs=1e-4)


@pytest.mark.slow
def test_the_teacher_runs_each_expert_on_its_side(data: Data) -> None:
    high, low = expert(), expert()
    called: list[str] = []
    for name, model in (("high", high), ("low", low)):
        model.set_attn_processor(PaddedCrossAttention())
        model.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    made = lora.teach([high, low], data, T2V_A14B, count=2, steps=10, guidance=2.0)
    steps = sampling.shifted(10, T2V_A14B.flow_shift)[:-1]
    assert called == ["high" if sigma >= 0.875 else "low" for sigma in steps]
    assert made.clips.shape == made.noise.shape == (2, 16, 2, 8, 8)


def test_sepia_takes_every_colour_to_one_hue(frames: np.ndarray, data: Data) -> None:
    latents = torch.from_numpy(latents_of(frames))[None].half()
    normal = (torch.zeros(16), torch.ones(16))
    printed = lora.sepia(replace(data, latents=latents), normal).latents.float()
    red, green, blue = ((printed[:, channel:12:3] + 1) / 2 for channel in range(3))
    assert torch.allclose(green, 0.82 * red, atol=0.01)
    assert torch.allclose(blue, 0.58 * red, atol=0.01)
