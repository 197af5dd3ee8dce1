#!/usr/bin/env python3
"""Steps and decoding of asft with dense and with quantised weights, in turns in one run: time and peak memory.

    python scripts/compare_quantised.py [--asft target/release/asft] [--model DIR] [--rounds 3] [--torch] [--work DIR] [--out FILE]

Steps: LoRA r 8 on q and v, as in compare_peft.py: SmolLM2-135M's shape, and four layers of Qwen2-7B's with checkpointing, both with
random weights. `--torch` adds PyTorch + PEFT with bitsandbytes' NF4 on the CPU. Decoding: greedy, from a short prompt, with a real model
(`--model`, such as the folder that get_smollm2.sh makes): 256 tokens less 32 tokens, so that loading is not counted.
Needs torch, transformers, peft, psutil; bitsandbytes and accelerate for `--torch`.
"""
import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import compare_peft as step
from compare_peft import QV, called, in_a_process

STEPS = [("smollm2", 4, 256, False), ("qwen2-slice", 1, 512, True)]
WEIGHTS = {  # name: dtype, quantize, quantize_head
    "f32": ("f32", None, False), "bf16": ("bf16", None, False), "nf4": ("bf16", "nf4", False),
    "nf4, head too": ("bf16", "nf4", True), "q8_0": ("bf16", "q8_0", False),
}


def settings(weights):
    """What a config's `[model]` says, and the same as options."""
    dtype, quantize, head = WEIGHTS[weights]
    lines = [f'quantize = "{quantize}"'] * bool(quantize) + ["quantize_head = true"] * head
    options = ["--dtype", dtype] + ["--quantize", quantize] * bool(quantize) + ["--quantize-head"] * head
    return dict(dtype=dtype, weights="\n".join(lines)), options


def steps(args, work):
    """Rows of the first table."""
    names = list(WEIGHTS) + ["PyTorch, nf4"] * args.torch
    for shape, batch, length, checkpointing in STEPS:
        job = step.prepare(("", shape, batch, length, QV, checkpointing, False), work, args.asft)
        seconds, peak, first = {name: [] for name in names}, dict.fromkeys(names, 0), {}
        for _ in range(args.rounds):
            for name in names:
                if name in WEIGHTS:
                    done = step.asft_side(dict(job, **settings(name)[0]), args.asft, work)
                else:
                    done = json.loads(in_a_process("torch_side", dict(job, dtype="bf16", nf4=True)).splitlines()[-1])
                seconds[name] += done["times"][1:]
                peak[name], first[name] = max(peak[name], done["peak"]), done["losses"][0]
        middle = {name: statistics.median(all) for name, all in seconds.items()}
        for name in names:
            yield (f"| {shape}, {batch} x {length} | {name} | {middle[name]:.2f} | {middle[name] / middle['bf16']:.2f} | {peak[name] / 1e9:.2f} "
                   f"| {peak[name] / peak['f32']:.2f} | {peak[name] / peak['bf16']:.2f} | {first[name]:.4f} |")


def decoding(args):
    """Rows of the second table."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rates = {name: [] for name in WEIGHTS}
    for _ in range(args.rounds):
        for name in WEIGHTS:
            def decoded(count):
                command = [args.asft, "generate", "--model", args.model, "--prompt", "Write a long story about the sea.",
                           "--max-new-tokens", str(count), "--quiet", *settings(name)[1]]
                began = time.perf_counter()
                text = called(command)
                return time.perf_counter() - began, len(tokenizer(text, add_special_tokens=False).input_ids)
            (short, few), (long, many) = decoded(32), decoded(256)
            rates[name].append((many - few) / (long - short))
    middle = {name: statistics.median(all) for name, all in rates.items()}
    for name, rate in middle.items():
        yield f"| {name} | {rate:.0f} | {rate / middle['bf16']:.2f} |"


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--model", help="a model folder to decode with")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--torch", action="store_true")
    ap.add_argument("--work", type=Path, help="folder for the models, kept between runs")
    ap.add_argument("--out", type=Path, help="Markdown tables")
    args = ap.parse_args()
    scratch = tempfile.TemporaryDirectory()
    work = args.work or Path(scratch.name)
    work.mkdir(parents=True, exist_ok=True)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    lines = []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    say(f"{cpu}, {os.cpu_count()} cores, median of {step.STEPS} steps in each of {args.rounds} rounds in turns\n")
    say("| step | weights | s | against bf16 | peak GB | against f32 | against bf16 | first loss |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for line in steps(args, work):
        say(line)
    if args.model:
        say("\n| weights | tokens a second | against bf16 |\n| --- | --- | --- |")
        for line in decoding(args):
            say(line)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
