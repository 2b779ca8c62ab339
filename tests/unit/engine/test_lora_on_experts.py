"""LoRAs on every kind of expert: of one or two, quantised, streamed; and nothing of them stays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from tests.kits.engine_kit import plan
from tests.kits.lora_kit import (
    ORIGINAL,
    adapter,
    as_diffusers,
    as_original,
    assert_close,
    assert_equal,
    changed,
    deltas,
    differs,
    factors,
    load,
    lycoris,
    output,
    outputs,
    saved,
    untouched,
)
from tests.kits.slow import slow
from worker.base.errors import InputFailed, Unsupported
from worker.engine.models import precision as quantize
from worker.engine.models.components import Components, SharedParts
from worker.engine.models.precision import ScaledLinear
from worker.engine.models.residency import Residency
from worker.engine.techniques.lora import applied
from worker.weights.loras import content as lora_content

pytestmark = pytest.mark.usefixtures("nothing_is_left")
QUERY = "blocks.0.attn1.to_q"


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


def with_parts(components: Components) -> Components:
    """Something small in place of text encoder and VAE."""
    parts = SharedParts(None, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    return replace(components, shared=parts)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_experts_of_lower_precision_take_loras(tmp_path: Path, precision: Any) -> None:
    """As the same LoRA on full-precision experts whose weights were rounded in that way."""
    components, rounded = load(tmp_path / "t2v"), load(tmp_path / "t2v")
    quantize.apply(components.transformer, plan("resident", precision), torch.float32)
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
def test_experts_that_come_and_go_take_loras_and_give_them_back(tmp_path: Path, residency: Any) -> None:
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
    Residency(components, plan(residency, text_encoder="resident"), torch.device("cpu"))
    for _ in range(2):
        with applied(components, [adapter(file)]):
            assert_equal([*outputs(components), *outputs(components)], want * 2)
        assert_equal([*outputs(components), *outputs(components)], before * 2)


def test_hooks_of_accelerate_are_no_obstacle(tmp_path: Path) -> None:
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
