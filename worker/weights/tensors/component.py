"""The weights of one component as they lie in its folder: one file, or the shards that an index names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from worker.weights.tensors.headers import StoredTensor, stored_tensors, unusable

INDEX_SUFFIX = ".safetensors.index.json"
# The names that Diffusers and transformers give to the weights of a component.
_STEMS = ("diffusion_pytorch_model", "model")


def tensors_of(folder: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of a component by its key, in the order in which they lie, file after file.

    Reads headers only. Raises ModelUnavailable for a file that is missing or damaged, and for an index that does not
    agree with its shards; OSError where the volume fails.
    """
    index = next((path for stem in _STEMS if (path := folder / f"{stem}{INDEX_SUFFIX}").is_file()), None)
    if index is None:
        single = next((path for stem in _STEMS if (path := folder / f"{stem}.safetensors").is_file()), None)
        if single is None:
            raise unusable(folder / f"{_STEMS[0]}.safetensors", "there are no weights")
        return {tensor.key: tensor for tensor in stored_tensors(single)}
    weight_map = _weight_map(index)
    found: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(sorted(weight_map.values())):
        for tensor in stored_tensors(folder / shard):
            if weight_map.get(tensor.key) != shard:
                raise unusable(folder / shard, f"it holds {tensor.key}, of which the index says otherwise")
            found[tensor.key] = tensor
    if absent := sorted(weight_map.keys() - found.keys()):
        raise unusable(index, f"{len(absent)} of its tensors are in no shard, {absent[0]} among them")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except ValueError as failure:
        raise unusable(index, "it is not JSON") from failure
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise unusable(index, "it is not an index of shards")
    for shard in weight_map.values():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or shard in ("", ".", ".."):
            raise unusable(index, "it names a shard outside of its folder")
    return weight_map
