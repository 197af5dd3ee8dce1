#!/usr/bin/env bash
# Asks `asft serve` with clients that nobody here wrote, and compares what they find with what asft's other commands say:
# scripts/check_serve_clients.sh [--asft BINARY] [openai|inspect|lm-eval]...
#
# openai: the API's own Python client: chats, streams, completions, scores, errors, the key. inspect: answers of an adapter in
# Inspect, against the accuracy that `asft eval` finds. lm-eval: multiple choice by likelihood and rolling likelihoods in
# lm-evaluation-harness, against `asft eval`'s choice and loss. All of them if none is named. Everything is local: the toy model,
# its data, and an adapter trained for this.
#
# The clients come from PyPI into target/serve-clients/ (0.9 GB, most of it below lm-eval: pyarrow, scipy, pandas; no torch), by uv, which takes a
# third of pip's time for it. Where PyPI cannot be reached, one line says so and nothing is checked. BINARY is target/release/asft if none is given.
set -euo pipefail

# A relative path is the caller's.
asft=
[ "${1:-}" != --asft ] || { asft=$(realpath "${2:?a path comes after --asft}"); shift 2; }
cd "$(dirname "$0")/.."
asft=${asft:-${CARGO_TARGET_DIR:-target}/release/asft}
[ -x "$asft" ] || { echo "$asft does not exist; cargo build --release first" >&2; exit 2; }
[ $# -gt 0 ] || set -- openai inspect lm-eval
uv=uv==0.13.9
declare -A packages=(
    [openai]="openai==3.57.0"
    [inspect]="openai==3.57.0 inspect-ai==0.3.285"
    [lm-eval]="lm-eval[api]==0.4.13 transformers==5.24.0"
)
wanted=()
for client in "$@"; do
    [ -n "${packages[$client]:-}" ] || { echo "usage: $0 [--asft BINARY] [openai|inspect|lm-eval]..." >&2; exit 2; }
    read -ra more <<< "${packages[$client]}"
    wanted+=("${more[@]}")
done

root=$PWD/target/serve-clients
mkdir -p "$root"
[ -x "$root/venv/bin/python" ] || python3 -m venv "$root/venv"
python=$root/venv/bin/python
skip() {
    echo "skipped: PyPI cannot be reached ($1), so the clients of asft serve are not checked"
    exit 0
}
if ! "$python" -m pip install --quiet --disable-pip-version-check "$uv" 2> "$root/pip.log"; then
    grep -q "(from versions: none)" "$root/pip.log" && skip "$root/pip.log"
    cat "$root/pip.log" >&2
    exit 1
fi
if ! "$python" -m uv pip install --quiet --no-cache --python "$python" "${wanted[@]}" 2> "$root/uv.log"; then
    grep -qE "error sending request|timed out" "$root/uv.log" && skip "$root/uv.log"
    cat "$root/uv.log" >&2
    exit 1
fi

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2> /dev/null || true
    rm -rf "$work"
}
trap finish EXIT

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
"$asft" -q train --config configs/tiny.toml --set "output.dir=$work/run" --set train.max_steps=60
echo s3cret > "$work/key"
"$asft" -q serve --model tests/tiny/aligned --adapter "tuned=$work/run" --port 0 --api-key-file "$work/key" > "$work/address" &
server=$!
for _ in $(seq 100); do
    [ -s "$work/address" ] && break
    sleep 0.1
done
address=$(cat "$work/address")
[ -n "$address" ] || { echo "asft serve did not start" >&2; exit 1; }

for client in "$@"; do
    "$root/venv/bin/python" scripts/serve_clients.py "$client" --asft "$asft" --address "$address" --key s3cret \
        --model tests/tiny/aligned --adapter "$work/run" --work "$work"
done
kill -TERM "$server"
wait "$server"
server=
echo "asft serve answered $* as asft's own commands do"
