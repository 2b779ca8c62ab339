"""LoRAs on the loaded experts for the length of one run, and the experts exactly as before after it.

A file is judged whole before an expert is touched: every key must belong to a weight of the expert and fit it, or the
request is refused with the first keys named. Pairs of factors go through PEFT's layers, which leave the weights as they
are; around those that LoKr and LoHa change there is a layer of our own, because PEFT's compute the whole change for
every call; for a whole difference (`.diff`) a changed parameter stands in for the old one. Nothing is merged: merging
and taking out again does not give the same bits.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading as reapply_group_offloading

from worker.base.errors import Unsupported
from worker.engine.models.arrivals import LAYERS
from worker.engine.models.components import Components
from worker.engine.techniques.base import Adapter, Run, Technique
from worker.weights.loras.content import Content, Contents, Pair
from worker.weights.loras.keys import form_not_read, is_image_branch
from worker.weights.loras.lycoris import Product, WithProduct

_NAMED_KEYS = 5
_KEY_CHARACTERS = 100
_EXACT = (torch.float32, torch.bfloat16, torch.float16)
_ANOTHER_MODEL = "send one that was trained for this model"
contents = Contents()


@dataclass(frozen=True, slots=True)
class _Fit:
    """One file that fits one expert: pairs and products by module, whole differences by parameter.

    `name` is the one PEFT knows.
    """

    name: str
    scale: float
    pairs: Mapping[str, Pair]
    products: Mapping[str, Product]
    differences: Mapping[str, torch.Tensor]
    without_image_branch: bool


@dataclass(frozen=True, slots=True)
class _Original:
    """A parameter or a layer of `module` that another one stands in for."""

    module: torch.nn.Module
    name: str
    held: torch.nn.Parameter | torch.nn.Module


@contextmanager
def applied(components: Components, adapters: Sequence[Adapter]) -> Iterator[tuple[str, ...]]:
    """The experts with every adapter in effect at its scale; yields lines for the result's `warnings`.

    Several adapters add up. On leaving, also by an exception, the experts compute the same bits as before. Raises, with
    nothing changed, Unsupported (a key that belongs nowhere, a shape that does not fit, an expert that the model does
    not have), InputInvalid (tensors that cannot be used) and InputFailed (the file is gone). One caller at a time.
    """
    read = [contents.of(adapter.file, adapter.path) for adapter in adapters]
    plan: list[tuple[WanTransformer3DModel, list[_Fit]]] = []
    notes: dict[str, None] = {}
    for expert, contents_by_number in _by_expert(components, adapters, read):
        fits = [
            _fit(expert, content, adapters[number], f"lora_{number}") for number, content in contents_by_number.items()
        ]
        plan.append((expert, fits))
        for number, fit in zip(contents_by_number, fits, strict=True):
            if fit.without_image_branch:
                notes[f"{adapters[number].path}: its keys for Wan 2.1's image branch are left out, 2.2 has none"] = None
    with ExitStack() as stack:
        for expert, fits in plan:
            if fits:
                originals: list[_Original] = []
                stack.callback(_detach, expert, originals)
                _attach(expert, fits, originals)
        yield tuple(notes)


def _by_expert(
    components: Components, adapters: Sequence[Adapter], read: Sequence[Content]
) -> list[tuple[WanTransformer3DModel, dict[int, Content]]]:
    """Each expert with what the files hold for it, by the numbers of its adapters."""
    if components.transformer_2 is None:
        for adapter, content in zip(adapters, read, strict=True):
            if adapter.expert == "low":
                raise Unsupported(
                    "this model has a single expert: send high or both",
                    path=f"{adapter.path.removesuffix('.source')}.expert",
                )
            if content.of_low is not None:
                message = f"this LoRA is for two experts, and this model has a single one; {_ANOTHER_MODEL}"
                raise Unsupported(message, path=adapter.path)
        return [(components.transformer, dict(enumerate(read)))]
    found: list[tuple[WanTransformer3DModel, dict[int, Content]]] = []
    sides: tuple[tuple[WanTransformer3DModel, Literal["high", "low"]], ...]
    sides = ((components.transformer, "high"), (components.transformer_2, "low"))
    for expert, name in sides:
        own = {number: read[number].of(name) for number, each in enumerate(adapters) if each.expert in (name, "both")}
        empty = [number for number, content in own.items() if content.is_for_low_alone]
        for number in empty:
            if adapters[number].expert == "high":
                message = "this LoRA holds the low-noise expert's part alone: send low or both"
                raise Unsupported(message, path=f"{adapters[number].path.removesuffix('.source')}.expert")
            del own[number]
        found.append((expert, own))
    return found


def _fit(expert: WanTransformer3DModel, content: Content, adapter: Adapter, name: str) -> _Fit:
    """Hold every tensor of a file against the expert, which is not changed. Raises Unsupported."""
    modules = dict(expert.named_modules())
    parameters = dict(expert.named_parameters())
    pairs: dict[str, Pair] = {}
    products: dict[str, Product] = {}
    differences: dict[str, torch.Tensor] = {}
    lost = list(content.unused)
    for key in lost:
        if form := form_not_read(key):
            message = (
                f"this LoRA is a {form} ({_shown(key)}), which is not read here: send a LoRA, or a plain LoKr or LoHa"
            )
            raise Unsupported(message, path=adapter.path)
    for target, pair in content.pairs.items():
        module = modules.get(target)
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            _check_pair(module, pair, adapter)
            pairs[target] = pair
        else:
            lost += pair.keys
    for target, product in content.products.items():
        module = modules.get(target)
        if isinstance(module, torch.nn.Linear):
            _check_shape(product.keys[0], product.shape, (module.out_features, module.in_features), adapter)
            products[target] = product
        else:
            lost += product.keys
    for difference in content.differences:
        if not difference.changes:
            continue
        own = difference.target if difference.target in parameters else f"{difference.target}.weight"
        changed = f"{difference.target}.bias" if difference.of_bias else own
        parameter = parameters.get(changed)
        if parameter is None:
            lost.append(difference.key)
            continue
        _check_shape(difference.key, difference.tensor.shape, parameter.shape, adapter)
        if difference.of_bias and difference.target in pairs:
            pairs[difference.target] = pairs[difference.target].with_bias(difference.tensor)
        elif parameter.dtype in _EXACT and not parameter.is_meta:
            differences[changed] = difference.tensor
        else:
            lost.append(difference.key)
    gone = [key for key in lost if not is_image_branch(key)]
    if gone or not (pairs or products or differences):
        raise _unmatched(gone or lost, content, adapter)
    return _Fit(name, adapter.scale, pairs, products, differences, without_image_branch=bool(lost))


def _unmatched(keys: Sequence[str], content: Content, adapter: Adapter) -> Unsupported:
    named = ", ".join(_shown(key) for key in keys[:_NAMED_KEYS])
    more = f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
    if not keys:
        return Unsupported("this LoRA changes nothing: all of its tensors are zero", path=adapter.path)
    return Unsupported(
        f"{len(keys)} of the {content.total} keys of this LoRA belong to nothing that can be changed in this model: "
        f"{named}{more}; {_ANOTHER_MODEL}",
        path=adapter.path,
    )


def _check_pair(module: torch.nn.Linear | torch.nn.Conv3d, pair: Pair, adapter: Adapter) -> None:
    outer, *inner = (
        (module.out_features, module.in_features) if isinstance(module, torch.nn.Linear) else module.weight.shape
    )
    _check_shape(pair.keys[0], pair.down.shape, (pair.rank, *inner), adapter)
    _check_shape(pair.keys[1], pair.up.shape, (outer, pair.rank, *[1] * (len(inner) - 1)), adapter)
    if pair.up_bias is not None:
        _check_shape(pair.keys[2], pair.up_bias.shape, (outer,), adapter)


def _check_shape(key: str, shape: Sequence[int], needed: Sequence[int], adapter: Adapter) -> None:
    if tuple(shape) != tuple(needed):
        raise Unsupported(
            f"{_shown(key)} of this LoRA has the shape {list(shape)}, the model needs {list(needed)}; {_ANOTHER_MODEL}",
            path=adapter.path,
        )


def _shown(key: str) -> str:
    text = key if key.isprintable() else ascii(key)
    return text if len(text) <= _KEY_CHARACTERS else f"{text[:_KEY_CHARACTERS]}..."


def _attach(expert: WanTransformer3DModel, fits: Sequence[_Fit], originals: list[_Original]) -> None:
    """Put the adapters on; `originals` receives what `_detach` puts back."""
    _add_differences(expert, fits, originals)
    loaded = [fit for fit in fits if fit.pairs]
    for fit in loaded:
        _load(expert, fit)
    if loaded:
        expert.set_adapters([fit.name for fit in loaded], [fit.scale for fit in loaded])
    _add_products(expert, fits, originals)
    reapply_group_offloading(expert)


def _detach(expert: WanTransformer3DModel, originals: Sequence[_Original]) -> None:
    for original in reversed(originals):
        if isinstance(original.held, torch.nn.Parameter):
            # The expert may have been moved since.
            original.held.data = original.held.data.to(getattr(original.module, original.name).device)
        setattr(original.module, original.name, original.held)
    expert.unload_lora()
    if originals:
        reapply_group_offloading(expert)


def _add_differences(expert: WanTransformer3DModel, fits: Sequence[_Fit], originals: list[_Original]) -> None:
    """Put new parameters in place: changing the old ones would be undone by who keeps a copy of them elsewhere."""
    parameters = dict(expert.named_parameters())
    totals: dict[str, torch.Tensor] = {}
    for fit in fits:
        for name, difference in fit.differences.items():
            change = difference.to(parameters[name].device, torch.float32) * fit.scale
            totals[name] = totals[name] + change if name in totals else change
    for path, total in totals.items():
        owner, _, name = path.rpartition(".")
        module, parameter = expert.get_submodule(owner), parameters[path]
        originals.append(_Original(module, name, parameter))
        changed = (parameter.data.float() + total).to(parameter.dtype)
        setattr(module, name, torch.nn.Parameter(changed, requires_grad=False))


def _add_products(expert: WanTransformer3DModel, fits: Sequence[_Fit], originals: list[_Original]) -> None:
    """Around the layers as they are by now: PEFT would not know ours."""
    for fit in fits:
        for target, product in fit.products.items():
            owner, _, name = target.rpartition(".")
            module, layer = expert.get_submodule(owner), expert.get_submodule(target)
            originals.append(_Original(module, name, layer))
            scaled = replace(product, scale=product.scale * fit.scale)
            setattr(module, name, WithProduct(layer, scaled, *_where(expert, layer)))


def _where(expert: WanTransformer3DModel, layer: Any) -> tuple[torch.device, torch.dtype]:
    """Where the factors beside a layer belong, and the type in which it computes."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    device, dtype = layer.weight.device, layer.weight.dtype
    if device.type == "meta":  # sequential offload: the weight comes when it is needed
        device = torch.device(layer._hf_hook.execution_device)
    return device, dtype if dtype in _EXACT else expert.dtype


def _load(expert: WanTransformer3DModel, fit: _Fit) -> None:
    """Wrap the modules of `fit` in PEFT's layers that hold its tensors, in the type that the module computes in."""
    tensors = _tensors(expert, fit)
    ranks = {module: pair.rank for module, pair in fit.pairs.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != common}
    config: dict[str, Any] = {
        "r": common,
        # alpha is in the tensors already: with alpha = rank PEFT multiplies by 1.
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": list(ranks),
        "lora_bias": any(key.endswith(".bias") for key in tensors),
    }
    with LAYERS, warnings.catch_warnings():
        # Several adapters are meant, and merging (of int8 weights) never happens here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`|TorchaoLoraLinear was instantiated")
        # Without low_cpu_mem_usage PEFT first draws random numbers for every layer.
        expert.load_lora_adapter(tensors, prefix=None, adapter_name=fit.name, metadata=config, low_cpu_mem_usage=True)
    for key, tensor in tensors.items():
        module, factor, kind = key.rsplit(".", 2)
        layer = getattr(expert.get_submodule(module), factor)[fit.name]
        # PEFT casts to the type in which the weight is stored, which may be fp8.
        setattr(layer, kind, torch.nn.Parameter(tensor, requires_grad=False))


def _tensors(expert: WanTransformer3DModel, fit: _Fit) -> dict[str, torch.Tensor]:
    """The tensors of `fit` under PEFT's names, on the devices of the modules."""
    biased = any(pair.up_bias is not None for pair in fit.pairs.values())
    tensors: dict[str, torch.Tensor] = {}
    for target, pair in fit.pairs.items():
        device, dtype = _where(expert, expert.get_submodule(target))
        # copy: what is kept for the next job stays as it is, and on a CPU the bits of a product follow the alignment.
        tensors[f"{target}.lora_A.weight"] = pair.down.to(device, dtype, copy=True)
        tensors[f"{target}.lora_B.weight"] = pair.scaled_up(device, dtype)
        if biased:
            # PEFT's switch is for all layers at once.
            bias = pair.up_bias if pair.up_bias is not None else torch.zeros(pair.up.shape[0])
            tensors[f"{target}.lora_B.bias"] = bias.to(device, dtype)
    return tensors


class Adapters(Technique):
    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        if not run.adapters:  # nothing to wait for the low-noise expert's weights for
            yield
            return
        with applied(run.components, run.adapters) as notes:
            run.warnings += notes
            yield
