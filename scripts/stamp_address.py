#!/usr/bin/env python3
"""Writes where the project is hosted into what is published: python3 scripts/stamp_address.py https://HOST/OWNER/NAME REF [--root DIR]

The crates' manifests get `repository` and `homepage`, pyproject.toml its links, and the README's links to files begin with that address,
at the tag REF: PyPI shows the page, but none of the files. The tree has no address of its own; the release's jobs know theirs.
`--self-test` does it with a copy of these files, and looks at what becomes of them.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

MANIFESTS = ["Cargo.toml", "sandbox/Cargo.toml"]
ADDRESS = re.compile(r"https://[\w.-]+(/[\w.-]+)+")
# What a link may lead to: another place, or a heading of the page itself.
ELSEWHERE = ("http://", "https://", "#")


def insert(path, after, lines):
    """Puts lines behind the one line of the file that is `after`."""
    text = path.read_text()
    if text.count(f"\n{after}\n") != 1:
        sys.exit(f"{path}: expected the line {after!r} once")
    path.write_text(text.replace(f"\n{after}\n", "\n" + "\n".join([after, *lines]) + "\n"))


def absolute(text, address, ref):
    """The links of a Markdown text, from relative ones; pictures as the files themselves."""

    def place(found):
        mark, label, target = found.groups()
        if target.startswith(ELSEWHERE):
            return found.group()
        return f"{mark}[{label}]({address}/{'raw' if mark else 'blob'}/{ref}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", place, text)


def stamp(root, address, ref):
    for manifest in MANIFESTS:
        insert(root / manifest, "license.workspace = true", [f'repository = "{address}"', f'homepage = "{address}"'])
    urls = [f'Repository = "{address}"', f'Documentation = "{address}/blob/{ref}/docs/README.md"']
    insert(root / "pyproject.toml", 'keywords = ["llm", "fine-tuning", "lora", "safety", "peft"]', ["", "[project.urls]", *urls])
    readme = root / "README.md"
    readme.write_text(absolute(readme.read_text(), address, ref))


def self_test(tree):
    address, ref = "https://example.com/owner/name", "v1.2.3"
    text = "![a](b.svg) [c](docs/d.md#e) [f](#g) [h](https://i.j)"
    expected = f"![a]({address}/raw/{ref}/b.svg) [c]({address}/blob/{ref}/docs/d.md#e) [f](#g) [h](https://i.j)"
    assert absolute(text, address, ref) == expected
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in [*MANIFESTS, "pyproject.toml", "README.md"]:
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(tree / name, root / name)
        stamp(root, address, ref)
        check_manifests(root, address)
        links = re.findall(r"\]\(([^)\s]+)\)", (root / "README.md").read_text())
        assert links and all(link.startswith(ELSEWHERE) for link in links), links
        for link in links:
            _, ours, rest = link.partition(f"{address}/")
            assert not ours or (tree / re.sub(rf"^(raw|blob)/{ref}/|#.*", "", rest)).exists(), link
    print(f"the address gets into {len(MANIFESTS)} manifests, pyproject.toml and {len(links)} links")


def check_manifests(root, address):
    import tomllib  # Python 3.11

    def read(name):
        return tomllib.loads((root / name).read_text())

    for package in (read(manifest)["package"] for manifest in MANIFESTS):
        assert package["repository"] == package["homepage"] == address and package["description"], package
    project = read("pyproject.toml")["project"]
    assert project["urls"]["Repository"] == address and project["keywords"] and project["optional-dependencies"]["torch"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?")
    parser.add_argument("ref", nargs="?")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        return self_test(args.root)
    if not args.ref or not ADDRESS.fullmatch(args.address):
        parser.error("expected an address such as https://HOST/OWNER/NAME, and a tag")
    stamp(args.root, args.address, args.ref)


if __name__ == "__main__":
    main()
