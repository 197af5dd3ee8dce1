#!/usr/bin/env python3
"""A training step on a GPU in asft and in PyTorch + transformers + PEFT, with the parts of compare_peft.py: at several
lengths, with and without dropout and the penalty; tokens a second, peak memory, share of the GPU's bf16 peak, and what the
dry run predicted. Called by gpu_check.sh: what the doctor and the tests found becomes part of the JSON, and of the Markdown
beside it.

LoRA (r 8) on q_proj and v_proj, bf16 weights, gradient checkpointing, AdamW; once for each length on weights in NF4, which
PyTorch's side needs bitsandbytes for. Both sides get the same weights, token ids and
adapter; dropout's masks differ, so losses are compared without it only. The penalty is asft's closed form against the
reference's, which forms B A and multiplies it by I - C in every step. Peak memory is what nvidia-smi shows beyond what was
in use before, context included, on both sides; no other process may use the GPU at the same time.
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
from itertools import product
from pathlib import Path

from compare_peft import QV, STEPS, asft_side, called, in_a_process, largest_difference, make_direction, write_data

SIZES = {"qwen2-7b": [(8, 512), (2, 2048), (1, 8192)], "tiny": [(2, 32), (2, 64), (1, 128)]}  # batch, length
DROPOUT = 0.05
GIB = 1 << 30


# ---- the GPU -----------------------------------------------------------------------------------------------------

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


# ---- one case ----------------------------------------------------------------------------------------------------

def inputs(args, work):
    """The model, its twin, and the direction between them; adapters without and with dropout."""
    model = args.model or work / args.shape
    if args.model is None:
        in_a_process("make_model", args.shape, model, "bf16", "cuda" if args.device == "cuda" else "cpu")
    adapters = {dropout: work / f"adapter-{dropout}" for dropout in (0.0, DROPOUT)}
    for dropout, folder in adapters.items():
        in_a_process("make_adapter", str(model), QV, folder, "bf16", dropout)
    return model, adapters, make_direction(model, work / "unaligned", QV, work / "direction.safetensors", args.asft, "bf16")


def job(args, work, made, batch, length, dropout, penalty, nf4):
    model, adapters, pair = made
    data = work / f"{batch}x{length}.jsonl"
    write_data(data, json.loads((model / "config.json").read_text())["vocab_size"], batch, length)
    unaligned, direction = map(str, pair) if penalty else (None, None)
    return dict(model=str(model), adapter=str(adapters[dropout]), unaligned=unaligned, direction=direction, data=str(data),
                batch=batch, length=length, dropout=dropout, targets=QV, checkpointing=True, lr=1e-4, device=args.device,
                dtype="bf16", nf4=nf4, weights='quantize = "nf4"' if nf4 else "")


def attempt(device, side):
    """What a side measured, or why it did not: one that lacks memory, say, is a result too."""
    with watched(device) as seen:
        try:
            got = side()
        except Exception as error:  # whatever it is, the other cases are still worth an hour
            return dict(failure=f"{type(error).__name__}: {error}")
    return dict(got, peak=seen.get("peak", got["peak"]))


def measured(side, tokens, flops, peak_flops):
    if "failure" in side:
        return side
    seconds = statistics.median(side["times"][1:])
    return dict(step_seconds=side["times"], median_seconds=seconds, tokens_per_second=tokens / seconds,
                peak_memory_bytes=side["peak"], share_of_peak=peak_flops and flops / seconds / peak_flops,
                losses=side["losses"])


def dry_run(args, work, *flags):
    """What a dry run of the same step says."""
    command = [args.asft, "train", "--config", work / "run.toml", "--dry-run", "--json", *flags]
    return json.loads(called(command))


def planned(args, work, name):
    """The same with a prediction for the card of this name, if it is known. A name that was given is known."""
    try:
        return dry_run(args, work, "--gpu", name)
    except RuntimeError:
        if args.card:
            raise
        return dry_run(args, work)


def total(plan):
    return plan["step_work"]["gemm_flops"] + plan["step_work"]["attention_flops"]


def compare(args, work, made, case):
    (batch, length), dropout, penalty, nf4 = case
    it = job(args, work, made, batch, length, dropout, penalty, nf4)
    ours = attempt(args.device, lambda: asft_side(it, args.asft, work))
    place = "mps" if args.device == "metal" else args.device
    run_torch = lambda: json.loads(in_a_process("torch_side", dict(it, device=place)).splitlines()[-1])
    theirs = attempt(args.device, run_torch)
    plan = planned(args, work, args.card or (gpu() or {}).get("name", ""))
    once = dry_run(args, work, "--set", "train.gradient_checkpointing=false")
    # The same for both sides: forward and backward, without the frozen weights' gradients. What checkpointing computes
    # again is work, but not of use: it counts in `executed_flops` only.
    flops, executed, tokens = total(once), total(plan), batch * length
    prediction = plan["prediction"]
    peak = prediction and prediction["assumed"]["peak_flops_per_second"]
    comparable = dropout == 0 and not any("failure" in side for side in (ours, theirs))
    return dict(batch=batch, length=length, dropout=dropout, penalty=penalty, nf4=nf4, flops=flops, executed_flops=executed,
                peak_flops_per_second=peak, predicted_seconds=prediction and prediction["step_seconds"],
                estimated_memory_bytes=plan["peak_memory_bytes"], asft=measured(ours, tokens, flops, peak),
                torch=measured(theirs, tokens, flops, peak),
                largest_loss_difference=largest_difference(ours, theirs) if comparable else None)


# ---- the report --------------------------------------------------------------------------------------------------

def tests(log):
    """What `cargo test` said; None if it was not run."""
    if log is None or not log.exists():
        return None
    outcomes = re.findall(r"^test (\S+) .*?(ok|FAILED|ignored)$", log.read_text(), re.M)
    failed = [name for name, outcome in outcomes if outcome == "FAILED"]
    return dict(passed=sum(outcome == "ok" for _, outcome in outcomes), failed=len(failed), failures=failed)


def cell(side, of):
    return "failed" if "failure" in side else of(side)


def row(step):
    ours, theirs = step["asft"], step["torch"]
    time, memory = (lambda s: f"{s['median_seconds']:.3f}"), (lambda s: f"{s['peak_memory_bytes'] / GIB:.2f}")
    share = lambda s: f"{s['share_of_peak']:.1%}" if s["share_of_peak"] else "-"
    whole = not any("failure" in side for side in (ours, theirs))
    ratio = f"{ours['median_seconds'] / theirs['median_seconds']:.2f}" if whole else "-"
    predicted, apart = step["predicted_seconds"], step["largest_loss_difference"]
    cells = [f"{step['batch']} x {step['length']}", "yes" if step["dropout"] else "no", "yes" if step["penalty"] else "no",
             "nf4" if step["nf4"] else "bf16", cell(theirs, time), cell(ours, time), ratio, f"{predicted:.3f}" if predicted else "-", cell(theirs, memory),
             cell(ours, memory), f"{step['estimated_memory_bytes'] / GIB:.2f}", cell(theirs, share), cell(ours, share),
             "-" if apart is None else f"{apart:.1e}"]
    return "| " + " | ".join(cells) + " |"


def markdown(result):
    gpu = result["gpu"]
    place = f"{gpu['name']}, driver {gpu['driver']}" if gpu else result["device"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"# {result['asft']} on {place}"
    yield f"\n{result['made']}; {versions}. Written by scripts/gpu_check.sh; the numbers behind it are in the JSON beside it.\n"
    for doctor in result["doctor"]:
        faults = [f"{check['name']} ({check['what']})" for check in doctor["checks"] if not check["ok"]]
        rates = doctor["rates"]
        yield (f"- `asft doctor`, {doctor['dtype']}: {len(doctor['checks'])} checks, {len(faults)} faults"
               + (f": {', '.join(faults)}" if faults else "")
               + f"; copies {rates['copy_bytes_per_second'] / 1e9:.0f} GB/s, products {rates['gemm_flops_per_second'] / 1e12:.1f} TFLOP/s")
    for what, found in (("goldens", result["tests"]), ("sums by NCCL", result["nccl"])):
        said = f"{found['passed']} tests passed, {found['failed']} failed" if found else "not run"
        yield f"- {what}: {said}" + (f": {', '.join(found['failures'])}" if found and found["failures"] else "")
    yield (f"\nA step of {result['model']}, bf16, LoRA of rank 8 on q and v, gradient checkpointing; median of {STEPS} steps. "
           "Shares are of the card's bf16 peak.\n")
    yield ("| batch | dropout | penalty | weights | PyTorch + PEFT s | asft s | ratio | predicted s | PyTorch + PEFT GiB | asft GiB | planned GiB "
           "| PyTorch + PEFT share | asft share | largest loss difference |")
    yield "| --- |" + " --- |" * 13
    yield from map(row, result["steps"])
    if not result["complete"]:
        yield "\nNot all steps were taken: the check ended before."
    failed = [(step, name) for step in result["steps"] for name in ("torch", "asft") if "failure" in step[name]]
    for step, name in failed:
        yield f"\n{name}, {step['batch']} x {step['length']}: {step[name]['failure']}"


def written(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--device", default="cuda", choices=["cuda", "metal", "cpu"])
    ap.add_argument("--shape", default="qwen2-7b", choices=list(SIZES), help="of random weights, if there is no --model")
    ap.add_argument("--model", type=Path, help="folder with real weights")
    ap.add_argument("--batch", type=int, help="with --length, in the place of the sizes that the shape has")
    ap.add_argument("--length", type=int)
    ap.add_argument("--card", help="what `asft train --gpu` calls the GPU, where the driver's name for it is not known")
    ap.add_argument("--tests", type=Path, help="what cargo test printed")
    ap.add_argument("--nccl", type=Path, help="the same of the tests of NCCL")
    ap.add_argument("--doctor", type=Path, action="append", default=[], help="what asft doctor --json printed; may be repeated")
    ap.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="JSON; the Markdown beside it ends in .md")
    args = ap.parse_args()
    if (args.batch is None) != (args.length is None):
        ap.error("--batch and --length belong together")
    return args


def main():
    args = arguments()
    import peft
    import torch
    import transformers
    sizes = [(args.batch, args.length)] if args.batch else SIZES[args.shape]
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    result = dict(made=datetime.now(timezone.utc).isoformat(timespec="seconds"), asft=called([args.asft, "--version"]).strip(),
                  device=args.device, gpu=gpu(), versions=versions, model=str(args.model or args.shape), dtype="bf16",
                  targets=QV, gradient_checkpointing=True, steps_each=STEPS,
                  doctor=[json.loads(file.read_text()) for file in args.doctor], tests=tests(args.tests), nccl=tests(args.nccl),
                  complete=False, steps=[])

    def save():
        written(args.out, json.dumps(result, indent=2) + "\n")
        written(args.out.with_suffix(".md"), "\n".join(markdown(result)) + "\n")

    save()
    steps = result["steps"]
    with tempfile.TemporaryDirectory() as work:
        made = inputs(args, Path(work))
        quantised = product(sizes, (0.0,), (False,), (True,))
        for case in [*product(sizes, (0.0, DROPOUT), (False, True), (False,)), *quantised]:
            steps.append(compare(args, Path(work), made, case))
            print(row(steps[-1]), flush=True)
            # An hour of steps must not be lost with the last.
            save()
    result["complete"] = True
    save()
    failures = [f"{check['name']} in {doctor['dtype']}" for doctor in result["doctor"] for check in doctor["checks"] if not check["ok"]]
    failures += [name for found in (result["tests"], result["nccl"]) for name in (found or {}).get("failures", [])]
    failures += [f"a step in asft ({step['batch']} x {step['length']})" for step in steps if "failure" in step["asft"]]
    print(f"wrote {args.out} and {args.out.with_suffix('.md')}; what failed: {', '.join(failures) or 'nothing'}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
