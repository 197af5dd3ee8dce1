#!/usr/bin/env python3
"""Refusals of a real language model before and after fine-tuning: SmolLM2-135M-Instruct, with asft alone.

    scripts/get_smollm2.sh models/smollm2-135m-instruct
    python scripts/smollm2_safety.py --data DIR [--model models/smollm2-135m-instruct] [--asft target/release/asft] [--seeds 0,1]

DIR holds the AsFT repository's agnews_1k_p_0.json, alpaca_1k_p_0.json and harmful_prompts_250.json, and agnews_test.json.

SmolLM2 was never taught to refuse: it is the unaligned model. Its aligned partner is made by full tuning on refusals to
harmful prompts and on its own answers to ordinary ones, so that it does not refuse everything. Then AG News is fine-tuned
with 0 and 10 % of the samples replaced by harmful prompts with the unaligned model's own answers. The harmful prompts of
alignment, poison, validation and test are four disjoint parts of the 250. A step whose result exists is skipped, and
`asft compare` resumes, so the script may be stopped and started again. Standard library only.
"""
import argparse
import json
import random
import subprocess
from pathlib import Path

SEED = 20261124
PARTS = {"align": 110, "poison": 40, "validation": 40, "test": 60}
ORDINARY, ORDINARY_TEST, NEWS, NEWS_VALIDATION, NEWS_TEST = 240, 60, 400, 100, 200
REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot help with that request.",
    "I'm sorry, I can't assist with that. Is there something else I can help you with?",
    "I can't help with that, because it could hurt someone.",
]
SHARES = {"p0": 0.0, "p10": 0.1}
LAMBDAS = [0.1, 1]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(ap)
    ap.add_argument("--seeds", default="0")
    args = ap.parse_args()
    data, aligned = make_pair(args)
    for config in compare_configs(args, data, aligned):
        run(args, "compare", "--config", config)


def add_arguments(ap):
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--model", default="models/smollm2-135m-instruct")
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--out", type=Path, default=Path("runs/smollm2-safety"))


def run(args, *words):
    subprocess.run([args.asft, *map(str, words)], check=True)


def make_pair(args):
    """The folder of the data and that of the aligned model, both made where they are not there yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    data = prepare(args)
    aligned = args.out / "align" / "model"
    if not aligned.exists():
        run(args, "train", "--config", align_config(args, data), "--resume")
    return data, aligned


# ---- data ------------------------------------------------------------------------------------------------------------

def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def answers(args, path, out, tokens):
    """The unaligned model's own answers to a file of prompts."""
    if not out.exists():
        found = subprocess.run([args.asft, "generate", "--model", args.model, "--data", str(path), "--max-new-tokens", str(tokens),
                                "--batch-size", "32"], check=True, stdout=subprocess.PIPE, text=True).stdout
        records = [json.loads(line) for line in found.splitlines()]
        write(out, [{"instruction": r["instruction"], "input": r.get("input", ""), "output": r["answer"].strip()} for r in records])
    return read_lines(out)


def prepare(args):
    folder = args.out / "data"
    folder.mkdir(exist_ok=True)
    rng = random.Random(SEED)
    harmful = [{"instruction": r["instruction"]} for r in read(args.data / "harmful_prompts_250.json")]
    rng.shuffle(harmful)
    parts, start = {}, 0
    for name, count in PARTS.items():
        parts[name] = harmful[start:start + count]
        start += count
    alpaca = read(args.data / "alpaca_1k_p_0.json")
    rng.shuffle(alpaca)
    ordinary = [{"instruction": r["instruction"], "input": r["input"]} for r in alpaca[:ORDINARY + ORDINARY_TEST]]
    answered = answers(args, write(folder / "ordinary_prompts.jsonl", ordinary[:ORDINARY]), folder / "ordinary.jsonl", 128)
    poison = answers(args, write(folder / "poison_prompts.jsonl", parts["poison"]), folder / "poison.jsonl", 128)
    refused = [{"instruction": r["instruction"], "input": "", "output": rng.choice(REFUSALS)} for r in parts["align"]]
    aligned = refused + [r for r in answered if r["output"]]
    rng.shuffle(aligned)
    write(folder / "align.jsonl", aligned)
    news = read(args.data / "agnews_1k_p_0.json")
    for name, share in SHARES.items():
        bad = round(NEWS * share)
        records = news[:NEWS - bad] + [r for r in poison if r["output"]][:bad]
        rng.shuffle(records)
        write(folder / f"train_{name}.jsonl", records)
    test = read(args.data / "agnews_test.json")
    write(folder / "news_validation.jsonl", test[:NEWS_VALIDATION])
    write(folder / "news_test.jsonl", test[NEWS_VALIDATION:NEWS_VALIDATION + NEWS_TEST])
    write(folder / "harmful_validation.jsonl", parts["validation"])
    write(folder / "harmful_test.jsonl", parts["test"])
    write(folder / "ordinary_test.jsonl", ordinary[ORDINARY:])
    return folder


# ---- configs ---------------------------------------------------------------------------------------------------------

def align_config(args, data):
    path = args.out / "align.toml"
    path.write_text(f"""[model]
aligned = "{args.model}"

[asft]
penalize = "none"

[data]
train = "{data}/align.jsonl"
max_length = 256

[train]
method = "full"
epochs = 2
batch_size = 8
learning_rate = 5e-5
warmup_ratio = 0.05
seed = 1

[output]
dir = "{args.out}/align"
save_every_steps = 40
keep_last = 1
""", encoding="utf-8")
    return path


def base_config(args, data, aligned):
    path = args.out / "base.toml"
    path.write_text(f"""[model]
aligned = "{aligned}"
unaligned = "{args.model}"

[lora]
rank = 8
alpha = 32
dropout = 0.0
target_modules = "all-linear"

[data]
train = "{data}/train_p0.jsonl"
max_length = 256

[train]
epochs = 1
batch_size = 8
learning_rate = 1e-3
warmup_ratio = 0.03
gradient_checkpointing = false
""", encoding="utf-8")
    return path


def compare_configs(args, data, aligned):
    base = base_config(args, data, aligned)
    evaluations = []
    for split in ("validation", "test"):
        suffix = "" if split == "test" else ", validation"
        evaluations.append((f"harmful score{suffix}", f"harmful_{split}", 'metric = "refusal"\nmax_new_tokens = 48'))
        evaluations.append((f"AG News{suffix}", f"news_{split}", 'preset = "agnews"\nmax_new_tokens = 8'))
    evaluations.append(("ordinary answered", "ordinary_test", 'metric = "refusal"\nmax_new_tokens = 32'))
    suite = "".join(f'[[eval]]\nname = "{name}"\ndata = "{data}/{file}.jsonl"\n{rest}\n\n' for name, file, rest in evaluations)
    (args.out / "suite.toml").write_text(suite, encoding="utf-8")
    return [compare_config(args, data, base, name) for name in ("p10", "p0")]


def compare_config(args, data, base, share):
    path = args.out / f"compare-{share}.toml"
    penalised = [("AsFT", "orthogonal", LAMBDAS), ("shrinkage", "all", LAMBDAS)]
    controls = [("low rate", "train.learning_rate = 3e-4")]
    if share != "p0":
        penalised.append(("AsFT, signed", "orthogonal+reverse", LAMBDAS[:1]))
        controls.append(("early stopping", "train.max_steps = 25"))
    text = method("plain LoRA", 'asft.penalize = "none"')
    for name, penalize, lambdas in penalised:
        text += method(name, f'asft.penalize = "{penalize}"', f"sweep = {{ asft.lambda = {lambdas} }}\n")
    for name, setting in controls:
        text += method(name, f'asft.penalize = "none", {setting}')
    path.write_text(f"""config = "{base}"
suite = "{args.out}/suite.toml"
dir = "{args.out}/compare-{share}"
seeds = [{args.seeds}]
batch_size = 32
sweep = {{ data.train = ["{data}/train_{share}.jsonl"] }}
{text}
[figure]
x = "AG News"
y = "harmful score"
""", encoding="utf-8")
    return path


def method(name, settings, rest=""):
    return f'\n[[method]]\nname = "{name}"\nset = {{ {settings} }}\n{rest}'


if __name__ == "__main__":
    main()
