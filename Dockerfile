# One image for Ray, the jobs, the embedded object store and serving, on CPUs and GPUs.
#
#   BASE          an image with Python 3.11 or newer, venv, bash and wget
#   ENVIRONMENT   where /opt/venv comes from: the stage below, or an image that has it already (one with another
#                 build of torch, say)
#
# Dependencies are a layer of their own, installed by hash and compiled to bytecode, since a pod cannot write it; the
# code is the last layer. Nothing is installed when a container runs. It builds with BuildKit and without.
ARG BASE=python:3.11-slim-bookworm
ARG ENVIRONMENT=dependencies

FROM ${BASE} AS dependencies
ENV PYTHONDONTWRITEBYTECODE= UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
COPY requirements-uv.lock requirements.lock /tmp/locks/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes \
        -r /tmp/locks/requirements-uv.lock \
    && /opt/venv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes -r /tmp/locks/requirements.lock \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes uv \
    && rm -rf /tmp/locks

FROM ${ENVIRONMENT} AS environment

FROM ${BASE}
RUN groupadd --gid 1000 codeparrot \
    && useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin codeparrot \
    && install -d -o 1000 -g 1000 /app /cache /data /run/codeparrot
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    CODEPARROT_CACHE=/cache
COPY --from=environment /opt/venv /opt/venv
COPY recipes /app/recipes
COPY k8s /app/k8s
COPY codeparrot /app/codeparrot
COPY ray_jobs /app/ray_jobs
RUN /opt/venv/bin/python -m compileall -q /app
# A node's first worker waits until the fork server has imported what all of them need (ray_jobs/worker_fork.py).
ENV RAY_worker_register_timeout_seconds=300
WORKDIR /app
USER 1000:1000
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="codeparrot" \
      org.opencontainers.image.description="Source code in, a code language model out: Ray jobs, training, store" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
CMD ["python", "-m", "ray_jobs.pipeline", "--help"]
