"""LoRAs on the real classes at a small size: exactly the change that was trained, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.kits.lora_kit import (
    ORIGINAL,
    Factors,
    adapter,
    as_diffusers,
    as_musubi,
    as_original,
    changed,
    deltas,
    factors,
    load,
    lycoris,
    output,
    outputs,
    saved,
)
from tests.kits.slow import slow
from worker.base.errors import InputFailed, InputInvalid, Unsupported
from worker.engine.models import precision as quantize
from worker.engine.models.components import Components, SharedParts
from worker.engine.models.precision import ScaledLinear
from worker.engine.models.residency import Residency
from worker.engine.techniques import lora
from worker.engine.techniques.lora import applied
from worker.request.plan import MemoryPlan
from worker.weights.loras import content as lora_content

QUERY = "blocks.0.attn1.to_q"
EVERY_LAYER = (
    *ORIGINAL,
    "proj_out",
    "condition_embedder.time_proj",
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.text_embedder.linear_2",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load(tmp_path_factory.mktemp("model") / "t2v")


@pytest.fixture(autouse=True)
def nothing_is_left(model: Components) -> Any:
    """After every test the shared experts answer as before it, bit for bit, and hold no module of PEFT's."""
    lora.contents.clear()
    names = [sorted(name for name, _ in expert.named_modules()) for expert in (model.transformer, model.transformer_2)]
    before = outputs(model)
    yield
    assert_equal(outputs(model), before)
    after = [sorted(name for name, _ in expert.named_modules()) for expert in (model.transformer, model.transformer_2)]
    assert after == names
    assert not hasattr(model.transformer, "peft_config")


def assert_equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> None:
    assert [torch.equal(one, other) for one, other in zip(these, those, strict=True)] == [True] * len(those)


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """By far more than rounding."""
    return bool((one - other).abs().max() > 1e-3)


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


def untouched(model: Components) -> WanTransformer3DModel:
    """The high-noise expert as it is without LoRAs."""
    import copy

    twin = copy.deepcopy(model.transformer)
    twin.unload_lora()
    return twin


@pytest.mark.parametrize("key", ["i2v", *slow("t2v", "5b")])
def test_every_model_takes_loras_and_gives_them_back(tmp_path: Path, key: str) -> None:
    components = load(tmp_path / key, key)
    pairs = factors(components.transformer, *ORIGINAL)
    before = outputs(components)
    for expert in ("both", "high"):
        with applied(components, [adapter(saved(tmp_path, as_original(pairs)), expert)]):
            assert_close(outputs(components)[0], output(changed(untouched(components), deltas(pairs))))
    assert_equal(outputs(components), before)


def test_a_model_of_one_expert_has_no_low_one(tmp_path: Path) -> None:
    components = load(tmp_path / "5b", "5b")
    file = saved(tmp_path, as_original(factors(components.transformer, QUERY)))
    with pytest.raises(Unsupported, match="single expert") as caught, applied(components, [adapter(file, "low")]):
        pytest.fail("was applied")
    assert caught.value.path == "job_request_params[0].loras[0].expert"
    file = saved(tmp_path, {"transformer_2.proj_out.lora_B.bias": torch.ones(24)})
    with pytest.raises(Unsupported, match="for two experts"), applied(components, [adapter(file)]):
        pytest.fail("was applied")


def test_bf16_experts_compute_the_lora_in_bf16(tmp_path: Path) -> None:
    components = load(tmp_path / "t2v", dtype=torch.bfloat16)
    pairs = factors(components.transformer, *ORIGINAL)
    before = outputs(components)
    want = output(changed(components.transformer, deltas(pairs)))
    with applied(components, [adapter(saved(tmp_path, as_original(pairs)))]):
        added = {tensor.dtype for name, tensor in components.transformer.named_parameters() if ".lora_" in name}
        got = output(components.transformer)
    assert added == {torch.bfloat16}
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert_equal(outputs(components), before)


def planned(residency: str = "resident", precision: str = "fp32") -> MemoryPlan:
    return MemoryPlan(precision, residency, "resident", False, 0, 0, ())  # type: ignore[arg-type]


def with_parts(components: Components) -> Components:
    """Something small in place of text encoder and VAE."""
    parts = SharedParts(None, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    return replace(components, shared=parts)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_experts_of_lower_precision_take_loras(tmp_path: Path, precision: str) -> None:
    """As the same LoRA on full-precision experts whose weights were rounded in that way."""
    components, rounded = load(tmp_path / "t2v"), load(tmp_path / "t2v")
    quantize.apply(components.transformer, planned(precision=precision), torch.float32)
    with torch.no_grad():
        for name, module in components.transformer.named_modules():
            for own, stored in module.named_parameters(recurse=False):
                scale = module.scale if isinstance(module, ScaledLinear) and own == "weight" else 1.0
                getattr(rounded.transformer.get_submodule(name), own).copy_(stored.float() * scale)
    file = saved(tmp_path, as_original(factors(rounded.transformer, "blocks.0.ffn.net.2"), alpha=1.0) | lycoris())
    before = output(components.transformer)
    with applied(rounded, [adapter(file, "high")]):
        want = output(rounded.transformer)
    with applied(components, [adapter(file, "high")]):
        assert torch.equal(output(components.transformer), want)
    assert torch.equal(output(components.transformer), before)
    assert differs(want, before)


@pytest.mark.parametrize("residency", ["group_offload", *slow("swap", "sequential")])
def test_experts_that_come_and_go_take_loras_and_give_them_back(tmp_path: Path, residency: str) -> None:
    components, plain = with_parts(load(tmp_path / "t2v")), load(tmp_path / "t2v")
    some = [layer for layer in ORIGINAL if layer not in (QUERY, "blocks.0.attn1.to_k")]  # those are of lycoris()
    tensors = as_original(factors(plain.transformer, *some)) | {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
        "diffusion_model.blocks.0.self_attn.v.diff_b": torch.ones(24),
        "diffusion_model.patch_embedding.diff": torch.ones(24, 16, 1, 2, 2),
        **lycoris(),
    }
    file = saved(tmp_path, tensors)
    before = outputs(plain)
    with applied(plain, [adapter(file)]):
        want = outputs(plain)
    Residency(components, planned(residency), torch.device("cpu"))
    for _ in range(2):
        with applied(components, [adapter(file)]):
            assert_equal([*outputs(components), *outputs(components)], want * 2)
        assert_equal([*outputs(components), *outputs(components)], before * 2)


def test_hooks_of_accelerate_are_no_obstacle(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    components, plain = load(tmp_path / "t2v"), load(tmp_path / "t2v")
    cpu_offload(components.transformer, execution_device=torch.device("cpu"))
    file = saved(tmp_path, as_original(factors(plain.transformer, "blocks.0.ffn.net.2")) | lycoris())
    before = output(plain.transformer)
    with applied(plain, [adapter(file, "high")]):
        want = output(plain.transformer)
    with applied(components, [adapter(file, "high")]):
        assert torch.equal(output(components.transformer), want)
    assert torch.equal(output(components.transformer), before)


def test_a_body_that_fails_leaves_the_experts_as_they_were(model: Components, tmp_path: Path) -> None:
    tensors = as_original(factors(model.transformer, *ORIGINAL)) | {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(24)
    }
    before = outputs(model)
    during: list[torch.Tensor] = []

    def run() -> None:
        with applied(model, [adapter(saved(tmp_path, tensors))]):
            during.extend(outputs(model))
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        run()
    assert differs(during[0], before[0])
    assert_equal(outputs(model), before)


def test_experts_are_swapped_between_loras_without_loading_them_again(model: Components, tmp_path: Path) -> None:
    before = outputs(model)
    weights = {name: tensor.data_ptr() for name, tensor in model.transformer.named_parameters()}
    seen = []
    for seed in (1, 2, 1):
        file = saved(tmp_path, as_diffusers(factors(model.transformer, QUERY, seed=seed)), f"lora-{seed}")
        with applied(model, [adapter(file)]):
            seen.append(outputs(model))
        assert_equal(outputs(model), before)
    assert_equal(seen[0], seen[2])
    assert differs(seen[0][0], seen[1][0])
    assert {name: tensor.data_ptr() for name, tensor in model.transformer.named_parameters()} == weights


def test_what_was_read_is_kept_until_the_file_changes(model: Components, tmp_path: Path) -> None:
    one, two = factors(model.transformer, QUERY, seed=1), factors(model.transformer, QUERY, seed=2)
    file = saved(tmp_path, as_diffusers(one))
    state = file.stat()
    with applied(model, [adapter(file, "high")]):
        first = output(model.transformer)
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with applied(model, [adapter(file, "high")]):
        assert torch.equal(output(model.transformer), first)
    saved(tmp_path, as_diffusers(two))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    with applied(model, [adapter(file, "high")]):
        assert differs(output(model.transformer), first)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    files = [saved(tmp_path, {f"transformer.x.{n}.diff": torch.ones(100)}, f"lora-{n}") for n in range(3)]
    kept = lora_content.Contents(kept_bytes=800)
    first = [kept.of(file, "p") for file in files]
    assert [kept.of(file, "p") is content for file, content in zip(files[1:], first[1:], strict=True)] == [True, True]
    assert kept.of(files[0], "p") is not first[0]


def test_a_file_that_is_gone_is_a_failure_that_may_pass(model: Components, tmp_path: Path) -> None:
    with pytest.raises(InputFailed) as caught, applied(model, [adapter(tmp_path / "gone.safetensors")]):
        pytest.fail("was applied")
    assert str(tmp_path) not in str(caught.value)
