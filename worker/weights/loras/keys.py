"""The keys of LoRA files for Wan, as names of Diffusers' Wan transformer. Pure text: no tensor is touched.

Understood, with any of the usual prefixes, also several of them:

    transformer.blocks.0.attn1.to_q.lora_A.weight                 Diffusers, PEFT
    diffusion_model.blocks.0.self_attn.q.lora_down.weight         Wan's own names: lightx2v, ComfyUI, ai-toolkit
    lora_unet_blocks_0_self_attn_q.lora_down.weight               musubi-tuner; with two underscores VideoX-Fun
    lycoris_blocks_0_attn1_to_q.lokr_w1                           LyCORIS, on names of either kind

`transformer_2` among the prefixes is the low-noise expert. Beside the two factors: `.alpha`; `.scale_weight`, by which
a factor in fp8 is multiplied; `.diff` and `.diff_b`, whole differences of a weight and of a bias (`.w_norm` and
`.b_norm` in LyCORIS); `.diff_m`, that of a block's modulation. Diffusers has converters of its own, which drop keys
without a word and fail on a LoRA of some layers only; tests/unit/weights/test_lora_keys.py holds that both give the
same names. docs/lora-formats.md lists who writes what.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIXES = re.compile(r"(?:(?:transformer(?:_[12])?|diffusion_model|model|base_model|pipe\.dit)\.)+")
_UNDERSCORES = re.compile(r"(?:lora_unet|lycoris)_+(?:transformer_(?P<expert>[12])_)?")
_NAME = r"(?:\.\w+)?"  # PEFT's name of the adapter, such as default_0
_DOWN, _UP = rf"(?:lora_A|lora_down|lora\.down){_NAME}", rf"(?:lora_B|lora_up|lora\.up){_NAME}"
# The name of the group is the part; of LyCORIS' factors the part is their own name.
_SUFFIX = re.compile(
    rf"\.(?:(?P<down>{_DOWN}\.weight)|(?P<up>{_UP}\.weight)|(?P<up_bias>lora_B{_NAME}\.bias)|(?P<alpha>alpha)"
    rf"|(?P<down_scale>{_DOWN}\.scale_weight)|(?P<up_scale>{_UP}\.scale_weight)|(?P<diff>diff|w_norm)"
    r"|(?P<diff_b>diff_b|b_norm)|(?P<factor>lokr_w[12](?:_[ab])?|hada_w[12]_[ab]))\Z"
)
_NOT_READ = re.compile(
    r"\.(?:(?P<dora>dora_scale|lora_magnitude_vector(?:\.\w+){0,2})|(?P<tucker>(?:lokr|hada)_t[12])"
    r"|(?P<oft>oft_\w+(?:\.\w+){0,2}))\Z"
)
_FORMS = {"dora": "DoRA", "tucker": "LoKr or LoHa in Tucker form", "oft": "OFT"}
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
# Of Wan's own names and of those of Diffusers.
_UNDERSCORED = {name.replace(".", "_"): name for names in (_IN_BLOCK, _OUTSIDE) for name in (*names, *names.values())}
_BLOCK = re.compile(r"blocks[._](?P<number>\d+)[._](?P<inner>.+)")
_IMAGE_BRANCH = re.compile(
    r"(?:cross_attn[._](?:k_img|v_img|norm_k_img)|img_emb[._]|attn2\.(?:add_[kv]_proj|norm_added_k))"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs.

    `target` is the dotted name of a module, or of a parameter that is no module's weight (`scale_shift_table`). `part`:
    `down`, `up`, `up_bias`, `alpha`, `down_scale`, `up_scale`, `diff`, `diff_b`, or LyCORIS' name of a factor. `low`:
    the key says that it is the low-noise expert's.
    """

    target: str
    part: str
    low: bool = False


def place_of(key: str) -> Place | None:
    """Where a tensor of a LoRA file belongs, or None for a key of no known form. The place need not exist."""
    prefix = found[0] if (found := _PREFIXES.match(key)) else ""
    name = key[len(prefix) :]
    if name.endswith(".diff_m"):
        name = name.removesuffix(".diff_m") + ".modulation.diff"
    suffix = _SUFFIX.search(name)
    if suffix is None or suffix.lastgroup is None:
        return None
    name = name[: suffix.start()]
    low = "transformer_2." in prefix
    if underscores := _UNDERSCORES.match(name):
        name, low = _dotted(name[underscores.end() :]), low or underscores["expert"] == "2"
    part = suffix["factor"] or suffix.lastgroup
    return Place(_target(name), part, low)


def is_marker(key: str) -> bool:
    """Whether a key says only that a file is in ComfyUI's scaled fp8."""
    return key.rpartition(".")[2] == "scaled_fp8"


def is_image_branch(key: str) -> bool:
    """Whether a key belongs to the branch that reads CLIP's image embedding: Wan 2.1 has it, Wan 2.2 does not."""
    return _IMAGE_BRANCH.search(key) is not None


def form_not_read(key: str) -> str | None:
    """The name of the form that a key belongs to, where it is one that this worker does not read."""
    found = _NOT_READ.search(key)
    return _FORMS[found.lastgroup] if found is not None and found.lastgroup is not None else None


def _dotted(name: str) -> str:
    """`blocks.0.self_attn.q` of `blocks_0_self_attn_q`."""
    if block := _BLOCK.fullmatch(name):
        return f"blocks.{block['number']}.{_UNDERSCORED.get(block['inner'], block['inner'])}"
    return _UNDERSCORED.get(name, name)


def _target(name: str) -> str:
    if block := _BLOCK.fullmatch(name):
        return f"blocks.{block['number']}.{_IN_BLOCK.get(block['inner'], block['inner'])}"
    return _OUTSIDE.get(name, name)
