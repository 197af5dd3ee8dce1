#!/usr/bin/env python3
"""Runs the commands of a page, in the order in which they stand there: python3 scripts/run_page.py PAGE --in DIR [--section TITLE]

A block of `sh` is run line by line; in one of `console`, lines that begin with `$ ` are commands and the others their output, where `...` stands
for what is left out. DIR is where the first command starts; a `cd` holds for those that follow. It is an error if a command fails, or if its output
has other lines than the page shows, but for their numbers. Numbers other than the page's are listed, except those of time and speed; on
another processor a run ends with slightly other weights. `--self-test` tries that on a page made for it.
"""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w]|\.\d)")
CLOCKS = [(re.compile(pattern), to) for pattern, to in [
    (r"(\d+(\.\d+)?[dhms] ?)+left", "T left"),
    (r"\d+(\.\d+)? tokens/s", "N tokens/s"),
    (r"\bin \d+(\.\d+)? s\b", "in T s"),
    (r"(\d+(\.\d+)?[dhms] ?)+$", "T"),
]]


@dataclass
class Command:
    text: str
    output: list = field(default_factory=list)


def blocks(page, section):
    """The blocks of commands of a page, or of the section with that title: lists of commands."""
    inside, found = section is None, []
    for part in re.split(r"^(## .*)$", page, flags=re.M):
        if part.startswith("## "):
            inside = section in (None, part[3:].strip())
        elif inside:
            found += [commands(kind, text) for kind, text in re.findall(r"^```(sh|console)\n(.*?)^```$", part, re.M | re.S)]
    return found


def commands(kind, text):
    found, goes_on = [], False
    for line in text.splitlines():
        starts = kind == "sh" or line.startswith("$ ")
        if goes_on:
            found[-1].text += "\n" + line
        elif starts:
            found.append(Command(line if kind == "sh" else line[2:]))
        elif found:
            found[-1].output.append(line)
        goes_on = (goes_on or starts) and line.endswith("\\")
    return [command for command in found if command.text.strip()]


def shape(line):
    """A line without its numbers and without the widths of its columns."""
    for pattern, replacement in CLOCKS:
        line = pattern.sub(replacement, line)
    return re.sub(r"\s+", " ", line).strip()


def fits(expected, line):
    """Whether a line is the page's but for its numbers; the pairs of numbers that differ, if it is."""
    expected, line = shape(expected), shape(line)
    parts = [NUMBER.sub("\0", part) for part in expected.split("...")]
    pattern = ".*".join(NUMBER.pattern.join(map(re.escape, part.split("\0"))) for part in parts)
    if not re.fullmatch(pattern, line):
        return None
    if "..." in expected:
        return []
    return [(a, b) for a, b in zip(NUMBER.findall(expected), NUMBER.findall(line)) if a != b]


def compare(expected, lines):
    """What of the expected lines is not there, or None; and the numbers that differ."""
    differ, at, free = [], 0, False
    for wanted in expected:
        if wanted.strip() == "...":
            free = True
            continue
        places = range(at, len(lines)) if free else range(at, min(at + 1, len(lines)))
        place = next((place for place in places if fits(wanted, lines[place]) is not None), None)
        if place is None:
            return wanted, differ
        differ += fits(wanted, lines[place])
        at, free = place + 1, False
    return (None if free or at == len(lines) or not expected else f"no line after it, but {lines[at]!r}"), differ


def run(command, folder, state):
    """Runs it; returns its exit code, its output's lines and the folder that it ends in."""
    text = f"trap 'pwd > {shlex.quote(str(state))}' EXIT\n{command.text}"
    done = subprocess.run(["bash", "-c", text], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.splitlines(), Path(state.read_text().strip())


def run_page(page, folder, section=None):
    """Runs a page's commands; returns how many ran, and how many were not as the page says."""
    ran, wrong = 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for block in blocks(page, section):
            for command in block:
                print(f"$ {command.text}", flush=True)
                began = time.monotonic()
                code, lines, folder = run(command, folder, Path(scratch) / "folder")
                missing, differ = compare(command.output, lines) if code == 0 else (f"success, not exit code {code}", [])
                ran += 1
                if missing:
                    wrong += 1
                    print("\n".join(lines[-40:]) + f"\nFAIL: expected {missing}")
                numbers = ", ".join(f"{there} here {here}" for there, here in differ)
                print(f"  {time.monotonic() - began:.0f} s" + (f"; other numbers: {numbers}" if numbers else ""), flush=True)
    return ran, wrong


def self_test():
    page = "\n".join([
        "# Page", "```sh", "exit 3", "```", "## Here", "```sh", "mkdir a && cd a", "```", "```console",
        "$ echo 'step 3 loss 1.5  2m left'; \\", "  pwd", "step 3 loss 1.25   7s left", ".../a",
        "$ seq 3", "1", "...", "$ seq 2", "1", "$ echo one", "two", "```", "## There", "```sh", "exit 4", "```",
    ])
    assert [len(block) for block in blocks(page, None)] == [1, 1, 4, 1]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        assert run_page(page, folder, "Here") == (5, 2)
        Path(folder, "a").rmdir()
        assert run_page(page, folder) == (7, 4)
    assert fits("loss 2.5e-3 (3/4)", "loss 1.0e-3   (3/4)") == [("2.5e-3", "1.0e-3")]
    assert fits("loss 2.5", "lost 2.5") is None and fits("a ... b", "a 1 c b") == []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--in", dest="folder", type=Path)
    parser.add_argument("--section")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        self_test()
        return print("a page's commands are run, and what differs is found")
    if not args.page or not args.folder:
        parser.error("expected PAGE and --in DIR")
    ran, wrong = run_page(args.page.read_text(), args.folder, args.section)
    print(f"{args.page}: {ran} commands, {wrong} not as it says")
    sys.exit(wrong > 0 or ran == 0)


if __name__ == "__main__":
    main()
