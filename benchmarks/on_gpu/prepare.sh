#!/usr/bin/env bash
# Packs what the worker needs on a GPU machine without network, beside the torch that is installed there.
#
#     bash benchmarks/on_gpu/prepare.sh [FOLDER]   from the project's root; FOLDER (default gpu-carry) then holds
#                                     site.tar.xz, which is to be carried (40 MB with everything)
#
# For Linux on x86-64, Python 3.12, torch 2.10 or later for CUDA 13 with transformers, accelerate, huggingface_hub,
# peft, safetensors, pillow, psutil, requests and prometheus-client beside it. The project's own pins are taken where
# it has them. FlashAttention 3's forward kernel (fa3-fwd) is packed under the names that Diffusers looks for.
#
#     PYTHON=python3.12               the Python that asks the package registry (any 3.9 or later will do)
#     FLASH3=0 FFMPEG=0               without FlashAttention 3 (11 MB), without ffmpeg (25 MB; then frames are dropped)
#     LEVEL=6                         of xz
set -euo pipefail

folder=${1:-gpu-carry}
python=${PYTHON:-python3}
pins=builder/requirements.txt
[ -f "$pins" ] || { echo "run it from the project's root: there is no $pins here" >&2; exit 2; }

pin() { # NAME [OTHERWISE]: the project's version of a package
    local found
    found=$(sed -n "s/^$1==\([^ ]*\).*/\1/p" "$pins" | head -1)
    found=${found:-${2:-}}
    echo "$1${found:+==$found}"
}

wanted=(
    "$(pin diffusers)" "$(pin ftfy)" "$(pin wcwidth)" "$(pin importlib-metadata)"
    "$(pin pydantic)" "$(pin pydantic-core)" "$(pin pydantic-settings)" "$(pin annotated-types)"
    "$(pin typing-inspection)" "$(pin python-dotenv)" "$(pin rapidfuzz)"
    "$(pin standardwebhooks)" "$(pin ssrfguard)" "$(pin httpx2)" "$(pin httpcore2)" "$(pin truststore)"
    "$(pin boto3)" "$(pin botocore)" "$(pin s3transfer)" "$(pin jmespath)"
    pytest-asyncio hypothesis sortedcontainers
)
# The release before the pinned one is half as large, and the worker asks it for nothing but the place of its ffmpeg.
[ "${FFMPEG:-1}" = 1 ] && wanted+=(imageio-ffmpeg==0.6.0)
[ "${FLASH3:-1}" = 1 ] && wanted+=(fa3-fwd==0.0.3)

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels"
platforms=()
for each in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${each}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform linux_x86_64)
for each in "${wanted[@]}"; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --abi cp312 --abi abi3 --abi none "${platforms[@]}" -d "$work/wheels" "$each" 2> "$work/pip.log" \
        || { cat "$work/pip.log" >&2; exit 1; }
done

# Wheels are zip files: unpacked here, nothing is to be installed there.
"$python" - "$work" <<'P'
import shutil
import sys
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
site = folder / "site"
for wheel in sorted((folder / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
# Of Amazon's services only storage is used.
data = site / "botocore" / "data"
kept = {"s3", "endpoints.json", "partitions.json", "sdk-default-configuration.json", "_retry.json"}
for entry in data.iterdir() if data.is_dir() else ():
    if entry.name not in kept:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
if (binaries := site / "imageio_ffmpeg" / "binaries").is_dir():
    for binary in binaries.glob("ffmpeg*"):
        binary.chmod(0o755)
else:  # what is encoded then goes nowhere
    stub = site / "imageio_ffmpeg"
    stub.mkdir()
    (stub / "__init__.py").write_text(
        "from pathlib import Path\n\n\ndef get_ffmpeg_exe():\n    return str(Path(__file__).parent / 'ffmpeg')\n\n\n"
        "def get_ffmpeg_version():\n    return 'none'\n"
    )
    script = stub / "ffmpeg"
    script.write_text('#!/bin/sh\nfor last; do :; done\ncat > /dev/null\nprintf none > "${last#file:}"\n')
    script.chmod(0o755)
if (site / "fa3_fwd_interface.py").exists():
    (site / "flash_attn_interface.py").write_text(
        "from fa3_fwd_interface import flash_attn_func, flash_attn_varlen_func\n\n"
        '__all__ = ["flash_attn_func", "flash_attn_varlen_func"]\n'
    )
    (site / "flash_attn_3").mkdir(exist_ok=True)
    (site / "flash_attn_3" / "__init__.py").write_text("")
    info = site / "flash_attn_3-3.0.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash_attn_3\nVersion: 3.0.0\n")
    (info / "top_level.txt").write_text("flash_attn_3\n")
    (info / "RECORD").write_text("")
for name in ("tests", "__pycache__"):
    for found in [*site.rglob(name)]:
        shutil.rmtree(found, ignore_errors=True)
P

tar -C "$work/site" -cf - . | xz -T1 "-${LEVEL:-6}" > "$folder/site.tar.xz.part"
mv "$folder/site.tar.xz.part" "$folder/site.tar.xz"
du -h "$folder/site.tar.xz"
