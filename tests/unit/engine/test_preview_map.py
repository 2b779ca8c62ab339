"""The map from latents to colours: how well it is fitted, and where it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from worker.base.files import StateFolder
from worker.engine import decode
from worker.engine.modes.video_to_video import encoded
from worker.engine.preview_map import ColourMap, ColourMaps, digest, drawn_clips, fit
from worker.weights.sources import demo_trained

FOLDER = Path(demo_trained.WEIGHTS) / "vae"


def nobody() -> AutoencoderKLWan:
    raise AssertionError("the VAE was asked for")


def test_the_map_is_linear_in_the_channels() -> None:
    colours = ColourMap(weights=((1, 0, 0), (0, 0.5, 0)), bias=(0, 0, 0.2), r2=1)
    latents = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1)
    assert colours.frames(latents).tolist() == [[[[128, 128, 51]]]]
    assert colours.frames(-latents).tolist() == [[[[0, 0, 51]]]]


@pytest.mark.slow
def test_the_map_of_the_demo_vae_shows_the_colours_of_clips_that_it_was_not_fitted_to() -> None:
    vae = AutoencoderKLWan.from_pretrained(FOLDER).eval()
    colours = fit(vae, clips=8, side=64)
    assert colours.r2 > 0.8
    clip = list(drawn_clips(9, 64))[-1]
    with torch.no_grad():
        latents = encoded(vae, clip, torch.device("cpu"))
        decoded = np.stack(list(decode.frames(vae, latents)))
    shown = colours.frames(latents[0])
    meant = decoded[[0]].reshape(1, 8, 8, 8, 8, 3).mean((2, 4))
    assert np.abs(shown[[0]] - meant).mean() < 25


def test_a_map_is_fitted_once_for_the_same_files_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ColourMap(weights=((1, 0, 0),), bias=(0, 0, 0), r2=0.9)
    fitted: list[AutoencoderKLWan] = []
    monkeypatch.setattr("worker.engine.preview_map.fit", lambda vae: fitted.append(vae) or made)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    state, first, other = StateFolder(tmp_path / "state"), tmp_path / "first", tmp_path / "other"
    for folder, content in ((first, b"one"), (other, b"two")):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "a.safetensors").write_bytes(content)
    maps = ColourMaps(state, {})
    assert maps.of(first, lambda: vae) == maps.of(first, nobody) == ColourMaps(state, {}).of(first, nobody) == made
    assert maps.of(other, lambda: vae) == made
    assert fitted == [vae, vae]
    (tmp_path / "state" / "previews" / f"{digest(first)}.json").write_bytes(b"{")
    assert ColourMaps(state, {}).of(first, lambda: vae) == made
    assert len(fitted) == 3
