"""Skeletons filled with weights are what `from_pretrained` makes, bit for bit; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from tests.kits.lora_kit import spec_of
from tests.kits.slow import slow
from worker.base.errors import ModelUnavailable
from worker.engine.models import precision, skeletons
from worker.engine.models.skeletons import Change, Place, Skeleton
from worker.request.plan import MemoryPlan
from worker.weights.sources import demo
from worker.weights.tensors import reading

CPU = Place(torch.device("cpu"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo models, their experts in several shards with an index."""
    home = tmp_path_factory.mktemp("demos")
    for key in ("i2v", "t2v", "5b"):
        demo.build(spec_of(key), home / key)
        for name in ("transformer", "text_encoder"):
            _shard(home / key / name)
    return home


def _shard(folder: Path) -> None:
    single = next(folder.glob("*.safetensors"))
    tensors = load_file(single)
    weight_map: dict[str, str] = {}
    for number in range(3):
        name = f"{single.stem}-{number + 1:05d}-of-00003.safetensors"
        part = {key: tensors[key] for place, key in enumerate(sorted(tensors)) if place % 3 == number}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    single.unlink()
    index = folder / f"{single.stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def fill(skeleton: Skeleton[Any]) -> Any:
    skeleton.fill(CPU, reading.read, lambda: None, lambda _: None)
    return skeleton.module


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    assert ours.training == theirs.training
    for kind in ("named_parameters", "named_buffers"):
        found, wanted = (dict(getattr(each, kind)(remove_duplicate=False)) for each in (ours, theirs))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype, key
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", ["i2v", *slow("t2v", "5b")])
@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_an_expert_is_that_of_from_pretrained(demos: Path, key: str, name: str, dtype: torch.dtype) -> None:
    folder = demos / key / name
    if folder.is_dir():
        theirs = WanTransformer3DModel.from_pretrained(folder, dtype=dtype)
        ours = fill(skeletons.expert(folder, dtype))
        assert_same(ours, theirs)
        assert ours.dtype == theirs.dtype
        without_path = {name: value for name, value in theirs.config.items() if name != "_name_or_path"}
        assert {name: value for name, value in ours.config.items() if name != "_name_or_path"} == without_path


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_encoder_is_that_of_from_pretrained(demos: Path, dtype: torch.dtype) -> None:
    folder = demos / "t2v" / "text_encoder"
    ours, theirs = fill(skeletons.text_encoder(folder, dtype)), UMT5EncoderModel.from_pretrained(folder, dtype=dtype)
    assert_same(ours, theirs)
    assert ours.shared.weight is ours.encoder.embed_tokens.weight
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.equal(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state)


@pytest.mark.parametrize("key", ["t2v", "5b"])
def test_a_vae_is_that_of_from_pretrained(demos: Path, key: str) -> None:
    folder = demos / key / "vae"
    assert_same(fill(skeletons.vae(folder)), AutoencoderKLWan.from_pretrained(folder, dtype=torch.float32))


@pytest.mark.parametrize("stored", [("encoder.embed_tokens.weight",), ("encoder.embed_tokens.weight", "shared.weight")])
def test_tied_weights_may_be_stored_under_either_name(demos: Path, tmp_path: Path, stored: tuple[str, ...]) -> None:
    folder = _copied(demos / "i2v" / "text_encoder", tmp_path)
    wanted = fill(skeletons.text_encoder(demos / "i2v" / "text_encoder", torch.float32))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        shared = tensors.pop("shared.weight")
        tensors.update({key: shared.clone() for key in stored})

    _change(folder, change)
    assert_same(fill(skeletons.text_encoder(folder, torch.float32)), wanted)


def test_what_is_stored_as_fp8_stays_so_only_where_it_is_asked_for(demos: Path, tmp_path: Path) -> None:
    folder = _copied(demos / "t2v" / "transformer", tmp_path)
    key = "blocks.0.attn1.to_q.weight"
    _change(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.float8_e4m3fn)}))
    kept = fill(skeletons.expert(folder, torch.bfloat16, keep_fp8=True)).get_parameter(key)
    cast = fill(skeletons.expert(folder, torch.bfloat16)).get_parameter(key)
    assert (kept.dtype, cast.dtype) == (torch.float8_e4m3fn, torch.bfloat16)
    assert torch.equal(kept.to(torch.bfloat16), cast)


def _copied(folder: Path, tmp_path: Path) -> Path:
    """A folder as it was before it was sharded."""
    target = tmp_path / folder.name
    target.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    stem = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    save_file(tensors, target / f"{stem}.safetensors")
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("proj_out.weight"), "1 weights are missing, proj_out.weight"),
        (lambda t: t.update({"blocks.9.x": torch.ones(1)}), "belong to nothing in this model, blocks.9.x"),
        (lambda t: t.update({"proj_out.bias": torch.ones(7)}), r"proj_out.bias has the shape \[7\]"),
    ],
)
def test_weights_of_another_model_are_refused(demos: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder = _copied(demos / "t2v" / "transformer", tmp_path)
    skeletons.expert(folder, torch.float32)
    _change(folder, change)
    with pytest.raises(ModelUnavailable, match=said):
        skeletons.expert(folder, torch.float32)


def test_what_diffusers_leaves_out_is_left_out(demos: Path, tmp_path: Path) -> None:
    folder = _copied(demos / "t2v" / "transformer", tmp_path)
    _change(folder, lambda tensors: tensors.update({"blocks.0.attn2.norm_added_q.weight": torch.ones(3)}))
    assert_same(
        fill(skeletons.expert(folder, torch.float32)),
        fill(skeletons.expert(demos / "t2v" / "transformer", torch.float32)),
    )


def index_of(folder: Path) -> Path:
    return next(folder.glob("*.index.json"))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "not an index"),
        ('{"weight_map": {}}', "not an index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside of its folder"),
        ('{"weight_map": {"a": 3}}', "outside of its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: it is missing"),
    ],
)
def test_an_index_that_is_not_one_is_refused(demos: Path, tmp_path: Path, index: str, said: str) -> None:
    folder = _copied(demos / "t2v" / "transformer", tmp_path)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelUnavailable, match=said):
        skeletons.expert(folder, torch.float32)


def test_an_index_and_its_shards_must_agree(demos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    for path in (demos / "t2v" / "transformer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = json.loads(index_of(folder).read_text())
    shards = sorted(set(index["weight_map"].values()))
    moved = next(key for key, shard in index["weight_map"].items() if shard == shards[0])
    for weight_map, said in (
        ({**index["weight_map"], moved: shards[1]}, "of which the index says otherwise"),
        ({**index["weight_map"], "absent": shards[0]}, "1 of its tensors are in no shard"),
    ):
        index_of(folder).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelUnavailable, match=said):
            skeletons.expert(folder, torch.float32)


def test_a_folder_without_weights_is_refused(demos: Path, tmp_path: Path) -> None:
    folder = _copied(demos / "t2v" / "transformer", tmp_path)
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(ModelUnavailable, match="there are no weights"):
        skeletons.expert(folder, torch.float32)


def test_a_reading_that_fails_leaves_the_skeleton_as_it_was(demos: Path) -> None:
    skeleton = skeletons.expert(demos / "t2v" / "transformer", torch.float32)

    def refused() -> None:
        raise ModelUnavailable("no")

    with pytest.raises(ModelUnavailable):
        skeleton.fill(CPU, reading.read, refused, lambda _: None)
    assert all(parameter.is_meta for parameter in skeleton.module.parameters())
    assert_same(
        fill(skeleton), WanTransformer3DModel.from_pretrained(demos / "t2v" / "transformer", dtype=torch.float32)
    )


def test_weights_come_whole_while_others_make_empty_layers(demos: Path) -> None:
    """PEFT replaces what registers parameters, in all threads, while it adds a LoRA to another model."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        module = fill(skeletons.expert(demos / "t2v" / "transformer", torch.float32))
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_blocks_are_changed_one_by_one_and_hold_one_at_full_size(demos: Path) -> None:
    folder = demos / "t2v" / "transformer"
    skeleton = skeletons.expert(folder, torch.bfloat16)
    read_keys: list[set[str]] = []
    changed: list[str] = []
    names = {block: f"blocks.{number}" for number, block in enumerate(skeleton.module.blocks)}

    def read(targets: Any, **options: Any) -> None:
        read_keys.append({".".join(target.stored.key.split(".")[:2]) for target in targets})
        reading.read(targets, **options)

    def change(block: torch.nn.Module) -> None:
        assert not any(each.is_meta for each in block.parameters())
        changed.append(names[block])
        precision.replace_linears(block, "int8", "cast")

    skeleton.fill(CPU, read, lambda: None, lambda _: None, Change(CPU.device, change))
    assert changed == list(names.values())
    assert [keys for keys in read_keys if "blocks.0" in keys] == [{"blocks.0"}]
    wanted = WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)
    for block in wanted.blocks:
        precision.replace_linears(block, "int8", "cast")
    assert_same(skeleton.module, wanted)


def test_what_is_cast_while_it_is_read_is_what_is_cast_afterwards(demos: Path) -> None:
    folder = demos / "t2v" / "transformer"
    cast = MemoryPlan("fp8", "resident", "resident", False, 0, 0, ())
    skeleton = skeletons.expert(folder, torch.bfloat16)
    precision.apply(skeleton.module, cast, torch.bfloat16)
    ours = fill(skeleton)
    theirs = WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)
    precision.apply(theirs, cast, torch.bfloat16)
    assert torch.float8_e4m3fn in {each.dtype for each in ours.parameters()}
    for (name, found), (_, wanted) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert found.dtype == wanted.dtype, name
        # The file holds fp32, which is rounded once here and twice there.
        assert torch.allclose(found.float(), wanted.float(), rtol=0.13, atol=0.01), name
