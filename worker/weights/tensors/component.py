"""The weights of one component as they are stored in its folder: one file, or the shards that an index names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from worker.weights.tensors.headers import StoredTensor, stored_tensors, unusable
from worker.weights.tensors.index import SUFFIX, read_index

# The names that Diffusers and transformers give to the weights of a component.
_STEMS = ("diffusion_pytorch_model", "model")


def tensors_of(folder: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of a component by its key, in the order in which they are stored, file after file.

    Reads headers only. Raises ModelUnavailable for a file that is missing or damaged, and for an index that does not
    agree with its shards; OSError where the volume fails.
    """
    index = next((path for stem in _STEMS if (path := folder / f"{stem}{SUFFIX}").is_file()), None)
    if index is None:
        single = next((path for stem in _STEMS if (path := folder / f"{stem}.safetensors").is_file()), None)
        if single is None:
            raise unusable(folder / f"{_STEMS[0]}.safetensors", "there are no weights")
        return {tensor.key: tensor for tensor in stored_tensors(single)}
    try:
        weight_map = read_index(index)
    except ValueError as failure:
        raise unusable(index, str(failure)) from failure
    found: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(sorted(weight_map.values())):
        for tensor in stored_tensors(folder / shard):
            if weight_map.get(tensor.key) != shard:
                raise unusable(folder / shard, f"it holds {tensor.key}, of which the index says otherwise")
            found[tensor.key] = tensor
    if absent := sorted(weight_map.keys() - found.keys()):
        raise unusable(index, f"{len(absent)} of its tensors are in no shard, {absent[0]} among them")
    return found
