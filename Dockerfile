# `hybrid serve` as a user without rights. scripts/container_steps.py runs these steps where there is no engine for containers.
#
#   docker build -t hybrid .                                             for the CPU
#   docker build -t hybrid --build-arg TORCH=cuda .                      for NVIDIA's GPUs
#   docker run -p 127.0.0.1:8000:8000 -v hybrid:/data hybrid             the shipped model
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/relu7b:/model:ro" -v hybrid:/data --gpus all hybrid serve /model --host 0.0.0.0 --vram 6GiB
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /opt/build && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM debian:bookworm-slim
ARG TORCH=cpu
# Triton compiles a small launcher in C when it first meets a GPU.
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv $([ "$TORCH" = cpu ] || echo gcc libc6-dev python3-dev) && rm -rf /var/lib/apt/lists/*
COPY scripts/install_torch.sh /opt/install_torch.sh
RUN python3 -m venv /opt/hybrid && PIP_NO_CACHE_DIR=1 bash /opt/install_torch.sh /opt/hybrid/bin/python "$TORCH"
COPY --from=build /wheels /wheels
RUN for wheel in /wheels/*.whl; do /opt/hybrid/bin/pip install --no-cache-dir "$wheel[serve,gpu]"; done
# What is made anew (the shipped model unpacked, plans, compiled kernels) lies in the volume.
RUN useradd --uid 1000 --home-dir /data --create-home hybrid
ENV PATH=/opt/hybrid/bin:/usr/local/bin:/usr/bin:/bin HYBRID_CACHE=/data/cache TRITON_CACHE_DIR=/data/triton PYTHONUNBUFFERED=1
USER hybrid
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"
STOPSIGNAL SIGTERM
ENTRYPOINT ["hybrid"]
CMD ["serve", "demo", "--host", "0.0.0.0"]
