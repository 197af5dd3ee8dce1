#!/usr/bin/env python3
"""The memory that training would take on a GPU, as `asft train --dry-run` estimates it from a model's shape alone: the
table of docs/gpu.md. Nothing is measured, and neither weights nor a GPU is needed.

    python scripts/gpu_memory_table.py [--asft target/release/asft] [--check docs/gpu.md]

LoRA of rank 8 on q_proj and v_proj, dropout 0.05, bf16, gradient checkpointing, the penalty with U of full rank: what the
AsFT reference trains. What a run can use of a card is what `--gpu` takes for it.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

MODELS = {
    "Llama-2-7B": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=32000, hidden_size=4096,
                       intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
                       max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
                       tie_word_embeddings=False),
    "Qwen2-7B": dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=152064, hidden_size=3584,
                     intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                     max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu",
                     tie_word_embeddings=False, use_sliding_window=False),
    "Gemma-2-9B": dict(model_type="gemma2", architectures=["Gemma2ForCausalLM"], vocab_size=256000, hidden_size=3584,
                       intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8,
                       head_dim=256, max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=10000.0,
                       hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
                       final_logit_softcapping=30.0, sliding_window=4096, tie_word_embeddings=True),
}
LENGTHS, CARDS, MOST = (512, 2048), ("rtx4090", "l4", "l40s", "h100"), 64
GIB = 1 << 30


def forecast(asft, folder, model, length, batch, card=CARDS[0]):
    """The dry run of micro-batches of `batch` samples of `length` tokens."""
    place = folder / model
    for model_folder in (place, folder / f"{model}-base"):
        model_folder.mkdir(exist_ok=True)
        (model_folder / "config.json").write_text(json.dumps(MODELS[model]))
    sample = json.dumps(dict(input_ids=[1] * length, labels=[1] * length))
    (folder / "data.jsonl").write_text((sample + "\n") * batch)
    (folder / "run.toml").write_text(f'''
[model]
aligned = "{place}"
unaligned = "{place}-base"
dtype = "bf16"
device = "cuda"
[lora]
rank = 8
alpha = 32
dropout = 0.05
target_modules = ["q_proj", "v_proj"]
[data]
train = "{folder}/data.jsonl"
format = "tokenized"
max_length = {length}
[train]
batch_size = {batch}
[output]
dir = "{folder}/run"
''')
    command = [asft, "train", "--config", folder / "run.toml", "--dry-run", "--json", "--gpu", card]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def rows(asft, folder):
    yield "| model | length | weights | direction | activations | in all, batch 1 | " + " | ".join(
        f"`{card}`: batch" for card in CARDS) + " |"
    yield "| --- |" + " --- |" * (5 + len(CARDS))
    usable = {card: forecast(asft, folder, "Qwen2-7B", 512, 1, card)["available_memory_bytes"] for card in CARDS}
    for model in MODELS:
        for length in LENGTHS:
            peak = cache(lambda batch: forecast(asft, folder, model, length, batch))
            one = peak(1)
            parts = one["memory_bytes"]
            activations = max(parts["activations"], parts["logits"])
            sizes = [parts["weights"], parts["direction"], activations, one["peak_memory_bytes"]]

            def largest(card):
                """The largest micro-batch that fits, 0 if none does."""
                fits, beyond = 0, MOST + 1
                while beyond - fits > 1:
                    middle = (fits + beyond) // 2
                    fitting = peak(middle)["peak_memory_bytes"] <= usable[card]
                    fits, beyond = (middle, beyond) if fitting else (fits, middle)
                return f"{MOST} or more" if fits == MOST else str(fits) if fits else "none"

            cells = [f"{size / GIB:.1f} GiB" for size in sizes] + [largest(card) for card in CARDS]
            yield f"| {model} | {length} | " + " | ".join(cells) + " |"


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--asft", default="target/release/asft")
    ap.add_argument("--check", type=Path, help="fail unless this file holds the table")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(rows(args.asft, Path(folder)))
    print(table)
    if args.check and table not in args.check.read_text():
        sys.exit(f"{args.check} does not hold this table; paste it there")


if __name__ == "__main__":
    main()
