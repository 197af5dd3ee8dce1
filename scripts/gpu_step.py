#!/usr/bin/env python3
"""A training step on a GPU in asft and in PyTorch + transformers + PEFT, with the parts of compare_peft.py: tokens a second,
peak memory, share of the GPU's bf16 peak. Called by gpu_check.sh: what the doctor and the tests found becomes part of the
JSON.

LoRA (r 8) on q_proj and v_proj, bf16 weights, gradient checkpointing, AdamW. Both sides get the same weights, token ids and
adapter. Peak memory is what nvidia-smi shows beyond what was in use before, context included, on both sides; no other
process may use the GPU at the same time.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from compare_peft import QV, STEPS, asft_side, in_a_process, largest_difference, write_data

# Dense bf16 matrix FLOP/s with f32 accumulation, by a part of the GPU's name; the first match counts, so a name stands
# before what it begins with (vendors' data sheets).
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
         "L40": 181e12, "L4": 121e12, "A10G": 70e12, "4090": 165e12, "3090": 71e12}
SIZES = {"qwen2-7b": (4, 512), "tiny": (2, 32)}  # batch, length


def smi(query):
    """A line of nvidia-smi for the first GPU, or None if there is none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu():
    line = smi("name,driver_version,memory.total,compute_cap")
    if line is None:
        return None
    name, driver, memory, capability = (part.strip() for part in line.split(","))
    return dict(name=name, driver=driver, memory_bytes=int(memory) << 20, compute_capability=capability)


@contextmanager
def watched(device):
    """Yields a dict that afterwards holds the peak GPU memory beyond what was used before."""
    seen, done = {}, threading.Event()
    if device != "cuda":
        yield seen
        return

    def used():
        return int(smi("memory.used") or 0) << 20

    before = used()

    def watch():
        while not done.wait(0.1):
            seen["peak"] = max(seen.get("peak", 0), used() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def tests(log):
    """What `cargo test` said."""
    outcomes = re.findall(r"^test (\S+) .*?(ok|FAILED|ignored)$", log.read_text(), re.M)
    failed = [name for name, outcome in outcomes if outcome == "FAILED"]
    return dict(passed=sum(outcome == "ok" for _, outcome in outcomes), failed=len(failed), failures=failed)


def measured(side, tokens, flops, peak_flops):
    seconds = statistics.median(side["times"][1:])
    return dict(step_seconds=side["times"], tokens_per_second=tokens / seconds, peak_memory_bytes=side["peak"],
                share_of_peak=peak_flops and flops / seconds / peak_flops, losses=side["losses"])


def job(args, work):
    batch, length = args.batch or SIZES[args.shape][0], args.length or SIZES[args.shape][1]
    model, adapter, data = args.model or work / args.shape, work / "adapter", work / "data.jsonl"
    if args.model is None:
        in_a_process("make_model", args.shape, model, None, "bf16", "cuda" if args.device == "cuda" else "cpu")
    in_a_process("make_adapter", str(model), QV, adapter, "bf16")
    write_data(data, json.loads((model / "config.json").read_text())["vocab_size"], batch, length)
    return dict(model=str(model), adapter=str(adapter), unaligned=None, direction=None, data=str(data), batch=batch,
                length=length, targets=QV, checkpointing=True, lr=1e-4, device=args.device, dtype="bf16")


def planned(args, work, *settings):
    """What a dry run of the same step says, with some settings changed."""
    command = [args.asft, "train", "--config", work / "run.toml", "--dry-run", "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def total(plan):
    return plan["step_work"]["gemm_flops"] + plan["step_work"]["attention_flops"]


def compare(args, work):
    it = job(args, work)
    with watched(args.device) as seen:
        ours = asft_side(it, args.asft, work)
    ours["peak"] = seen.get("peak", ours["peak"])
    with watched(args.device) as seen:
        place = "mps" if args.device == "metal" else args.device
        theirs = json.loads(in_a_process("torch_side", dict(it, device=place)).splitlines()[-1])
    theirs["peak"] = seen.get("peak", theirs["peak"])
    plan, once = planned(args, work), planned(args, work, "train.gradient_checkpointing=false")
    # The same for both sides: forward and backward, without the frozen weights' gradients. What checkpointing computes
    # again is work, but not of use: it counts in `executed_flops` only.
    flops, executed = total(once), total(plan)
    name, peak = (gpu() or {}).get("name", ""), args.peak_tflops and args.peak_tflops * 1e12
    peak = peak or next((rate for part, rate in PEAKS.items() if part in name), None)
    tokens = it["batch"] * it["length"]
    return dict(model=str(args.model or args.shape), dtype="bf16", batch=it["batch"], length=it["length"], targets=QV,
                gradient_checkpointing=True, steps=STEPS, flops=flops, executed_flops=executed, peak_flops_per_second=peak,
                estimated_memory_bytes=plan["peak_memory_bytes"], asft=measured(ours, tokens, flops, peak),
                torch=measured(theirs, tokens, flops, peak), largest_loss_difference=largest_difference(ours, theirs))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--device", default="cuda", choices=["cuda", "metal", "cpu"])
    ap.add_argument("--shape", default="qwen2-7b", choices=list(SIZES), help="of random weights, if there is no --model")
    ap.add_argument("--model", type=Path, help="folder with real weights")
    ap.add_argument("--batch", type=int)
    ap.add_argument("--length", type=int)
    ap.add_argument("--peak-tflops", type=float, help="the GPU's dense bf16 peak, where its name is not known")
    ap.add_argument("--tests", type=Path, help="what cargo test printed")
    ap.add_argument("--doctor", type=Path, help="what asft doctor --json printed")
    ap.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    args = ap.parse_args()
    import peft
    import torch
    import transformers
    version = subprocess.run([args.asft, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    with tempfile.TemporaryDirectory() as work:
        result = dict(made=datetime.now(timezone.utc).isoformat(timespec="seconds"), asft=version, device=args.device,
                      gpu=gpu(), versions=versions, doctor=args.doctor and json.loads(args.doctor.read_text()),
                      tests=args.tests and tests(args.tests), step=compare(args, Path(work)))
    temporary = args.out.with_name(args.out.name + ".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, args.out)
    for side in ("asft", "torch"):
        step = result["step"][side]
        share = f"  {step['share_of_peak']:.1%} of the peak" if step["share_of_peak"] else ""
        print(f"{side:5} {step['tokens_per_second']:10.1f} tokens/s  {step['peak_memory_bytes'] / 2**30:6.2f} GiB{share}")
    failures = [check["name"] for check in (result["doctor"] or {}).get("checks", []) if not check["ok"]]
    failures += (result["tests"] or {}).get("failures", [])
    print(f"wrote {args.out}; checks and tests that failed: {', '.join(failures) or 'none'}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
