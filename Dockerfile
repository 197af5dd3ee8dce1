# asft in a container: docker build -t asft .                    for CPUs
#                      docker build -t asft:cuda --target cuda . for NVIDIA GPUs
#
#     docker run --rm -v "$PWD:/work" asft init --sandbox try-asft
#     docker run --rm -v "$PWD/try-asft:/work" asft train --config configs/sandbox/train.toml
#
# Downloads of models go to /cache; mount a folder of yours there to keep them. --user "$(id -u)" makes the files yours.

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6 AS build-cuda
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Kernels of the dependencies are compiled for this compute capability; 80 is an A100.
ARG CUDA_COMPUTE_CAP=80
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl g++ python3 && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --no-modify-path --default-toolchain none
WORKDIR /src
COPY . .
RUN cargo build --release --locked --features cuda && python3 scripts/third_party.py > THIRD_PARTY.txt

FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04@sha256:6a0e31b59e70890446f2c17356d6efc0d54260090a8c63d6ca7c2ad049db95d2 AS cuda
COPY --from=build-cuda /src/target/release/asft /usr/local/bin/asft
COPY --from=build-cuda /src/LICENSE /src/THIRD_PARTY.txt /usr/share/doc/asft/
# Whoever --user names writes here.
RUN mkdir -m 1777 /cache
ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["asft"]

FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked && python3 scripts/third_party.py > THIRD_PARTY.txt

FROM debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171 AS cpu
COPY --from=build /src/target/release/asft /usr/local/bin/asft
COPY --from=build /src/LICENSE /src/THIRD_PARTY.txt /usr/share/doc/asft/
# Whoever --user names writes here.
RUN mkdir -m 1777 /cache
ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["asft"]
