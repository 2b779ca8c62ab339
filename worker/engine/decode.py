"""Latents to frames, one latent frame at a time, so that memory stays flat and the encoder works meanwhile.

The pixels are those of `AutoencoderKLWan.decode` followed by Diffusers' postprocessing: the VAE itself decodes one
latent frame after the other and carries a feature cache along; here that loop is opened up and each step handed out.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.hooks import CpuOffload
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from diffusers.utils.torch_utils import get_module_execution_device

from worker.engine.lean_decoder import lean

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from numpy.typing import NDArray

_TILED_CHUNK_FRAMES = 4
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def frames(
    vae: AutoencoderKLWan, latents: torch.Tensor, *, tiled: bool = False, half: bool = False, fused: bool = True
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode `latents` into `4 * (T - 1) + 1` frames, each uint8 [H, W, 3] (RGB, C-contiguous, never written again).

    latents: [1, z_dim, T, h, w] on any device and of any float type, normalised as the Wan pipelines return them
    with `output_type="latent"`. The first latent frame gives one frame, each further one four. The next latent frame
    is decoded when its first frame is asked for.

    The stream keeps its own feature cache: streams on one VAE, and encodes between two frames, do not disturb each
    other. Whatever the stream held on the device is let go when it ends, fails or is closed; `close` it if it is left
    early. Where accelerate's model offload hooks are installed the VAE is on its device for as long as the stream is
    open and back on the CPU afterwards.

    tiled: the way of least memory on the device, through the VAE's own tiling. It takes about twice the time, its
    pixels differ slightly, and the whole latent is decoded before the first frame comes.

    half: decode in bf16, which costs quality: at the real width with random weights 49 dB of PSNR against fp32. The
    weights for it are a copy in the order that convolutions of 16 bits want (channels last), made where the VAE is and
    let go with the stream: 146 MB for A14B, 1.1 GB for 5B. Not for a VAE whose weights wait elsewhere layer by layer.

    fused: on CUDA compute norm and SiLU in one kernel where it agrees with torch's own; not for `tiled`.

    Raises ValueError for latents of another shape; errors of torch (out of memory) pass through unchanged.
    """
    z_dim = vae.config.z_dim
    if latents.ndim != 5 or latents.shape[:2] != (1, z_dim) or 0 in latents.shape:
        raise ValueError(f"latents must be [1, {z_dim}, T, h, w], not {list(latents.shape)}")
    return _tiled(vae, latents, half) if tiled else _streamed(vae, latents, half, fused)


def _in_half(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """The VAE without its encoder, in bf16. Encoding stays with the original: there bf16 would show."""
    kept = {name: vae._modules[name] for name in ("post_quant_conv", "decoder")}
    weights = {id(each): _halved(each) for module in kept.values() for each in module.parameters()}
    half = copy.copy(vae)
    # With these copies nothing is ever copied in fp32.
    half._modules = {name: copy.deepcopy(module, weights) for name, module in kept.items()}
    return half


def _halved(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    layout = _CHANNELS_LAST.get(weight.ndim, torch.preserve_format)
    return torch.nn.Parameter(weight.detach().to(torch.bfloat16, memory_format=layout), requires_grad=False)


def _streamed(
    vae: AutoencoderKLWan, latents: torch.Tensor, half: bool, fused: bool
) -> Generator[NDArray[np.uint8], None, None]:
    features: list[object] = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    with _on_device(vae):
        try:
            decoding = lean(_in_half(vae) if half else vae, fused=fused)
            hidden = _projected(decoding, latents)
            for step in range(hidden.shape[2]):
                yield from _decode_step(decoding, hidden[:, :, step : step + 1], features, first=step == 0)
        finally:
            # A caught exception would pin this frame's list, and with it the tensors, through its traceback.
            features.clear()


def _tiled(vae: AutoencoderKLWan, latents: torch.Tensor, half: bool) -> Generator[NDArray[np.uint8], None, None]:
    with _on_device(vae):
        sample = _decode_tiled(_in_half(vae) if half else vae, latents)
        for start in range(0, sample.shape[2], _TILED_CHUNK_FRAMES):
            yield from _to_uint8(sample[:, :, start : start + _TILED_CHUNK_FRAMES])


# Gradients are switched off in each step rather than around the stream: a context manager that is open while a
# generator is suspended would switch them off for whoever asked for the frame.


@torch.no_grad()
def _projected(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = vae.post_quant_conv(_denormalised(vae, latents))
    return projected


@torch.no_grad()
def _decode_step(
    vae: AutoencoderKLWan, hidden: torch.Tensor, features: list[object], *, first: bool
) -> NDArray[np.uint8]:
    # By keyword: accelerate's hooks leave arguments of these names alone, which are changed in place.
    sample = vae.decoder(hidden, feat_cache=features, feat_idx=[0], first_chunk=first)
    if vae.config.patch_size is not None:
        sample = unpatchify(sample, patch_size=vae.config.patch_size)
    return _to_uint8(sample)


@torch.no_grad()
def _decode_tiled(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    was_tiling = vae.use_tiling
    vae.enable_tiling()
    try:
        sample: torch.Tensor = vae.decode(_denormalised(vae, latents), return_dict=False)[0]
        return sample
    finally:
        vae.use_tiling = was_tiling
        vae.clear_cache()


def _denormalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The latents as the VAE wants them, computed in its type and in the pipelines' order, so that bits agree."""
    latents = latents.to(get_module_execution_device(vae), vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)
    return latents / inverse_std + mean


def _to_uint8(sample: torch.Tensor) -> NDArray[np.uint8]:
    """[1, 3, T, H, W] in -1..1 to [T, H, W, 3] in 0..255. In float32: bfloat16 cannot tell 256 levels apart."""
    levels = (sample[0].float() * 0.5 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return pixels


@contextmanager
def _on_device(vae: AutoencoderKLWan) -> Iterator[None]:
    """Bring an offloaded VAE to its device, and send it back.

    Accelerate's hooks sit on `forward`, and Diffusers calls them in `decode`: a call of `vae.decoder` passes both by.
    The pipeline's own `maybe_free_model_hooks` has run by the time latents are decoded, so nobody else would send
    the VAE back. Hooks of sequential and group offload sit on the layers and need no help.
    """
    hook = getattr(vae, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(vae)
    try:
        yield
    finally:
        hook.post_forward(vae, None)
        for each in getattr(hook, "hooks", (hook,)):
            if isinstance(each, CpuOffload):
                each.init_hook(vae)
