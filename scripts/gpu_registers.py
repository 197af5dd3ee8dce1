#!/usr/bin/env python3
"""Compiles the kernels of src/ops/gpu for several GPUs and shows what each takes: scripts/gpu_registers.py [--write FILE]

ptxas translates the PTX that a CUDA build embeds, as the driver would, and reports registers, shared memory and spills.
A kernel that spills, or has more of anything than a GPU has, fails. The last columns are occupancy, computed: the share
of a multiprocessor's warps that can be resident at once. --write replaces the table between the markers in FILE.

nvcc and ptxas are taken from CUDA_HOME, which may be what scripts/check_cuda_build.sh installs (target/cuda/home).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "src/ops/gpu"
TYPES = {"bf16": ("__nv_bfloat16", 2), "f32": ("float", 4)}
START, END = "<!-- registers -->", "<!-- end of registers -->"
# Shared memory of a multiprocessor, the most that a block may ask for, and warps (CUDA C Programming Guide).
GPUS = {
    "sm_80": (164 << 10, 163 << 10, 64),
    "sm_90": (228 << 10, 227 << 10, 64),
    "sm_100": (228 << 10, 227 << 10, 64),
    "sm_120": (100 << 10, 99 << 10, 48),
}
REGISTERS, MAX_BLOCKS, RESERVED_SHARED = 64 << 10, 32, 1 << 10


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} fails:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_one(tools, scratch, source, value, gpu):
    """{entry: (registers, bytes of static shared memory, bytes spilled)}"""
    ptx = scratch / f"{source.stem}_{value}.ptx"
    told = run(tools / "ptxas", "-v", "-arch", gpu, ptx, "-o", os.devnull)
    entries = {}
    for part in told.split("Compiling entry function '")[1:]:
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        entries[part.split("'")[0]] = (registers, int(shared[1]) if shared else 0, spilled)
    return entries


def launch(entry, size_of_value):
    """(threads of a block, bytes of dynamic shared memory), as src/ops launches them: norms of 4096 values, any real
    vocabulary."""
    if not entry.startswith("attention_") or entry == "attention_delta":
        rows = {"rms_norm_forward": 512, "rms_norm_backward": 512, "cross_entropy": 1024}
        return rows.get(entry, 256), 0
    size = int(entry.rsplit("_", 1)[1])
    rows = (64 if size_of_value == 2 else 32) // (2 if size > 128 else 1)
    step = min(rows, 32) if "_keys_" in entry else rows
    tiles = rows + 2 * step if "_forward_" in entry else 2 * rows + 2 * step
    return rows * 2, tiles * (size + 8) * size_of_value + (8 * step if "_keys_" in entry else 0)


def occupancy(gpu, registers, threads, shared):
    available, most, warps = GPUS[gpu]
    if shared > most:
        return 0
    # Registers are given to warps in units of 256.
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * (threads // 32))
    blocks = min(MAX_BLOCKS, by_registers, available // (shared + RESERVED_SHARED), warps * 32 // threads)
    return blocks * (threads // 32) / warps


def table(results):
    """Rows of the Markdown table, and what is wrong."""
    lines = [f"| kernel | threads | shared | {' | '.join(f'registers, {gpu}' for gpu in GPUS)} | "
             f"{' | '.join(f'occupancy, {gpu}' for gpu in GPUS)} |"]
    lines.append("| --- |" + " --- |" * (2 + 2 * len(GPUS)))
    wrong = []
    for (kind, entry), by_gpu in sorted(results.items()):
        threads, dynamic = launch(entry, TYPES[kind][1])
        # Maps take the same in either type, or nearly.
        shown = kind == "bf16" or "attention" in entry
        registers, shares = [], []
        for gpu in GPUS:
            used, static, spilled = by_gpu[gpu]
            share = occupancy(gpu, used, threads, static + dynamic)
            if spilled or share == 0:
                takes = f"{used} registers, {spilled} bytes spilled, {static + dynamic} of shared memory"
                wrong.append(f"{entry} in {kind} on {gpu}: {takes}")
            registers.append(str(used))
            shares.append(f"{share:.0%}".replace("%", " %"))
        kilobytes = f"{(by_gpu['sm_80'][1] + dynamic) / 1024:.1f} KiB"
        if shown:
            lines.append(f"| {' | '.join([f'`{entry}`, {kind}', str(threads), kilobytes, *registers, *shares])} |")
    return lines, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE", type=Path, help="replace the table in this file")
    arguments = parser.parse_args()
    tools = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    if not (tools / "ptxas").is_file():
        sys.exit(f"{tools} has no ptxas; set CUDA_HOME")
    sources = sorted(KERNELS.glob("*.cu"))
    results = {}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        scratch = Path(scratch)

        def ptx(source, value):
            out = scratch / f"{source.stem}_{value}.ptx"
            options = ["-ptx", "-O3", "-std=c++17", "-arch", "compute_80", "-D", f"VALUE={value}"]
            run(tools / "nvcc", *options, "-o", out, source)

        pairs = [(source, kind) for source in sources for kind in TYPES]
        list(pool.map(lambda pair: ptx(pair[0], TYPES[pair[1]][0]), pairs))
        every = [(source, kind, gpu) for source, kind in pairs for gpu in GPUS]
        found = pool.map(lambda one: compile_one(tools, scratch, one[0], TYPES[one[1]][0], one[2]), every)
        for (_, kind, gpu), entries in zip(every, found):
            for entry, used in entries.items():
                results.setdefault((kind, entry), {})[gpu] = used
    lines, wrong = table(results)
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        before, rest = text.split(START)
        arguments.write.write_text("\n".join([before + START, *lines, END + rest.split(END)[1]]), encoding="utf-8")
    else:
        print("\n".join(lines))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
