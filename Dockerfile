ARG BASE_IMAGE=python:3.11-slim-bookworm

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
COPY builder/requirements-torch.txt builder/requirements-cuda.txt /opt/
# Where hashes are required pip takes the index's file before a folder's: with a folder, the index may not be asked.
# Only torch's CUDA build asks for NVIDIA's libraries: the rule of builder/setup_venv.py.
RUN pip --python /opt/venv/bin/python install ${PIP_FIND_LINKS:+--no-index} \
        --only-binary :all: --no-deps --require-hashes -r requirements-torch.txt \
    && asks="import importlib.metadata as m; print(any('nvidia' in r for r in m.requires('torch') or ()))" \
    && if [ "$(/opt/venv/bin/python -c "$asks")" = True ]; then \
        pip --python /opt/venv/bin/python install --prefix /opt/cuda \
            --only-binary :all: --no-deps --require-hashes -r requirements-cuda.txt; \
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
COPY handler.py test_input.json ./
COPY worker/ worker/
COPY builder/__init__.py builder/prepare.py builder/
RUN python -m compileall -q --invalidation-mode checked-hash . && chmod -R u=rwX,go=rX .

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 1000 worker \
    && mkdir /app \
    && install -d -o worker -g worker /app/outputs /app/.state
# From the largest and most constant to the smallest and most changing: a host does not pull again what it has.
COPY --from=packages /opt/cuda/ /opt/venv/
COPY --from=packages /opt/torch/ /opt/venv/lib/python3.11/site-packages/
COPY --from=packages /opt/venv/ /opt/venv/
COPY --from=worker /app/ /app/
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="VideoGen-RunPod" \
      org.opencontainers.image.description="A RunPod serverless worker that makes short videos with Wan 2.2 A14B" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# root where the network volume belongs to root and cannot be opened to uid 1000 (docs/image.md).
ARG RUN_AS=worker
USER ${RUN_AS}
# The worker serves no port: what can be seen from outside is that process 1 is neither stopped nor a zombie.
HEALTHCHECK --interval=60s --timeout=5s CMD ["grep", "-q", "^State:.[RSDI]", "/proc/1/status"]
CMD ["python", "-u", "handler.py"]
