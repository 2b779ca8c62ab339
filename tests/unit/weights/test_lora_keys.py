"""The names of LoRA keys: those of Diffusers' own converters where they have one, and None for what is unknown."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

from tests.kits.lora_kit import BLOCK_NAMES
from worker.weights.loras.keys import Place, is_image_branch, place_of

LAYERS = [f"blocks.{block}.{name}" for block in (0, 11) for name in BLOCK_NAMES]
OUTSIDE = [
    "head.head",
    "time_projection.1",
    "time_embedding.0",
    "time_embedding.2",
    "text_embedding.0",
    "text_embedding.2",
]
IMAGE = ["blocks.0.cross_attn.k_img", "blocks.0.cross_attn.v_img"]


def original(layers: list[str]) -> dict[str, torch.Tensor]:
    ends = ("lora_down.weight", "lora_up.weight")
    return {f"diffusion_model.{layer}.{end}": torch.ones(2, 2) for layer in layers for end in ends}


def musubi(layers: list[str]) -> dict[str, torch.Tensor]:
    names = [f"lora_unet_{layer.replace('.', '_')}" for layer in layers]
    tensors = {f"{name}.{end}.weight": torch.ones(2, 2) for name in names for end in ("lora_down", "lora_up")}
    return tensors | {f"{name}.alpha": torch.tensor(2.0) for name in names}


@pytest.mark.parametrize(
    "tensors",
    [
        original(LAYERS + OUTSIDE + IMAGE),
        musubi([f"blocks.{block}.{name}" for block in (0, 1) for name in BLOCK_NAMES]),
    ],
    ids=["original", "musubi"],
)
def test_the_names_are_those_of_diffusers_own_converters(tensors: dict[str, torch.Tensor]) -> None:
    theirs = set(WanLoraLoaderMixin.lora_state_dict(dict(tensors)))
    ends = {"down": "lora_A.weight", "up": "lora_B.weight"}
    places = [place_of(key) for key in tensors]
    ours = {f"transformer.{place.target}.{ends[place.part]}" for place in places if place and place.part in ends}
    assert ours == theirs
    assert len(ours) == len([key for key in tensors if not key.endswith(".alpha")])


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("transformer.blocks.3.attn2.to_out.0.lora_A.weight", Place("blocks.3.attn2.to_out.0", "down")),
        ("blocks.3.ffn.net.0.proj.lora_B.default.weight", Place("blocks.3.ffn.net.0.proj", "up")),
        ("transformer.proj_out.lora_B.bias", Place("proj_out", "up_bias")),
        ("lora_unet_blocks_30_ffn_2.alpha", Place("blocks.30.ffn.net.2", "alpha")),
        ("lora_unet_head_head.lora_up.weight", Place("proj_out", "up")),
        ("lora_unet_patch_embedding.lora_down.weight", Place("patch_embedding", "down")),
        ("diffusion_model.blocks.0.norm3.diff_b", Place("blocks.0.norm2", "diff_b")),
        ("diffusion_model.blocks.7.diff_m", Place("blocks.7.scale_shift_table", "diff")),
        ("diffusion_model.head.modulation.diff", Place("scale_shift_table", "diff")),
        ("base_model.model.transformer.proj_out.lora_A.default_0.weight", Place("proj_out", "down")),
        ("model.diffusion_model.head.head.lora.up.weight", Place("proj_out", "up")),
        ("transformer_2.proj_out.lora_B.weight", Place("proj_out", "up", low=True)),
        ("diffusion_model.transformer_1.head.head.lora_B.weight", Place("proj_out", "up")),
        ("diffusion_model.transformer_2.head.head.lora_B.weight", Place("proj_out", "up", low=True)),
        ("lycoris_transformer_2_blocks_0_attn1_to_q.lokr_w1", Place("blocks.0.attn1.to_q", "lokr_w1", low=True)),
        ("lora_unet__blocks_3_cross_attn_o.alpha", Place("blocks.3.attn2.to_out.0", "alpha")),
        ("lycoris_blocks_0_ffn_net_0_proj.hada_w2_b", Place("blocks.0.ffn.net.0.proj", "hada_w2_b")),
        (
            "lycoris_condition_embedder_time_embedder_linear_1.lokr_w2_a",
            Place("condition_embedder.time_embedder.linear_1", "lokr_w2_a"),
        ),
        ("lycoris_blocks_0_attn1_norm_q.w_norm", Place("blocks.0.attn1.norm_q", "diff")),
        ("lora_unet_blocks_0_norm3.b_norm", Place("blocks.0.norm2", "diff_b")),
        ("diffusion_model.head.head.lora_up.scale_weight", Place("proj_out", "up_scale")),
    ],
)
def test_every_form_is_understood(key: str, place: Place) -> None:
    assert place_of(key) == place


@pytest.mark.parametrize(
    "key",
    [
        "",
        "transformer.blocks.0.attn1.to_q.weight",
        "transformer.blocks.0.attn1.to_q.lora_A",
        "transformer.blocks.0.attn1.to_q.dora_scale",
        "transformer.blocks.0.attn1.to_q.lora_magnitude_vector",
        "lora_unet_blocks_0_self_attn_q.lokr_w3",
        "lora_unet_blocks_0_self_attn_q.lokr_t2",
        "lora_unet_blocks_0_self_attn_q.hada_w1",
        "lora_unet_blocks_0_self_attn_q.scale_weight",
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight.more",
        ".alphabet",
    ],
)
def test_other_forms_are_not_guessed(key: str) -> None:
    assert place_of(key) is None


def test_the_image_branch_is_told_apart() -> None:
    layers = ["diffusion_model.blocks.0.cross_attn.v_img.diff_b", "lora_unet_blocks_1_cross_attn_k_img.alpha"]
    layers += ["diffusion_model.img_emb.proj.1.diff", "transformer.blocks.0.attn2.add_k_proj.lora_A.weight"]
    assert all(is_image_branch(key) for key in layers)
    assert not any(is_image_branch(key) for key in original(LAYERS + OUTSIDE))
