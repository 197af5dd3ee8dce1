#!/usr/bin/env python3
"""Peak memory of `asft direction` on a generated pair of models against its promise.

    scripts/check_direction_memory.py [--binary target/release/asft] [--gigabytes 2] [--shapes 4096x4096,1024x4096]
                                      [--noise 0.02] [--keep 'tolerance 1e-3'] [--folder DIR]

Writes two sharded bf16 models of random weights, the aligned one being the unaligned one plus a low-rank change and
noise, and runs the command once. Promise: peak resident memory at most 4 x the largest targeted matrix in f32 + 200 MB.
Prints the figures as JSON; exits with 1 if the promise is broken. Needs numpy only. The seed is fixed.
"""
import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NAMES = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"]
RANK = 16


def bf16(x):
    """Round to nearest even, as the upper 16 bits."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            file.write(x.tobytes())


def make_pair(folder, shapes, layers, noise):
    random = np.random.default_rng(0)
    maps = {"aligned": {}, "unaligned": {}}
    for side in maps:
        (folder / side).mkdir(parents=True)
    for layer in range(layers):
        shard = {"aligned": {}, "unaligned": {}}
        for name, (out, inn) in zip(NAMES, shapes):
            base = random.standard_normal((out, inn), dtype=np.float32) * 0.02
            strength = 0.3 * np.arange(1, RANK + 1, dtype=np.float32) ** -0.5
            left = random.standard_normal((out, RANK), dtype=np.float32) / out ** 0.5
            right = random.standard_normal((RANK, inn), dtype=np.float32) / inn ** 0.5
            change = (left * strength) @ right
            if noise:
                change += random.standard_normal((out, inn), dtype=np.float32) * (noise * 0.3 / max(out, inn) ** 0.5)
            key = f"model.layers.{layer}.{name}.weight"
            # A difference far below the weights drowns in bf16's own rounding, as in real pairs, and rounding adds noise.
            shard["unaligned"][key], shard["aligned"][key] = bf16(base), bf16(base + change)
        for side, tensors in shard.items():
            file = f"model-{layer:05}.safetensors"
            save(folder / side / file, tensors)
            maps[side].update({key: file for key in tensors})
    for side, weight_map in maps.items():
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def run(binary, folder, keep):
    flag, value = keep.split()
    command = [binary, "direction", "--aligned", folder / "aligned", "--unaligned", folder / "unaligned", "--out",
               folder / "direction.safetensors", "--target-modules", "all-linear", f"--{flag}", value, "--json",
               "--overwrite"]
    with tempfile.TemporaryFile() as output:
        started = time.time()
        process = subprocess.Popen([str(part) for part in command], stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.time() - started
        if os.waitstatus_to_exitcode(status):
            sys.exit("asft direction failed")
        output.seek(0)
        return json.load(output), usage.ru_maxrss * 1024, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/asft")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the pair, both models together")
    parser.add_argument("--shapes", default="4096x4096,1024x4096")
    parser.add_argument("--noise", type=float, default=0.0, help="noise beside the low-rank change, 0 to 1")
    parser.add_argument("--keep", default="tolerance 1e-3", help="'tolerance T' or 'rank K'")
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    args = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes.split(",")]
    layer_bytes = 2 * 2 * sum(out * inn for out, inn in shapes)
    layers = max(1, round(args.gigabytes * 1e9 / layer_bytes))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        # In a process of its own: a child's peak counts its parent's pages at the fork.
        maker = multiprocessing.Process(target=make_pair, args=(folder, shapes, layers, args.noise))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the pair could not be made")
        summary, peak, seconds = run(args.binary, folder, args.keep)
        size = (folder / "direction.safetensors").stat().st_size
    limit = 4 * max(4 * out * inn for out, inn in shapes) + 200_000_000
    modules = summary["modules"]
    phases = {key: round(sum(module["phases"][key] for module in modules), 1) for key in modules[0]["phases"]}
    print(json.dumps({
        "pair_gb": round(layers * layer_bytes / 1e9, 2), "modules": len(modules), "shapes": args.shapes, "keep": args.keep,
        "ranks": [min(m["rank"] for m in modules), max(m["rank"] for m in modules)],
        "residual_over_c1": max(m["residual"] / m["largest"] for m in modules if m["rank"]),
        "peak_mb": round(peak / 1e6, 1), "limit_mb": round(limit / 1e6, 1), "seconds": round(seconds, 1),
        "phase_seconds": phases, "direction_file_mb": round(size / 1e6, 1),
    }, indent=1))
    sys.exit(0 if peak <= limit else 1)


if __name__ == "__main__":
    main()
