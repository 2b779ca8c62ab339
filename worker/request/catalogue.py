"""The catalogue of models: which repository, which modes, strides, official sampling and sizes.

Figures are those of Wan 2.2's own configuration files (`wan/configs/wan_*.py` of the official repository) and of
the Diffusers repositories; see docs/decisions/. The distilled LoRAs are lightx2v's, as their repositories list them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ModelName = Literal["a14b", "5b"]
Mode = Literal["text_to_video", "image_to_video", "first_last_frame", "video_to_video"]

# The string `sample_neg_prompt` of Wan's shared_config.py, word for word.
OFFICIAL_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True, slots=True)
class DistilledLoras:
    """LoRAs that distil the two experts of a model to 4 steps: a repository of the hub and its two files."""

    repo: str
    high: str
    low: str


@dataclass(frozen=True, slots=True)
class Extent:
    """The videos that a model is good for: up to so many pixels a frame, and so many frames, both ends included."""

    most_pixels: int
    least_frames: int
    most_frames: int

    def holds(self, height: int | None, width: int | None, num_frames: int) -> bool:
        """A size that is not settled yet is not among them."""
        if height is None or width is None:
            return False
        return height * width <= self.most_pixels and self.least_frames <= num_frames <= self.most_frames


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One set of weights and the sampling that its authors published.

    `key` names the weights: of a model (`i2v`, `t2v`, `5b`), or those into which distilled LoRAs were fused; these are
    `fused` and serve nothing but `turbo`. `size_stride` is the multiple that height and width must have
    (VAE stride x patch size); `frame_stride` is the temporal stride: frames are `frame_stride` * k + 1.
    `boundary_ratio` is None where there is a single expert. `turbo`: 4-step distilled weights are to be had; where
    they are LoRAs, `distilled` names them, best first. `extent` is None where any size is served; a model with one is
    taken before those without.
    """

    key: Literal["i2v", "t2v", "5b", "i2v-turbo", "t2v-turbo", "i2v-any", "t2v-any"]
    name: ModelName
    version: str
    modes: tuple[Mode, ...]
    size_stride: int
    frame_stride: int
    fps: int
    flow_shift: float
    boundary_ratio: float | None
    turbo: bool = False
    distilled: tuple[DistilledLoras, ...] = ()
    fused: bool = False
    extent: Extent | None = None

    @property
    def base(self) -> Literal["i2v", "t2v", "5b"]:
        """The model of the catalogue whose architecture this is."""
        return next(key for key in _BASES if self.key.startswith(key))


_BASES: tuple[Literal["i2v", "t2v", "5b"], ...] = ("i2v", "t2v", "5b")
I2V_A14B = ModelSpec(
    key="i2v",
    name="a14b",
    version="wan2.2-i2v-a14b",
    modes=("image_to_video", "first_last_frame"),
    size_stride=16,
    frame_stride=4,
    fps=16,
    flow_shift=5.0,
    boundary_ratio=0.900,
    turbo=True,
    distilled=(
        DistilledLoras(
            "lightx2v/Wan2.2-Lightning",
            "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/high_noise_model.safetensors",
            "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/low_noise_model.safetensors",
        ),
        DistilledLoras(
            "lightx2v/Wan2.2-Distill-Loras",
            "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022.safetensors",
            "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors",
        ),
    ),
)
T2V_A14B = ModelSpec(
    key="t2v",
    name="a14b",
    version="wan2.2-t2v-a14b",
    modes=("text_to_video", "video_to_video"),
    size_stride=16,
    frame_stride=4,
    fps=16,
    flow_shift=12.0,
    boundary_ratio=0.875,
    turbo=True,
    distilled=(
        DistilledLoras(
            "lightx2v/Wan2.2-Lightning",
            "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/high_noise_model.safetensors",
            "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/low_noise_model.safetensors",
        ),
        DistilledLoras(
            "lightx2v/Wan2.2-Distill-Loras",
            "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217.safetensors",
            "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217.safetensors",
        ),
    ),
)
TI2V_5B = ModelSpec(
    key="5b",
    name="5b",
    version="wan2.2-ti2v-5b",
    modes=("text_to_video", "image_to_video"),
    size_stride=32,
    frame_stride=4,
    fps=24,
    flow_shift=5.0,
    boundary_ratio=None,
)

CATALOGUE: tuple[ModelSpec, ...] = (I2V_A14B, T2V_A14B, TI2V_5B)


def with_distilled_fused(spec: ModelSpec) -> ModelSpec:
    """The model of the same experts with its distilled LoRAs fused in. Raises KeyError for one that has none."""
    keys: dict[str, Literal["i2v-turbo", "t2v-turbo"]] = {"i2v": "i2v-turbo", "t2v": "t2v-turbo"}
    return replace(spec, key=keys[spec.key], distilled=(), fused=True)


def find(name: ModelName, mode: Mode) -> ModelSpec | None:
    """The model of that name that serves the mode, or None where no model does."""
    return next((spec for spec in CATALOGUE if spec.name == name and mode in spec.modes), None)


def by_name(name: ModelName) -> ModelSpec:
    """A model of that name, for what all of its kind share: strides and frame rate."""
    return next(spec for spec in CATALOGUE if spec.name == name)
