"""From latents to colours without decoding: a linear map of a VAE's channels to RGB.

It is fitted once on drawn clips, by least squares between the latents that the VAE makes of them and the colours that
it makes of these latents, averaged over the pixels and frames of a latent. It is kept on STATE_DIR under a digest of
the VAE's files.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.nn.functional import interpolate

from worker.base import files
from worker.engine import decode
from worker.engine.modes.video_to_video import encoded

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

CLIPS, CLIP_FRAMES, CLIP_SIDE = 16, 5, 128
# Of four clips one is not fitted to: the others' map is judged by it.
_JUDGED_EVERY = 4
_FOLDER = "previews"
_VERSION = 1
# Of a large file, so many blocks at even distances stand for all of it.
_BLOCKS, _BLOCK_BYTES = 256, 65_536


class ColourMap(BaseModel):
    """RGB in 0 to 1 of one latent: `weights` [z_dim][3] times its normalised channels, plus `bias` [3].

    `r2` is the share of the variance of colours that it explains in clips that it was not fitted to.
    """

    model_config = ConfigDict(frozen=True)

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]
    r2: float

    def frames(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Frames uint8 [T, h, w, 3] of normalised latents [z_dim, T, h, w] on the CPU."""
        weights, bias = torch.tensor(self.weights), torch.tensor(self.bias)
        colours = torch.einsum("cthw,cr->thwr", latents.float(), weights) + bias
        pixels: NDArray[np.uint8] = colours.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        return pixels


@dataclass(frozen=True, slots=True)
class ColourMaps:
    """The maps of all VAEs, on the volume `state`. An unwritable one costs each process a fit of its own."""

    state: files.StateFolder
    known: dict[str, ColourMap]

    def of(self, folder: Path, vae: Callable[[], AutoencoderKLWan]) -> ColourMap:
        """The map of the VAE whose files are in `folder`; `vae` brings it to its device where it must be fitted."""
        key = digest(folder)
        if key not in self.known:
            self.known[key] = self._stored(key) or self._fitted(key, vae())
        return self.known[key]

    def _stored(self, key: str) -> ColourMap | None:
        try:
            return ColourMap.model_validate_json(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as failure:
            self.state.cannot(failure)
            return None

    def _fitted(self, key: str, vae: AutoencoderKLWan) -> ColourMap:
        began = time.perf_counter()
        made = fit(vae)
        logger.info(
            "the map of previews was fitted on the VAE: R2 %.3f, in %.1f s", made.r2, time.perf_counter() - began
        )
        try:
            files.write_atomically(self._path(key), made.model_dump_json().encode())
        except OSError as failure:
            self.state.cannot(failure)
        return made

    def _path(self, key: str) -> Path:
        return self.state.folder(_FOLDER) / f"{key}.json"


def digest(folder: Path) -> str:
    """32 hex digits of the VAE in `folder`: names, sizes and bytes of its files, of a large one a sample of its bytes.

    Raises OSError.
    """
    found = hashlib.sha256(bytes([_VERSION]))
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            if size <= _BLOCKS * _BLOCK_BYTES:
                found.update(stream.read())
                continue
            for block in range(_BLOCKS):
                stream.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                found.update(stream.read(_BLOCK_BYTES))
    return found.hexdigest()[:32]


@torch.no_grad()
def fit(vae: AutoencoderKLWan, *, clips: int = CLIPS, side: int = CLIP_SIDE) -> ColourMap:
    """The map of a VAE that is on its device, from `clips` drawn clips of `side` x `side` pixels; seconds on a CPU."""
    device = next(vae.parameters()).device
    channels, colours = [], []
    for clip in drawn_clips(clips, side):
        latents = encoded(vae, clip, device)
        shown = np.stack(list(decode.frames(vae, latents)))
        channels.append(latents[0].flatten(1).T.cpu().double().numpy())
        colours.append(_averaged(shown, latents.shape[2:]).astype(np.float64))
    judged = range(0, clips, _JUDGED_EVERY)
    fitted_to = [number for number in range(clips) if number not in judged]
    r2 = _explained(
        _solved(*(np.concatenate([part[number] for number in fitted_to]) for part in (channels, colours))),
        *(np.concatenate([part[number] for number in judged]) for part in (channels, colours)),
    )
    solution = _solved(np.concatenate(channels), np.concatenate(colours))
    return ColourMap(weights=solution[:-1].tolist(), bias=solution[-1].tolist(), r2=round(r2, 4))


def drawn_clips(count: int, side: int) -> Iterator[NDArray[np.uint8]]:
    """Clips uint8 [F, H, W, 3], always the same: soft and rough fields of colour, and vivid shapes that move."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(count):
        field = torch.zeros(1, 3, side, side)
        for cells in (2, 4, 8, 32):
            grid = torch.from_numpy(random.uniform(-1, 1, (1, 3, cells, cells))).float()
            field += interpolate(grid, (side, side), mode="bicubic") / cells**0.5
        ground = (field[0].permute(1, 2, 0).numpy() * random.uniform(0.2, 0.7) + random.uniform(0, 1, 3)).clip(0, 1)
        clip = np.repeat(ground[None], CLIP_FRAMES, 0)
        for _ in range(6):
            colour, size = random.uniform(0, 1, 3), random.uniform(0.06, 0.25)
            start, step, round_ = random.uniform(0, 1, 2), random.uniform(-0.03, 0.03, 2), random.random() < 0.5
            for number, frame in enumerate(clip):
                down, right = rows - (start + number * step)[0], columns - (start + number * step)[1]
                frame[np.hypot(down, right) < size if round_ else np.maximum(abs(down), abs(right)) < size] = colour
        yield (clip * 255).round().astype(np.uint8)


def _averaged(frames: NDArray[np.uint8], grid: torch.Size) -> NDArray[np.float32]:
    """Colours in 0 to 1, [T * h * w, 3], of frames [F, H, W, 3] over the latents `grid` (T, h, w).

    The first latent is of the first frame, each other one of four.
    """
    times, height, width = grid
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255
    small = torch.nn.functional.adaptive_avg_pool3d(pixels[None], (len(frames), height, width))[0]
    stride = (len(frames) - 1) // (times - 1)
    rest = small[:, 1:].reshape(3, times - 1, stride, height, width).mean(2)
    colours: NDArray[np.float32] = torch.cat([small[:, :1], rest], 1).flatten(1).T.numpy()
    return colours


def _solved(channels: NDArray[np.float64], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """[z_dim + 1, 3]: the weights, and the bias as the last row."""
    return np.linalg.lstsq(_with_one(channels), colours, rcond=None)[0].astype(np.float64)


def _explained(solution: NDArray[np.float64], channels: NDArray[np.float64], colours: NDArray[np.float64]) -> float:
    missed = np.square(colours - _with_one(channels) @ solution).sum()
    return float(1 - missed / np.square(colours - colours.mean(0)).sum())


def _with_one(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([channels, np.ones((len(channels), 1))], 1)
