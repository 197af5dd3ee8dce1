#!/usr/bin/env bash
# Runs the tests of the room that holds unsafe code, src/ops, under AddressSanitizer: scripts/check_sanitizers.sh [FILTER ...]
# Needs nightly Rust: rustup toolchain install nightly. Everything is built once more, in target/sanitizers, and hardly optimised: what a
# sanitizer sees does not depend on it. FILTER are names of tests, by default `ops::`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- ops::

target=$(rustc +nightly -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/sanitizers
# Including the AVX-512 kernels, as in the program, and with the standard library's checks of pointers and lengths.
profile=()
for setting in opt-level=1 debug=1 debug-assertions=true overflow-checks=true codegen-units=16; do
    profile+=(--config "profile.release.$setting")
done
# The target is named so that build scripts stay out of it.
RUSTFLAGS=-Zsanitizer=address cargo +nightly test "${profile[@]}" --release --locked --lib --target "$target" -- "$@"
