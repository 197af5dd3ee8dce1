#!/usr/bin/env python3
"""Golden fixture of LoRA's finer settings from PyTorch + PEFT; f32 on CPU, one thread. Needs the llama_gqa fixture.

    python scripts/make_lora_goldens.py [--fixtures tests/fixtures]

lora_options/adapter/             an adapter as PEFT writes it: layers_to_transform, rank_pattern, alpha_pattern.
lora_options/expected.safetensors loss [3] f64: of each step; final.M.lora_A, .lora_B f32: after 3 steps of PEFT's LoRA+
                                  optimizer (create_loraplus_optimizer on AdamW, gradient clipped to 1) on llama_gqa's batch.
lora_options/case.json            the settings, and the versions that made the numbers.
"""
import argparse
import json
import platform
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SEED = 20261124
LORA = dict(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[0, 2],
            rank_pattern={"v_proj": 2, "layers.2.mlp.down_proj": 6}, alpha_pattern={"q_proj": 8, "layers.0.mlp.down_proj": 5})
STEPS = dict(lr=2e-3, loraplus_lr_ratio=8.0, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, clip=1.0, count=3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=Path("tests/fixtures"))
    fixtures = parser.parse_args().fixtures
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = fixtures / "lora_options"
    base = AutoModelForCausalLM.from_pretrained(fixtures / "llama_gqa/model", dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(**LORA, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_((0.15 if "lora_A" in name else 0.05) * torch.randn_like(p))
    model.peft_config["default"].base_model_name_or_path = "fixtures/llama_gqa"
    model.save_pretrained(out / "adapter", save_embedding_layers=False)
    (out / "adapter/README.md").unlink(missing_ok=True)
    written = json.loads((out / "adapter/adapter_config.json").read_text())
    written["target_modules"].sort()
    (out / "adapter/adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")

    batch = load_file(fixtures / "llama_gqa/batch.safetensors")
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=STEPS["lr"], loraplus_lr_ratio=STEPS["loraplus_lr_ratio"],
        loraplus_weight_decay=STEPS["weight_decay"], betas=tuple(STEPS["betas"]), eps=STEPS["eps"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for _ in range(STEPS["count"]):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, STEPS["clip"])
        optimizer.step()
        losses.append(loss.item())
    tensors = {"loss": torch.tensor(losses, dtype=torch.float64)}
    for name, p in model.named_parameters():
        if "lora_" in name:
            key = name.removeprefix("base_model.model.").replace(".default.weight", "")
            tensors[f"final.{key}"] = p.detach().contiguous()
    save_file(tensors, out / "expected.safetensors")
    versions = dict(seed=SEED, python=platform.python_version(), torch=torch.__version__,
                    transformers=transformers.__version__, peft=peft.__version__)
    (out / "case.json").write_text(json.dumps(dict(lora=LORA, steps=STEPS, versions=versions), indent=2) + "\n")


if __name__ == "__main__":
    main()
