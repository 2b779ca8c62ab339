"""A Diffusers folder becomes the parts of a pipeline, on the device and in the precision asked for.

The parts are the same for every mode of a model; a pipeline is a thin wrapper that the modes make around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from worker.errors import ModelUnavailable
from worker.models import ModelSpec


@dataclass(frozen=True, slots=True)
class SharedParts:
    """What text-to-video and image-to-video of one kind have in common: tokenizer, text encoder and VAE."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: torch.nn.Module
    vae: AutoencoderKLWan


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of one model. `transformer` is the high-noise expert, `transformer_2` the low-noise one or None."""

    shared: SharedParts
    scheduler_config: dict[str, Any]
    transformer: WanTransformer3DModel
    transformer_2: WanTransformer3DModel | None
    boundary_ratio: float | None
    expand_timesteps: bool

    def for_pipeline(self, scheduler: object) -> dict[str, Any]:
        """Keyword arguments of a Wan pipeline's constructor."""
        return {
            "tokenizer": self.shared.tokenizer,
            "text_encoder": self.shared.text_encoder,
            "vae": self.shared.vae,
            "scheduler": scheduler,
            "transformer": self.transformer,
            "transformer_2": self.transformer_2,
            "boundary_ratio": self.boundary_ratio,
            "expand_timesteps": self.expand_timesteps,
        }


def load_shared(folder: Path, *, device: torch.device, dtype: torch.dtype) -> SharedParts:
    """The VAE stays in fp32: encoding in bf16 costs quality (facts of Wan's authors), and it is small."""
    with _readable(folder):
        return SharedParts(
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=_text_encoder(folder / "text_encoder", dtype).to(device),
            vae=_channels_last(AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32)).to(device),
        )


def load(
    folder: Path,
    spec: ModelSpec,
    shared: SharedParts,
    *,
    device: torch.device,
    dtype: torch.dtype,
    finish: Callable[[WanTransformer3DModel], None] = lambda _: None,
) -> Components:
    """Load the experts of `spec` from a Diffusers folder beside parts that are already there.

    `finish` is called with each expert before the next is read: quantised one by one, two experts never lie in memory
    at full size. Raises ModelUnavailable where a file is missing or cannot be read.
    """
    experts = ["transformer"] if spec.boundary_ratio is None else ["transformer", "transformer_2"]
    with _readable(folder):
        loaded: list[WanTransformer3DModel] = []
        for name in experts:
            expert = WanTransformer3DModel.from_pretrained(folder / name, dtype=dtype).to(device)
            finish(expert)
            loaded.append(expert)
        scheduler_config = UniPCMultistepScheduler.load_config(folder / "scheduler")
    return Components(
        shared=shared,
        scheduler_config=dict(scheduler_config),
        transformer=loaded[0],
        transformer_2=loaded[1] if len(loaded) == 2 else None,
        boundary_ratio=spec.boundary_ratio,
        expand_timesteps=spec.boundary_ratio is None,
    )


def _text_encoder(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    encoder: torch.nn.Module = UMT5EncoderModel.from_pretrained(folder, dtype=dtype)
    return encoder


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
        from safetensors import SafetensorError

        if isinstance(failure, (OSError, ValueError, KeyError, SafetensorError)):
            raise ModelUnavailable(
                "the model's files could not be read: remove the model from the cache so that it is fetched again"
            ) from failure


def _channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay convolution weights out with channels last: the same numbers, and 5 to 40% less time in the VAE."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    return vae
