#!/usr/bin/env bash
# Runs the tests of the unsafe kernels (src/ops) under AddressSanitizer: scripts/check_sanitizers.sh [cargo test arguments]
# Needs nightly Rust: rustup toolchain install nightly. The kernels are built alone, as a package in target/sanitizers with
# only the dependencies they need, in the versions of Cargo.lock: building the whole program takes far longer.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

package=${CARGO_TARGET_DIR:-$root/target}/sanitizers
mkdir -p "$package"
ln -sfn "$root/src" "$package/src"
cp Cargo.lock "$package"
echo '#[path = "src/ops/mod.rs"] pub mod ops;' > "$package/lib.rs"
{
    printf '[workspace]\n\n[package]\nname = "asft"\nversion = "0.1.0"\nedition = "2024"\n\n[lib]\npath = "lib.rs"\n\n'
    # Including the AVX-512 kernels, as in the program.
    printf '[features]\ndefault = ["gemm/x86-v4"]\n\n[dependencies]\n'
    grep -E '^(anyhow|candle-core|candle-nn|gemm|half|libc|pulp|rand|rand_chacha|rayon) = ' Cargo.toml
    # Optimised as the program is, but with the standard library's checks of pointers and lengths.
    printf '\n[profile.release]\ndebug = 1\ndebug-assertions = true\noverflow-checks = true\n'
} > "$package/Cargo.toml"
target=$(rustc +nightly -vV | sed -n 's/^host: //p')
cd "$package"
export CARGO_TARGET_DIR=$PWD
# The target is named so that build scripts stay out of it.
RUSTFLAGS=-Zsanitizer=address cargo +nightly test --release --lib --target "$target" "$@"
