"""The keys of LoRA files for Wan, as names of Diffusers' Wan transformer. Pure text: no tensor is touched.

Understood, with any of the usual prefixes:

    transformer.blocks.0.attn1.to_q.lora_A.weight                 Diffusers, PEFT
    diffusion_model.blocks.0.self_attn.q.lora_down.weight         Wan's own names: lightx2v, ComfyUI, ai-toolkit
    lora_unet_blocks_0_self_attn_q.lora_down.weight               musubi-tuner

Beside the two factors: `.alpha`; `.diff` and `.diff_b`, whole differences of a weight and of a bias; `.diff_m`, that of
a block's modulation. Diffusers has converters of its own, which drop keys without a word and fail on a LoRA of some
layers only; tests/unit/weights/test_lora_keys.py holds that both give the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Part = Literal["down", "up", "up_bias", "alpha", "diff", "diff_b"]

_PREFIX = re.compile(r"(?:transformer|diffusion_model|model\.diffusion_model|base_model\.model|pipe\.dit)\.")
_MUSUBI = "lora_unet_"
_SUFFIXES: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.default)?\.weight"), "down"),
    (re.compile(r"\.(?:lora_B|lora_up|lora\.up)(?:\.default)?\.weight"), "up"),
    (re.compile(r"\.lora_B(?:\.default)?\.bias"), "up_bias"),
    (re.compile(r"\.alpha"), "alpha"),
    (re.compile(r"\.diff"), "diff"),
    (re.compile(r"\.diff_b"), "diff_b"),
)
_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"}
_NORMS = {"norm_q": "norm_q", "norm_k": "norm_k"}
_IN_BLOCK = {
    **{
        f"{theirs}.{inner}": f"{ours}.{name}"
        for theirs, ours in _ATTENTIONS.items()
        for inner, name in (_PROJECTIONS | _NORMS).items()
    },
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    # Of the three norms of a block one has weights: Wan calls it norm3, Diffusers norm2.
    "norm3": "norm2",
    "modulation": "scale_shift_table",
}
_OUTSIDE = {
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "time_projection.1": "condition_embedder.time_proj",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "patch_embedding": "patch_embedding",
}
_UNDERSCORED = {name.replace(".", "_"): name for name in (*_IN_BLOCK, *_OUTSIDE)}
_BLOCK = re.compile(r"blocks[._](?P<number>\d+)[._](?P<inner>.+)")
_IMAGE_BRANCH = re.compile(
    r"(?:cross_attn[._](?:k_img|v_img|norm_k_img)|img_emb[._]|attn2\.(?:add_[kv]_proj|norm_added_k))"
)


@dataclass(frozen=True, slots=True)
class Place:
    """`target` is the dotted name of a module, or of a parameter that is no module's weight (`scale_shift_table`)."""

    target: str
    part: Part


def place_of(key: str) -> Place | None:
    """Where a tensor of a LoRA file belongs, or None for a key of no known form. The place need not exist."""
    name = key[found.end() :] if (found := _PREFIX.match(key)) else key
    if name.endswith(".diff_m"):
        name = name.removesuffix(".diff_m") + ".modulation.diff"
    for suffix, part in _SUFFIXES:
        for end in suffix.finditer(name):
            if end.end() == len(name):
                return Place(_target(name[: end.start()]), part)
    return None


def is_image_branch(key: str) -> bool:
    """Whether a key belongs to the branch that reads CLIP's image embedding: Wan 2.1 has it, Wan 2.2 does not."""
    return _IMAGE_BRANCH.search(key) is not None


def _target(name: str) -> str:
    if name.startswith(_MUSUBI):
        name = name.removeprefix(_MUSUBI)
        block = _BLOCK.fullmatch(name)
        inner = block["inner"] if block else name
        dotted = _UNDERSCORED.get(inner, inner)
        name = f"blocks.{block['number']}.{dotted}" if block else dotted
    if block := _BLOCK.fullmatch(name):
        return f"blocks.{block['number']}.{_IN_BLOCK.get(block['inner'], block['inner'])}"
    return _OUTSIDE.get(name, name)
