"""The index of a component whose weights are in several safetensors files."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

SUFFIX = ".safetensors.index.json"


def read_index(path: Path) -> dict[str, str]:
    """The name of the shard of each tensor, by the tensor's key.

    Raises ValueError, which says what is wrong: no JSON, no index, a shard outside of the folder. Raises OSError.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as failure:
        raise ValueError("it is not JSON") from failure
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it is not an index of shards")
    for shard in weight_map.values():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or shard in ("", ".", ".."):
            raise ValueError("it names a shard outside of its folder")
    return weight_map


def write_index(path: Path, weight_map: dict[str, str], total_bytes: int) -> None:
    """`total_bytes` are those of the tensors. Raises OSError."""
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(content, indent=1))
