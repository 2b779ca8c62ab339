"""LoRAs on the real classes at a small size: exactly the change of the weights that was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kits.lora_kit import (
    ORIGINAL,
    Factors,
    adapter,
    as_diffusers,
    as_musubi,
    as_original,
    assert_close,
    assert_equal,
    changed,
    deltas,
    differs,
    factors,
    output,
    outputs,
    saved,
    untouched,
)
from worker.base.errors import InputInvalid, Unsupported
from worker.engine.models.components import Components
from worker.engine.techniques.lora import applied

pytestmark = pytest.mark.usefixtures("nothing_is_left")
QUERY = "blocks.0.attn1.to_q"
EVERY_LAYER = (
    *ORIGINAL,
    "proj_out",
    "condition_embedder.time_proj",
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.text_embedder.linear_2",
)


@pytest.mark.parametrize("expert", ["high", "low", "both"])
@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_a_known_weight_change_is_made_on_the_expert_that_was_asked_for(
    model: Components, tmp_path: Path, expert: str, scale: float
) -> None:
    pairs = factors(model.transformer, QUERY)
    file = saved(tmp_path, as_diffusers(pairs))
    plain = outputs(model)
    wanted = [output(changed(one, deltas(pairs, scale))) for one in (model.transformer, model.transformer_2)]
    with applied(model, [adapter(file, expert, scale)]) as notes:
        high, low = outputs(model)
    assert notes == ()
    for asked, got, before, want in (("high", high, plain[0], wanted[0]), ("low", low, plain[1], wanted[1])):
        if expert in (asked, "both"):
            assert_close(got, want)
            assert differs(got, before)
        else:
            assert torch.equal(got, before)


def test_a_lora_of_every_linear_layer_is_its_weight_change(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, *EVERY_LAYER, rank=3)
    want = output(changed(model.transformer, deltas(pairs)))
    with applied(model, [adapter(saved(tmp_path, as_diffusers(pairs)), "high")]):
        assert_close(output(model.transformer), want)


def test_ranks_may_differ_from_layer_to_layer(model: Components, tmp_path: Path) -> None:
    pairs = {
        **factors(model.transformer, QUERY, rank=1),
        **factors(model.transformer, "blocks.0.attn1.to_k", "blocks.0.ffn.net.2", rank=8, seed=8),
    }
    with applied(model, [adapter(saved(tmp_path, as_diffusers(pairs)), "high")]):
        got = output(model.transformer)
    assert_close(got, output(changed(model.transformer, deltas(pairs))))


@pytest.mark.parametrize(
    "written",
    [as_original, lambda pairs: as_original(pairs, alpha=2.0), lambda pairs: as_musubi(pairs, alpha=2.0)],
    ids=["original", "alpha", "musubi"],
)
def test_other_key_formats_give_the_same_bits(
    model: Components, tmp_path: Path, written: Callable[[Factors], dict[str, torch.Tensor]]
) -> None:
    """Every form is in tests/unit/weights/test_lora_forms.py."""
    pairs = factors(model.transformer, *ORIGINAL)
    with applied(model, [adapter(saved(tmp_path, as_diffusers(pairs), "a"))]):
        wanted = outputs(model)
    with applied(model, [adapter(saved(tmp_path, written(pairs), "b"))]):
        assert_equal(outputs(model), wanted)


def test_a_musubi_file_of_some_layers_only_is_served(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, QUERY)
    want = output(changed(model.transformer, deltas(pairs)))
    with applied(model, [adapter(saved(tmp_path, as_musubi(pairs, alpha=2.0)), "high")]):
        assert_close(output(model.transformer), want)


@pytest.mark.parametrize("alpha", [1.0, 6.0, 0.0])
def test_alpha_over_rank_multiplies_the_change(model: Components, tmp_path: Path, alpha: float) -> None:
    pairs = factors(model.transformer, QUERY, rank=4)
    want = output(changed(model.transformer, deltas(pairs, alpha / 4)))
    with applied(model, [adapter(saved(tmp_path, as_original(pairs, alpha)), "high")]):
        assert_close(output(model.transformer), want)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"transformer.r": 4, "transformer.lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^blocks.0.attn1.to_q": 1}}, 0.25),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, 2.0),
        ({"r": 4}, 1.0),
    ],
)
def test_the_alpha_in_diffusers_metadata_counts(
    model: Components, tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    pairs = factors(model.transformer, QUERY, rank=4)
    file = saved(tmp_path, as_diffusers(pairs), lora_adapter_metadata=json.dumps(config))
    want = output(changed(model.transformer, deltas(pairs, scale)))
    with applied(model, [adapter(file, "high")]):
        assert_close(output(model.transformer), want)


@pytest.mark.parametrize(
    "written", ["not json", "[1]", '{"lora_alpha": "8"}', '{"alpha_pattern": [1]}', '{"lora_alpha": NaN}']
)
def test_metadata_that_cannot_be_read_is_refused(model: Components, tmp_path: Path, written: str) -> None:
    file = saved(tmp_path, as_diffusers(factors(model.transformer, QUERY)), lora_adapter_metadata=written)
    with pytest.raises(InputInvalid, match="metadata"), applied(model, [adapter(file)]):
        pytest.fail("was applied")


def test_several_adapters_add_up_at_their_scales_on_their_experts(model: Components, tmp_path: Path) -> None:
    one, two = factors(model.transformer, *ORIGINAL, seed=1), factors(model.transformer, QUERY, "proj_out", seed=2)
    adapters = [
        adapter(saved(tmp_path, as_original(one), "a"), "both", 0.75, 0),
        adapter(saved(tmp_path, as_diffusers(two), "b"), "low", -1.5, 1),
        adapter(saved(tmp_path, as_diffusers(two), "c"), "both", 0.0, 2),
    ]
    second = deltas(two, -1.5)
    sums = {name: delta + second.pop(name, 0.0) for name, delta in deltas(one, 0.75).items()} | second
    with applied(model, adapters):
        high, low = outputs(model)
    assert_close(high, output(changed(model.transformer, deltas(one, 0.75))))
    assert_close(low, output(changed(model.transformer_2, sums)))


def test_the_same_file_twice_counts_twice(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, QUERY)
    file = saved(tmp_path, as_diffusers(pairs))
    want = output(changed(model.transformer, deltas(pairs, 0.75)))
    with applied(model, [adapter(file, "high", 0.5, 0), adapter(file, "high", 0.25, 1)]):
        assert_close(output(model.transformer), want)


def test_no_adapters_change_nothing(model: Components) -> None:
    before = outputs(model)
    with applied(model, []) as notes:
        assert_equal(outputs(model), before)
        assert notes == ()


WHOLE = {
    "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    "diffusion_model.patch_embedding.diff_b": "patch_embedding.bias",
    "diffusion_model.head.head.diff": "proj_out.weight",
    "diffusion_model.head.head.diff_b": "proj_out.bias",
    "diffusion_model.head.modulation.diff": "scale_shift_table",
    "diffusion_model.blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "diffusion_model.blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
    "diffusion_model.blocks.0.cross_attn.norm_k.diff": "blocks.0.attn2.norm_k.weight",
    "diffusion_model.blocks.0.diff_m": "blocks.0.scale_shift_table",
    "diffusion_model.blocks.0.self_attn.v.diff": "blocks.0.attn1.to_v.weight",
    "diffusion_model.blocks.0.ffn.2.diff_b": "blocks.0.ffn.net.2.bias",
    "diffusion_model.time_projection.1.diff_b": "condition_embedder.time_proj.bias",
}


@pytest.mark.parametrize("key", WHOLE)
def test_a_whole_difference_is_added_to_its_parameter(model: Components, tmp_path: Path, key: str) -> None:
    parameter = model.transformer.get_parameter(WHOLE[key])
    difference = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    twin = changed(model.transformer, {WHOLE[key]: 0.5 * difference})
    with applied(model, [adapter(saved(tmp_path, {key: difference}), "high", 0.5)]):
        got = output(model.transformer)
    assert_close(got, output(twin))
    assert differs(got, output(model.transformer))


def test_biases_beside_some_of_the_pairs_are_applied(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, *ORIGINAL)
    difference = torch.randn(24, generator=torch.Generator().manual_seed(4))
    tensors = as_original(pairs, alpha=1.0) | {"diffusion_model.blocks.0.self_attn.q.diff_b": difference}
    want = changed(model.transformer, deltas(pairs, 0.5 * 0.5) | {f"{QUERY}.bias": 0.5 * difference})
    wanted = output(want)
    with applied(model, [adapter(saved(tmp_path, tensors), "high", 0.5)]):
        assert_close(output(model.transformer), wanted)


def test_differences_that_are_zero_need_no_place(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, QUERY)
    tensors = as_original(pairs) | {"diffusion_model.blocks.0.norm7.diff": torch.zeros(24)}
    want = output(changed(model.transformer, deltas(pairs)))
    with applied(model, [adapter(saved(tmp_path, tensors), "high")]):
        assert_close(output(model.transformer), want)


def test_the_image_branch_of_wan_2_1_is_left_out_with_a_note(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, QUERY)
    image = {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.ones(2, 24),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight": torch.ones(24, 2),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.ones(24),
        "diffusion_model.img_emb.proj.1.diff_b": torch.ones(24),
    }
    with applied(model, [adapter(saved(tmp_path, as_original(pairs) | image, "a"))]) as notes:
        assert_close(output(model.transformer), output(changed(untouched(model), deltas(pairs))))
    assert len(notes) == 1
    assert notes[0].startswith("job_request_params[0].loras[0].source: ")
    with pytest.raises(Unsupported, match="k_img"), applied(model, [adapter(saved(tmp_path, image, "b"))]):
        pytest.fail("was applied")
