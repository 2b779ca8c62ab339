#!/usr/bin/env bash
# Measures the worker on the GPU that is here, most valuable first, within SECONDS_IN_ALL. No network is needed.
#
#     bash benchmarks/on_gpu/measure.sh [FOLDER]   from the project's root; FOLDER holds site.tar.xz of prepare.sh (default gpu-carry)
#
#     OUT=gpu-results                 where results.jsonl, log.txt and table.txt go
#     SECONDS_IN_ALL=540              of everything, unpacking included
#     PYTHON=python3                  the Python that has torch for CUDA
#     PARTS="main fp8 ..."            some of: tests main expandable fp8 stock weights pinned swap48 swap24 compile720
#     MAIN=facts,job480,...           the stages of `main` (measure.py names them), MAIN_SECONDS=355 its limit
#     HOST_GB=128                     main memory, where the machine shows less at first than it has
#     TINY=1                          tiny classes on the CPU: does it work?
set -u

carry=${1:-gpu-carry}
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
all=${SECONDS_IN_ALL:-540}
tiny=${TINY:+--tiny}
began=$(date +%s)

[ -d worker ] && [ -d benchmarks ] || { echo "run it from the project's root" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${TINY:-}" ] && [ ! -e "$carry" ]; then
    : # what is installed beside PYTHON is enough
elif [ -f "$carry/site.tar.xz" ]; then
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="fully_trusted")' \
        "$carry/site.tar.xz" "$site" || exit 2
else # wheels, as they are
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$carry"/*.whl || exit 2
fi
export PYTHONPATH="$site:$PWD" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTORCH_ALLOC_CONF=expandable_segments:True
export MODEL_CACHE_DIR="$site/cache"
mkdir -p "$MODEL_CACHE_DIR"

left() { echo $((all - ($(date +%s) - began))); }

part() { # NAME SECONDS COMMAND...: with a limit of its own, and never past the whole's
    local name=$1 limit=$2 rest
    shift 2
    case " ${PARTS:-main expandable fp8 tests stock weights swap48} " in *" $name "*) ;; *) return 0 ;; esac
    rest=$(left)
    if [ "$rest" -lt 25 ]; then
        echo "$name: left out, $rest s are left"
        return 0
    fi
    [ "$limit" -lt "$rest" ] || limit=$((rest - 5))
    echo "=== $name, at most $limit s"
    SECONDS_OF_PART=$limit timeout -k 10 "$limit" "$@" > >(tee -a "$out/log.txt" | grep -E '^\[|FAILED|passed|failed|Error' | cut -c1-220) 2>&1
    echo "=== $name ended with $?, $(left) s are left"
    sleep 1
}

measure() { "$python" -m benchmarks.on_gpu.measure "$1" --out "$out" --seconds $((SECONDS_OF_PART - 8)) ${HOST_GB:+--host-gb "$HOST_GB"} $tiny; }
export -f measure
export python out tiny

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu --format=csv,noheader | tee -a "$out/log.txt"
echo "unpacked after $(($(date +%s) - began)) s"

part main "${MAIN_SECONDS:-355}" bash -c \
    "measure ${MAIN:-facts,race,job480,attention,job720,pass,turbo480,decode,linear,profile,compile,turbo720}"
# Where memory ran out: a large video again, with segments of the allocator that grow instead of lying in pieces.
if grep -qs "out of memory" "$out/log.txt"; then
    part expandable 110 env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True bash -c 'measure facts,job720'
fi
part fp8 90 bash -c 'measure fp8'
part tests 170 "$python" -m pytest -c /dev/null --rootdir . -p no:cacheprovider -q -m gpu -W ignore tests/gpu
part stock 110 bash -c 'measure stock480'
part weights 70 bash -c 'measure weights'
part pinned 45 bash -c 'measure pinned'
part swap48 120 bash -c 'measure swap48'
part swap24 150 bash -c 'measure swap24'
part compile720 200 bash -c 'measure facts,compile720'

"$python" - "$out" <<'P' | tee "$out/table.txt"
import json
import sys
from pathlib import Path

file = Path(sys.argv[1]) / "results.jsonl"
print("\n| stage | what | value |\n| --- | --- | --- |")
for line in file.read_text().splitlines() if file.exists() else ():
    entry = json.loads(line)
    stage, what, value = entry.pop("stage"), entry.pop("what"), entry.pop("value")
    if what == "stage, s" or what.startswith("rest:"):
        continue
    more = ", ".join(f"{name} {each:.4g}" if isinstance(each, float) else f"{name} {each}" for name, each in entry.items())
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    print(f"| {stage} | {what} | {shown}{'; ' + more if more else ''} |"[:260])
P
echo "everything took $(($(date +%s) - began)) s"
