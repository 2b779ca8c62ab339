"""Convert a downloaded model once into what loads fastest: experts in bf16 or fp8, everything else as it is.

The result computes what `from_pretrained(..., dtype=torch.bfloat16)` of the original computes: what Diffusers keeps in
fp32 then (`_keep_in_fp32_modules` of the model's class) stays as it is stored. With `fp8` the 2-D weights of the
blocks are float8_e4m3fn without a scale, which is what Diffusers' layerwise casting makes of them at run time; all
else is as for `bf16`. The text encoder becomes bf16 where it is wider, the VAE stays fp32. Files that do not change
are hard links to the original's. LoRAs can be fused into the experts on the way.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.base.errors import ModelUnavailable
from worker.base.files import sha256_of
from worker.weights.folder import check
from worker.weights.folder import record as records
from worker.weights.folder.links import find_copy, link
from worker.weights.folder.places import ModelCache, ModelFolder
from worker.weights.folder.record import Dtype, FileRecord, Record
from worker.weights.tensors.headers import StoredTensor, stored_tensors
from worker.weights.tensors.index import SUFFIX, write_index
from worker.weights.tensors.writing import write_shard

logger = logging.getLogger(__name__)

# A shard is converted in memory, which holds the shard and its largest tensor.
SHARD_BYTES = 2_000_000_000
_EXPERTS = ("transformer", "transformer_2")
_CONVERTED = (*_EXPERTS, "text_encoder")


@dataclass(frozen=True, slots=True)
class Fusion:
    """LoRAs to be fused in.

    `changes` returns, for the name of an expert and the shapes of its weights by key, the change of each weight that
    changes; it raises ModelUnavailable. `repo` is for the record.
    """

    repo: str
    changes: Callable[[str, Mapping[str, tuple[int, ...]]], Mapping[str, Callable[[torch.Tensor], torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class _Fused(StoredTensor):
    """A stored tensor that is changed as it is read."""

    change: Callable[[torch.Tensor], torch.Tensor]

    def load(self) -> torch.Tensor:
        return self.change(StoredTensor.load(self))


@dataclass(frozen=True, slots=True)
class _Component:
    """A part of the pipeline whose weights are rewritten. `stem`: `diffusion_pytorch_model` or `model`."""

    name: str
    stem: str
    tensors: tuple[StoredTensor, ...]
    dtypes: dict[str, torch.dtype]

    @property
    def changes(self) -> bool:
        return any(self.dtypes[each.key] != each.dtype or isinstance(each, _Fused) for each in self.tensors)

    def size_of(self, tensor: StoredTensor) -> int:
        return tensor.elements * self.dtypes[tensor.key].itemsize


def prepare(
    original: ModelFolder,
    dtype: Dtype,
    destination: Path,
    *,
    cache: ModelCache,
    shard_bytes: int = SHARD_BYTES,
    fusion: Fusion | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> ModelFolder:
    """Write the prepared weights of `original` to `destination`, which must not exist.

    `destination` appears whole, with its record, or not at all; the caller holds the lock of the repository. Shards
    have at most `shard_bytes`, and memory holds one of them at a time. Files that `cache` has already are linked.

    Raises ModelUnavailable for an original that is damaged or prepared already (where LoRAs are fused in, bf16 weights
    will do), OSError from the volume.
    """
    if original.dtype is not None and (fusion is None or original.dtype != "bf16"):
        raise ModelUnavailable(f"{original.repo}: these weights are prepared already; name the originals")
    if problems := check.check(original.path):
        raise ModelUnavailable(f"{original.repo} is damaged: {'; '.join(problems)}")
    building = destination.with_name(f".{destination.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        record = _build(original, dtype, building, cache, shard_bytes, fusion, on_bytes)
        records.write(building, record)
        if problems := check.check(building):
            raise ModelUnavailable(f"{original.repo}: the prepared weights are damaged: {'; '.join(problems)}")
        building.rename(destination)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return ModelFolder(destination, original.repo, original.revision, "prepared", dtype)


def _build(
    original: ModelFolder,
    dtype: Dtype,
    building: Path,
    cache: ModelCache,
    shard_bytes: int,
    fusion: Fusion | None,
    on_bytes: Callable[[int, int], None] | None,
) -> Record:
    changed = [part for part in _components(original.path, dtype, fusion) if part.changes]
    total = sum(part.size_of(tensor) for part in changed for tensor in part.tensors)
    known = records.read(original.path)
    record = Record(
        repo=original.repo,
        revision=original.revision,
        requested=known.requested if known is not None else None,
        dtype=dtype,
        fused=fusion.repo if fusion is not None else None,
    )
    rewritten = {part.name for part in changed}
    for path in check.present_files(original.path):
        component, _, name = path.partition("/")
        if component not in rewritten or not name.endswith((".safetensors", SUFFIX)):
            record = record.with_file(path, _take_over(original.path, building, path, known))
    done = 0
    for part in changed:
        for path, entry, written in _rewrite(part, building, cache, shard_bytes):
            record = record.with_file(path, entry)
            done += written
            if on_bytes is not None:
                on_bytes(done, total)
    return record


def _take_over(source: Path, building: Path, path: str, known: Record | None) -> FileRecord:
    """Link an unchanged file; its record is the original's."""
    target = building / path
    target.parent.mkdir(parents=True, exist_ok=True)
    link(source / path, target)
    entry = known.files.get(path) if known is not None else None
    if entry is not None and entry.sha256 is not None:
        return entry
    return check.describe_file(target, sha256=check.expected_sha256(source, path, known))


def _rewrite(
    part: _Component, building: Path, cache: ModelCache, shard_bytes: int
) -> Iterator[tuple[str, FileRecord, int]]:
    """Write the shards and the index of a component; yields each file, its record and its bytes of tensors."""
    folder = building / part.name
    folder.mkdir(exist_ok=True)
    shards = list(_shards(part, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{part.stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = f"{part.stem}.safetensors"
        write_shard(folder / name, shard, part.dtypes)
        sha256 = sha256_of(folder / name)
        entry = check.describe_file(folder / name, sha256=sha256)
        # The text encoders of T2V and I2V are the same: the second is a link to the first.
        if (twin := find_copy(cache, sha256, entry.size)) is not None:
            link(twin[0], folder / name)
        weight_map |= {tensor.key: name for tensor in shard}
        yield f"{part.name}/{name}", entry, sum(part.size_of(tensor) for tensor in shard)
    if len(shards) > 1:
        index = folder / f"{part.stem}{SUFFIX}"
        write_index(index, weight_map, sum(map(part.size_of, part.tensors)))
        entry = check.describe_file(index, sha256=sha256_of(index))
        yield f"{part.name}/{index.name}", entry, 0


def _shards(part: _Component, shard_bytes: int) -> Iterator[list[StoredTensor]]:
    shard: list[StoredTensor] = []
    for tensor in part.tensors:
        if shard and sum(map(part.size_of, shard)) + part.size_of(tensor) > shard_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _components(folder: Path, dtype: Dtype, fusion: Fusion | None) -> Iterator[_Component]:
    for name in _CONVERTED:
        paths = sorted((folder / name).glob("*.safetensors"))
        if not paths:
            continue
        kept = _kept_in_fp32(folder / name) if name in _EXPERTS else frozenset()
        tensors = tuple(tensor for path in paths for tensor in stored_tensors(path))
        if fusion is not None and name in _EXPERTS:
            tensors = _fused(tensors, fusion.changes(name, {tensor.key: tensor.shape for tensor in tensors}))
        dtypes = {tensor.key: _dtype_of(tensor, name, dtype, kept) for tensor in tensors}
        yield _Component(name, paths[0].name.partition(".")[0].partition("-0")[0], tensors, dtypes)


def _fused(
    tensors: tuple[StoredTensor, ...], changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> tuple[StoredTensor, ...]:
    return tuple(
        _Fused(each.key, each.path, each.offset, each.dtype, each.shape, changes[each.key])
        if each.key in changes
        else each
        for each in tensors
    )


def _dtype_of(tensor: StoredTensor, component: str, dtype: Dtype, kept: frozenset[str]) -> torch.dtype:
    parts = tensor.key.split(".")
    if not tensor.dtype.is_floating_point or not kept.isdisjoint(parts):
        return tensor.dtype
    is_block_weight = parts[0] == "blocks" and parts[-1] == "weight" and len(tensor.shape) == 2
    if dtype == "fp8" and component in _EXPERTS and is_block_weight:
        return torch.float8_e4m3fn
    return torch.bfloat16 if tensor.dtype.itemsize > 2 else tensor.dtype


def _kept_in_fp32(folder: Path) -> frozenset[str]:
    """The modules that the model's own class keeps in fp32, whatever dtype is asked for."""
    import diffusers

    class_name = json.loads((folder / "config.json").read_bytes())["_class_name"]
    model_class = getattr(diffusers, class_name, None)
    if model_class is None:
        raise ModelUnavailable(f"{folder.name}: Diffusers has no class {class_name}: this model cannot be prepared")
    return frozenset(model_class._keep_in_fp32_modules or ())
