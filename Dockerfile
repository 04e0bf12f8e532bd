# vidlit in a container, on a CPU or on NVIDIA GPUs; docs/guides/docker.md says how to run it.
#
#   docker build --tag vidlit .
#   docker build --tag vidlit:cuda --build-arg DEVICE=cuda .
#
# torch's own CUDA build brings the CUDA libraries: the machine gives its driver alone.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG DEVICE=cpu

# A compiler: what model.memory.compile makes of a model is built for its GPU.
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /opt/vidlit
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY configs configs
COPY vidlit vidlit
RUN if [ "$DEVICE" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi; \
    pip install --no-cache-dir -c constraints.txt ".[optimizers,quantize,s3,scenes]" && rm -rf build vidlit.egg-info

# Any user of the machine may run it (--user): what is cached goes below /cache, and files go where they start.
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache LOGNAME=vidlit HOME=/tmp OMP_NUM_THREADS=1
RUN mkdir -m 1777 /cache /work
WORKDIR /work
USER 1000:1000

ENTRYPOINT ["vidlit"]
CMD ["--help"]
