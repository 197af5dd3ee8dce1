#!/usr/bin/env python3
"""One training step in asft and in PyTorch + transformers + PEFT, alternated in one run: time, memory, and the losses of
both, which show that it is the same work.

    python scripts/compare_peft.py [--asft target/release/asft] [--shapes smollm2,qwen2-slice] [--rounds 3] [--out FILE]

Both sides get the same random model, the same token ids, the same LoRA (r 8, alpha 32, no dropout; A as PEFT draws it,
B = 0), AdamW, and for the cases with a penalty the same pair of models: asft's penalty in closed form against the
reference's, which forms B A and multiplies it by I - C in every step. Each side runs in its own process; its first step
warms up and is not counted. Needs torch, transformers, peft, psutil. `gpu_step.py` does one step on a GPU with the same
parts.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

SHAPES = {
    # SmolLM2-135M
    "smollm2": dict(model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192),
    # Qwen2-7B's width and vocabulary, four layers of it
    "qwen2-slice": dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=4,
                        num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=True,
                        max_position_embeddings=32768),
    "qwen2-7b": dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                     num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False, max_position_embeddings=32768),
    "tiny": dict(model_type="qwen2", vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=512),
}
QV, ALL = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [  # name, shape, batch, length, targets, gradient checkpointing, penalty
    ("qv", "smollm2", 4, 256, QV, False, False),
    ("qv, checkpointing", "smollm2", 4, 256, QV, True, False),
    ("all linears", "smollm2", 4, 256, ALL, False, False),
    ("all linears, checkpointing", "smollm2", 4, 256, ALL, True, False),
    ("all linears, penalty", "smollm2", 4, 256, ALL, False, True),
    ("qv, length 128", "smollm2", 4, 128, QV, False, False),
    ("qv, length 512", "smollm2", 4, 512, QV, False, False),
    ("qv, length 1024", "smollm2", 2, 1024, QV, False, False),
    ("qv, length 2048", "smollm2", 1, 2048, QV, False, False),
    ("qv", "qwen2-slice", 1, 512, QV, True, False),
]
STEPS = 5


def torch_type(dtype):
    import torch
    return dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu():
    """The CPU's name and those of its vector instructions that products choose by, as Linux lists them."""
    import platform
    try:
        lines = [line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line]
    except OSError:
        return platform.processor() or platform.machine()
    value = {key.strip(): text.strip() for key, text in lines}
    flags = set(value.get("flags", "").split())
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if name in flags]
    return f"{value.get('model name', platform.machine())} (family {value.get('cpu family', '?')}, model {value.get('model', '?')}; {', '.join(features)})"


def gemm_rates(job, shape, asft, folder):
    """GFLOP/s of one f32 product of the case's sizes in PyTorch and in asft, whose estimate of a run measures it."""
    k, n = SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    theirs = in_a_process("torch_gemm_rate", min(job["batch"] * job["length"], 1024), k, n)
    forecast = json.loads(called([asft, "train", "--config", write_config(job, folder), "--dry-run", "--json"]))
    return float(theirs), forecast["time"]["gemm_flops_per_second"] / 1e9


def torch_gemm_rate(m, k, n):
    import torch
    torch.set_num_threads(os.cpu_count())
    a, b = torch.full((m, k), 0.5), torch.full((k, n), 0.25)
    out, best, began = torch.empty(m, n), float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.5:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    print(2 * m * k * n / best / 1e9)


def called(command):
    """What a command prints; if it fails, an error with the end of what it says about that."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}")
    return done.stdout


# ---- the PyTorch side, in its own process ------------------------------------------------------------------------

def torch_side(job):
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count())
    device = torch.device(job["device"])
    model = nf4_model(job) if job.get("nf4") else AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch_type(job["dtype"])).to(device)
    model.config.use_cache = False
    if job["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True).train()
    c = {}
    if job["unaligned"]:
        aligned, other = targeted(job["model"], job["targets"]), targeted(job["unaligned"], job["targets"])
        for name in aligned:
            v = aligned[name].to(device).float() - other[name].to(device).float()
            c[name.removesuffix(".weight")] = v @ v.T / v.norm()
        del aligned, other
    lora = {n.removeprefix("base_model.model.").removesuffix(".default.weight"): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(lora.values(), lr=job["lr"], weight_decay=0.0)
    rows = [json.loads(line) for line in open(job["data"])]
    times, losses = [], []
    for step in range(STEPS + 1):
        part = rows[step * job["batch"]:(step + 1) * job["batch"]]
        ids = torch.tensor([row["input_ids"] for row in part], device=device)
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        for module, matrix in c.items():
            delta = lora[module + ".lora_B"] @ lora[module + ".lora_A"]
            loss = loss + ((torch.eye(len(matrix), device=device) - matrix) @ delta).pow(2).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.values(), 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        losses.append(loss.item())
    print(json.dumps(dict(times=times, losses=losses, peak=peak_bytes())))


def nf4_model(job):
    """The base as bitsandbytes quantises it: NF4 with quantised scales."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch_type(job["dtype"]))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch_type(job["dtype"]), quantization_config=how,
                                                 device_map=job["device"])
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def targeted(folder, targets):
    """The targeted linears' weights by name, from all of a model's files."""
    from safetensors import safe_open
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("_proj.weight") and name.split(".")[-2] in targets]
            found.update({name: tensors.get_tensor(name) for name in names})
    return found


# ---- the asft side -----------------------------------------------------------------------------------------------

def asft_side(job, asft, folder):
    called([asft, "train", "--config", write_config(job, folder), "--quiet", "--overwrite"])
    rows = [json.loads(line) for line in open(folder / "run" / "metrics.jsonl")]
    rows = [row for row in rows if "loss" in row]
    return dict(times=[row["tokens"] / row["tokens_per_second"] for row in rows], losses=[row["loss"] for row in rows],
                peak=rows[-1]["peak_memory_bytes"])


def write_config(job, folder):
    path = folder / "run.toml"
    asft_table = f'lambda = 1.0\npenalize = "{"orthogonal" if job["unaligned"] else "none"}"'
    if job["direction"]:
        asft_table += f'\ndirection = "{job["direction"]}"'
    path.write_text(f'''
[model]
aligned = "{job["model"]}"
device = "{job["device"]}"
dtype = "{job["dtype"]}"
{job.get("weights", "")}
[lora]
init_adapter = "{job["adapter"]}"
dropout = {job["dropout"]}
[asft]
{asft_table}
[data]
train = "{job["data"]}"
format = "tokenized"
shuffle = false
max_length = {job["length"]}
[train]
batch_size = {job["batch"]}
max_steps = {STEPS + 1}
learning_rate = {job["lr"]}
schedule = "constant"
gradient_checkpointing = {str(job["checkpointing"]).lower()}
[output]
dir = "{folder / "run"}"
''')
    return path


# ---- inputs ------------------------------------------------------------------------------------------------------

def make_model(shape, folder, dtype="f32", device="cpu"):
    """A random model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    if (folder / "config.json").exists():
        return
    torch.manual_seed(1)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape]), dtype=torch_type(dtype))
    model.save_pretrained(folder, max_shard_size="5GB" if shape == "qwen2-7b" else "100GB")


def make_twin(model, folder, scale, dtype="f32"):
    """The same model with every block linear moved by noise of rank 8 and of that size."""
    import torch
    from transformers import AutoModelForCausalLM
    if (folder / "config.json").exists():
        return
    torch.manual_seed(4)
    twin = AutoModelForCausalLM.from_pretrained(model, dtype=torch_type(dtype))
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if name.endswith("_proj.weight"):
                p.add_(scale * torch.randn(len(p), 8) @ torch.randn(8, p.shape[1]))
    twin.save_pretrained(folder, max_shard_size="5GB")


def make_adapter(model, targets, folder, dtype="f32", dropout=0.0):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    if (folder / "adapter_config.json").exists():
        return
    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch_type(dtype))
    peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, lora_dropout=dropout, target_modules=targets,
                                           task_type="CAUSAL_LM"))
    peft.save_pretrained(folder, save_embedding_layers=False)


def in_a_process(function, *arguments):
    """Runs a function of this file in a fresh process, so that its memory is returned."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import compare_peft; from pathlib import Path; "
    code += f"compare_peft.{function}({', '.join(repr(a) if not isinstance(a, Path) else f'Path({str(a)!r})' for a in arguments)})"
    return called([sys.executable, "-W", "ignore", "-c", code])


def write_data(path, vocab_size, batch, length):
    """Token ids for every step, all of them labels."""
    import random
    draw = random.Random(3)
    with open(path, "w") as file:
        for _ in range(batch * (STEPS + 1)):
            ids = [draw.randrange(vocab_size) for _ in range(length)]
            file.write(json.dumps(dict(input_ids=ids, labels=ids)) + "\n")


def make_direction(model, twin, targets, file, asft, dtype="f32"):
    """The twin of a model, and the direction between them."""
    in_a_process("make_twin", str(model), twin, 1e-3, dtype)
    if not file.exists():
        called([asft, "direction", "--aligned", model, "--unaligned", twin, "--out", file, "--target-modules", ",".join(targets)])
    return twin, file


def prepare(case, work, asft):
    name, shape, batch, length, targets, checkpointing, penalty = case
    model, kind = work / shape, "all" if targets is ALL else "qv"
    in_a_process("make_model", shape, model)
    adapter, unaligned, direction = work / f"{shape}-{kind}", None, None
    in_a_process("make_adapter", str(model), targets, adapter)
    if penalty:
        unaligned, direction = make_direction(model, work / f"{shape}-unaligned", targets, work / f"{shape}-{kind}.safetensors", asft)
    data = work / f"{shape}-{batch}x{length}.jsonl"
    write_data(data, SHAPES[shape]["vocab_size"], batch, length)
    return dict(model=str(model), adapter=str(adapter), unaligned=unaligned and str(unaligned), direction=direction and str(direction),
                data=str(data), batch=batch, length=length, targets=targets, checkpointing=checkpointing, lr=1e-4,
                dropout=0.0, device="cpu", dtype="f32")


def largest_difference(one, other):
    """Between the losses of two sides, relative."""
    return max(abs(a / b - 1) for a, b in zip(one["losses"], other["losses"]))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--shapes", default="smollm2,qwen2-slice")
    ap.add_argument("--only", help="cases whose name contains this")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--work", type=Path, help="folder for the models, kept between runs")
    ap.add_argument("--out", type=Path, help=f"Markdown table, such as docs/results/{date.today()}-peft.md")
    args = ap.parse_args()
    scratch = tempfile.TemporaryDirectory()
    work = args.work or Path(scratch.name)
    work.mkdir(parents=True, exist_ok=True)
    import peft, torch, transformers
    lines = [f"{cpu()};", f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, {os.cpu_count()} cores, "
             f"median of {STEPS} steps in each of {args.rounds} alternated rounds", "",
             "| shape | case | batch | torch s | asft s | time ratio | torch GB | asft GB | memory ratio | largest loss difference | GEMM, GFLOP/s: torch, asft |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    for case in CASES:
        name, shape, batch, length, *_ = case
        if shape not in args.shapes.split(",") or (args.only and args.only not in name):
            continue
        job, sides = prepare(case, work, args.asft), dict(torch=[], asft=[])
        rates = gemm_rates(job, shape, args.asft, work)
        for _ in range(args.rounds):
            sides["torch"].append(json.loads(in_a_process("torch_side", job).splitlines()[-1]))
            sides["asft"].append(asft_side(job, args.asft, work))
        seconds = {k: statistics.median(t for run in v for t in run["times"][1:]) for k, v in sides.items()}
        peak = {k: max(run["peak"] for run in v) / 1e9 for k, v in sides.items()}
        apart = largest_difference(sides["asft"][0], sides["torch"][0])
        lines.append(f"| {shape} | {name} | {batch} x {length} | {seconds['torch']:.2f} | {seconds['asft']:.2f} | {seconds['asft'] / seconds['torch']:.2f} "
                     f"| {peak['torch']:.2f} | {peak['asft']:.2f} | {peak['asft'] / peak['torch']:.2f} | {apart:.1e} | {rates[0]:.0f}, {rates[1]:.0f} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
