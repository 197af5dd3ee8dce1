#!/bin/sh
# Installs a release of asft without a toolchain: sh install.sh
# The program goes to ~/.local/bin, man pages and completions to ~/.local/share. ASFT_PREFIX is another place for all of them,
# ASFT_DOWNLOADS the address (https:// or file://) that archives are fetched from, ASFT_VARIANT=cuda the build for NVIDIA GPUs (Linux on
# x86-64). Nothing is installed before its checksum has been compared. The checksum comes from the same address: it finds a damaged or
# mixed-up download, not an archive that was replaced there together with its checksum; against others on the way there is https.
set -eu

# The release puts its own address here.
downloads=${ASFT_DOWNLOADS:-@DOWNLOADS@}
prefix=${ASFT_PREFIX:-$HOME/.local}
# What follows happens in another folder.
case "$prefix" in /*) ;; *) prefix=$PWD/$prefix ;; esac
build="cargo install asft --locked${ASFT_VARIANT:+ --features $ASFT_VARIANT}"

fail() { echo "install.sh: $*" >&2; exit 1; }

case "$downloads" in *://*) ;; *) fail "this copy knows no address; set ASFT_DOWNLOADS, or use the install.sh of a release" ;; esac
case "$(uname -s) $(uname -m)" in
    "Linux x86_64") platform=x86_64-unknown-linux-gnu ;;
    "Linux aarch64") platform=aarch64-unknown-linux-gnu ;;
    "Darwin arm64") platform=aarch64-apple-darwin ;;
    *) fail "no release for $(uname -s) on $(uname -m); build it with: $build" ;;
esac
name=asft-$platform${ASFT_VARIANT:+-$ASFT_VARIANT}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
for file in "$name.tar.gz" "$name.tar.gz.sha256"; do
    curl --proto '=https,file' --proto-redir '=https' --fail --silent --show-error --location --output "$file" "$downloads/$file" ||
        fail "cannot fetch $downloads/$file"
done
if command -v sha256sum > /dev/null; then sha256sum -c "$name.tar.gz.sha256"; else shasum -a 256 -c "$name.tar.gz.sha256"; fi > /dev/null ||
    fail "$name.tar.gz is not what its checksum says; try again"
tar -xzf "$name.tar.gz"
if ! "./$name/asft" --version > /dev/null; then
    missing=$(ldd "./$name/asft" 2> /dev/null | awk '/not found/ { printf " %s", $1 }') || missing=
    fail "$name does not run on this machine${missing:+, which lacks$missing}; build it with: $build"
fi

share=$prefix/share
mkdir -p "$prefix/bin" "$share/man/man1" "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
cp "$name"/man/man1/*.1 "$share/man/man1/"
cp "$name/completions/asft" "$share/bash-completion/completions/"
cp "$name/completions/_asft" "$share/zsh/site-functions/"
cp "$name/completions/asft.fish" "$share/fish/vendor_completions.d/"
# Renamed into place, so that a running asft keeps its program.
cp "$name/asft" "$prefix/bin/.asft.new"
mv -f "$prefix/bin/.asft.new" "$prefix/bin/asft"
echo "installed $("$prefix/bin/asft" --version) to $prefix/bin"
case ":$PATH:" in *":$prefix/bin:"*) ;; *) echo "$prefix/bin is not on PATH; add it" ;; esac
