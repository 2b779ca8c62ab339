"""What `benchmarks.gpu` runs on: the model without its weights, the random ones, and what is compressed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_models import SCALES, fill, lora, write_model
from benchmarks.gpu_rig import Clip
from worker.engine import Rendering
from worker.engine.denoise import Denoised
from worker.engine.models import skeletons
from worker.request.plan import SIZES
from worker.weights.tensors.component import tensors_of
from worker.weights.tensors.headers import StoredTensor
from worker.weights.tensors.reading import Target

TINY, FULL = SCALES["tiny"], SCALES["480p"]


@pytest.mark.slow  # its runs are by hand
def test_the_full_size_model_has_the_published_sizes_and_takes_no_disk(tmp_path: Path) -> None:
    write_model(FULL, tmp_path)
    size = SIZES["t2v"]
    parts = {"transformer": size.expert_params, "transformer_2": size.expert_params, "vae": size.vae_params}
    for name, parameters in {**parts, "text_encoder": size.text_encoder_params}.items():
        assert sum(tensor.elements for tensor in tensors_of(tmp_path / name).values()) == parameters
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) > 65e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 10e6
    expert = skeletons.expert(tmp_path / "transformer", torch.bfloat16)
    assert sum(each.numel() for each in expert.module.parameters()) == size.expert_params


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    tensors = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
    targets = [
        Target(StoredTensor(key, Path("none"), 0, torch.float32, tuple(tensor.shape)), tensor)
        for key, tensor in tensors.items()
    ]
    told: list[int] = []
    fill(targets, check=lambda: None, on_bytes=told.append)
    assert told == [tensor.nbytes for tensor in tensors.values()]
    return tensors


def test_weights_are_random_within_what_a_layers_inputs_ask_for() -> None:
    made = filled(
        {"a.weight": (64, 256), "b.weight": (64, 256), "norm_q.weight": (8,), "a.bias": (8,), "c.gamma": (8, 1)}
    )
    assert made["a.weight"].abs().max() <= 1 / math.sqrt(256)
    assert made["a.weight"].std() == pytest.approx(1 / math.sqrt(3 * 256), rel=0.05)
    assert (made["a.weight"] != made["b.weight"]).any()
    assert (made["norm_q.weight"] == 1).all()
    assert (made["c.gamma"] == 1).all()
    assert (made["a.bias"] == 0).all()


def test_a_lora_has_both_factors_of_every_linear_layer_of_the_blocks() -> None:
    made = lora(TINY)
    assert len(made) == TINY.size.layers * 10 * 2
    assert made["blocks.0.ffn.net.0.proj.lora_A.weight"].shape == (64, TINY.size.dim)
    assert made["blocks.0.ffn.net.0.proj.lora_B.weight"].shape == (TINY.size.ffn_dim, 64)


def test_decoded_frames_are_exchanged_for_a_picture_that_moves() -> None:
    clip = Clip(TINY)
    frame = clip.frame(0)
    assert frame.shape == (TINY.height, TINY.width, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 10
    assert np.array_equal(clip.frame(1)[:-1, :-2], frame[1:, 2:])
    decoded = [np.zeros_like(frame)] * 3
    denoised = Denoised(torch.zeros(0), {}, (), {})
    rendering = Rendering(lambda: (each for each in decoded), TINY.shape, denoised, 0.0)
    assert [each.tobytes() for each in clip.in_place_of(rendering).frames()] == [
        clip.frame(n).tobytes() for n in range(3)
    ]
    small = replace(rendering, frames=lambda: (each[:-2] for each in decoded))
    with pytest.raises(ValueError, match=r"\(62, 64, 3\) was decoded, not of \(64, 64, 3\)"):
        list(clip.in_place_of(small).frames())
