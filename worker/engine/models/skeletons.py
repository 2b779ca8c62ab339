"""Models without weights, and the weights for them: what `from_pretrained` makes, in two steps.

A skeleton is made in a moment, on torch's meta device, from the component's config. Its weights come later, read in
blocks from many files at once, and are the same as those of `from_pretrained(folder, dtype=...)`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn
from transformers import PreTrainedModel, UMT5Config, UMT5EncoderModel

from worker.base.errors import ModelUnavailable
from worker.engine.models import pinned
from worker.weights.tensors import component, reading
from worker.weights.tensors.headers import StoredTensor

Model = TypeVar("Model", bound=nn.Module)
DtypeOf = Callable[[StoredTensor], torch.dtype]


class Read(Protocol):
    """`reading.read`, or what slows it down for a measurement."""

    def __call__(
        self,
        targets: list[reading.Target],
        *,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights go. pinned_for: a GPU for whose copies their host memory is page-locked."""

    device: torch.device
    pinned_for: torch.device | None = None

    def empty(self, likes: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Memory for tensors like these; and the slabs of it to `lock`, once it is written."""
        if self.pinned_for is not None:
            return pinned.empty(likes)
        return [torch.empty(like.shape, dtype=like.dtype, device=self.device) for like in likes], []

    def lock(self, slabs: Sequence[torch.Tensor]) -> None:
        if self.pinned_for is not None:
            pinned.lock(slabs, self.pinned_for)

    def take(self, module: nn.Module) -> None:
        """Move weights that are somewhere else here."""
        tensors = [*module.parameters(), *module.buffers()]
        if self.pinned_for is not None:
            for tensor, copy in zip(
                tensors, pinned.copies([each.data for each in tensors], self.pinned_for), strict=True
            ):
                tensor.data = copy
        else:
            module.to(self.device)


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to each block of an expert when it is read: on `device`, in place, before it goes to its place."""

    device: torch.device
    apply: Callable[[nn.Module], None]


@dataclass(frozen=True, slots=True)
class Skeleton(Generic[Model]):
    """`module` has its weights on the meta device, in the types that they will have, until `fill` was called."""

    name: str
    module: Model
    stored: Mapping[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    def fill(
        self,
        place: Place,
        read: Read,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
        change: Change | None = None,
    ) -> None:
        """Read the weights into `place`. Raises what `reading.read` raises, the skeleton then being as before.

        change: read block by block, so that the device holds one at a time as it was stored. After a failure the
        skeleton then cannot be filled again.
        """
        blocks: dict[str, list[str]] = {"": []}
        for key in self.stored:
            blocks.setdefault("" if change is None else _block_of(key), []).append(key)
        for name, keys in blocks.items():
            if change is None or name == "":
                self._read(keys, place, read, check, on_bytes)
                continue
            self._read(keys, Place(change.device), read, check, on_bytes)
            check()
            block = self.module.get_submodule(name)
            change.apply(block)
            place.take(block)
        for buffer in [name for name, each in self.module.named_buffers() if not each.is_meta]:
            owner, _, name = buffer.rpartition(".")
            module = self.module.get_submodule(owner)
            module._buffers[name] = module._buffers[name].to(place.device)  # type: ignore[union-attr]
        if isinstance(self.module, PreTrainedModel):
            self.module.tie_weights()

    def _read(
        self,
        keys: Sequence[str],
        place: Place,
        read: Read,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        owners = {key: _owner(self.module, key) for key in keys}
        tensors, slabs = place.empty([owners[key].get(key) for key in keys])
        targets = [reading.Target(self.stored[key], tensor) for key, tensor in zip(keys, tensors, strict=True)]
        read(targets, check=check, on_bytes=on_bytes)
        place.lock(slabs)
        for key, tensor in zip(keys, tensors, strict=True):
            owners[key].put(key, tensor)


def _block_of(key: str) -> str:
    """`blocks.3` of `blocks.3.attn1.to_q.weight`; nothing for what is in no block."""
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else ""


def expert(folder: Path, dtype: torch.dtype, *, keep_fp8: bool = False) -> Skeleton[WanTransformer3DModel]:
    """Either expert. keep_fp8: weights that are stored as float8_e4m3fn stay so, where they are to be cast anyway."""
    with torch.device("meta"):
        module: WanTransformer3DModel = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
    # What is computed and not stored must be there at once.
    rope = module.rope
    module.rope = WanRotaryPosEmbed(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    kept = frozenset(module._keep_in_fp32_modules)

    def dtype_of(tensor: StoredTensor) -> torch.dtype:
        if not kept.isdisjoint(tensor.key.split(".")):
            return torch.float32
        return tensor.dtype if keep_fp8 and tensor.dtype == torch.float8_e4m3fn else dtype

    return _skeleton(folder, module, dtype_of, ignored=tuple(module._keys_to_ignore_on_load_unexpected))


def text_encoder(folder: Path, dtype: torch.dtype) -> Skeleton[nn.Module]:
    config = UMT5Config.from_pretrained(folder)
    with torch.device("meta"):
        module = UMT5EncoderModel(config)
    # transformers keeps these in fp32 beside float16, whose range they exceed, and not beside bfloat16.
    kept = frozenset(module._keep_in_fp32_modules if dtype == torch.float16 else ())

    def dtype_of(tensor: StoredTensor) -> torch.dtype:
        return dtype if kept.isdisjoint(tensor.key.split(".")) else torch.float32

    return _skeleton(folder, module, dtype_of, tied=module._tied_weights_keys)


def vae(folder: Path) -> Skeleton[AutoencoderKLWan]:
    """The VAE stays in fp32: encoding in bf16 costs quality, and it is small."""
    with torch.device("meta"):
        module: AutoencoderKLWan = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder))
    return _skeleton(folder, module, lambda _: torch.float32)


def _skeleton(
    folder: Path,
    module: Any,
    dtype_of: DtypeOf,
    *,
    ignored: tuple[str, ...] = (),
    tied: Mapping[str, str] | None = None,
) -> Skeleton[Any]:
    """Compare what is in `folder` with what the model needs. Raises ModelUnavailable where they differ."""
    stored = {
        key: tensor for key, tensor in component.tensors_of(folder).items() if not any(part in key for part in ignored)
    }
    for copy, original in (tied or {}).items():
        # One of the two is stored, and some tools store both.
        if copy in stored:
            stored.setdefault(original, stored[copy])
            del stored[copy]
    owners = _owners(module)
    needed = owners.keys() - (tied or {}).keys()
    if absent := sorted(needed - stored.keys()):
        raise _unfit(folder, f"{len(absent)} weights are missing, {absent[0]} among them")
    if strange := sorted(stored.keys() - needed):
        raise _unfit(folder, f"{len(strange)} tensors belong to nothing in this model, {strange[0]} among them")
    for key, tensor in stored.items():
        like = owners[key].get(key)
        if like.shape != tensor.shape:
            raise _unfit(folder, f"{key} has the shape {list(tensor.shape)}, the model needs {list(like.shape)}")
        dtype = dtype_of(tensor) if tensor.dtype.is_floating_point else tensor.dtype
        owners[key].put(key, torch.empty(like.shape, dtype=dtype, device="meta"))
    module.eval()
    return Skeleton(folder.name, module, stored)


def _unfit(folder: Path, reason: str) -> ModelUnavailable:
    return ModelUnavailable(f"{folder.name}: {reason}: put the files of one model there, or remove them from the cache")


@dataclass(frozen=True, slots=True)
class _Owner:
    """The module that a stored tensor belongs to."""

    module: nn.Module

    def get(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self.module, key.rpartition(".")[2])
        return tensor

    def put(self, key: str, tensor: torch.Tensor) -> None:
        # Past `setattr`: PEFT and accelerate replace what that calls, for all threads, while they make empty layers.
        name = key.rpartition(".")[2]
        if name in self.module._parameters:
            self.module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.module._buffers[name] = tensor


def _owners(module: nn.Module) -> dict[str, _Owner]:
    """The owner of every key of the state dict."""
    return {key: _owner(module, key) for key in module.state_dict()}


def _owner(module: nn.Module, key: str) -> _Owner:
    return _Owner(module.get_submodule(key.rpartition(".")[0]))
