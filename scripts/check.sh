#!/usr/bin/env bash
# Everything that must hold before a change is kept: scripts/check.sh [--skip-tests]
# Formatting, lints, documentation, scripts, every shipped config, then the tests, which are built in any case. Everything is built
# in release mode, so that the dependencies are compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."

skip_tests=false
case "${1:-}" in
    "") ;;
    --skip-tests) skip_tests=true ;;
    *) echo "usage: $0 [--skip-tests]" >&2; exit 2 ;;
esac

step() { printf '== %s\n' "$*"; }

step "format"
cargo fmt --all --check

step "scripts parse"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
shell_scripts=0 python_folders="scripts python tests sandbox fuzz" source_folders="src tests benches examples fuzz scripts python sandbox"
for script in .ci/run scripts/*.sh sandbox/make/*.sh; do
    bash -n "$script"
    shell_scripts=$((shell_scripts + 1))
done
# Compiled files go to the scratch folder, not beside the scripts.
find $python_folders -name '*.py' -print0 | PYTHONPYCACHEPREFIX="$scratch" xargs -0 --no-run-if-empty python3 -m py_compile
echo "$shell_scripts shell scripts, $(find $python_folders -name '*.py' | wc -l) Python scripts"

step "metrics for trackers"
PYTHONDONTWRITEBYTECODE=1 python3 scripts/test_follow_metrics.py

step "what a release needs"
python3 scripts/stamp_address.py --self-test
python3 scripts/run_page.py --self-test

step "layers"
python3 scripts/check_layers.py --self-test
python3 scripts/check_layers.py

step "lengths"
# Longer than this, a file is about more than one thing.
long=$(find $source_folders -name target -prune -o \( -name '*.rs' -o -name '*.py' \) -exec awk 'FNR == 401 { print FILENAME }' {} +)
if [ -n "$long" ]; then
    printf 'more than 400 lines:\n%s\n' "$long" >&2
    exit 1
fi
echo "no source file of more than 400 lines"

step "lint"
cargo clippy --release --all-targets --locked -- -D warnings

step "dependencies"
# Licences, bans and sources (deny.toml). Known vulnerabilities need the advisory database, from the network.
if command -v cargo-deny > /dev/null; then
    cargo deny --locked --log-level error check --hide-inclusion-graph bans licenses sources
else
    echo "skipped: cargo-deny is not installed (cargo install cargo-deny --locked)"
fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --locked

step "build"
# The program and the tests side by side: each spends a part of its time on one core.
cargo build --release --locked --lib --bins --examples --tests

step "example"
cargo run --release --locked --quiet --example penalty

step "configs"
configs=0
# Evaluation suites and comparisons have their own folders; the tests load those.
for config in configs/*.toml configs/models/*.toml configs/sandbox/*.toml; do
    cargo run --release --locked --quiet -- train --config "$config" --check > "$scratch/config.log" 2>&1 || {
        cat "$scratch/config.log" >&2
        echo "$config does not load" >&2
        exit 1
    }
    configs=$((configs + 1))
done
echo "$configs configs load"

step "memory table of docs/gpu.md"
python3 scripts/gpu_memory_table.py --asft "${CARGO_TARGET_DIR:-target}/release/asft" --check docs/gpu.md > /dev/null

if [ "$skip_tests" = false ]; then
    step "tests"
    cargo test --release --locked
fi
