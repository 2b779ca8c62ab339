"""LoRA files whose tensors do not belong to the model.

The request is refused with the field and the first keys named, and the experts stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.kits.lora_kit import adapter, as_diffusers, as_musubi, as_original, factors, load, output, outputs, saved
from worker.base.errors import InputInvalid, Unsupported, WorkerError
from worker.engine.models.components import Components
from worker.engine.techniques.lora import applied
from worker.weights.loras.content import Contents

QUERY = "blocks.0.attn1.to_q"
NAME = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load(tmp_path_factory.mktemp("model") / "t2v")


@pytest.fixture(scope="module")
def untouched(model: Components) -> list[torch.Tensor]:
    return outputs(model)


Refused = Callable[..., WorkerError]


@pytest.fixture
def refused(model: Components, untouched: list[torch.Tensor], tmp_path: Path) -> Refused:
    """The error for a file of these tensors, or for a file, after a look at what it left behind."""

    def refuse(given: dict[str, torch.Tensor] | Path, **metadata: str) -> WorkerError:
        file = given if isinstance(given, Path) else saved(tmp_path, given, **metadata)
        good = adapter(saved(tmp_path, as_diffusers(factors(model.transformer, QUERY)), "good"), number=0)
        with pytest.raises(WorkerError) as caught, applied(model, [good, adapter(file, number=1)]):
            pytest.fail("was applied")
        for expert in (model.transformer, model.transformer_2):
            assert isinstance(expert, WanTransformer3DModel)
            assert not any("lora" in name for name, _ in expert.named_modules())
            assert not hasattr(expert, "peft_config")
        assert [torch.equal(one, other) for one, other in zip(outputs(model), untouched, strict=True)] == [True, True]
        assert caught.value.path == "job_request_params[0].loras[1].source"
        assert str(file) not in str(caught.value)
        return caught.value

    return refuse


def test_keys_that_match_nothing_are_named(refused: Refused) -> None:
    tensors = {f"text_model.layers.{number}.q.lora_down.weight": torch.ones(2, 24) for number in range(8)}
    error = refused(tensors)
    assert isinstance(error, Unsupported)
    assert "8 of the 8 keys" in error.message
    assert "model: text_model.layers.0.q.lora_down.weight, text_model.layers.1.q.lora_down.weight, " in error.message
    assert "and 3 more" in error.message
    assert not error.retryable


def query(model: Components) -> dict[str, torch.Tensor]:
    return as_original(factors(model.transformer, QUERY), alpha=1.0)


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.1.self_attn.q.lora_down.weight",
        "transformer_2.blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.blocks.0.self_attn.k.lora_down.weight",
        "diffusion_model.blocks.0.self_attn.k.lora_up.weight",
        "diffusion_model.blocks.0.self_attn.k.alpha",
        "diffusion_model.blocks.0.norm1.diff",
        "diffusion_model.blocks.1.self_attn.q.diff_b",
        "diffusion_model.blocks.0.self_attn.k.lokr_w1",
        "diffusion_model.blocks.0.self_attn.q.hada_w1_a",
        "diffusion_model.blocks.0.attn1.lora_down.weight",
    ],
)
def test_one_key_too_many_is_an_error_that_names_it(refused: Refused, model: Components, key: str) -> None:
    error = refused(query(model) | {key: torch.ones(2, 24)})
    assert isinstance(error, Unsupported)
    assert key in error.message
    assert "1 of the 4 keys" in error.message


def test_a_place_that_two_keys_claim_is_an_error(refused: Refused, model: Components) -> None:
    tensors = query(model) | as_diffusers(factors(model.transformer, QUERY))
    assert "2 of the 5 keys" in refused(tensors).message


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{NAME}.lora_down.weight": torch.ones(2, 25), f"{NAME}.lora_up.weight": torch.ones(24, 2)},
        {f"{NAME}.lora_down.weight": torch.ones(2, 24), f"{NAME}.lora_up.weight": torch.ones(25, 2)},
        {f"{NAME}.lora_down.weight": torch.ones(2, 24, 1), f"{NAME}.lora_up.weight": torch.ones(24, 2, 1)},
        {f"{NAME}.diff": torch.ones(24, 25)},
        {f"{NAME}.diff_b": torch.ones(25)},
        {"diffusion_model.patch_embedding.diff": torch.ones(24, 36, 1, 2, 2)},
        {
            "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 24),
            "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(24, 2),
            "transformer.blocks.0.attn1.to_q.lora_B.bias": torch.ones(25),
        },
    ],
)
def test_a_lora_of_another_size_is_refused_with_both_shapes(refused: Refused, tensors: dict[str, torch.Tensor]) -> None:
    error = refused(tensors)
    assert isinstance(error, Unsupported)
    assert "has the shape" in error.message
    assert "trained for this model" in error.message


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{NAME}.lora_down.weight": torch.ones(2, 24), f"{NAME}.lora_up.weight": torch.ones(24, 3)},
        {f"{NAME}.lora_down.weight": torch.ones(2), f"{NAME}.lora_up.weight": torch.ones(24)},
        {f"{NAME}.lora_down.weight": torch.ones(0, 24), f"{NAME}.lora_up.weight": torch.ones(24, 0)},
        {f"{NAME}.lora_down.weight": torch.ones(2, 24).int(), f"{NAME}.lora_up.weight": torch.ones(24, 2)},
        {f"{NAME}.lora_down.weight": torch.full((2, 24), torch.nan), f"{NAME}.lora_up.weight": torch.ones(24, 2)},
        {f"{NAME}.lora_down.weight": torch.ones(2, 24), f"{NAME}.lora_up.weight": torch.full((24, 2), torch.inf)},
        {f"{NAME}.diff_b": torch.full((24,), torch.nan)},
    ],
)
def test_tensors_that_cannot_be_used_are_invalid(refused: Refused, tensors: dict[str, torch.Tensor]) -> None:
    assert isinstance(refused(tensors), InputInvalid)


@pytest.mark.parametrize(
    "alpha", [torch.ones(2), torch.tensor(torch.nan), torch.tensor(1e30), torch.tensor(2002.0), torch.tensor(2**62)]
)
def test_an_alpha_that_is_no_number_is_invalid(refused: Refused, model: Components, alpha: torch.Tensor) -> None:
    tensors = query(model) | {f"{NAME}.alpha": alpha}
    assert isinstance(refused(tensors), InputInvalid)


@pytest.mark.parametrize(
    "config",
    [
        '{"lora_alpha": 1' + "0" * 400 + "}",
        '{"lora_alpha": 1e39}',
        '{"lora_alpha": -Infinity}',
        '{"alpha_pattern": {"blocks": 1' + "0" * 400 + "}}",
        '{"lora_alpha": 1' + "0" * 5000 + "}",
        '{"lora_alpha": 2002}',
        "[1]",
        '{"alpha_pattern": [1]}',
    ],
    ids=lambda config: config[:30],
)
def test_metadata_that_is_no_number_is_invalid(refused: Refused, model: Components, config: str) -> None:
    tensors = as_diffusers(factors(model.transformer, QUERY))
    error = refused(tensors, lora_adapter_metadata=config)
    assert isinstance(error, InputInvalid)


@pytest.mark.parametrize("alpha", [2000.0, -2000.0, 0.0])
def test_an_alpha_up_to_a_thousand_times_the_rank_is_read(model: Components, tmp_path: Path, alpha: float) -> None:
    file = saved(tmp_path, query(model) | {f"{NAME}.alpha": torch.tensor(alpha)})
    assert Contents().of(file, "p").pairs[QUERY].scale == alpha / 2


def test_a_lora_of_zeros_only_is_no_silent_success(refused: Refused) -> None:
    error = refused({f"{NAME}.diff_b": torch.zeros(24)})
    assert isinstance(error, Unsupported)
    assert "changes nothing" in error.message


def test_a_lora_for_i2v_and_5b_does_not_pass_for_t2v(refused: Refused, tmp_path: Path) -> None:
    for key in ("i2v", "5b"):
        other = load(tmp_path / key, key).transformer
        down = torch.ones(2, *other.patch_embedding.weight.shape[1:])
        tensors = {
            "diffusion_model.patch_embedding.lora_down.weight": down,
            "diffusion_model.patch_embedding.lora_up.weight": torch.ones(24, 2, 1, 1, 1),
        }
        assert "has the shape" in refused(tensors).message


def test_a_failure_in_the_midst_of_loading_takes_everything_off(
    model: Components, tmp_path: Path, untouched: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a GPU that runs out of memory at the second adapter of the second expert."""
    first = as_musubi(factors(model.transformer, QUERY), alpha=2.0)
    second = as_original(factors(model.transformer, QUERY)) | {"diffusion_model.blocks.0.norm3.diff": torch.ones(24)}
    calls = []
    load_lora_adapter = WanTransformer3DModel.load_lora_adapter

    def failing(self: WanTransformer3DModel, *arguments: Any, **options: Any) -> None:
        calls.append(options["adapter_name"])
        load_lora_adapter(self, *arguments, **options)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(WanTransformer3DModel, "load_lora_adapter", failing)
    adapters = [adapter(saved(tmp_path, first, "a"), number=0), adapter(saved(tmp_path, second, "b"), number=1)]
    with pytest.raises(torch.OutOfMemoryError), applied(model, adapters):
        pytest.fail("was applied")
    assert calls == ["lora_0", "lora_1", "lora_0", "lora_1"]
    assert [torch.equal(one, other) for one, other in zip(outputs(model), untouched, strict=True)] == [True, True]
    assert not hasattr(model.transformer, "peft_config")
    assert not hasattr(model.transformer_2, "peft_config")


def test_a_file_that_was_damaged_after_the_check_is_refused(
    refused: Refused, model: Components, tmp_path: Path
) -> None:
    file = saved(tmp_path, query(model))
    file.write_bytes(file.read_bytes()[:-1])
    error = refused(file)
    assert isinstance(error, InputInvalid)
    assert output(model.transformer).isfinite().all()
