#!/usr/bin/env bash
# What a release says about itself: scripts/release_notes.sh TAG
# Prints the section of CHANGELOG.md of that version. Fails if the tag is not v and the version in Cargo.toml, or if there is no section.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 TAG" >&2; exit 2; }
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
[ "$1" = "v$version" ] || { echo "the tag is $1 and Cargo.toml has version $version; expected the tag v$version" >&2; exit 1; }
# A heading is "## 0.1.0", perhaps with a date behind it.
notes=$(awk -v version="$version" '/^## / { inside = $2 == version; next } inside' CHANGELOG.md)
[ -n "$notes" ] || { echo "CHANGELOG.md has nothing under \"## $version\"" >&2; exit 1; }
printf '%s\n' "$notes"
