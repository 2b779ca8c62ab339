"""The sizes that memory depends on: those of a video, and those of each model.

Parameter counts are those of the published configurations, counted on the meta device (Diffusers 0.42.1, transformers
5.23.0); a test counts them again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worker.request.catalogue import ModelSpec
from worker.request.values import VideoRequest

_FRAME_STRIDE = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of one video. loras: how many of rank 64 act on one expert at once. step_cache: residuals are kept."""

    width: int
    height: int
    num_frames: int
    loras: int = 0
    step_cache: bool = False

    @classmethod
    def of(cls, request: VideoRequest, spec: ModelSpec) -> Shape:
        """Of a request that `spec` serves. Raises ValueError where its size is not settled."""
        if request.width is None or request.height is None:
            raise ValueError("the size of the video must be settled first")
        turbo = request.quality_preset == "turbo"
        # Turbo adds LoRAs of its own; those of Stable Video Infinity have rank 128, which is two of those that count.
        loras = len(request.loras) + (turbo and bool(spec.distilled)) + 2 * request.svi
        return cls(request.width, request.height, request.num_frames, loras, request.step_cache != "off" and not turbo)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} with {self.num_frames} frames"

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def latent_frames(self) -> int:
        return (self.num_frames - 1) // _FRAME_STRIDE + 1


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The parameters and widths of one model; counts are of one expert.

    linear_params: weights of the blocks' linear layers, the only ones that are quantised. fp32_params: kept in fp32
    by Diffusers beside bf16 weights. timestep_per_token: the 5B model, which carries a timestep for every token.
    decode_pixel_bytes: the peak of a streamed fp32 decode for each pixel of a frame; encode_pixel_bytes and
    encode_frame_bytes: that of encoding, for each pixel, and for each pixel of every frame.
    """

    experts: int
    expert_params: int
    block_params: int
    linear_params: int
    fp32_params: int
    layers: int
    dim: int
    ffn_dim: int
    head_dim: int
    in_channels: int
    latent_channels: int
    latent_stride: int
    timestep_per_token: bool
    text_encoder_params: int
    text_embedding_params: int
    vae_params: int
    decode_pixel_bytes: int
    encode_pixel_bytes: int
    encode_frame_bytes: float

    def tokens(self, shape: Shape) -> int:
        patch = 2 * self.latent_stride
        return shape.latent_frames * (shape.height // patch) * (shape.width // patch)


_I2V = ModelSize(
    experts=2,
    expert_params=14_288_901_184,
    block_params=14_055_772_160,
    linear_params=14_050_918_400,
    fp32_params=29_184_000,
    layers=40,
    dim=5120,
    ffn_dim=13824,
    head_dim=128,
    in_channels=36,
    latent_channels=16,
    latent_stride=8,
    timestep_per_token=False,
    text_encoder_params=5_680_910_336,
    text_embedding_params=1_050_148_864,
    vae_params=126_892_531,
    decode_pixel_bytes=19_530,
    encode_pixel_bytes=14_110,
    encode_frame_bytes=12.4,
)
SIZES: dict[str, ModelSize] = {
    "i2v": _I2V,
    "t2v": replace(_I2V, in_channels=16, expert_params=14_288_491_584),
    "5b": replace(
        _I2V,
        experts=1,
        expert_params=4_999_787_712,
        block_params=4_909_701_120,
        linear_params=4_907_335_680,
        fp32_params=10_973_184,
        layers=30,
        dim=3072,
        ffn_dim=14336,
        in_channels=48,
        latent_channels=48,
        latent_stride=16,
        timestep_per_token=True,
        vae_params=704_688_668,
        decode_pixel_bytes=21_600,
        encode_pixel_bytes=1_980,  # the 5B model encodes a single image, never a video
        encode_frame_bytes=0.0,
    ),
}


def size_of(spec: ModelSpec) -> ModelSize:
    """The published sizes of a model of the catalogue."""
    return SIZES[spec.base]
