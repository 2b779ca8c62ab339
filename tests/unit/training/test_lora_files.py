"""What a training writes is read bit for bit by this worker and by Diffusers, whose keys ComfyUI reads too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from tests.kits import lora_kit, trainer_kit
from worker.engine.techniques import lora as adapters
from worker.engine.techniques.base import Adapter
from worker.training.train import Trained
from worker.weights.loras import keys


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    return trainer_kit.run(trainer_kit.request(alpha=2, trigger_phrase="zürich"), folder / "state", folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "t2v"
    lora_kit.load(made)
    return made


def expected(trained: Trained, folder: Path) -> list[torch.Tensor]:
    """Outputs of both experts whose weights have the changes added by hand."""
    parts = lora_kit.load(folder)
    outputs = []
    for each, expert in zip(trained.experts, parts.modules, strict=True):
        parts.wait_for(expert)
        factors = each.learned.weights
        for name in {key.rpartition(".lora_")[0] for key in factors}:
            up, down = (factors[f"{name}.lora_{factor}.weight"] for factor in "BA")
            expert.get_submodule(name).weight.data += 0.5 * up @ down  # alpha 2 over rank 4
        outputs.append(lora_kit.output(expert))
    return outputs


def test_worker_and_diffusers_compute_alike_with_the_files(trained: Trained, folder: Path) -> None:
    parts = lora_kit.load(folder)
    plain = [lora_kit.output(expert) for expert in (parts.transformer, parts.transformer_2)]
    high, low = (each.path for each in trained.experts)
    wanted = [Adapter(high, "high", 1.0, "high", "loras[0]"), Adapter(low, "low", 1.0, "low", "loras[1]")]
    with adapters.applied(parts, wanted) as notes:
        ours = [lora_kit.output(expert) for expert in parts.modules]
    assert not notes

    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(high), adapter_name="high")
    pipeline.load_lora_weights(str(low), adapter_name="low", load_into_transformer_2=True)
    theirs = [lora_kit.output(expert) for expert in (pipeline.transformer, pipeline.transformer_2)]
    for mine, diffusers, by_hand, before in zip(ours, theirs, expected(trained, folder), plain, strict=True):
        assert torch.equal(mine, diffusers)
        torch.testing.assert_close(mine, by_hand, rtol=1e-4, atol=1e-5)
        assert not torch.equal(mine, before)


def test_every_key_is_one_of_diffusers_and_belongs_to_a_layer(trained: Trained) -> None:
    for each in trained.experts:
        tensors = load_file(each.path)
        assert all(key.startswith("transformer.blocks.") for key in tensors)
        places = {key: keys.place_of(key) for key in tensors}
        assert {place.part for place in places.values() if place is not None} == {"down", "up"}
        assert None not in places.values()


def test_the_header_says_what_was_trained_in_the_order_of_names(trained: Trained) -> None:
    each = trained.experts[1]
    with safe_open(each.path, "pt") as file:
        facts = file.metadata()
    wanted = {"expert": "low", "rank": "4", "alpha": "2.0", "steps": "12", "seed": "1", "base_model": "demo"}
    assert wanted.items() <= facts.items()
    assert facts["trigger_phrase"] == "zürich"
    content = each.path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [*header["__metadata__"]] == sorted(header["__metadata__"])
