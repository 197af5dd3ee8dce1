#!/usr/bin/env bash
# Runs modules of tests/it, in release mode: scripts/test_modules.sh MODULE... [-- cargo test arguments]
# A module of which there is no test is an error: a filter that nothing matches would pass.
set -euo pipefail
cd "$(dirname "$0")/.."

modules=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do modules+=("$1"); shift; done
[ "${1:-}" != -- ] || shift
[ "${#modules[@]}" -gt 0 ] || { sed -n 2p "$0" >&2; exit 2; }

cargo=(cargo test --release --locked --test it "$@")
listed=$("${cargo[@]}" -- --list)
for module in "${modules[@]}"; do
    grep -q "^$module::.*: test$" <<< "$listed" || { echo "tests/it has no tests in a module $module" >&2; exit 1; }
done
"${cargo[@]}" -- "${modules[@]/%/::}"
