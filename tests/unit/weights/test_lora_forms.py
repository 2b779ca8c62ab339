"""Every form of docs/lora-formats.md, as a small file, changes the model as its writer meant; the others are named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.kits.lora_forms import FORMS, LAYERS, Form, lokr, plain
from tests.kits.lora_kit import (
    Factors,
    adapter,
    as_diffusers,
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
from worker.base.errors import InputInvalid, ModelUnavailable, Unsupported, WorkerError
from worker.engine.models.components import Components
from worker.engine.techniques.lora import applied
from worker.weights.loras.fuse import changes

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "lora-formats.md").read_text(encoding="utf-8")
NAME = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load(tmp_path_factory.mktemp("model") / "t2v")


def check(model: Components, form: Form, folder: Path) -> None:
    written = form.write(form.key, model.transformer)
    before = outputs(model)
    assert model.transformer_2 is not None
    wanted = [
        output(changed(expert, {name: 0.5 * delta for name, delta in change.items()}))
        for expert, change in ((model.transformer, written.high), (model.transformer_2, written.low))
    ]
    with applied(model, [adapter(saved(folder, written.tensors), scale=0.5)]):
        torch.testing.assert_close(outputs(model), wanted, rtol=1e-5, atol=1e-5)
    assert [torch.equal(one, other) for one, other in zip(outputs(model), before, strict=True)] == [True, True]
    assert all(bool((one - other).abs().max() > 1e-3) for one, other in zip(wanted, before, strict=True))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.writers)
def test_a_file_of_every_form_makes_its_change_and_is_off_again(model: Components, tmp_path: Path, form: Form) -> None:
    check(model, form, tmp_path)


def test_the_page_lists_these_forms_and_no_other() -> None:
    table = PAGE.split("| Written by | A key | Remarks |\n| --- | --- | --- |\n")[1].split("\n\n")[0]
    assert table.splitlines() == [form.row for form in FORMS]


@pytest.mark.parametrize(("first_rank", "second_rank"), [(0, 3), (1, 2), (2, 1), (1, 30), (3, 0)])
def test_a_lokr_may_have_its_matrices_in_factors(
    model: Components, tmp_path: Path, first_rank: int, second_rank: int
) -> None:
    """Also of more than the rank that the matrix can have, as ai-toolkit may write them."""
    write = partial(lokr, first_rank=first_rank, second_rank=second_rank)
    check(model, Form("LoKr", "lora_unet_{wan_}.lokr_w1", "", write), tmp_path)


@pytest.mark.parametrize(
    ("suffix", "named"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("lokr_t2", "LoKr or LoHa in Tucker form"),
        ("hada_t1", "LoKr or LoHa in Tucker form"),
        ("oft_blocks", "OFT"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(model: Components, tmp_path: Path, suffix: str, named: str) -> None:
    tensors = as_original(factors(model.transformer, LAYERS[0])) | {f"{NAME}.{suffix}": torch.ones(24, 1)}
    error = refusal(model, saved(tmp_path, tensors))
    assert isinstance(error, Unsupported)
    assert f"this LoRA is a {named} ({NAME}.{suffix})" in error.message
    assert "send a LoRA" in error.message
    assert "trained for" not in error.message
    assert named.split()[0] in PAGE


@pytest.mark.parametrize(
    ("shapes", "kind", "said"),
    [
        ({"lokr_w1": (2, 2), "lokr_w2": (12, 13)}, Unsupported, "has the shape [24, 26], the model needs [24, 24]"),
        ({"lokr_w1": (2, 2), "lokr_w2": (12, 12, 1)}, Unsupported, "is a LoKr of a convolution"),
        ({"lokr_w1": (2, 2)}, Unsupported, "1 of the 1 keys"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (12, 2)}, Unsupported, "2 of the 2 keys"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (12, 2), "lokr_w2_b": (3, 12)}, InputInvalid, "do not fit together"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (12, 0), "lokr_w2_b": (0, 12)}, InputInvalid, "do not fit together"),
        (
            {"hada_w1_a": (24, 2), "hada_w1_b": (2, 24), "hada_w2_a": (24, 2), "hada_w2_b": (2, 23)},
            InputInvalid,
            "do not fit together",
        ),
        (
            {"lokr_w1": (2, 2), "lokr_w2": (12, 12), "lora_down.weight": (2, 24), "lora_up.weight": (24, 2)},
            Unsupported,
            "2 of the 4 keys",
        ),
        (
            {"lora_down.weight": (2, 24), "lora_up.weight": (24, 2), "lora_up.scale_weight": (2,)},
            InputInvalid,
            "single",
        ),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    model: Components, tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: type[WorkerError], said: str
) -> None:
    error = refusal(model, saved(tmp_path, {f"{NAME}.{part}": torch.ones(shape) for part, shape in shapes.items()}))
    assert isinstance(error, kind)
    assert said in error.message


def both_experts(model: Components) -> tuple[dict[str, torch.Tensor], Factors, Factors]:
    """A file of two parts, and the factors of each."""
    high, low = (factors(model.transformer, LAYERS[0], seed=seed) for seed in (1, 2))
    second = {key.replace("transformer.", "transformer_2."): tensor for key, tensor in as_diffusers(low).items()}
    return as_diffusers(high) | second, high, low


@pytest.mark.parametrize("expert", ["high", "low", "both"])
def test_each_part_of_a_file_for_two_experts_goes_to_its_own(model: Components, tmp_path: Path, expert: str) -> None:
    tensors, *parts = both_experts(model)
    wanted = [
        output(changed(own, deltas(part)) if expert in (side, "both") else own)
        for side, part, own in zip(("high", "low"), parts, model.modules, strict=True)
    ]
    with applied(model, [adapter(saved(tmp_path, tensors), expert)]):
        torch.testing.assert_close(outputs(model), wanted, rtol=1e-5, atol=1e-5)


def test_a_file_for_the_low_noise_expert_alone_leaves_the_other_as_it_is(model: Components, tmp_path: Path) -> None:
    tensors, _, low = both_experts(model)
    file = saved(tmp_path, {key: tensor for key, tensor in tensors.items() if key.startswith("transformer_2")})
    wanted = [outputs(model)[0], output(changed(model.modules[1], deltas(low)))]
    for expert in ("low", "both"):
        with applied(model, [adapter(file, expert)]):
            torch.testing.assert_close(outputs(model), wanted, rtol=1e-5, atol=1e-5)
    error = refusal(model, file, "high")
    assert "send low or both" in error.message
    assert error.path == "job_request_params[0].loras[0].expert"


def test_the_metadata_of_each_part_is_its_own(model: Components, tmp_path: Path) -> None:
    tensors, high, low = both_experts(model)
    config = json.dumps({"transformer.lora_alpha": 1, "transformer_2.lora_alpha": 8})
    wanted = [
        output(changed(expert, deltas(part, scale)))
        for expert, part, scale in zip(model.modules, (high, low), (0.5, 4.0), strict=True)
    ]
    with applied(model, [adapter(saved(tmp_path, tensors, lora_adapter_metadata=config))]):
        torch.testing.assert_close(outputs(model), wanted, rtol=1e-5, atol=1e-5)


def test_a_marker_alone_is_no_lora(model: Components, tmp_path: Path) -> None:
    file = saved(tmp_path, {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)})
    assert "changes nothing" in refusal(model, file).message


def test_loras_lokrs_and_lohas_of_one_layer_add_up(model: Components, tmp_path: Path) -> None:
    pairs = factors(model.transformer, LAYERS[0], "blocks.0.attn1.to_k")
    k, q = (f"lycoris_blocks_0_attn1_to_{letter}" for letter in "kq")
    tensors = lycoris()
    wanted = deltas(pairs)
    wanted["blocks.0.attn1.to_k.weight"] += 0.75 * torch.kron(tensors[f"{k}.lokr_w1"], tensors[f"{k}.lokr_w2"])
    first, second = (tensors[f"{q}.hada_w{n}_a"] @ tensors[f"{q}.hada_w{n}_b"] for n in (1, 2))
    wanted["blocks.0.attn1.to_q.weight"] += 0.75 * first * second
    want = output(changed(model.transformer, wanted))
    files = saved(tmp_path, tensors, "a"), saved(tmp_path, as_diffusers(pairs), "b")
    adapters = [adapter(files[0], "high", 1.0), adapter(files[1], "high", 1.0, 1), adapter(files[0], "high", -0.25, 2)]
    with applied(model, adapters):
        torch.testing.assert_close(output(model.transformer), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["lycoris_{ours_}.lokr_w1", "transformer.{ours}.lora_A.weight"])
def test_only_a_lora_of_one_expert_is_added_to_weights_for_good(model: Components, tmp_path: Path, key: str) -> None:
    form = next(form for form in FORMS if form.key == key and form.write is not plain)
    shapes = {name: parameter.shape for name, parameter in model.transformer.named_parameters()}
    file = saved(tmp_path, form.write(form.key, model.transformer).tensors)
    with pytest.raises(ModelUnavailable, match="no LoRA of one expert"):
        changes(file, shapes)


def refusal(model: Components, file: Path, expert: str = "both") -> WorkerError:
    with pytest.raises(WorkerError) as caught, applied(model, [adapter(file, expert)]):
        pytest.fail("was applied")
    return caught.value
