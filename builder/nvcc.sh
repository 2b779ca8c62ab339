#!/bin/sh
# Stands before nvcc while SageAttention is built (PYTORCH_NVCC): gives each source the GPUs that it can be built for.
#
# SageAttention 2.2.0 compiles all of its sources for every GPU of TORCH_CUDA_ARCH_LIST, but the one for Hopper uses
# instructions that only sm_90a has: with any other GPU in the list ptxas refuses it. Here a source named *sm90* gets
# the -gencode of 90a alone, and all others keep theirs. `--threads` goes: ninja's MAX_JOBS alone says how many
# compilers run at once, and so how much memory is taken.
set -eu
hopper_only=false
for argument in "$@"; do
  case $argument in *sm90*.cu) hopper_only=true ;; esac
done

count=$#
while [ "$count" -gt 0 ]; do
  argument=$1
  shift
  count=$((count - 1))
  case $argument in
    --threads=*) ;;
    --threads | -t)
      shift
      count=$((count - 1))
      ;;
    -gencode)
      target=$1
      shift
      count=$((count - 1))
      case $hopper_only:$target in
        false:* | true:*sm_90a*) set -- "$@" -gencode "$target" ;;
      esac
      ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec "${NVCC:-/usr/local/cuda/bin/nvcc}" "$@"
