#!/usr/bin/env python3
"""The order of the rooms in src/: scripts/check_layers.py [--rooms | --self-test]

A room is a folder of src/, or a file there. Imports point downwards in ROOMS, and no files import one another in a
circle. Both are read from the source: `use` declarations, and paths written out (`crate::a::b`, `super::b`, `a::b` of
an imported `a`), wherever they stand but in comments, literals and `#[cfg(test)]` items. A name is followed through
re-exports to the file that defines it: a `mod.rs` that passes on what its children define is no part of a circle, one
that defines something which they use, and uses them, is. What methods and macros reach is not seen.

Two exceptions. lib.rs and main.rs may import anything. An options.rs holds the settings of its room and imports nothing
else of it; `config`, which composes the settings of all, may import it from a room above, and it then sees only what is
below `config`.

Exits with 1 and lists what is wrong, or says in a line what was looked at. `--rooms` prints what each room imports.
"""

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# From the top of the house to its ground: a room imports those that stand after it.
ROOMS = """
    main lib commands cli compare serve train config plot eval method adapter data doctor optim model ops hub device report
    tokenizer sandbox outputs checkpoint names quant toml_reader console ticks stop ranks untrusted vectors memory version error
""".split()

SETTINGS, COMPOSES_SETTINGS = "options.rs", "config"
EXEMPT = {"main", "lib"}

# A literal keeps its line breaks only: what it says is not code.
NOT_CODE = re.compile(
    r"""//[^\n]* | /\*.*?\*/
      | (?<!\w)[bc]?r(?P<hashes>\#*)".*?"(?P=hashes)
      | (?<!\w)[bc]?"(?:\\.|[^"\\])*"
      | (?<!\w)b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])'""",
    re.VERBOSE | re.DOTALL,
)
TOKEN = re.compile(r"\w+|::|\S")
ITEM_KEYWORDS = {"fn", "struct", "enum", "union", "trait", "type", "const", "static"}
OPEN, CLOSE = set("([{"), set(")]}")


class Module:
    """A module of the crate: a file, or a `mod name { ... }` within one."""

    def __init__(self, path, file, parent):
        self.path, self.file, self.parent = path, file, parent
        self.children = {}  # name -> Module
        self.items = set()  # names defined here
        self.aliases = {}  # imported name -> its path, as written
        self.globs = []  # paths of `use path::*`
        self.passed_on = set()  # names of a `pub use`

    @property
    def room(self):
        return self.path[0] if self.path else "lib"


class Crate:
    """Every module of a crate, and which file imports what of which other."""

    def __init__(self, src):
        self.src = src
        self.mentions = []  # (module, path as written, line, "use" | "pub use" | "as" | "glob" | "path" | "name")
        self.files = {}  # file, relative to src -> its Module
        self.root = Module((), "lib.rs", None)
        self.read(self.root, src)

    def read(self, module, folder):
        """Reads a module's file and those of its children, which are in `folder`."""
        self.files[module.file] = module
        tokens = tokenise((self.src / module.file).read_text(encoding="utf-8"))
        for child in Reader(self, module, tokens).declared:
            found = [f for f in (folder / f"{child.path[-1]}.rs", folder / child.path[-1] / "mod.rs") if f.is_file()]
            if not found:
                sys.exit(f"{module.file} declares `mod {child.path[-1]}`, but there is no file for it")
            child.file = found[0].relative_to(self.src).as_posix()
            self.read(child, folder / child.path[-1])

    def resolve(self, module, path, seen=frozenset()):
        """What a path means in a module: a Module, the file that defines the item, or None if of another crate."""
        at, names = module, list(path)
        if names[0] == "crate":
            at, names = self.root, names[1:]
        elif names[0] not in ("self", "super") and self.lookup(module, names[0], seen) is None:
            return None
        while names and names[0] in ("self", "super"):
            at = at.parent if names.pop(0) == "super" else at
        for name in names:
            found = self.lookup(at, name, seen)
            if not isinstance(found, Module):
                # A name that is not found comes from a macro or an import of another crate: count it to the module.
                return found or at.file
            at = found
        return at

    def lookup(self, module, name, seen):
        if name in module.children or name in module.items:
            return module.children.get(name, module.file)
        if (module.path, name) in seen:
            return None
        seen = seen | {(module.path, name)}
        if name in module.aliases:
            return self.resolve(module, module.aliases[name], seen)
        for glob in module.globs:
            target = self.resolve(module, glob, seen)
            found = self.lookup(target, name, seen) if isinstance(target, Module) else None
            if found:
                return found
        return None

    def arrows(self):
        """{(importing file, imported file): (line, name) of the first place}, and the same as pairs of rooms."""
        arrows, rooms = {}, set()
        for module, path, line, kind in sorted(self.mentions, key=lambda mention: mention[2]):
            target = self.resolve(module, path)
            if target is None or (kind == "use" and isinstance(target, Module)):
                continue  # of a module that is imported, the paths that begin with it tell what is used
            file = target.file if isinstance(target, Module) else target
            own = self.files[module.file]
            below = self.files[file].path[: len(own.path)] == own.path
            if file == module.file or own.room in EXEMPT or (kind == "pub use" and below):
                continue
            if kind == "name" and not (path[0] in module.passed_on and below):
                continue  # its `use` has been counted
            arrows.setdefault((module.file, file), (line, "::".join(path)))
            rooms.add((own.room, self.files[file].room))
        return arrows, rooms


def tokenise(text):
    """(token, line) of code without comments; literals are left out."""
    code = NOT_CODE.sub(lambda match: " " + "\n" * match.group().count("\n"), text)
    return [(token, number) for number, line in enumerate(code.split("\n"), 1) for token in TOKEN.findall(line)]


class Reader:
    """Reads one file's definitions and imports into its module."""

    def __init__(self, crate, module, tokens):
        self.crate, self.tokens, self.at = crate, tokens, 0
        self.declared = []  # children that have a file of their own
        self.scopes = [module]  # a Module for each that is open, None for every other bracket
        self.is_public = False
        while self.at < len(tokens):
            self.step()

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at][0] if 0 <= at < len(self.tokens) else ""

    @property
    def module(self):
        return next(scope for scope in reversed(self.scopes) if scope)

    def step(self):
        token, line = self.tokens[self.at]
        at_module_level = self.scopes[-1] is not None
        if token == "#" and self.peek(1) in ("[", "!"):
            self.attribute()
        elif token == "pub":
            self.at = self.closing(self.at + 1) + 1 if self.peek(1) == "(" else self.at + 1
            self.is_public = True
            return
        elif token == "use" and self.peek(-1) not in (",", "+"):  # `impl Trait + use<'a>` is another thing
            self.at += 1
            self.use_tree([], at_module_level)
            self.at += 1
        elif token == "mod" and self.peek(2) in (";", "{"):
            self.child(self.peek(1))
        elif token == "macro_rules":
            self.module.items.add(self.peek(2))
            self.at += 3
        elif token in ITEM_KEYWORDS and at_module_level and self.peek(1).isidentifier():
            self.module.items.add(self.peek(1))
            self.at += 1 if self.peek(1) in ITEM_KEYWORDS else 2
        elif token.isidentifier() and self.peek(-1) != "'" and (self.peek(-1) != "." or self.peek(-2) == "."):
            self.path(line)
        else:
            if token in OPEN:
                self.scopes.append(None)
            elif token in CLOSE:
                self.scopes.pop()
            self.at += 1
        self.is_public = False

    def attribute(self):
        opening = self.at + 1 + (self.peek(1) == "!")
        self.at = self.closing(opening) + 1
        text = "".join(token for token, _ in self.tokens[opening + 1 : self.at - 1])
        if text == "macro_export" and self.peek() == "macro_rules":
            self.crate.root.aliases[self.peek(2)] = ["crate", *self.module.path, self.peek(2)]
        if text in ("test", "cfg(test)") or text.startswith("cfg(all(test,"):
            self.skip_item()

    def skip_item(self):
        """Passes over the item, field or statement that an attribute stands before."""
        in_list = self.scopes[-1] is None
        while self.peek() == "#":
            self.at = self.closing(self.at + 1) + 1
        while self.at < len(self.tokens) and self.peek() not in CLOSE:
            token = self.peek()
            if token in OPEN:
                self.at = self.closing(self.at)
            self.at += 1
            if token in ("{", ";") or (token == "," and in_list):
                return

    def closing(self, at):
        """The place of the bracket that closes the one at `at`."""
        depth = self.tokens[at][0] in OPEN
        while depth:
            at += 1
            depth += (self.tokens[at][0] in OPEN) - (self.tokens[at][0] in CLOSE)
        return at

    def child(self, name):
        child = Module((*self.module.path, name), self.module.file, self.module)
        self.module.children[name] = child
        (self.scopes if self.peek(2) == "{" else self.declared).append(child)
        self.at += 3

    def use_tree(self, prefix, at_module_level):
        """Reads a tree up to what ends it: `;`, `,` or `}`."""
        path, line = list(prefix), self.tokens[self.at][1]
        while self.peek() not in (";", ",", "}", ""):
            token = self.peek()
            if token == "{":
                while self.peek() != "}":
                    self.at += 1
                    self.use_tree(path, at_module_level)
                self.at += 1
                return
            if token == "*":
                self.module.globs.append(path)
                self.crate.mentions.append((self.module, path, line, "pub use" if self.is_public else "glob"))
                self.at += 1
                return
            if token == "as":
                self.imported(path, self.peek(1), line, at_module_level)
                self.at += 2
                return
            if token != "::" and not (token == "self" and path):
                path.append(token)
            self.at += 1
        if path != prefix or self.peek(-1) == "self":
            self.imported(path, path[-1], line, at_module_level)

    def imported(self, path, name, line, at_module_level):
        if at_module_level or name not in self.module.aliases:
            self.module.aliases[name] = path
        if self.is_public:
            self.module.passed_on.add(name)
        kind = "pub use" if self.is_public else "use" if name == path[-1] else "as"
        self.crate.mentions.append((self.module, path, line, kind))

    def path(self, line):
        path = [self.peek()]
        self.at += 1
        while self.peek() == "::" and self.peek(1).isidentifier():
            path.append(self.peek(1))
            self.at += 2
        if len(path) > 1:
            self.crate.mentions.append((self.module, path, line, "path"))
        elif path[0][0].isupper() or self.peek() in ("(", "!"):
            self.crate.mentions.append((self.module, path, line, "name"))


def circles(arrows):
    """Circles of files, the shortest through each that is in one."""
    nexts = defaultdict(set)
    for source, target in arrows:
        nexts[source].add(target)

    def shortest(start):
        ways, seen = [[start]], set()
        for way in ways:
            if start in nexts[way[-1]]:
                return [*way, start]
            ways += [[*way, target] for target in sorted(nexts[way[-1]] - seen)]
            seen |= nexts[way[-1]]
        return None

    found, done = [], set()
    for file in sorted(nexts):
        if file not in done and (circle := shortest(file)):
            done.update(circle)
            found.append(circle)
    return found


def problems(crate, rooms=ROOMS):
    """What is wrong, in words; nothing more where the rooms are not those of the list."""
    room_of = {file: module.room for file, module in crate.files.items()}
    there, listed = set(room_of.values()) | EXEMPT, set(rooms) | EXEMPT
    wrong = [f"{room}: not in ROOMS of check_layers.py; put it in its place in the order" for room in there - listed]
    wrong += [f"{room}: in ROOMS of check_layers.py, but not in {crate.src}" for room in listed - there]
    if wrong:
        return sorted(wrong)
    arrows, _ = crate.arrows()
    order = {room: place for place, room in enumerate(rooms)}
    for (source, target), (line, name) in sorted(arrows.items()):
        above, below = room_of[source], room_of[target]
        of_settings, to_settings = (Path(file).name == SETTINGS for file in (source, target))
        what = f"{source}:{line}: {name} ({target})"
        if of_settings and not to_settings and above == below:
            wrong.append(f"{what} is imported by settings, which see nothing but other settings of their room")
        elif of_settings and not to_settings and order[below] <= order[COMPOSES_SETTINGS]:
            wrong.append(f"{what} is imported by settings, but is not below {COMPOSES_SETTINGS}, which composes them")
        elif order[below] < order[above] and not (to_settings and above == COMPOSES_SETTINGS):
            wrong.append(f"{what} points upwards, from {above} to {below}")
    for circle in circles(arrows):
        places = [f"{a}:{arrows[a, b][0]} imports {arrows[a, b][1]}" for a, b in zip(circle, circle[1:])]
        wrong.append(f"circle of {len(places)} files: " + ", ".join(places))
    return wrong


SAMPLE = {
    "lib.rs": "pub mod config; pub mod train; pub mod model; pub mod ops;\n#[macro_use] mod error;",
    "main.rs": "use sample::train; fn main() { train::run() }",
    "error.rs": "#[macro_export]\nmacro_rules! invalid { () => { $crate::error::Invalid } }\npub struct Invalid;",
    "config.rs": "use crate::train::TrainOptions;\npub struct Settings(TrainOptions);",
    "train/mod.rs": "mod options;\nmod run;\npub use options::TrainOptions;\npub use run::run;",
    "train/options.rs": "pub struct TrainOptions;",
    "train/run.rs": """
        // use crate::cli;  a comment, like /* crate::cli::Arguments */, is no import
        use super::TrainOptions;
        use crate::{config::Settings, invalid, model::{self, Decoder as Model, spec}};
        const TEXT: &str = "crate::cli::Arguments"; const QUOTE: char = '"';
        pub fn run<'a>() { let _ = (invalid!(), model::load::<'a>(), spec::SPEC); }
        #[cfg(test)]
        mod tests { use crate::cli::Arguments; }""",
    "model/mod.rs": "mod decoder;\npub mod spec;\npub use decoder::{Decoder, load};\n#[cfg(test)]\nmod tests;",
    "model/decoder.rs": """use super::spec::SPEC;
        use crate::ops;
        pub struct Decoder;
        pub fn load() { ops::product(SPEC) }""",
    "model/spec.rs": "pub const SPEC: usize = 1;",
    "ops.rs": "pub fn product(_: usize) {}\nmod kernel { use super::*; }",
}

# What takes the place of files of the sample, and how what must then be said begins.
FAULTS = [
    ({"ops.rs": "\nuse crate::model::load;\npub fn product(_: usize) { load() }"},
     ["ops.rs:2: crate::model::load (model/decoder.rs) points upwards, from ops to model",
      "circle of 2 files: model/decoder.rs:4 imports ops::product, ops.rs:2 imports crate::model::load"]),
    ({"model/spec.rs": "pub use super::decoder::Decoder as Model;\npub const SPEC: usize = 1;"},
     ["circle of 2 files: model/decoder.rs:1 imports super::spec::SPEC, model/spec.rs:1 imports super::decoder"]),
    ({"model/mod.rs": "mod decoder;\npub mod spec;\npub use decoder::*;\npub fn all() { spec::SPEC }",
      "model/spec.rs": "use super::all;\npub const SPEC: usize = 1;"},
     ["circle of 2 files: model/mod.rs:4 imports spec::SPEC, model/spec.rs:1 imports super::all"]),
    ({"train/options.rs": "use super::run::run;\nuse crate::config::Settings;\npub struct TrainOptions;"},
     ["train/options.rs:1: super::run::run (train/run.rs) is imported by settings",
      "train/options.rs:2: crate::config::Settings (config.rs) is imported by settings"]),
    ({"lib.rs": SAMPLE["lib.rs"] + "mod attic;", "attic.rs": ""},
     ["attic: not in ROOMS of check_layers.py"]),
]


def self_test():
    """Checks that a small crate with one fault at a time is refused for it, and without any is not."""
    for changes, expected in [({}, []), *FAULTS]:
        with tempfile.TemporaryDirectory() as folder:
            for file, text in (SAMPLE | changes).items():
                path = Path(folder, file)
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            found = problems(Crate(Path(folder)), ["train", "config", "model", "ops", "error"])
        missed = [text for text in expected if not any(line.startswith(text) for line in found)]
        if missed or bool(found) != bool(expected):
            print(f"with {changes}: expected {expected}, found {found}", file=sys.stderr)
            return 1
    print(f"{len(FAULTS)} faults found")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rooms", action="store_true", help="print the rooms that each room imports")
    parser.add_argument("--self-test", action="store_true", help="check that circles and upward arrows are found")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    crate = Crate(Path(__file__).resolve().parent.parent / "src")
    if wrong := problems(crate):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    arrows, between = crate.arrows()
    if options.rooms:
        for room in ROOMS[2:]:
            print(f"{room}: {' '.join(below for below in ROOMS if (room, below) in between and below != room)}")
    print(f"{len(ROOMS) - 2} rooms, {len(crate.files)} files, {len(arrows)} arrows, none upwards and no circle")
    return 0
if __name__ == "__main__":
    sys.exit(main())
