"""The data set as the experts read it: latents, conditions and text embeddings, computed once for all steps.

They are kept on STATE_DIR under the digest of what they are made of, for the next worker and for a second training on
the same data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worker.base import files
from worker.base.files import StateFolder
from worker.engine.bench import Bench
from worker.request.training import TrainingRequest
from worker.training.checkpoint import FOLDER
from worker.training.dataset import Clip, Dataset


@dataclass(frozen=True, slots=True)
class Example:
    """One clip on the host.

    `latents`: float32 [1, z_dim, T, h, w], normalised. `text`: [tokens, text_dim] without padding. `condition`: what
    image-to-video puts beside the noise, None for text-to-video.
    """

    latents: torch.Tensor
    text: torch.Tensor
    condition: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """`clips` are trained on, `held_out` are not. `unasked` is the text that asks for nothing, for caption dropout.

    `digest` stands for all of them, and for which are held out.
    """

    clips: tuple[Example, ...]
    held_out: tuple[Example, ...]
    unasked: torch.Tensor
    digest: str


def encode(
    dataset: Dataset,
    request: TrainingRequest,
    bench: Bench,
    state: StateFolder,
    *,
    tiled: bool = False,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Encoded:
    """Latents and embeddings of all clips, from STATE_DIR where they are kept. `on_progress` gets 0 to 1.

    Raises ModelUnavailable, and the reason of the bench's stop.
    """
    clips = (*dataset.clips, *dataset.held_out)
    digest = _digest(clips, request, bench)
    name = f"{digest}.encoded"
    tensors = _load(state, name)
    if tensors is None:
        tensors = _encoded(clips, bench, tiled, on_progress)
        _keep(state, name, tensors)
    examples = tuple(
        Example(tensors[f"{number}.latents"], tensors[f"{number}.text"], tensors.get(f"{number}.condition"))
        for number in range(len(clips))
    )
    trained = len(dataset.clips)
    return Encoded(examples[:trained], examples[trained:], tensors["unasked"], f"{digest}-{trained}")


@torch.no_grad()
def _encoded(
    clips: Sequence[Clip], bench: Bench, tiled: bool, on_progress: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """One part of the model is in memory at a time."""
    tensors = _texts(clips, bench)
    bench.release()
    tensors |= _latents(clips, bench, tiled, on_progress)
    bench.release()
    return tensors


def _texts(clips: Sequence[Clip], bench: Bench) -> dict[str, torch.Tensor]:
    embed = bench.embedder()
    return {"unasked": embed(""), **{f"{number}.text": embed(clip.caption) for number, clip in enumerate(clips)}}


def _latents(
    clips: Sequence[Clip], bench: Bench, tiled: bool, on_progress: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    vae, tensors = bench.clips(tiled=tiled), {}
    for number, clip in enumerate(clips):
        bench.check()
        frames = np.array(np.load(clip.frames, mmap_mode="r"))
        tensors[f"{number}.latents"] = vae.latents(frames)
        if (condition := vae.condition(frames)) is not None:
            tensors[f"{number}.condition"] = condition
        on_progress((number + 1) / len(clips))
    return tensors


def _digest(clips: Sequence[Clip], request: TrainingRequest, bench: Bench) -> str:
    """Of everything that the tensors depend on."""
    model = (request.model.version, request.model.key, str(bench.dtype), bench.device.type)
    parts = [(clip.caption, files.sha256_of(clip.frames)) for clip in clips]
    return hashlib.sha256(json.dumps([model, parts]).encode()).hexdigest()[:32]


def _load(state: StateFolder, name: str) -> dict[str, torch.Tensor] | None:
    try:
        path = state.folder(FOLDER) / name
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except OSError as failure:
        state.cannot(failure)
    except SafetensorError:
        files.set_aside(path)
    return None


def _keep(state: StateFolder, name: str, tensors: dict[str, torch.Tensor]) -> None:
    try:
        with files.replacing(state.folder(FOLDER) / name) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
    except OSError as failure:
        state.cannot(failure)
