#!/usr/bin/env bash
# The archive that a release offers for one platform: scripts/package.sh BINARY NAME OUTDIR
# NAME is the platform, such as x86_64-unknown-linux-gnu, perhaps with a feature behind it. Writes OUTDIR/asft-NAME.tar.gz and its
# .sha256: the program without symbols, README, licences, changelog, man pages, shell completions and configs/. BINARY must run here.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 BINARY NAME OUTDIR" >&2
    exit 2
fi
binary=$1 name=asft-$2 out=$3
[ -x "$binary" ] || { echo "$binary is no program; build it with cargo build --release --locked" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out" "$scratch/$name/completions"

cp "$binary" "$scratch/$name/asft"
cp -R "$root/README.md" "$root/LICENSE" "$root/CHANGELOG.md" "$root/configs" "$scratch/$name/"
(cd "$root" && python3 scripts/third_party.py) > "$scratch/$name/THIRD_PARTY.txt"
"$binary" man --quiet "$scratch/$name/man/man1"
"$binary" completions bash > "$scratch/$name/completions/asft"
"$binary" completions zsh > "$scratch/$name/completions/_asft"
"$binary" completions fish > "$scratch/$name/completions/asft.fish"

tar -C "$scratch" -cf - "$name" | gzip -9n > "$out/$name.tar.gz"
cd "$out"
if command -v sha256sum > /dev/null; then sha256sum "$name.tar.gz"; else shasum -a 256 "$name.tar.gz"; fi > "$name.tar.gz.sha256"
echo "wrote $out/$name.tar.gz: $(wc -c < "$name.tar.gz") bytes"
