"""A LoRA added to stored weights for good: what `builder.prepare --turbo` makes of the distilled ones.

Each weight becomes W + scale * up @ down, computed in float32 and rounded once, to the type in which it is stored. A
key that belongs to no weight is an error: weights that were fused in part would be distilled in part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from worker.base.errors import InputFailed, InputInvalid, ModelUnavailable, Unsupported
from worker.weights.loras.content import Content, Contents, Pair
from worker.weights.loras.keys import is_image_branch

_NAMED_KEYS = 5
Change = Callable[[torch.Tensor], torch.Tensor]


def changes(file: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Change]:
    """What a LoRA makes of the weights of one expert, by their keys; a changed weight is float32.

    `shapes` are those of all weights of the expert. Raises ModelUnavailable for a file that does not fit them whole.
    """
    try:
        content = Contents(kept_bytes=0).of(file, file.name)
    except (InputInvalid, InputFailed, Unsupported) as failure:
        raise ModelUnavailable(f"a distilled LoRA cannot be used: {failure}") from failure
    if content.products or content.of_low is not None:
        raise ModelUnavailable(f"the distilled LoRA {file.name} does not fit this model: it is no LoRA of one expert")
    found = _deltas(content, shapes)
    misfits = [key for key, (_, shape) in found.items() if key not in shapes or tuple(shapes[key]) != shape]
    misfits += [key for key in content.unused if not is_image_branch(key)]
    if misfits or not found:
        named = ", ".join(key[:100] for key in misfits[:_NAMED_KEYS]) if misfits else "it holds nothing"
        raise ModelUnavailable(f"the distilled LoRA {file.name} does not fit this model: {named}")
    return {key: partial(_changed, deltas) for key, (deltas, _) in found.items()}


def _deltas(
    content: Content, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[list[Callable[[], torch.Tensor]], tuple[int, ...]]]:
    """By weight: what is to be added, made when it is asked for, and its shape."""
    found: dict[str, tuple[list[Callable[[], torch.Tensor]], tuple[int, ...]]] = {}

    def add(key: str, delta: Callable[[], torch.Tensor], shape: Sequence[int]) -> None:
        deltas, known = found.setdefault(key, ([], tuple(shape)))
        deltas.append(delta)
        if known != tuple(shape):  # two changes of one weight that fit different models
            found[key] = (deltas, ())

    for target, pair in content.pairs.items():
        add(f"{target}.weight", partial(_product, pair), (pair.up.shape[0], *pair.down.shape[1:]))
        if pair.up_bias is not None:
            add(f"{target}.bias", pair.up_bias.float, pair.up_bias.shape)
    for difference in content.differences:
        if difference.changes:
            whole = difference.target if difference.target in shapes else f"{difference.target}.weight"
            key = f"{difference.target}.bias" if difference.of_bias else whole
            add(key, difference.tensor.float, difference.tensor.shape)
    return found


def _product(pair: Pair) -> torch.Tensor:
    """`scale` * up @ down as float32, in the shape of the weight: [out, in], or [out, in, t, h, w] of a convolution."""
    product = pair.up.float().flatten(1) @ pair.down.float().flatten(1)
    return (product * pair.scale).reshape(pair.up.shape[0], *pair.down.shape[1:])


def _changed(deltas: Sequence[Callable[[], torch.Tensor]], weight: torch.Tensor) -> torch.Tensor:
    total = weight.float()
    for delta in deltas:
        total = total + delta()
    return total
