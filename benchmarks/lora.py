"""How long a LoRA takes to be put on the two A14B experts and taken off again.

    python -m benchmarks.lora                      a rank-64 LoRA of every layer of both experts, five runs
    python -m benchmarks.lora --rank 8 --layers 2 --runs 1   to see that it works

The experts have the real shapes, but weights of a single number that every element shares: neither PEFT nor the worker
reads them, so the times are those of the real ones, without 57 GB of memory. The LoRA's tensors are real, one file an
expert, and move to a GPU where there is one. Prints a Markdown table and writes `lora-DATE.json` beside the others.

check: the file's header is read and its content hashed, as for every file that comes. first: the files are read from
disk too. again: they are in memory still, as for the next video with the same LoRA. off: after the run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from worker.engine.models.components import Components
from worker.engine.techniques import base, lora
from worker.weights.loras.cache import LoraCache
from worker.weights.loras.header import check_safetensors

# transformer/config.json of Wan-AI/Wan2.2-T2V-A14B-Diffusers.
_A14B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}
_LAYERS = (
    *(f"{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"),
    *("ffn.0", "ffn.2"),
)
_WIDE = {"ffn.0": (5120, 13824), "ffn.2": (13824, 5120)}


def expert(layers: int, device: torch.device) -> WanTransformer3DModel:
    """An expert of the real shapes in bf16, whose parameters take no memory."""
    with torch.device("meta"):
        model = WanTransformer3DModel(num_layers=layers, **_A14B)
    one = torch.zeros(1, dtype=torch.bfloat16, device=device)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shared = one.reshape([1] * parameter.ndim).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(shared, requires_grad=False))
    return model.eval()


def lora_file(file: Path, layers: int, rank: int) -> Path:
    """A LoRA of every layer in Wan's own names, as lightx2v publishes its distilled ones."""
    tensors: dict[str, torch.Tensor] = {}
    for block in range(layers):
        for layer in _LAYERS:
            inner, outer = _WIDE.get(layer, (5120, 5120))
            name = f"diffusion_model.blocks.{block}.{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inner, dtype=torch.bfloat16)
            tensors[f"{name}.lora_up.weight"] = torch.randn(outer, rank, dtype=torch.bfloat16)
            tensors[f"{name}.alpha"] = torch.tensor(8.0)
    save_file(tensors, file)
    return file


def one_run(components: Components, adapters: Sequence[base.Adapter], cache: Path) -> dict[str, float]:
    """Seconds of each stage."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    for adapter in adapters:
        check_safetensors(adapter.file, path=adapter.path)
        LoraCache(cache).sha256_of(adapter.file)
    seconds["check"] = time.perf_counter() - began
    lora.contents.clear()
    for stage in ("first", "again"):
        with ExitStack() as stack:
            began = _now(components)
            stack.enter_context(lora.applied(components, adapters))
            seconds[stage] = _now(components) - began
            began = _now(components)
        seconds["off"] = _now(components) - began
    return seconds


def _now(components: Components) -> float:
    if next(components.transformer.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    high, low = expert(options.layers, device), expert(options.layers, device)
    no_parts: Any = SimpleNamespace(parts=())
    components = Components(no_parts, {}, (high, low), 0.875, expand_timesteps=False)
    with tempfile.TemporaryDirectory() as folder:
        adapters = []
        for number, side in enumerate(("high", "low")):
            file = lora_file(Path(folder) / f"{side}.safetensors", options.layers, options.rank)
            adapters.append(base.Adapter(file, file.name, 1.0, side, f"loras[{number}].source"))  # type: ignore[arg-type]
        size_mb = sum(adapter.file.stat().st_size for adapter in adapters) / 1e6
        runs = [one_run(components, adapters, Path(folder)) for _ in range(options.runs)]
    medians = reporting.median_of(runs)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    print(f"rank {options.rank}, {options.layers} layers, two files of {size_mb / 2:.0f} MB, on {gpu or 'a CPU'}\n")
    print(reporting.table(("stage", "s"), [(stage, f"{seconds:.2f}") for stage, seconds in medians.items()]))
    case = {"rank": options.rank, "layers": options.layers, "size_mb": size_mb}
    result = {"case": case, "medians_s": medians, "runs_s": runs, "gpu": gpu}
    reporting.write(options.output, "lora", result, "torch", "diffusers", "peft", "safetensors")


if __name__ == "__main__":
    main()
