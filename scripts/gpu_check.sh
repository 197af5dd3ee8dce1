#!/usr/bin/env bash
# Everything there is to know about asft on a GPU, in one go, as a JSON file and a page of Markdown beside it:
#   scripts/gpu_check.sh [--device cuda|metal|cpu] [--shape qwen2-7b|tiny] [--model DIR] [--card NAME] [--out FILE] [--skip-build]
#
# Builds with the device's feature, runs asft doctor and every golden on the device, NCCL's sums where NCCL and Open MPI are, then the same
# training step in asft and in PyTorch + PEFT on the same GPU, at three lengths, with and without dropout and the penalty: tokens per second,
# peak memory, share of the GPU's bf16 peak, and what `asft train --dry-run --gpu` predicts. Needs a Rust toolchain, nvcc for cuda,
# and a Python with torch, transformers, peft, safetensors (PYTHON, default python3). --model is a folder with real
# weights; without it, Qwen2-7B's shape gets random ones. The penalty needs a second model of the same size: 45 GB of disk under TMPDIR for
# both. --card is what `--gpu` calls a GPU whose driver's name is not known. `--device cpu --shape tiny` rehearses all of it without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

device=cuda shape="" model="" card="" out=gpu-check.json build=true
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device=$2; shift 2 ;;
        --shape) shape=$2; shift 2 ;;
        --model) model=$2; shift 2 ;;
        --card) card=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --skip-build) build=false; shift ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
done
case "$device" in
    cuda | metal) features=(--features "$device") ;;
    cpu) features=() ;;
    *) echo "--device is cuda, metal or cpu, not $device" >&2; exit 2 ;;
esac
[ -n "$shape" ] || { [ "$device" = cpu ] && shape=tiny || shape=qwen2-7b; }
python=${PYTHON:-python3}
"$python" -c 'import torch, transformers, peft, safetensors' || { echo "$python lacks a package; set PYTHON" >&2; exit 2; }

step() { printf '== %s\n' "$*" >&2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "$build" = true ]; then
    step "build"
    cargo build --release --locked "${features[@]}"
fi
asft=${CARGO_TARGET_DIR:-target}/release/asft
"$asft" --version >&2

# On the CPU the operations that a GPU would run take the kernels' place.
[ "$device" != cpu ] || export ASFT_OPS=generic

# Every operation against f64. A fault is a result too: what follows tells whether it matters.
doctor=()
for dtype in bf16 f32; do
    step "doctor on $device in $dtype"
    "$asft" doctor --device "$device" --dtype "$dtype" --json > "$scratch/doctor-$dtype.json" || true
    [ -s "$scratch/doctor-$dtype.json" ] || { echo "asft doctor did not run" >&2; exit 1; }
    doctor+=(--doctor "$scratch/doctor-$dtype.json")
done

# What loads, computes, trains and exports, against the goldens of PyTorch, on the device; the binary's own tests take
# the device that "auto" finds.
step "goldens on $device"
modules=(parity families training export constrained_sft defence_terms defence_steps lora_options penalty lambda module_shares run_direction data_mix
    defences evaluation with_direction quantised gguf_types qwen3_5 gemma4 routing wrappers naive_hybrid)
# A failed test is a result: all of them run, and the JSON records it.
ASFT_TEST_DEVICE=$device scripts/test_modules.sh "${modules[@]}" -- "${features[@]}" 2>&1 |
    tee "$scratch/tests.log" >&2 || true
grep -q '^test result' "$scratch/tests.log" || { echo "the tests did not run" >&2; exit 1; }
unset ASFT_OPS

# One GPU sums alone; the test of two trains on each, and on one. Without NCCL or mpirun nothing is built, and the page says "not run".
if [ "$device" = cuda ] && command -v mpirun > /dev/null &&
    cargo build --release --locked --features nccl --target-dir "$scratch/nccl" >&2; then
    step "sums by NCCL"
    gpus=$(nvidia-smi --list-gpus | wc -l)
    nccl=(cargo test --release --locked --features nccl --target-dir "$scratch/nccl")
    {
        ASFT_TEST_DEVICE=cuda "${nccl[@]}" --lib ranks::nccl || true
        [ "$gpus" -lt 2 ] || ASFT_TEST_DEVICE=cuda "${nccl[@]}" --test mpi by_nccl || true
    } 2>&1 | tee "$scratch/nccl.log" >&2
fi

step "a step, beside PyTorch + PEFT"
"$python" scripts/gpu_step.py --asft "$asft" --device "$device" --shape "$shape" ${model:+--model "$model"} ${card:+--card "$card"} \
    "${doctor[@]}" --tests "$scratch/tests.log" --nccl "$scratch/nccl.log" --out "$out"
