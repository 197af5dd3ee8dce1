#!/usr/bin/env bash
# Remakes sandbox/: data and tokenizer from sandbox/make/sandbox.py, then the model pair, trained by asft itself.
#   sandbox/make/sandbox.sh [OUT_DIR (sandbox) [SEED (5)]]
# Another seed makes another pair: other people, facts, samples and weights of the same kind. ASFT may name a binary that is built already.
# A few minutes on two idle cores. The data are the same bytes everywhere; the weights round differently on other CPUs.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-sandbox}
seed=${2:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
asft() { if [ -n "${ASFT:-}" ]; then "$ASFT" "$@"; else cargo run --release --locked --quiet -- "$@"; fi; }

python3 sandbox/make/sandbox.py make --work "$work" --out "$out" --seed "$seed"
# In this order: the aligned model is the shipped unaligned one, trained further.
for name in unaligned aligned; do
    asft train --config "$work/$name.toml"
    python3 sandbox/make/sandbox.py half "$work/runs/$name/model" "$out/$name"
done
du -sh "$out"
