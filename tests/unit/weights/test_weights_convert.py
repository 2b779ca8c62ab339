from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builder.prepare import main, prepare_model
from tests.kits.tiny_repo import tiny_repos
from tests.kits.weights_kit import place
from worker.base.errors import ModelUnavailable
from worker.weights import ModelFolder, check, verify
from worker.weights.convert import prepare
from worker.weights.folder import record as records
from worker.weights.tensors.headers import stored_tensors
from worker.weights.tensors.index import SUFFIX, read_index, write_index
from worker.weights.tensors.writing import convert, write_shard

REPO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
PLAIN = "Wan2.2-T2V-A14B-Diffusers"
ENCODER = "text_encoder/model-00001-of-00002.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    shutil.copytree(tiny_repos() / "t2v", tmp_path / "models" / PLAIN)
    return tmp_path / "models"


def expert(folder: Path, name: str = "transformer", dtype: torch.dtype = torch.bfloat16) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(folder / name, dtype=dtype).eval()


def run_pipeline(folder: Path) -> np.ndarray:
    """Two steps, one on each expert, in the types in which a worker loads."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(folder, vae=vae, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        "a cat",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).frames
    return np.asarray(frames)


def stored(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted((folder / name).glob("*.safetensors")):
        found |= load_file(path)
    return found


def test_bf16_weights_make_the_same_video_as_the_originals_loaded_in_bf16(cache: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "bf16")
    assert verify(prepared.path) == []
    original, converted = run_pipeline(cache / PLAIN), run_pipeline(prepared.path)
    assert np.isfinite(original).all()
    assert original.std() > 0
    assert np.array_equal(original, converted)
    for name in ("transformer", "transformer_2"):
        before, after = expert(cache / PLAIN, name).state_dict(), expert(prepared.path, name).state_dict()
        assert before.keys() == after.keys()
        assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)


def test_what_stays_fp32_is_what_diffusers_keeps_in_fp32(cache: Path) -> None:
    tensors = stored(prepare_model(place(cache), REPO, "bf16").path, "transformer")
    loaded = expert(cache / PLAIN).state_dict()
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {key: value.dtype for key, value in loaded.items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.bfloat16}


def test_fp8_stores_the_matrices_of_the_blocks_and_nothing_else(cache: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "fp8")
    tensors = stored(prepared.path, "transformer")
    narrow = {key for key, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    assert narrow == {
        key
        for key, tensor in tensors.items()
        if key.startswith("blocks.") and key.endswith("weight") and tensor.ndim == 2
    }
    assert "blocks.0.attn1.to_q.weight" in narrow
    assert not [key for key in narrow if "norm" in key]
    record = records.read(prepared.path)
    assert record is not None
    assert record.dtype == "fp8"


def test_fp8_weights_compute_what_layerwise_casting_of_the_originals_computes(cache: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "fp8")
    outputs = []
    for folder in (cache / PLAIN, prepared.path):
        model = expert(folder)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 16, 2, 4, 4, generator=generator).to(torch.bfloat16)
        prompt = torch.randn(1, 8, 64, generator=generator).to(torch.bfloat16)
        with torch.no_grad():
            outputs.append(model(latents, torch.tensor([500]), prompt, return_dict=False)[0])
    assert outputs[0].float().std() > 0
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize(("dtype", "at_most"), [("bf16", 0.55), ("fp8", 0.35)])
def test_the_experts_shrink(cache: Path, dtype: str, at_most: float) -> None:
    prepared = prepare_model(place(cache), REPO, dtype)  # type: ignore[arg-type]
    for name in ("transformer", "transformer_2"):
        sizes = [
            sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
            for folder in (cache / PLAIN, prepared.path)
        ]
        assert sizes[1] / sizes[0] < at_most


def test_files_that_do_not_change_are_stored_once(cache: Path) -> None:
    original = cache / PLAIN
    bf16 = prepare_model(place(cache), REPO, "bf16").path
    fp8 = prepare_model(place(cache), REPO, "fp8").path
    for file in (ENCODER, "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        assert (original / file).samefile(bf16 / file)
        assert (original / file).samefile(fp8 / file)
    for file in ("README.md", "assets/logo.png"):
        assert not (bf16 / file).exists()


def test_a_wide_text_encoder_becomes_bf16_and_is_stored_once_for_two_models(cache: Path) -> None:
    shutil.copytree(tiny_repos() / "i2v", cache / "Wan2.2-I2V-A14B-Diffusers")
    for name in (PLAIN, "Wan2.2-I2V-A14B-Diffusers"):
        for path in sorted((cache / name / "text_encoder").glob("*.safetensors")):
            save_file({key: value.float() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    t2v = prepare_model(place(cache), REPO, "bf16").path
    i2v = prepare_model(place(cache), REPO.replace("T2V", "I2V"), "bf16").path
    assert {tensor.dtype for tensor in stored(t2v, "text_encoder").values()} == {torch.bfloat16}
    assert (t2v / "text_encoder/model.safetensors").samefile(i2v / "text_encoder/model.safetensors")
    original = stored(tiny_repos() / "t2v", "text_encoder")
    assert all(torch.equal(value, original[key]) for key, value in stored(t2v, "text_encoder").items())


def test_large_components_are_split_with_an_index(cache: Path) -> None:
    original = ModelFolder(cache / PLAIN, REPO, None, "cache")
    destination = cache / "out"
    seen: list[tuple[int, int]] = []
    prepare(
        original,
        "bf16",
        destination,
        cache=place(cache),
        shard_bytes=300_000,
        on_bytes=lambda done, total: seen.append((done, total)),
    )
    shards = sorted(path.name for path in (destination / "transformer").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    assert all((destination / "transformer" / name).stat().st_size < 310_000 for name in shards)
    index = json.loads((destination / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["weight_map"].keys() == expert(destination).state_dict().keys()
    assert seen[-1][0] == seen[-1][1]


def test_preparing_again_does_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare_model(place(cache), REPO, "bf16")
    stamp = (first.path / records.RECORD_NAME).stat().st_mtime_ns
    again = prepare_model(place(cache), REPO, "bf16")
    assert again.path == first.path
    assert (first.path / records.RECORD_NAME).stat().st_mtime_ns == stamp
    assert "already" in capsys.readouterr().out


def test_the_worker_prefers_what_was_prepared(cache: Path, tmp_path: Path) -> None:
    def found() -> ModelFolder | None:
        return place(cache).locate(REPO)

    before = found()
    assert before is not None
    assert before.dtype is None
    prepared = prepare_model(place(cache), REPO, "bf16")
    assert found() == prepared


def test_replace_deletes_the_originals_and_keeps_what_is_shared(cache: Path, tmp_path: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "bf16", replace=True)
    assert not (cache / PLAIN).exists()
    assert verify(prepared.path) == []
    assert (prepared.path / ENCODER).stat().st_nlink == 1
    assert place(cache).locate(REPO, prepared="fp8") == prepared


def test_out_receives_the_prepared_weights(cache: Path, tmp_path: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "bf16", out=tmp_path / "other")
    assert prepared.path.is_relative_to(tmp_path / "other")
    assert place(tmp_path / "other").locate(REPO) == prepared


def test_a_folder_by_path_is_prepared_beside_itself_and_never_deleted(cache: Path) -> None:
    prepared = prepare_model(place(cache), str(cache / PLAIN), "fp8", replace=True)
    assert prepared.path == cache / f"{PLAIN}-fp8"
    assert (cache / PLAIN).exists()


def test_a_failure_leaves_nothing_behind(cache: Path) -> None:
    config = cache / PLAIN / "transformer_2" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "NoSuchModel"))
    with pytest.raises(ModelUnavailable, match="Diffusers has no class NoSuchModel"):
        prepare_model(place(cache), REPO, "bf16")
    home = cache / "Wan-AI--Wan2.2-T2V-A14B-Diffusers"
    assert list(home.iterdir()) == []


def test_a_damaged_or_prepared_original_is_refused(cache: Path, tmp_path: Path) -> None:
    prepared = prepare_model(place(cache), REPO, "bf16")
    with pytest.raises(ModelUnavailable, match="prepared already"):
        prepare(prepared, "fp8", tmp_path / "out", cache=place(cache))
    os.truncate(cache / PLAIN / ENCODER, 100)
    with pytest.raises(ModelUnavailable, match=f"is damaged: {ENCODER}"):
        prepare(ModelFolder(cache / PLAIN, REPO, None, "cache"), "fp8", tmp_path / "out", cache=place(cache))
    assert not (tmp_path / "out").exists()


def test_the_command_prepares_and_says_the_sizes(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(cache))
    monkeypatch.setenv("T2V_MODEL_ID", REPO)
    assert main(["--model", "t2v", "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "0.01 GB before, 0.00 GB after" in said
    assert "prepared: " in said
    assert main(["--model", "/nowhere", "--dtype", "bf16"]) == 1
    assert "names a folder that does not exist" in capsys.readouterr().err


def test_written_files_read_the_same_with_the_library(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "odd": torch.arange(7, dtype=torch.uint8),
        "wide": torch.randn(3, 5, dtype=torch.float64),
        "half": torch.randn(11).to(torch.bfloat16),
        "turned": torch.randn(4, 6).t().contiguous(),
        "ints": torch.arange(5),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    found = list(stored_tensors(tmp_path / "in.safetensors"))
    assert {tensor.key: tuple(tensor.shape) for tensor in found} == {k: tuple(v.shape) for k, v in tensors.items()}
    wanted = {tensor.key: tensor.dtype for tensor in found} | {"turned": torch.float8_e4m3fn}
    write_shard(tmp_path / "out.safetensors", found, wanted)
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safe_open(tmp_path / "out.safetensors", framework="pt") as shard:
        for key, tensor in tensors.items():
            read = shard.get_tensor(key)
            assert read.dtype == wanted[key]
            assert read.shape == tensor.shape
            expected = tensor.to(torch.bfloat16).to(wanted[key]) if key == "turned" else tensor
            assert torch.equal(read.double(), expected.double())


def test_float8_saturates_where_a_plain_cast_would_give_nan() -> None:
    values = convert(torch.tensor([1e6, -1e6, 448.0, 1.0]), torch.float8_e4m3fn).float()
    assert values.tolist() == [448.0, -448.0, 448.0, 1.0]


@pytest.mark.slow
def test_memory_stays_at_a_shard(cache: Path, tmp_path: Path) -> None:
    """Two files of 100 MB: with shards of 30 MB the conversion may grow by one of them, and what it is made of."""
    folder = cache / PLAIN / "transformer"
    index_path = folder / f"diffusion_pytorch_model{SUFFIX}"
    weight_map = read_index(index_path)
    for number, name in enumerate(sorted(set(weight_map.values()))[:2]):
        extra = {f"blocks.{number}{part}.extra.weight": torch.full((1250, 2500), 0.5) for part in range(8)}
        save_file(load_file(folder / name) | extra, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(extra, name)
    write_index(index_path, weight_map, 0)
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "import diffusers, torch\n"
        "from diffusers import WanTransformer3DModel\n"
        "from worker.weights import ModelCache, ModelFolder\n"
        "from worker.weights.convert import prepare\n"
        "torch.ones(4).to(torch.float8_e4m3fn)\n"
        # Not ru_maxrss: a child inherits that from the process that started it.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "folder = ModelFolder(Path(sys.argv[1]), 'org/name', None, 'cache')\n"
        "cache = ModelCache(Path(sys.argv[3]))\n"
        "prepare(folder, 'bf16', Path(sys.argv[2]), cache=cache, shard_bytes=30_000_000)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, cache / PLAIN, tmp_path / "out", cache],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_mb = int(done.stdout) / 1024
    assert 20 < grown_mb < 80
    assert check(tmp_path / "out") == []
