#!/usr/bin/env bash
# Builds and links asft with CUDA on a machine that has neither GPU, driver nor toolkit, and checks what such a build does
# there: scripts/check_cuda_build.sh [--keep-toolkit]
#
# If MPI and libclang are installed, the same is done for several processes with NCCL (`--features nccl`).
#
# The toolkit is installed from PyPI into target/cuda/, and the build goes there too: about 5 GB. Kernels and their callers
# are not optimised, to save time. Run this script when dependencies or device code change; CI does not. CUDA_COMPUTE_CAP
# (default 80) is what the kernels are compiled for, CARGO_BUILD_JOBS how many compilers run at once. --keep-toolkit uses
# what an earlier call installed.
set -euo pipefail
cd "$(dirname "$0")/.."

keep_toolkit=false
case "${1:-}" in
    "") ;;
    --keep-toolkit) keep_toolkit=true ;;
    *) echo "usage: $0 [--keep-toolkit]" >&2; exit 2 ;;
esac

step() { printf '== %s\n' "$*"; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

# One release of the toolkit: 13.0 update 2, the oldest whose wheels hold nvcc, for the widest range of drivers.
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35
    # Of the release that cudarc declares.
    nvidia-nccl-cu13==2.30.7
)
root=$PWD/target/cuda
home=$root/home

if [ "$keep_toolkit" = false ] || [ ! -x "$home/bin/nvcc" ]; then
    step "toolkit"
    rm -rf "$root/venv" "$home"
    mkdir -p "$home/lib64/stubs"
    python3 -m venv "$root/venv"
    "$root/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check --no-deps "${wheels[@]}"
    installed=$(echo "$root"/venv/lib/python3*/site-packages/nvidia)
    for part in bin include nvvm; do ln -s "$installed/cu13/$part" "$home/$part"; done
    # The linker looks for names without a version, which the wheels do not have.
    for library in "$installed"/{cu13,nccl}/lib/lib*; do
        name=$(basename "$library")
        ln -s "$library" "$home/lib64/$name"
        [[ "$name" != *.so.* ]] || ln -s "$library" "$home/lib64/${name%%.so.*}.so"
    done
    # No wheel has the driver's library. Nothing in it may be linked (src/device/driver.rs), so an empty one will do.
    cc -shared -o "$home/lib64/stubs/libcuda.so" -Wl,-soname,libcuda.so.1 -x c /dev/null
fi

step "build"
export CUDA_HOME=$home CUDA_PATH=$home PATH=$home/bin:$PATH
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CARGO_TARGET_DIR=$root/build
# No kernel will run, so none needs to be fast: without optimisation nvcc takes a tenth of the time.
export NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:--Xcicc -O0 -Xptxas -O0}
unoptimised=()
for package in asft candle-core candle-nn; do
    unoptimised+=(--config "profile.release.package.$package.opt-level=0")
done
asft=$CARGO_TARGET_DIR/release/asft
export LD_LIBRARY_PATH=$home/lib64

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Checks what a build with the features $1 is linked against (all of $3..., and not the driver) and calls itself ($2).
check_linked() {
    local features=$1 named=$2 needed version library
    shift 2
    needed=$(readelf -d "$asft" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    for library in "$@"; do
        grep -q "^$library\.so" <<< "$needed" || fail "$library is not linked with --features $features: $needed"
    done
    ! grep -q '^libcuda\.so' <<< "$needed" || fail "the driver is linked; src/device/driver.rs lacks a function"
    version=$("$asft" --version)
    [[ "$version" == *"$named)" ]] || fail "--version does not name $named: $version"
    echo "$version"
}
# Trains in a process that the command in `launcher` starts, or in several.
train() {
    "${launcher[@]}" "$asft" train --config configs/tiny.toml --set output.dir="$scratch/run" --overwrite "$@" \
        2> "$scratch/log"
}
# What the build does on this machine.
check_without_gpu() {
    local code=0
    train --set train.max_steps=2 || fail "device = \"auto\" does not train without a GPU: $(cat "$scratch/log")"
    grep 'computing on the CPU, as cuda cannot be opened' "$scratch/log" || fail "no word on the CPU: $(cat "$scratch/log")"
    train --set model.device=cuda || code=$?
    grep '^error' "$scratch/log" || fail "device = \"cuda\" gave no error"
    [ "$code" = 2 ] || fail "device = \"cuda\" exits with $code, expected 2"
    [ "$(grep -c 'libcuda.so.1 was not found' "$scratch/log")" = 1 ] || fail "the error does not say what is missing, once"
    ! grep -q 'panicked' "$scratch/log" || fail "a panic"
}
has_driver=false
! ldconfig -p | grep -q 'libcuda\.so\.1' || has_driver=true

cargo build --release --locked --features cuda "${unoptimised[@]}"
step "checks"
check_linked cuda cuda libcublas
launcher=()
[ "$has_driver" = true ] || check_without_gpu

find_libclang() { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' > /dev/null || ldconfig -p | grep -q libclang; }
if command -v mpicc > /dev/null && command -v mpirun > /dev/null && find_libclang; then
    step "build with NCCL"
    cargo build --release --locked --features nccl "${unoptimised[@]}"
    step "checks with NCCL"
    check_linked nccl "cuda, mpi, nccl" libcublas libmpi libnccl
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    launcher=(mpirun --oversubscribe --bind-to none -n 2)
    [ "$has_driver" = true ] || check_without_gpu
    step "lint and unit tests with NCCL"
    cargo clippy --release --locked --features nccl --lib --bins --tests -- -D warnings
    # NCCL makes its identifier without a GPU.
    cargo test --release --locked --features nccl "${unoptimised[@]}" --lib ranks::
else
    echo "no MPI or no libclang: the build with NCCL is not checked"
fi
[ "$has_driver" = false ] || echo "this machine has a driver: what happens without one is not checked"
echo "all checks passed"
