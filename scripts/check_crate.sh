#!/usr/bin/env bash
# Whether the crates hold all that they are made of, and asft's is small enough: scripts/check_crate.sh
# Packs asft's and its sandbox's, and lets the compiler check asft from the two alone. What `cargo clippy` has checked of the dependencies is
# used again. (`cargo package --workspace` builds them instead, and takes as long as the first build in a clone.)
set -euo pipefail
cd "$(dirname "$0")/.."

MOST_BYTES=3000000

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The two are packed for one another: no registry has this version of the sandbox.
cargo package --workspace --no-verify --allow-dirty --locked --quiet --target-dir "$scratch/packed"
for crate in "$scratch"/packed/package/*.crate; do
    tar -xzf "$crate" -C "$scratch"
    echo "$(basename "$crate"): $(wc -c < "$crate") bytes"
done
bytes=$(cat "$scratch"/packed/package/asft-[0-9]*.crate | wc -c)
if [ "$bytes" -gt "$MOST_BYTES" ]; then
    echo "asft's crate has more than $MOST_BYTES bytes; Cargo.toml says what it includes" >&2
    exit 1
fi

cd "$scratch"/asft-[0-9]*
# The profile differs from all others by a number that this does not use, so that builds of the working tree stay as they are.
CARGO_TARGET_DIR=$target cargo --config "patch.crates-io.asft-sandbox.path='$(echo "$scratch"/asft-sandbox-*)'" \
    --config profile.release.package.asft.codegen-units=7 check --release --quiet
echo "asft's crate has all that it is made of"
