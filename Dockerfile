ARG BASE_IMAGE=python:3.11-slim-bookworm
# An nvidia/cuda devel image of torch's CUDA instead builds SageAttention: `builder/image.sh --sage` names it.
ARG SAGE_BASE_IMAGE=python:3.11-slim-bookworm

# The locked packages in a virtual environment. CUDA comes with torch's own wheels: the base needs none.
FROM ${BASE_IMAGE} AS packages
# For a small image without CUDA: a mounted folder that holds torch's CPU wheel, or an index that has it.
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_PROGRESS_BAR=off \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt
RUN python -m venv --without-pip /opt/venv && mkdir -p /opt/cuda /opt/torch
COPY builder/requirements-torch.txt builder/requirements-cuda.txt builder/flash3.py /opt/
# Where hashes are required pip takes the index's file before a folder's: with a folder, the index may not be asked.
# Only torch's CUDA build asks for NVIDIA's libraries: the rule of builder/setup_venv.py.
RUN pip --python /opt/venv/bin/python install ${PIP_FIND_LINKS:+--no-index} \
        --only-binary :all: --no-deps --require-hashes -r requirements-torch.txt \
    && asks="import importlib.metadata as m; print(any('nvidia' in r for r in m.requires('torch') or ()))" \
    && if [ "$(/opt/venv/bin/python -c "$asks")" = True ]; then \
        pip --python /opt/venv/bin/python install --prefix /opt/cuda \
            --only-binary :all: --no-deps --require-hashes -r requirements-cuda.txt \
        && python flash3.py /opt/cuda/lib/python3.11/site-packages; \
    fi
COPY builder/requirements.txt /opt/
# Bytecode here, or every cold start compiles thousands of modules. By hash and not by time, so that the build cache finds
# equal packages equal. The one file that is left out is written for Python 3.12.
RUN pip --python /opt/venv/bin/python install --only-binary :all: --no-deps --require-hashes -r requirements.txt \
    && compile="/opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode checked-hash -x py312_intrinsics" \
    && $compile /opt/venv/lib \
    && $compile -s /opt/cuda -p /opt/venv /opt/cuda \
    && mv /opt/venv/lib/python3.11/site-packages/torch /opt/torch/torch

# The worker's own files, readable by any user whatever the rights of the checkout.
FROM ${BASE_IMAGE} AS worker
WORKDIR /app
COPY handler.py test_input.json LICENSE THIRD_PARTY_NOTICES.md ./
COPY worker/ worker/
COPY client/src/videogen_client/ videogen_client/
COPY builder/__init__.py builder/prepare.py builder/entrypoint.py builder/
RUN python -m compileall -q --invalidation-mode checked-hash . && chmod -R u=rwX,go=rX .

# From the largest and most constant to the smallest and most changing: a host does not pull again what it has.
FROM ${BASE_IMAGE} AS installed
COPY --from=packages /opt/cuda/ /opt/venv/
COPY --from=packages /opt/torch/ /opt/venv/lib/python3.11/site-packages/
COPY --from=packages /opt/venv/ /opt/venv/
ENV PATH=/opt/venv/bin:$PATH
# Triton, which comes with torch's CUDA build, compiles a small launcher in C for torch.compile and for SageAttention.
ARG WITH_COMPILER=1
# hadolint ignore=DL3008
RUN if [ "$WITH_COMPILER" = 1 ] && [ -d /opt/venv/lib/python3.11/site-packages/triton ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/*; \
    fi

FROM ${SAGE_BASE_IMAGE} AS cuda

FROM installed AS sage
ARG BASE_IMAGE
ARG SAGE_BASE_IMAGE
ARG SAGE_CUDA=13.0
# v2.2.0. A commit, not a tag: git checks what it fetches against it.
ARG SAGE_REF=eb615cf6cf4d221338033340ee2de1c37fbdba4a
# A100, A40 and RTX 30, RTX 40 and L40S, H100 and H200, RTX 50 and RTX PRO 6000.
ARG SAGE_CUDA_ARCHS="8.0;8.6;8.9;9.0;12.0"
# Compilers at once; each takes some GB of memory.
ARG SAGE_JOBS=2
COPY builder/nvcc.sh builder/sage.sh /opt/
RUN --mount=type=bind,from=cuda,target=/mnt/cuda sh /opt/sage.sh

# All but the worker itself and what is baked in.
FROM installed AS runtime
RUN useradd --create-home --uid 1000 worker \
    && mkdir /app \
    && install -d -o worker -g worker /app/outputs /app/.state
COPY --from=sage /opt/sage/ /opt/venv/lib/python3.11/site-packages/
WORKDIR /app

# Models in the image, for endpoints without a volume: none unless BAKE_MODELS names some.
FROM runtime AS models
ARG BAKE_MODELS=none
ARG BAKE_DTYPE=bf16
# A mirror of the hub.
ARG HF_ENDPOINT
COPY --from=worker /app/ /app/
COPY builder/bake.py builder/
# The token is there during this command only, and in no layer.
RUN --mount=type=secret,id=hf_token \
    HF_TOKEN="$(cat /run/secrets/hf_token 2>/dev/null || true)" HF_HOME=/tmp/hub \
        python -m builder.bake --models "$BAKE_MODELS" --dtype "$BAKE_DTYPE" --into /baked

FROM runtime
COPY --from=models /baked/0/ /models/
COPY --from=models /baked/1/ /models/
COPY --from=models /baked/2/ /models/
COPY --from=models /baked/3/ /models/
COPY --from=models /baked/4/ /models/
COPY --from=models /baked/5/ /models/
COPY --from=models /baked/6/ /models/
COPY --from=models /baked/7/ /models/
COPY --from=worker /app/ /app/
# Nothing is written outside /tmp, the volume and OUTPUT_DIR: the root file system may be read-only.
ENV HOME=/home/worker \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    CUDA_CACHE_PATH=/tmp/cache/cuda \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="VideoGen-RunPod" \
      org.opencontainers.image.description="A RunPod serverless worker that makes short videos with Wan 2.2 A14B" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# root for as long as builder/entrypoint.py opens the volume; the worker runs as uid 1000. `1000` is never root, for
# volumes that are open already.
ARG RUN_AS=root
USER ${RUN_AS}
# The worker serves no port: what can be seen from outside is that process 1 is neither stopped nor a zombie.
HEALTHCHECK --interval=60s --timeout=5s CMD ["grep", "-q", "^State:.[RSDI]", "/proc/1/status"]
ENTRYPOINT ["python", "-I", "-S", "/app/builder/entrypoint.py"]
CMD ["python", "-u", "handler.py"]
