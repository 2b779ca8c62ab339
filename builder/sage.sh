#!/bin/sh
# Builds SageAttention into /opt/sage, in the stage `sage` of the Dockerfile, which sets the variables. The folder stays
# empty where SAGE_BASE_IMAGE is no image with CUDA's compiler, mounted on /mnt/cuda, but the base itself.
set -eu
mkdir -p /opt/sage
if [ "$SAGE_BASE_IMAGE" = "$BASE_IMAGE" ]; then
  echo "SageAttention is left out: SAGE_BASE_IMAGE names no CUDA image"
  exit 0
fi
cuda=/mnt/cuda/usr/local/cuda-$SAGE_CUDA
if [ ! -x "$cuda/bin/nvcc" ]; then
  echo "$SAGE_BASE_IMAGE has no nvcc of CUDA $SAGE_CUDA, which torch is built for: take a devel image of that CUDA" >&2
  exit 1
fi
python -c "import sys, torch; sys.exit(torch.version.cuda != '$SAGE_CUDA' and f'torch is built for CUDA {torch.version.cuda}')"

apt-get update
apt-get install -y --no-install-recommends ca-certificates g++ git ninja-build
git init -q /opt/source
cd /opt/source
git fetch -q --depth 1 https://github.com/thu-ml/SageAttention.git "$SAGE_REF"
git checkout -q FETCH_HEAD

export CUDA_HOME="$cuda" NVCC="$cuda/bin/nvcc" LIBRARY_PATH="$cuda/lib64/stubs"
export PYTORCH_NVCC=/opt/nvcc.sh TORCH_CUDA_ARCH_LIST="$SAGE_CUDA_ARCHS" MAX_JOBS="$SAGE_JOBS" EXT_PARALLEL=1
pip --python /opt/venv/bin/python install --no-cache-dir --no-build-isolation --no-deps --target /opt/sage .
python -m compileall -q --invalidation-mode checked-hash /opt/sage
# Whether it can be loaded; that needs no GPU.
cd /
PYTHONPATH=/opt/sage python -c "import sageattention; print('SageAttention is built')"
