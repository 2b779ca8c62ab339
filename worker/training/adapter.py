"""A new LoRA on one expert: PEFT's layers in the type in which the expert computes, trained through fp32 copies.

So the held-out loss is that of the very numbers that are stored, and inference has the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from worker.engine.models.arrivals import LAYERS
from worker.training import timesteps

# Both attentions' projections say what the picture is made of, the feed-forward how it looks. What is trained elsewhere
# (embeddings, the head) would move every prompt, not only those of the data.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
_NAME = "default"


class Adapter:
    """The LoRA that `put` adds. `masters` are its factors in fp32, in the order of `names`."""

    def __init__(
        self, expert: WanTransformer3DModel, rank: int, alpha: float, *, seed: int, dtype: torch.dtype
    ) -> None:
        expert.requires_grad_(False)
        with LAYERS:
            expert.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), _NAME)
        self._layers: dict[str, torch.nn.Parameter] = {}
        for name, module in expert.named_modules():
            for factor in ("lora_A", "lora_B"):
                layers = getattr(module, factor, None)
                if layers is None or _NAME not in layers:
                    continue
                first = _first(f"{name}.{factor}", layers[_NAME].weight, seed)
                # PEFT casts to the type in which the weight is stored, which may be fp8.
                layers[_NAME].weight = torch.nn.Parameter(first.to(module.base_layer.weight.device, dtype))
                self._layers[f"{name}.{factor}.weight"] = layers[_NAME].weight
        self.names = tuple(self._layers)
        self.masters = [layer.detach().float().clone() for layer in self._layers.values()]
        self.scale = alpha / rank

    def take_gradients(self) -> None:
        """Move the gradients of the layers to the masters."""
        for master, layer in zip(self.masters, self._layers.values(), strict=True):
            master.grad = None if layer.grad is None else layer.grad.float()
            layer.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the layers to what the masters are now."""
        for master, layer in zip(self.masters, self._layers.values(), strict=True):
            layer.copy_(master)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the layers' weights on the host, in the type in which they compute."""
        return {name: layer.detach().cpu().clone() for name, layer in self._layers.items()}

    @torch.no_grad()
    def restore(self, masters: Mapping[str, torch.Tensor]) -> None:
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(masters[name])
        self.publish()


def _first(name: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    """PEFT's initial values, drawn from the seed: the product of both factors is zero."""
    if name.endswith("lora_B"):
        return torch.zeros(like.shape)
    drawn = torch.empty(like.shape)
    torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=timesteps.generator(seed, "adapter", name))
    return drawn
