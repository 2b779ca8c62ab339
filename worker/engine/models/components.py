"""A Diffusers folder becomes the parts of a pipeline, on the device and in the precision asked for.

The parts are the same for every mode of a model; a pipeline is a thin wrapper that the modes make around them. Their
weights arrive in the background, what is needed first before the rest: a video begins while the second expert is
still on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from worker.base.errors import ModelUnavailable
from worker.base.stop import Stop
from worker.engine.models import cpu_convolutions, skeletons
from worker.engine.models.arrivals import LAYERS, Arrivals, Part, Progress, Turns, wait_for
from worker.engine.models.skeletons import Change, Place, Read, Skeleton
from worker.request import ModelSpec
from worker.weights.tensors import reading


@dataclass(frozen=True, slots=True)
class SharedParts:
    """What text-to-video and image-to-video of one kind have in common: tokenizer, text encoder and VAE.

    `parts` are those whose weights arrive in the background; see `Components`. `vae_folder` has the VAE's files.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: torch.nn.Module
    vae: AutoencoderKLWan
    parts: tuple[Part, ...] = ()
    vae_folder: Path = Path()


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of one model.

    `transformer` is the high-noise expert, `transformer_2` the low-noise one or None: asking for either waits until its
    weights are there. `modules`, `shared` and `for_pipeline` do not wait: whoever computes with those modules calls
    `Residency.bring` first, which does; an expert's own call does so too.
    """

    shared: SharedParts
    scheduler_config: dict[str, Any]
    modules: tuple[WanTransformer3DModel, ...]
    boundary_ratio: float | None
    expand_timesteps: bool
    own: tuple[Part, ...] = ()
    arrivals: Arrivals | None = field(default=None, compare=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.shared.parts, *self.own)

    @property
    def transformer(self) -> WanTransformer3DModel:
        self.wait_for(self.modules[0])
        return self.modules[0]

    @property
    def transformer_2(self) -> WanTransformer3DModel | None:
        if len(self.modules) == 1:
            return None
        self.wait_for(self.modules[1])
        return self.modules[1]

    def wait_for(self, module: nn.Module) -> None:
        """Until the weights of `module` are there. Raises what went wrong, and the reason of the job's stop."""
        if (part := self._part_of(module)) is not None:
            part.wait()

    def is_there(self, module: nn.Module) -> bool:
        part = self._part_of(module)
        return part is None or part.there

    def _part_of(self, module: nn.Module) -> Part | None:
        """None for a module that never was on its way."""
        own = next((part for part in self.own if part.module is module), None)
        return own if own is not None else next((part for part in self.shared.parts if part.module is module), None)

    def for_pipeline(self, scheduler: object) -> dict[str, Any]:
        """Keyword arguments of a Wan pipeline's constructor."""
        return {
            "tokenizer": self.shared.tokenizer,
            "text_encoder": self.shared.text_encoder,
            "vae": self.shared.vae,
            "scheduler": scheduler,
            "transformer": self.modules[0],
            "transformer_2": self.modules[1] if len(self.modules) == 2 else None,
            "boundary_ratio": self.boundary_ratio,
            "expand_timesteps": self.expand_timesteps,
        }


@dataclass(frozen=True, slots=True)
class Places:
    """Where the weights of each part go when they are read."""

    text_encoder: Place
    vae: Place
    experts: Place

    @classmethod
    def all_on(cls, device: torch.device) -> Places:
        return cls(Place(device), Place(device), Place(device))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights become parts. keep_fp8: what is stored as fp8 stays so, where it is to be quantised anyway.

    `prepare` changes an expert before its weights are read, so that they are read in the types that it leaves behind;
    `change` changes each block when it is read, in the thread that read it.
    """

    places: Places
    dtype: torch.dtype
    keep_fp8: bool = False
    prepare: Callable[[WanTransformer3DModel], None] = lambda _: None
    change: Change | None = None
    read: Read = reading.read


def begin(folder: Path, spec: ModelSpec, shared: SharedParts | None, recipe: Recipe, turns: Turns) -> Components:
    """The parts of `spec`, from a Diffusers folder, with their weights on the way.

    `shared`: parts of another model to be used again, None to load them too. In order: text encoder, high-noise expert,
    VAE, low-noise expert; the VAE before both where every video of the model begins with an image. Every
    header is read and held against the model before this returns. Raises ModelUnavailable where a file is missing or
    cannot be used.
    """
    with _readable(folder):
        own = tuple(_expert(folder / name, recipe) for name in _experts_of(spec))
        order: tuple[Part, ...] = own
        if shared is None:
            encoder = skeletons.text_encoder(folder / "text_encoder", recipe.dtype)
            vae = skeletons.vae(folder / "vae")
            reads = _part(encoder, recipe.places.text_encoder, recipe.read)
            if recipe.places.vae.device.type == "cpu":
                cpu_convolutions.use_onednn(vae.module)
            draws = _part(vae, recipe.places.vae, recipe.read, lambda: channels_last(vae.module))
            text_only = "text_to_video" in spec.modes
            order = (reads, own[0], draws, *own[1:]) if text_only else (reads, draws, *own)
        arrivals = Arrivals(spec.version, order, turns)
        arrivals.start()
        try:
            if shared is None:
                tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
                shared = SharedParts(tokenizer, encoder.module, vae.module, (reads, draws), folder / "vae")
            return _components(folder, spec, shared, own, arrivals)
        except BaseException:
            arrivals.cancel()
            raise


def load(
    folder: Path,
    spec: ModelSpec,
    shared: SharedParts,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Components:
    """Load the experts of `spec` beside parts that are already there, and wait for them. Raises ModelUnavailable."""
    recipe = Recipe(Places.all_on(device), dtype)
    with _readable(folder):
        own = tuple(_expert(folder / name, recipe) for name in _experts_of(spec))
        arrivals = Arrivals(spec.version, own, Turns())
        arrivals.start()
        wait_for(own, Progress(Stop()))
        return _components(folder, spec, shared, own, arrivals)


def _components(
    folder: Path, spec: ModelSpec, shared: SharedParts, own: Sequence[Part], arrivals: Arrivals
) -> Components:
    scheduler_config: Mapping[str, Any] = UniPCMultistepScheduler.load_config(folder / "scheduler")
    return Components(
        shared=shared,
        scheduler_config=dict(scheduler_config),
        modules=tuple(part.module for part in own),
        boundary_ratio=spec.boundary_ratio,
        expand_timesteps=spec.boundary_ratio is None,
        own=tuple(own),
        arrivals=arrivals,
    )


def _experts_of(spec: ModelSpec) -> tuple[str, ...]:
    return ("transformer",) if spec.boundary_ratio is None else ("transformer", "transformer_2")


def _expert(folder: Path, recipe: Recipe) -> Part:
    skeleton = skeletons.expert(folder, recipe.dtype, keep_fp8=recipe.keep_fp8)
    change = recipe.change
    recipe.prepare(skeleton.module)
    if change is None:
        return _part(skeleton, recipe.places.experts, recipe.read)

    def apply(block: torch.nn.Module) -> None:
        with LAYERS:
            change.apply(block)

    return _part(skeleton, recipe.places.experts, recipe.read, change=replace(change, apply=apply))


def _part(
    skeleton: Skeleton[Any],
    place: Place,
    read: Read,
    finish: Callable[[], None] = lambda: None,
    change: Change | None = None,
) -> Part:
    def fill(check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
        skeleton.fill(place, read, check, on_bytes, change)
        check()
        finish()

    return Part(skeleton.name, skeleton.module, skeleton.nbytes, fill)


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries would run between the lines of our log."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


class _readable:  # noqa: N801 - reads as a clause: `with _readable(folder)`
    """Translate what the libraries raise for a damaged or missing file."""

    def __init__(self, folder: Path) -> None:
        self._name = folder.name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        if isinstance(failure, (OSError, ValueError, KeyError, SafetensorError)):
            raise ModelUnavailable(
                "the model's files could not be read: remove the model from the cache so that it is fetched again"
            ) from failure


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay convolution weights out with channels last, within their memory: the same numbers, and 5 to 40% less time in
    the VAE."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            is_3d = isinstance(module, torch.nn.Conv3d)
            laid = module.weight.data.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)
            module.weight.data = module.weight.data.as_strided(laid.shape, laid.stride()).copy_(laid)
    return vae
