"""What the VAE's techniques save: seconds of encoding a reference picture and of decoding, on this machine.

    python -m benchmarks.vae [--device cpu] [--frames 81] [--pixels 128] [--threads 1] [--repeats 3] [--full-width]

Random weights: of the demo model's VAE, and of one with the layers of the A14B's at a twelfth of its width, or its full
one. Prints medians and writes them to `benchmarks/results/vae-DATE.json`. The encode is checked to be the same to the
bit each time. On a CPU also the trained demo VAE with torch's own choice of convolutions, and with oneDNN's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from benchmarks import reporting
from benchmarks.quality import psnr_db
from benchmarks.reporting import RESULTS
from worker.engine import decode
from worker.engine.models import components, cpu_convolutions
from worker.engine.techniques import image_encode
from worker.request.catalogue import I2V_A14B
from worker.weights.sources import demo, demo_trained

DECODED_LATENT_FRAMES = 3
# An untrained decoder's output hardly leaves grey: this makes it use the range of levels, and clip.
_OUTPUT_STD = 0.3


def demo_vae() -> AutoencoderKLWan:
    with TemporaryDirectory() as folder:
        demo.build(I2V_A14B, Path(folder))
        return AutoencoderKLWan.from_pretrained(folder, subfolder="vae")


def layered_vae(*, full_width: bool) -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=96 if full_width else 8)


def seconds(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Medians, by turns, after a run of each that does not count. On a CPU of the process's own time, because others
    may be at work there; on a GPU by the clock."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, work in ways.items():
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(clock() - began)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


@torch.no_grad()
def encoding(vae: AutoencoderKLWan, frames: int, pixels: int, *, both_ends: bool, repeats: int) -> str:
    """One line: the VAE's own encode, and that which leaves out what stands still."""
    video = torch.zeros(1, 3, frames, pixels, pixels)
    video[:, :, 0] = torch.rand(3, pixels, pixels) * 2 - 1
    if both_ends:
        video[:, :, -1] = torch.rand(3, pixels, pixels) * 2 - 1
    video = video.to(vae.device, vae.dtype)
    passes = image_encode.Passes()
    if not image_encode.same_bits(vae._encode(video), image_encode.encode(vae, video, passes)):
        raise AssertionError("the encodes differ")
    ways = {
        "whole": lambda: vae._encode(video),
        "reusing": lambda: image_encode.encode(vae, video, image_encode.Passes()),
    }
    taken = seconds(ways, vae.device, repeats)
    return (
        f"encode, {'both ends' if both_ends else 'picture'}: {taken['whole']:.2f} s whole, {taken['reusing']:.2f} s "
        f"reusing ({taken['reusing'] / taken['whole']:.0%}); layer passes {passes.all} and {passes.computed}; same bits"
    )


def decoding(vae: AutoencoderKLWan, pixels: int, *, repeats: int) -> list[str]:
    """A line each: fp32, and bf16 in the layout of the weights as they are and with channels last."""
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=_OUTPUT_STD)
    side = pixels // vae.config.scale_factor_spatial
    latents = torch.randn(1, vae.config.z_dim, DECODED_LATENT_FRAMES, side, side).to(vae.device)
    bf16 = AutoencoderKLWan.from_config(vae.config).eval().requires_grad_(False)
    bf16.load_state_dict(vae.state_dict())
    torch.nn.Module.to(bf16, vae.device, torch.bfloat16)

    def made(each: AutoencoderKLWan, *, half: bool) -> np.ndarray:
        with closing(decode.frames(each, latents, half=half)) as frames:
            return np.stack(list(frames))

    ways: dict[str, Callable[[], np.ndarray]] = {
        "fp32": lambda: made(vae, half=False),
        "bf16, weights as they are": lambda: made(bf16, half=False),
        "bf16, channels last": lambda: made(vae, half=True),
    }
    exact = ways["fp32"]()
    taken = seconds(ways, vae.device, repeats)
    return [
        f"decode, {name}: {taken[name]:.2f} s, {psnr_db(made_by(), exact):.0f} dB against fp32"
        for name, made_by in ways.items()
    ]


@torch.no_grad()
def convolving(frames: int, pixels: int, *, repeats: int) -> list[str]:
    """A line for encode and decode of the trained demo VAE: by torch's own convolutions, and by those of the worker."""
    own, ours = (AutoencoderKLWan.from_pretrained(demo_trained.WEIGHTS / "vae").eval() for _ in range(2))
    cpu_convolutions.use_onednn(ours)
    video = torch.rand(1, 3, frames, pixels, pixels) * 2 - 1
    latents = own.encode(video).latent_dist.mode()
    lines = []
    for name, of in (
        ("encode", lambda vae: vae.encode(video)),
        ("decode", lambda vae: list(decode.frames(vae, latents))),
    ):
        ways = {
            "torch": partial(of, components.channels_last(own)),
            "oneDNN": partial(of, components.channels_last(ours)),
        }
        taken = seconds(ways, own.device, repeats)
        lines.append(
            f"{name}: {taken['torch']:.2f} s by torch's convolutions, {taken['oneDNN']:.2f} s by oneDNN's "
            f"({taken['oneDNN'] / taken['torch']:.0%})"
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--pixels", type=int, default=128, help="of a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full-width", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    components.quiet_libraries()
    vaes = {"demo": demo_vae(), "A14B's layers": layered_vae(full_width=options.full_width)}
    print(
        f"{options.frames} frames of {options.pixels} x {options.pixels} on {options.device}, {options.threads} threads"
    )
    printed: dict[str, list[str]] = {}
    for name, vae in vaes.items():
        made = vae.eval().requires_grad_(False).to(options.device)
        lines = [
            encoding(made, options.frames, options.pixels, both_ends=both_ends, repeats=options.repeats)
            for both_ends in (False, True)
        ]
        printed[name] = [*lines, *decoding(made, options.pixels, repeats=options.repeats)]
        for line in printed[name]:
            print(f"{name}: {line}", flush=True)
    if options.device == "cpu":
        printed["trained demo"] = convolving(options.frames, options.pixels, repeats=options.repeats)
        print("\n".join(f"trained demo: {line}" for line in printed["trained demo"]))
    case = {key: value for key, value in vars(options).items() if key != "output"}
    kind = "vae-full-width" if options.full_width else "vae"
    reporting.write(options.output, kind, {"case": case, "medians": printed}, "torch", "diffusers")


if __name__ == "__main__":
    main()
