"""Trains the demo model: `python -m training.train_demo`, or some of its parts by name.

    python -m training.train_demo [PART ...] [--folder build/demo] [--minutes M] [--device cuda]

The parts, in order: text, vae, clips, simple64, high64, high128, high256, low128, low256, turbo-t2v, turbo-i2v,
style, export. Each leaves a checkpoint in the folder and goes on from it when it is called again; `--minutes` ends each
part early, with its schedule run to the end. `export` writes worker/weights/sources/demo_weights and the loss curves.
Parts that do not build on one another can run at the same time: high128 and high256 beside low128 and low256.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from training import curves, data, experts, lora, text, vae
from training.experts import Data, PaddedCrossAttention
from training.plan import (
    CLIPS,
    MODELS,
    NORMAL_CLIPS,
    SEED,
    SERVED_SIZE,
    SIDES,
    SIMPLE_CLIPS,
    SIMPLE_SIZE,
    STAGES,
    STYLE,
    TEACHER_CLIPS,
    TEACHER_GUIDANCE,
    TEACHER_STEPS,
    TEXT,
    TURBO,
    VAE,
    Stage,
)
from training.running import Run
from worker.weights.sources.demo_trained import WEIGHTS


class Training:
    """The parts as methods on one folder."""

    def __init__(self, folder: Path, device: torch.device, minutes: float | None) -> None:
        self._folder = folder
        self._device = device
        self._minutes = minutes
        self._made = folder / "weights"

    @property
    def parts(self) -> dict[str, Callable[[], None]]:
        stages = {stage.name: (lambda stage=stage: self.stage(stage)) for stage in STAGES}
        turbo = {f"turbo-{key}": (lambda key=key: self.turbo(key)) for key in MODELS}
        first = {"text": self.text, "vae": self.vae, "clips": self.clips}
        return {**first, **stages, **turbo, "style": self.style, "export": self.export}

    def text(self) -> None:
        text.save(*text.train(self._run("text"), TEXT), self._made)

    def vae(self) -> None:
        vae.train(self._run("vae"), VAE)

    @torch.no_grad()
    def clips(self) -> None:
        normal = self._folder / "normal.pt"
        if not normal.exists():
            torch.save(data.normalisation(SERVED_SIZE, NORMAL_CLIPS, SEED), normal)
        self._data(SIMPLE_SIZE, simple=True)
        for size in CLIPS:
            self._data(size)

    def stage(self, stage: Stage) -> None:
        model = experts.new(experts.IMAGE_CHANNELS)
        if stage.start is not None:
            model.load_state_dict(self._averaged(stage.start))
        experts.train(self._run(stage.name), stage.plan, model, self._data(stage.size, simple=stage.simple))

    def turbo(self, key: str) -> None:
        spec = MODELS[key]
        pairs_path = self._folder / f"pairs-{key}.pt"
        if not pairs_path.exists():
            both = [self._expert(key, side) for side in SIDES]
            for model in both:
                model.set_attn_processor(PaddedCrossAttention())
            taught = lora.teach(
                both,
                self._data(SERVED_SIZE),
                spec,
                count=TEACHER_CLIPS,
                steps=TEACHER_STEPS,
                guidance=TEACHER_GUIDANCE,
            )
            torch.save(taught, pairs_path)
        pairs: lora.Pairs = torch.load(pairs_path, weights_only=False)
        assert spec.boundary_ratio is not None
        stops = lora.turbo_sigmas()[:-1]
        for side in SIDES:
            own = [sigma for sigma in stops if (sigma >= spec.boundary_ratio) == (side == "high")]
            name = f"turbo-{key}-{side}"
            model = self._expert(key, side)
            lora.distil(self._run(name), TURBO, model, pairs, own)
            lora.save(model, self._made / "loras" / f"{name}.safetensors")

    def style(self) -> None:
        normal = torch.load(self._folder / "normal.pt")
        restyled = lora.sepia(self._data(SERVED_SIZE), normal)
        for side in SIDES:
            plan = next(stage.plan for stage in STAGES if stage.name == f"{side}{SERVED_SIZE}")
            model = self._expert("t2v", side)
            lora.style(self._run(f"style-{side}"), STYLE, model, restyled, replace(plan, task="text_to_video"))
            lora.save(model, self._made / "loras" / f"sepia-{side}.safetensors")

    def export(self) -> None:
        """Everything that is trained, in half precision, and the curves of all losses."""
        normal = [part.tolist() for part in torch.load(self._folder / "normal.pt")]
        autoencoder = vae.new(*([round(value, 5) for value in part] for part in normal))
        autoencoder.load_state_dict(self._averaged("vae"))
        vae.save(autoencoder, self._made / "vae")
        for side in SIDES:
            self._expert("i2v", side).to(torch.float16).save_pretrained(str(self._made / "experts" / side))
        for part in self._made.iterdir():
            shutil.copytree(part, WEIGHTS / part.name, dirs_exist_ok=True)
        curves.write(self._folder, Path("docs/images/demo-training.png"))

    def _run(self, name: str) -> Run:
        return Run(name, self._folder, seed=SEED, minutes=self._minutes, device=self._device)

    def _averaged(self, name: str) -> dict[str, torch.Tensor]:
        kept = torch.load(self._folder / f"{name}.pt", weights_only=False, map_location="cpu")
        weights: dict[str, torch.Tensor] = kept["average"]["weights"]
        return weights

    def _expert(self, key: str, side: str) -> WanTransformer3DModel:
        """The trained expert, as it is for image-to-video and without the image's channels for text-to-video."""
        model = experts.new(experts.IMAGE_CHANNELS)
        model.load_state_dict(self._averaged(f"{side}{SERVED_SIZE}"))
        return (experts.narrowed(model) if key == "t2v" else model).eval()

    def _data(self, size: int, *, simple: bool = False) -> Data:
        count = SIMPLE_CLIPS if simple else CLIPS[size]
        normal = torch.load(self._folder / "normal.pt")

        def draw() -> Data:
            reader: Any = (
                AutoTokenizer.from_pretrained(self._made / "tokenizer"),
                UMT5EncoderModel.from_pretrained(self._made / "text_encoder", dtype=torch.float32).eval(),
            )
            return data.draw(size, count, simple=simple, seed=SEED, normal=normal, reader=reader)

        return data.kept(self._folder / f"data{size}{'-simple' if simple else ''}.pt", draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all, in order")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--minutes", type=float, help="the longest that one part may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    parts = Training(options.folder, torch.device(options.device), options.minutes).parts
    unknown = [name for name in options.parts if name not in parts]
    if unknown:
        parser.error(f"no part is called {unknown[0]}: choose of {', '.join(parts)}")
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
