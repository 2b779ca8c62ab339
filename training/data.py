"""The training set: drawn clips as latents, with captions as text embeddings, in one file a size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import T5Tokenizer, UMT5EncoderModel

from training import clips, scenes, text
from training.experts import Data
from training.latents import CAPTIONS, Drawn, drawn, latents_of

_UNASKED = 24
# Slopes of brightness are small and rarely there: to call them as large as colour would make them all that counts.
_LEAST_STD = 0.2


def normalisation(size: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [16] of the latents' channels over `count` clips."""
    random = np.random.default_rng(seed)
    drawn = [scenes.draw(random, held_out=False) for _ in range(count)]
    latents = np.stack([latents_of(clips.clip(scene, height=size, width=size)) for scene in drawn])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    return torch.from_numpy(mean), torch.from_numpy(std).clamp_min(_LEAST_STD)


@torch.no_grad()
def encoded(
    some: Iterable[Drawn],
    *,
    seed: int,
    normal: tuple[torch.Tensor, torch.Tensor],
    reader: tuple[T5Tokenizer, UMT5EncoderModel],
) -> Data:
    """A training set of drawn clips."""
    mean, std = (part.view(-1, 1, 1, 1) for part in normal)
    told: list[str] = []
    latents, opening = [], []
    for each in some:
        latents.append(((torch.from_numpy(each.latents).float() - mean) / std).half())
        told += each.captions
        opening.append(each.opening)
    random = np.random.default_rng(seed)
    unasked = [text.unasked(random) for _ in range(_UNASKED)]
    embedded = text.embeddings(*reader, [*told, *unasked])
    lengths = torch.tensor([len(states) for states in embedded])
    # The fused attention of GPUs wants a multiple of eight, and at least one place of padding.
    texts = torch.zeros(len(embedded), int(lengths.max()) // 8 * 8 + 8, text.TEXT_DIM, dtype=torch.float16)
    for row, states in zip(texts, embedded, strict=True):
        row[: len(states)] = states.half()
    return Data(
        latents=torch.stack(latents),
        blank=-normal[0] / normal[1],
        texts=texts,
        lengths=lengths,
        captions=torch.arange(len(told)).view(-1, CAPTIONS),
        unasked=torch.arange(len(told), len(embedded)),
        opening=torch.tensor(opening),
    )


def draw(
    size: int,
    count: int,
    *,
    simple: bool,
    seed: int,
    normal: tuple[torch.Tensor, torch.Tensor],
    reader: tuple[T5Tokenizer, UMT5EncoderModel],
) -> Data:
    """`count` clips of size x size x 17 from the training scenes, or the `simple` ones. Same arguments, same set."""
    numbers = tqdm(range(count), desc=f"clips of {size}", mininterval=5)
    some = (drawn(seed, size, number, simple=simple) for number in numbers)
    return encoded(some, seed=seed, normal=normal, reader=reader)


def kept(path: Path, make: object) -> Data:
    """The set in `path`, made by `make()` where it is not there yet."""
    if not path.exists():
        made = make()  # type: ignore[operator]
        torch.save({name: getattr(made, name) for name in Data.__dataclass_fields__}, path)
    return Data(**torch.load(path))
