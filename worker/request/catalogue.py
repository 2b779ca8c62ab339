"""The catalogue of models: which repository, which modes, strides, official sampling and sizes.

Figures are those of Wan 2.2's own configuration files (`wan/configs/wan_*.py` of the official repository) and of
the Diffusers repositories; see docs/decisions/. The distilled LoRAs are lightx2v's, as their repositories list them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from worker.base.errors import Unsupported

if TYPE_CHECKING:
    from worker.request.values import VideoRequest

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
class Defaults:
    """What a request has where it says nothing: size in pixels, frames, steps, guidance.

    `source_area`: the pixels that a frame has at most whose aspect is that of a picture or video.
    """

    width: int = 832
    height: int = 480
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    source_area: int = 832 * 480


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

    `base` names the architecture. `variant` names the weights of one base: "turbo" has the distilled LoRAs fused in
    and serves nothing else; "any" is the demo model for the sizes that its trained weights are not good for.
    `size_stride` is the multiple that height and width must have (VAE stride x patch size); `frame_stride` is the
    temporal stride: frames are `frame_stride` * k + 1. `boundary_ratio` is None where there is a single expert.
    `turbo`: 4-step distilled weights exist; where they are LoRAs, `distilled` names them, best first. `extent` is None
    where any size is served; a model with one is chosen before those without.
    """

    base: Literal["i2v", "t2v", "5b"]
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
    variant: Literal["turbo", "any"] | None = None
    extent: Extent | None = None
    defaults: Defaults = Defaults()

    @property
    def key(self) -> str:
        """The name of these weights: `i2v`, `t2v-turbo`."""
        return self.base if self.variant is None else f"{self.base}-{self.variant}"

    @property
    def fused(self) -> bool:
        return self.variant == "turbo"


I2V_A14B = ModelSpec(
    base="i2v",
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
    base="t2v",
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
    base="5b",
    name="5b",
    version="wan2.2-ti2v-5b",
    modes=("text_to_video", "image_to_video"),
    size_stride=32,
    frame_stride=4,
    fps=24,
    flow_shift=5.0,
    boundary_ratio=None,
    defaults=Defaults(width=1280, height=704, num_frames=121, source_area=1280 * 704),
)

CATALOGUE: tuple[ModelSpec, ...] = (I2V_A14B, T2V_A14B, TI2V_5B)

# The demo model (worker.weights.sources): its version, what its trained weights are good for, and what suits them.
DEMO_VERSION = "demo"
DEMO_EXTENT = Extent(most_pixels=320 * 256, least_frames=13, most_frames=21)
DEMO_DEFAULTS = Defaults(256, 256, num_frames=17, num_inference_steps=12, guidance_scale=3.0, source_area=320 * 256)


def as_demo(spec: ModelSpec) -> ModelSpec:
    """The demo model's twin of `spec`, at the sizes that its trained weights are good for; there are none for 5b."""
    extent = None if spec.boundary_ratio is None else DEMO_EXTENT
    return replace(spec, version=DEMO_VERSION, distilled=(), defaults=DEMO_DEFAULTS, extent=extent)


DEMO_CATALOGUE = tuple(map(as_demo, CATALOGUE))


def with_distilled_fused(spec: ModelSpec) -> ModelSpec:
    """The model of the same experts with its distilled LoRAs fused in."""
    return replace(spec, variant="turbo", distilled=())


def choose(catalogue: Sequence[ModelSpec], request: VideoRequest) -> ModelSpec:
    """The model of `catalogue` that serves a request. Raises Unsupported where none does."""
    mode, turbo = request.mode, request.quality_preset == "turbo"
    takes_fused = turbo and request.turbo_variant == "full"
    named = [spec for spec in catalogue if spec.name == request.model]
    serving = [spec for spec in named if mode in spec.modes and _is_for(spec, request)]
    # Fused weights before plain ones, and those made for a size before those for any.
    spec = max(
        (spec for spec in serving if takes_fused or not spec.fused),
        key=lambda each: (each.extent is not None, each.fused),
        default=None,
    )
    if spec is None:
        served = ", ".join(sorted({mode for spec in named for mode in spec.modes}))
        raise Unsupported(
            f"model {request.model} does not serve {mode} on this worker; it serves {served}", path=request.at("model")
        )
    if turbo and not spec.turbo:
        if not takes_fused and any(other.fused for other in serving):
            raise Unsupported(
                "the hybrid variant of turbo is not served by this worker; use full", path=request.at("turbo_variant")
            )
        raise Unsupported(
            f"turbo is not served for {mode} with model {request.model} on this worker; use draft",
            path=request.at("quality_preset"),
        )
    return spec


def _is_for(spec: ModelSpec, request: VideoRequest) -> bool:
    """Whether the weights are good for the request's size; those of one size also need to serve its turbo."""
    if spec.extent is None:
        return True
    serves_preset = spec.turbo or request.quality_preset != "turbo"
    return serves_preset and spec.extent.holds(request.height, request.width, request.num_frames)


def find(name: ModelName, mode: Mode) -> ModelSpec | None:
    """The model of that name that serves the mode, or None where no model does."""
    return next((spec for spec in CATALOGUE if spec.name == name and mode in spec.modes), None)


def closest(catalogue: Sequence[ModelSpec], name: ModelName, mode: Mode) -> ModelSpec:
    """The model whose defaults a request has: of that name, and made for the mode where one is."""
    named = [spec for spec in (*catalogue, *CATALOGUE) if spec.name == name]
    return max(named, key=lambda spec: (mode in spec.modes, spec in catalogue, spec.extent is not None))
