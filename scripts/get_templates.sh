#!/usr/bin/env bash
# Chat templates of real models for tests/it/chat/real_templates.rs, from PyPI: scripts/get_templates.sh DIR
#
# The xinference package (Apache-2.0) carries the chat templates of the models that it serves. DIR gets each different one
# as NAME.jinja, named after the first model that has it (56 MB are fetched, 85 templates are kept).
# The templates belong to the models' makers and come under the models' licences: they are fetched for tests, and are not
# part of this repository. Needs python3 with pip.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
[ ! -f "$1/complete" ] || { echo "$1 is there already"; exit 0; }
package=xinference==4.1.0
checksum=40dd71d79e85a86f85c0d8b435fe51111fcf2c09227350d4a452229709528f2d
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" "$package"
wheel=$(echo "$scratch"/*.whl)
echo "$checksum  $wheel" | sha256sum --check --quiet
mkdir -p "$1"
python3 - "$wheel" "$1" << 'PYTHON'
import json, sys, zipfile
from pathlib import Path

wheel, out = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
names = {}  # template -> name


def collect(value, name):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []:
        if key == "chat_template" and isinstance(inner, str) and inner.strip():
            names.setdefault(inner, f"{name}-{list(names.values()).count(name) + 1}" if name in names.values() else name)
        else:
            collect(inner, name)


for file in sorted(wheel.namelist()):
    if file.startswith("xinference/model/llm/models/") and file.endswith(".json"):
        collect(json.loads(wheel.read(file)), Path(file).stem)
for template, name in names.items():
    (out / f"{name}.jinja").write_bytes(template.encode())
print(len(names), "templates")
PYTHON
touch "$1/complete"
