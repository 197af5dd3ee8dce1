# asft in a container: docker build -t asft .                    for CPUs
#                      docker build -t asft:cuda --target cuda . for NVIDIA GPUs
#
#     docker run --rm -v "$PWD:/work" asft init --sandbox try-asft
#     docker run --rm -v "$PWD/try-asft:/work" asft train --config configs/sandbox/train.toml
#
# Downloads of models go to /cache; mount a folder there to keep them. --user "$(id -u)" makes the files yours.

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build-cuda
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Kernels of the dependencies are compiled for this compute capability; 80 is an A100.
ARG CUDA_COMPUTE_CAP=80
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl g++ python3 && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --no-modify-path --default-toolchain none
ENV PATH=/root/.cargo/bin:$PATH
WORKDIR /src
COPY . .
RUN cargo build --release --locked --features cuda && strip target/release/asft && python3 scripts/third_party.py > THIRD_PARTY.txt

FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04 AS cuda
COPY --from=build-cuda /src/target/release/asft /usr/local/bin/asft
COPY --from=build-cuda /src/LICENSE /src/THIRD_PARTY.txt /usr/share/doc/asft/
ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["asft"]

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked && strip target/release/asft && python3 scripts/third_party.py > THIRD_PARTY.txt

FROM debian:bookworm-slim AS cpu
COPY --from=build /src/target/release/asft /usr/local/bin/asft
COPY --from=build /src/LICENSE /src/THIRD_PARTY.txt /usr/share/doc/asft/
ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["asft"]
