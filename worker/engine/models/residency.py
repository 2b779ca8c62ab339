"""Where the weights are while a video is made: on the device for good, there in turn, or streamed through.

`resident`: everything stays. `swap`: text encoder, VAE and experts take turns, coming from host memory, which is pinned
where the device is a GPU: one swap between the experts a video. `group_offload` and `sequential`: the experts' blocks,
or (with those of the text encoder) their layers one by one, are streamed through by Diffusers' group offloading; what
is left takes turns.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from worker.engine.models import pinned
from worker.engine.models.components import Components
from worker.request.plan import MemoryPlan

logger = logging.getLogger(__name__)
_HOST = torch.device("cpu")


class Residency:
    """Keeps one model's parts where a plan wants them. Call `bring` before text encoder or VAE are used; the experts
    come by themselves when they are called. A part whose weights are still being read is waited for then, and takes
    its place; only what is streamed must be there from the beginning."""

    def __init__(self, components: Components, plan: MemoryPlan, device: torch.device) -> None:
        shared = components.shared
        experts = list(components.modules)
        in_turn: list[nn.Module] = []
        if plan.residency != "resident" or plan.text_encoder == "offloaded":
            in_turn.append(shared.text_encoder)
        if plan.residency != "resident":
            in_turn.append(shared.vae)
        if plan.residency == "swap":
            in_turn += experts
        streamed: list[nn.Module] = list(experts) if plan.residency in ("group_offload", "sequential") else []
        if plan.residency == "sequential":
            streamed.append(shared.text_encoder)
        in_turn = [module for module in in_turn if module not in streamed and module not in _STREAMED]
        self._device = device
        self._components = components
        self._experts = experts
        elsewhere = {*in_turn, *streamed, *(module for module in (shared.text_encoder,) if module in _STREAMED)}
        self._always = [module for module in (shared.text_encoder, shared.vae, *experts) if module not in elsewhere]
        self._parked = {module: _parked(module, device) for module in in_turn}
        self._unplaced: set[nn.Module] = set()
        self._current: nn.Module | None = None
        self._hooks: list[Any] = []
        self._moves = 0
        for module in streamed:
            _stream(module, device, by_block=plan.residency == "group_offload")
        self.left = True
        self.resume()

    @property
    def current(self) -> nn.Module | None:
        """The part that has its turn on the device."""
        return self._current

    def bring(self, module: nn.Module) -> None:
        """Have `module` on the device; what had its turn there leaves first."""
        if self._current is module:
            return
        self._components.wait_for(module)
        if module in self._unplaced:
            self._place(module)
        if self._current is not None:
            self._parked[self._current].park()
            self._current = None
        if (parked := self._parked.get(module)) is not None:
            parked.load()
            self._current = module
            self._moves += 1

    def take_moves(self) -> int:
        """How often weights were sent to the device since the last call. The copies are asynchronous: their seconds
        are within those of the steps."""
        moves, self._moves = self._moves, 0
        return moves

    @property
    def has_experts_on_host(self) -> bool:
        """Whether host memory holds the experts' weights, also while the device does."""
        return any(expert in _PARKED or expert in _STREAMED for expert in self._experts)

    def evict(self) -> None:
        """Send the experts to host memory until `resume`. They stay there too, so that it copies nothing again."""
        self.leave()
        for expert in self._experts:
            _parked(expert, self._device).park()

    def resume(self) -> None:
        """Put everything in its place, after `leave` or for the first time."""
        if not self.left:
            return
        self._unplaced = {*self._parked, *self._always}
        for module in tuple(self._unplaced):
            if self._components.is_there(module):
                self._place(module)
        self._hooks = [expert.register_forward_pre_hook(self._before_expert) for expert in self._experts]
        self.left = False

    def leave(self) -> None:
        """Send what has its turn to host memory and take no more turns, so that another residency can."""
        self.left = True
        for hook in self._hooks:
            hook.remove()
        if self._current is not None:
            self._parked[self._current].park()
            self._current = None

    def _place(self, module: nn.Module) -> None:
        if (parked := self._parked.get(module)) is not None:
            parked.park()
        elif module in _PARKED:
            _parked(module, self._device).load()
        else:
            module.to(self._device)
        self._unplaced.discard(module)

    def _before_expert(self, module: nn.Module, _arguments: object) -> None:
        self.bring(module)


class _Parked:
    """A module whose weights wait in host memory. Weights do not change, so that leaving the device copies nothing."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = weakref.ref(module)  # the module is the key of _PARKED, and would never go
        self._device = device
        self._host = WeakTensorKeyDictionary()

    def load(self) -> None:
        self._keep()
        for tensor in self._tensors():
            if tensor.device.type != self._device.type:
                tensor.data = self._host[tensor].to(self._device, non_blocking=True)

    def park(self) -> None:
        self._keep()
        for tensor in self._tensors():
            tensor.data = self._host[tensor]

    def _keep(self) -> None:
        """Have every tensor in host memory, those too that the module got since the last time."""
        new = [tensor for tensor in self._tensors() if tensor not in self._host]
        unpinned = [tensor for tensor in new if pinned.is_wanted(tensor.data, self._device)]
        if unpinned:
            found = pinned.copies([tensor.data for tensor in unpinned], self._device)
            for tensor, copy in zip(unpinned, found, strict=True):
                self._host[tensor] = copy
        for tensor in new:
            if tensor not in self._host:
                self._host[tensor] = tensor.data.to(_HOST)

    def _tensors(self) -> Iterator[torch.Tensor]:
        module = self._module()
        if module is not None:
            yield from module.parameters()
            yield from module.buffers()


# Modules that are streamed stay so: Diffusers' hooks are not meant to be taken off again.
_STREAMED: Any = WeakIdKeyDictionary()
# One for each module: the two A14B models share text encoder and VAE, and with them the copies in host memory.
_PARKED: Any = WeakIdKeyDictionary()


def _parked(module: nn.Module, device: torch.device) -> _Parked:
    if module not in _PARKED:
        _PARKED[module] = _Parked(module, device)
    found: _Parked = _PARKED[module]
    return found


def _stream(module: nn.Module, device: torch.device, *, by_block: bool) -> None:
    if module in _STREAMED:
        return
    _STREAMED[module] = True
    _parked(module, device).park()  # into locked memory: Diffusers then makes no copy of its own
    options: dict[str, Any] = {"offload_type": "leaf_level"}
    if by_block:
        # Without a stream every layer would be copied back to host memory after its use. By layer there is none: that
        # frames stay the same with one has not been shown on a GPU.
        options = {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": device.type == "cuda"}
    apply_group_offloading(module, onload_device=device, offload_device=_HOST, **options)
