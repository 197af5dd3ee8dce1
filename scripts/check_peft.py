#!/usr/bin/env python3
"""Independent check of an exported adapter: does Hugging Face PEFT load it, and does the model then say the same?

    python scripts/check_peft.py --base DIR --adapter DIR [--logits FILE] [--prompt TEXT --expect-text FILE]...
                                 [--asft BIN] [--tolerance 1e-3] [--max-new-tokens 32] [--raw]

Checks, each printed as "ok" or "FAIL"; exit 1 when any fails, 2 on bad arguments:
  keys     the names in adapter_model.safetensors are exactly those that PEFT itself would write for this config, with
           equal shapes and finite values; PEFT's own load result reports no missing LoRA key and no unexpected key
  values   what PEFT holds after loading equals the file, and some lora_B is not zero (else the output is the base's)
  logits   --logits FILE: tensors input_ids i64 [n] and logits f32 [n, vocab]; max abs difference <= --tolerance
  text     greedy answer to each --prompt equals the text of the --expect-text FILE at the same position, or, with
           --asft BIN, what `BIN generate --model BASE --adapter DIR --prompt TEXT` prints. Surrounding white space is
           ignored. A prompt is one user turn of the chat template if there is one; --raw sends it as it is.
f32 on CPU.
"""
import argparse
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

failures = 0


def report(name, problems, good):
    """One line for a passed check, the list of problems for a failed one."""
    global failures
    if problems:
        failures += 1
        print(f"FAIL {name}")
        for line in problems[:40]:
            print(f"     {line}")
        if len(problems) > 40:
            print(f"     ... and {len(problems) - 40} more")
    else:
        print(f"ok   {name}: {good}")


def load_base(folder):
    """In the class that the folder is of: a text model's, or a multimodal one."""
    multimodal = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def check_keys(base, folder, stored):
    """Attach an empty adapter from the config, compare its names with the file, then load the file into it."""
    config = LoraConfig.from_pretrained(str(folder))
    model = get_peft_model(base, config)
    # save_embedding_layers=False: PEFT would otherwise look the base up by name
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [f"missing in the file: {k} {list(wanted[k].shape)}" for k in sorted(wanted.keys() - stored.keys())]
    problems += [f"not expected by PEFT: {k} {list(stored[k].shape)}" for k in sorted(stored.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & stored.keys()):
        if wanted[key].shape != stored[key].shape:
            problems.append(f"shape of {key}: PEFT expects {list(wanted[key].shape)}, the file has {list(stored[key].shape)}")
        elif not torch.isfinite(stored[key]).all():
            problems.append(f"not finite: {key}")
    if not wanted:
        problems.append(f"target_modules {config.target_modules} match nothing in the base")
    if not problems:
        result = set_peft_model_state_dict(model, stored)
        problems += [f"PEFT reports missing: {k}" for k in result.missing_keys if "lora_" in k]
        problems += [f"PEFT reports unexpected: {k}" for k in result.unexpected_keys]
    report("keys", problems, f"{len(stored)} tensors, r {config.r}, alpha {config.lora_alpha}, rslora {config.use_rslora}, "
                             f"targets {sorted(config.target_modules) if not isinstance(config.target_modules, str) else config.target_modules}")
    return not problems


def check_values(model, stored):
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [f"differs after loading: {k}" for k in stored if k not in held or not torch.equal(held[k], stored[k].float())]
    norms = [v.float().norm().item() for k, v in stored.items() if "lora_B" in k]
    if not any(norms):
        problems.append("every lora_B is zero: the adapter does nothing")
    report("values", problems, f"loaded as stored, {sum(n > 0 for n in norms)} of {len(norms)} lora_B are non-zero")


def check_logits(model, file, tolerance):
    data = load_file(file)
    problems = [f"{file}: no tensor {name!r}" for name in ("input_ids", "logits") if name not in data]
    if not problems:
        with torch.no_grad():
            mine = model(input_ids=data["input_ids"].long().reshape(1, -1)).logits[0].float()
            with model.disable_adapter():
                base = model(input_ids=data["input_ids"].long().reshape(1, -1)).logits[0].float()
        theirs = data["logits"].float()
        if mine.shape != theirs.shape:
            problems.append(f"shape: PEFT gives {list(mine.shape)}, the file has {list(theirs.shape)}")
        else:
            worst = (mine - theirs).abs().max().item()
            line = (f"max abs difference {worst:.3e} (limit {tolerance:g}) over {len(mine)} positions; "
                    f"the adapter itself moves the logits by up to {(mine - base).abs().max().item():.3f}")
            if not worst <= tolerance:
                problems.append(line)
    report("logits", problems, line if not problems else "")


def greedy(model, tokenizer, prompt, length, raw):
    text, special = prompt, True
    if not raw and tokenizer.chat_template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        special = False
    ids = tokenizer(text, add_special_tokens=special, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(input_ids=ids.input_ids, attention_mask=ids.attention_mask, max_new_tokens=length, do_sample=False)
    return tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True)


def ask_asft(binary, base, adapter, prompt, length):
    command = [binary, "generate", "--model", base, "--adapter", adapter, "--prompt", prompt, "--max-new-tokens", str(length)]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def check_text(name, mine, theirs):
    if mine.strip() == theirs.strip():
        report(name, [], repr(mine.strip()))
    else:
        report(name, [f"PEFT: {mine.strip()!r}", f"asft: {theirs.strip()!r}"], "")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base model")
    ap.add_argument("--adapter", type=Path, required=True, help="exported adapter folder")
    ap.add_argument("--logits", type=Path, help="safetensors with input_ids [n] and logits [n, vocab]")
    ap.add_argument("--prompt", action="append", default=[], help="repeatable")
    ap.add_argument("--expect-text", type=Path, action="append", default=[], help="file with the expected answer, one per --prompt")
    ap.add_argument("--asft", help="asft binary to ask where no --expect-text is given")
    ap.add_argument("--tolerance", type=float, default=1e-3)
    ap.add_argument("--max-new-tokens", type=int, default=32)
    ap.add_argument("--raw", action="store_true", help="prompts without the chat template")
    args = ap.parse_args()
    if args.expect_text and len(args.expect_text) != len(args.prompt):
        ap.error(f"{len(args.prompt)} --prompt but {len(args.expect_text)} --expect-text")
    if args.asft and args.raw:
        ap.error("--asft asks through the chat template; it does not go with --raw")
    weights = args.adapter / "adapter_model.safetensors"
    for file in [args.base / "config.json", args.adapter / "adapter_config.json", weights, *args.expect_text, *filter(None, [args.logits])]:
        if not file.is_file():
            ap.error(f"no such file: {file}")

    stored = load_file(weights)
    if check_keys(load_base(args.base), args.adapter, stored):
        model = PeftModel.from_pretrained(load_base(args.base), args.adapter).eval()      # the way a user loads it
        check_values(model, stored)
        if args.logits:
            check_logits(model, args.logits, args.tolerance)
        tokenizer = AutoTokenizer.from_pretrained(args.base) if args.prompt else None
        for i, prompt in enumerate(args.prompt):
            mine = greedy(model, tokenizer, prompt, args.max_new_tokens, args.raw)
            if args.expect_text:
                check_text(f"text {i + 1}", mine, args.expect_text[i].read_text(encoding="utf-8"))
            elif args.asft:
                check_text(f"text {i + 1}", mine, ask_asft(args.asft, args.base, args.adapter, prompt, args.max_new_tokens))
            else:
                print(f"     {prompt!r} -> {mine!r}")
    print("all checks passed" if not failures else f"{failures} check(s) failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
