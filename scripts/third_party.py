#!/usr/bin/env python3
"""The licences of everything that is linked into the program: python3 scripts/third_party.py > THIRD_PARTY.txt

Names each package of the dependency graph on this platform with its licence, whatever features a build has, then every distinct text that the
packages carry, with the packages that carry it. A package without a text has only its name and authors here. Most licences ask for
this wherever the program itself is handed on.
"""

import json
import subprocess
from collections import defaultdict
from pathlib import Path

NAMES = ("LICEN", "COPYING", "NOTICE", "COPYRIGHT")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def host():
    return output("rustc", "--print", "host-tuple").strip()


def linked():
    """The packages that become part of the program, by name and version."""
    graph = json.loads(output("cargo", "metadata", "--format-version=1", "--locked", "--all-features", f"--filter-platform={host()}"))
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    ours, found = set(graph["workspace_members"]), set()
    waiting = [graph["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package not in found:
            found.add(package)
            ordinary = (d["pkg"] for d in nodes[package]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"]))
            waiting.extend(ordinary)
    packages = [package for package in graph["packages"] if package["id"] in found - ours]
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def texts(package):
    # A library in C that a package builds lies in a folder of it.
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file() and path.name.upper().startswith(NAMES))
    return [path.read_text(encoding="utf-8", errors="replace").strip() for path in files]


def main():
    carried = defaultdict(list)
    print("asft is made with these packages, under these licences. Their texts follow.\n")
    for package in linked():
        name = f"{package['name']} {package['version']}"
        by = ", ".join(author.split(" <")[0] for author in package["authors"])
        print(f"{name}: {package['license'] or 'see its text'}" + (f" ({by})" if by else ""))
        for text in texts(package):
            carried[text].append(name)
    for text, names in carried.items():
        print(f"\n{'=' * 100}\n{', '.join(names)}\n{'-' * 100}\n{text}")


if __name__ == "__main__":
    main()
