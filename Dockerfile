# Two images out of one file: `engine` speaks on a GPU, `agent` takes the calls.
#
#   docker build --target engine -t csm-engine .
#   docker build --target agent -t csm-agent .                   # --build-arg OFFLINE=1: with local models' packages
#
# The base is pinned by its tag; docs/deploy.md says how to pin it by digest as well.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV HOME=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 csm \
    && useradd --uid 10001 --gid csm --home-dir /tmp --no-create-home --shell /usr/sbin/nologin csm \
    && install --directory --owner csm --group csm /cache /voices /run/metrics
WORKDIR /app

FROM ${PYTHON_IMAGE} AS engine-packages
COPY constraints.txt deploy/requirements-engine.txt /build/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-virtualenv \
        -r /build/requirements-engine.txt -c /build/constraints.txt \
    && /opt/venv/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE} AS agent-packages
ARG OFFLINE=0
COPY constraints.txt requirements-offline.txt deploy/requirements-agent.txt /build/
RUN python -m venv /opt/venv \
    && if [ "${OFFLINE}" = 1 ]; then set -- -r /build/requirements-offline.txt; fi \
    && /opt/venv/bin/pip install --no-cache-dir --require-virtualenv \
        -r /build/requirements-agent.txt "$@" -c /build/constraints.txt \
    && /opt/venv/bin/pip uninstall --yes pip

FROM base AS engine
# Our own kernels need a compiler, on a GPU for Triton; without one the engine uses PyTorch's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:12.2.0-3 libc6-dev=2.36-9+deb12u14 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=engine-packages /opt/venv /opt/venv
COPY csm_tts_plugin /app/csm_tts_plugin
ENV HF_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    XDG_CACHE_HOME=/cache \
    CSM_VOICES_DIR=/voices
USER 10001:10001
VOLUME ["/cache", "/voices"]
EXPOSE 8090
STOPSIGNAL SIGTERM
# Not ready while the model downloads, loads and its graphs are captured.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8090/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "csm_tts_plugin"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8090"]

FROM base AS agent
ARG OFFLINE=0
# xllamacpp's only need beyond the base.
RUN if [ "${OFFLINE}" = 1 ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends libgomp1=12.2.0-14+deb12u1 \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=agent-packages /opt/venv /opt/venv
COPY csm_tts_plugin /app/csm_tts_plugin
COPY livekit /app/livekit
COPY agent.py /app/agent.py
ENV AGENT_HEALTH=0.0.0.0:8081 \
    AGENT_METRICS_PORT=9464 \
    PROMETHEUS_MULTIPROC_DIR=/run/metrics
USER 10001:10001
EXPOSE 8081 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8081/', timeout=4)"]
ENTRYPOINT ["python", "agent.py"]
CMD ["start"]
