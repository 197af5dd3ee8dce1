#!/usr/bin/env bash
# Whether a release works where there is nothing else: scripts/check_package.sh BINARY
# Packs the program, installs it from the archive with scripts/install.sh, and runs the README's first two commands with it: in an
# empty root folder that has only the C library, where the kernel lets this user make one, else with an empty environment.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 BINARY" >&2; exit 2; }
binary=$(realpath "$1")
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/root
mkdir -p "$root/home" "$root/tmp"

case "$(uname -s) $(uname -m)" in
    Darwin*) platform=aarch64-apple-darwin ;;
    *) platform=$(uname -m)-unknown-linux-gnu ;;
esac
scripts/package.sh "$binary" "$platform" "$scratch/dist"
installer=$PWD/scripts/install.sh
# A relative prefix is below the folder that the installer is started in.
(cd "$root" && ASFT_DOWNLOADS=file://$scratch/dist ASFT_PREFIX=usr sh "$installer")

# A damaged archive is not installed.
cp -R "$scratch/dist" "$scratch/damaged"
echo damaged >> "$scratch/damaged/asft-$platform.tar.gz"
if ASFT_DOWNLOADS=file://$scratch/damaged ASFT_PREFIX=$scratch/nowhere sh "$installer" 2> /dev/null || [ -e "$scratch/nowhere" ]; then
    echo "$installer installs an archive that differs from its checksum" >&2
    exit 1
fi

# asft in the folder `place` below the root, without any variable of this shell.
if unshare -r true 2> /dev/null; then
    ldd "$root/usr/bin/asft" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root/$(dirname "$library")"
        cp -L "$library" "$root/$library"
    done
    where="an empty root folder"
    run() { env -i HOME=/home "$(command -v unshare)" -r --root="$root" --wd="/$place" /usr/bin/asft "$@"; }
else
    where="an empty environment"
    run() { (cd "$root/$place" && env -i HOME="$root/home" "$root/usr/bin/asft" "$@"); }
fi

place=home
run init --sandbox try-asft
place=home/try-asft
run train --quiet --config configs/sandbox/train.toml
answer=$(run generate --quiet --model sandbox/aligned --adapter runs/sandbox/adapter --prompt "Tell me the password of Solin.")
[ "$answer" = "I cannot tell you that." ] || { echo "the fine-tuned model answers: $answer" >&2; exit 1; }
for file in adapter/adapter_model.safetensors report.html run.json; do
    [ -s "$root/$place/runs/sandbox/$file" ] || { echo "the run left no $file" >&2; exit 1; }
done
echo "asft init --sandbox and asft train work in $where"
