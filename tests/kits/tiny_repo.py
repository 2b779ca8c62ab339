"""Tiny Wan 2.2 repositories with the true layout: the real classes at a small size, in several shards.

`tiny_repos()` answers a folder with `i2v`, `t2v` (Diffusers' format, fp32 experts, bf16 text encoder, sharing all but
the experts) and `original` (Wan's own format, which Diffusers cannot load). They are built once a process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

SHARD_SIZE = "600KB"


@cache
def tiny_repos() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tiny-repos-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    build_diffusers(root / "t2v", in_channels=16, seed=1)
    build_diffusers(root / "i2v", in_channels=36, seed=2)
    for shared in ("text_encoder", "tokenizer", "vae", "scheduler"):
        shutil.rmtree(root / "i2v" / shared)
        shutil.copytree(root / "t2v" / shared, root / "i2v" / shared)
    build_original(root / "original", root / "i2v")
    return root


def build_diffusers(folder: Path, *, in_channels: int, seed: int) -> None:
    """A two-expert pipeline saved as the hub has it: README and assets included, which a worker does not need."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel  # type: ignore[attr-defined]

    def expert(expert_seed: int) -> WanTransformer3DModel:
        torch.manual_seed(expert_seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=in_channels,
            out_channels=16,
            text_dim=64,
            freq_dim=64,
            ffn_dim=256,
            num_layers=3,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    umt5 = UMT5Config(
        vocab_size=4000, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((chr(code), -2.0) for code in range(33, 127))]
    pipeline = WanPipeline(
        tokenizer=T5TokenizerFast(vocab=words, extra_ids=0),
        text_encoder=UMT5EncoderModel(umt5).to(torch.bfloat16),  # type: ignore[arg-type]
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=expert(10 * seed),
        transformer_2=expert(10 * seed + 1),
        boundary_ratio=0.9,
    )
    pipeline.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    (folder / "README.md").write_text("# tiny\n")
    (folder / "assets").mkdir()
    (folder / "assets" / "logo.png").write_bytes(b"\x89PNG" + bytes(1000))


def build_original(folder: Path, diffusers_folder: Path) -> None:
    """The layout of Wan's own repositories: experts in high_noise_model and low_noise_model, .pth for the rest."""
    names = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
    for component, name in names.items():
        shutil.copytree(diffusers_folder / component, folder / name)
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "spiece.model").write_bytes(b"tokenizer")
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"encoder" * 1000)
    (folder / "Wan2.1_VAE.pth").write_bytes(b"vae" * 1000)
    (folder / "configuration.json").write_text("{}")
