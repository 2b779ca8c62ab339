"""Peak memory of the real classes without their memory: every tensor is followed, on the meta device or on a real one.

The estimates of `worker.request.plan` are built on these counts, and its tests hold them to the counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from worker.request.plan import SIZES, ModelSize, Shape, peak
from worker.training import recompute

TEXT_TOKENS = 512
TEXT_DIM = 4096
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
# vae/config.json of Wan2.2-TI2V-5B-Diffusers without its statistics; the A14B's VAE is the class's default.
VAE_5B: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made inside and are still alive; `peak` is the most there were at once.

    The caller's tensors are not counted. Sizes are rounded up to 512 bytes, as torch's CUDA allocator does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs if kwargs is not None else {}
        given = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)}
        out = func(*args, **kwargs)
        for each in tree_iter(out):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in given:
                self._add(each.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, storage: Any) -> None:
        if storage not in self._known:
            size = -(-storage.nbytes() // 512) * 512
            self._known[storage] = size
            self.live += size
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.live -= size


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def expert(size: ModelSize, *, layers: int, loras: int = 0, text_dim: int = TEXT_DIM) -> WanTransformer3DModel:
    """An expert in bf16 on the default device, with what Diffusers keeps in fp32 in fp32, and random weights."""
    with _default_dtype(torch.bfloat16):
        model = WanTransformer3DModel(
            num_attention_heads=size.dim // size.head_dim,
            attention_head_dim=size.head_dim,
            in_channels=size.in_channels,
            out_channels=size.latent_channels,
            text_dim=text_dim,
            ffn_dim=size.ffn_dim,
            num_layers=layers,
        ).eval()
        if loras:
            config = LoraConfig(r=peak.LORA_RANK, target_modules=LORA_TARGETS)
            for index in range(loras):
                model.add_adapter(config, adapter_name=f"lora{index}")
            model.set_adapters([f"lora{index}" for index in range(loras)])
    for name, parameter in model.named_parameters():
        if any(part in WanTransformer3DModel._keep_in_fp32_modules for part in name.split(".")):
            parameter.data = parameter.data.float()
    return model.requires_grad_(False)


def real_vae(key: str) -> AutoencoderKLWan:
    return AutoencoderKLWan(**(VAE_5B if key == "5b" else {})).eval().requires_grad_(False)


def _flash(query: torch.Tensor | None = None, **_others: Any) -> torch.Tensor:
    """What flash attention leaves behind. On the meta device torch would spell attention out, scores and all."""
    assert query is not None
    return torch.empty_like(query)


class _FlashWithGradients(torch.autograd.Function):
    """The same, with what flash attention keeps for its gradients."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG004
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def _flash_with_gradients(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_others: Any) -> Any:
    return _FlashWithGradients.apply(query, key, value)


def training_peak(key: str, shape: Shape, *, layers: int, rank: int, recomputed: bool) -> int:
    """Bytes of activations and gradients while a LoRA on so many layers of the real width is trained on one clip."""
    size = SIZES[key]
    with torch.device("meta"):
        model = expert(size, layers=layers)
        model.add_adapter(LoraConfig(r=rank, target_modules=LORA_TARGETS))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        if recomputed:
            recompute.apply(model, on_host=False)
        inputs = _inputs(size, shape)
        patched = mock.patch("torch.nn.functional.scaled_dot_product_attention", _flash_with_gradients)
        with patched, LiveBytes() as meter:
            velocity = model(*inputs, return_dict=False)[0]
            velocity.float().square().mean().backward()
    return meter.peak


def _inputs(size: ModelSize, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What one forward pass takes: latents, timestep and text, on the default device."""
    stride = size.latent_stride
    latents = torch.randn(1, size.in_channels, shape.latent_frames, shape.height // stride, shape.width // stride)
    timestep = torch.randn(1, size.tokens(shape)) if size.timestep_per_token else torch.randn(1)
    return latents.bfloat16(), timestep, torch.randn(1, TEXT_TOKENS, TEXT_DIM).bfloat16()


def denoise_peak(key: str, shape: Shape) -> int:
    """Bytes of activations in one forward pass of the real-width model, of which two layers are enough."""
    size = SIZES[key]
    with torch.device("meta"), torch.no_grad():
        model = expert(size, layers=2, loras=shape.loras)
        inputs = _inputs(size, shape)
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", _flash), LiveBytes() as meter:
            model(*inputs, return_dict=False)
    return meter.peak


def decode_peak(key: str, shape: Shape, *, tiled: bool, vae: AutoencoderKLWan | None = None) -> int:
    """Bytes of activations in decoding with the real VAE or `vae`: streamed as in `worker.engine.decode`, or tiled."""
    stride = SIZES[key].latent_stride
    with torch.device("meta"), torch.no_grad():
        vae = real_vae(key) if vae is None else vae
        if tiled:
            vae.enable_tiling()
        size = (1, vae.config.z_dim, shape.latent_frames, shape.height // stride, shape.width // stride)
        with LiveBytes() as meter:
            latents = torch.randn(size, dtype=vae.dtype)
            if tiled:
                vae.decode(latents, return_dict=False)
            else:
                _stream(vae, latents, steps=3)  # memory is full from the second latent frame on
    return meter.peak


def _stream(vae: AutoencoderKLWan, latents: torch.Tensor, *, steps: int) -> None:
    features: list[Any] = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    hidden = vae.post_quant_conv(latents)
    for step in range(min(steps, hidden.shape[2])):
        frame = hidden[:, :, step : step + 1]
        sample = vae.decoder(frame, feat_cache=features, feat_idx=[0], first_chunk=step == 0)
        if vae.config.patch_size is not None:
            sample = unpatchify(sample, patch_size=vae.config.patch_size)
        (sample[0].float() * 0.5 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def encode_peak(key: str, shape: Shape, *, tiled: bool) -> int:
    """Bytes of activations in encoding with the real VAE: a conditioning video, or the 5B model's single image."""
    with torch.device("meta"), torch.no_grad():
        vae = real_vae(key)
        if tiled:
            vae.enable_tiling()
        with LiveBytes() as meter:
            vae.encode(torch.randn(1, 3, 1 if key == "5b" else shape.num_frames, shape.height, shape.width))
    return meter.peak


def lora_parameters(size: ModelSize) -> int:
    """Parameters of one LoRA of the planned rank on every layer of an expert."""
    with torch.device("meta"):
        model = expert(size, layers=1, loras=1)
    return size.layers * sum(each.numel() for name, each in model.named_parameters() if "lora_" in name)
