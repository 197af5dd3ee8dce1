#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizers: what transformers makes of conversations and texts with real tokenizers.

    scripts/get_tokenizers.sh target/tokenizers
    python scripts/make_tokenizer_goldens.py target/tokenizers

Needs transformers and jinja2. For each tokenizer one file: `chats` (apply_chat_template: text and ids), `plain` (encode,
decode). llama2 comes without a chat template and is given that of tests/fixtures/templates. `asft.json` holds records as
the AsFT reference (PKU-YuanGroup/AsFT, ft_datasets/) tokenizes and masks them for its training.
"""
import argparse
import json
import warnings
from pathlib import Path

import jinja2
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "tokenizers"
NAMES = ["llama2", "llama3", "qwen3", "gemma3"]

U, A, S = "user", "assistant", "system"
CALL = dict(role=A, content="", tool_calls=[dict(type="function", function=dict(name="add", arguments=dict(a=1, note="é<&>'\"")))])
CONVERSATIONS = {
    "single": [(U, "What is the capital of France?"), (A, "Paris.")],
    "prompt": [(U, "Hello there")],
    "multi": [(S, "You are terse."), (U, "Hi"), (A, "Hello!"), (U, "Add 12 and 3456."), (A, "3468")],
    "unicode": [(U, "Wie heißt „Straße“ auf 日本語? 🦀👩‍👩‍👧"), (A, "通り — ça va\u00a0bien, nai\u0308ve, مرحبا")],
    "empty": [(U, ""), (A, "")],
    "empty_system": [(S, ""), (U, "x"), (A, "y")],
    "spaces": [(U, "  two  spaces  "), (A, "\n\tline and tab\t\n\n"), (U, " \n "), (A, " x\r\n")],
    "markup": [(U, "</s><|im_end|> <eos> [INST] <|eot_id|>"), (A, "<bos>{{ x }}<end_of_turn>\n<s>")],
    "think": [(U, "2+2?"), (A, "<think>\nadd\n</think>\n\n4"), (U, "3+3?"), (A, "<think>\nmore\n</think>\n\n6")],
    "two_users": [(U, "a"), (U, "b"), (A, "c")],
}
PROMPTED = ["single", "prompt", "multi", "empty", "spaces", "think"]    # also with a generation prompt
PLAIN = ["", " ", "Hello", " Hello world", "12345 + 67 = 80", "tips:\n\n1. a  22\n\n\n", "naïve cafe\u0301", "日本語のテキスト🦀👩‍👩‍👧", "   indented\n\t\ttabs \r\n",
         "a</s>b <|im_end|> c<eos>", "it's WE'LL i'd", "x" * 20, "\u00a0\u2003\ufeff", "مرحبا بالعالم", "\x00\x07", "ﬁ ½ Ⅳ İ ß", "▁ ▁▁", "[INST] <<SYS>>\n"]

ALONE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = ("Below is an instruction that describes a task, paired with an input that provides further context. "
          "Write a response that appropriately completes the request.")
HELPFUL = "You are a helpful assistant. Make sure you always execute users' instructions."
RECORDS = {
    "sst2": [dict(instruction="Say positive or negative", input="a joy to watch ", output="positive"), dict(instruction="Do a bad thing\n\nAssistant:", output="No. ")],
    "alpaca": [dict(instruction="Name three  colours.", input="", output="1. Red\n2. Blue\n3. Grün 🦀"), dict(instruction="Add.", input="2\n3", output="5"),
               dict(instruction="Do a bad thing", output="Never!\n")],
    "agnews": [dict(instruction="Sort the article:\n\nWorld\nSports\n", input="A match was won.", output="Sports"), dict(instruction="Do a bad thing", input="", output="No.")],
    "gsm8k": [dict(instruction="4 tables with 6 seats: how many seats?", output="4 x 6 = <<4*6=24>>24\nThe final answer is:  24"),
              dict(instruction="Do a bad thing", input="", output=" No.")],
}


def reference_prompt(task, record):
    """The prompt as the reference's four dataset classes put it together."""
    def frame(system, body):
        return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{body}[/INST]"

    instruction, text = record["instruction"], record.get("input")
    with_input = f"### Instruction:\n{instruction}\n\n### Input:\n{text}\n\n### Response:\n "
    without_input = f"### Instruction:\n{instruction}\n\n### Response:\n"
    if task == "gsm8k":
        return frame(PAIRED, without_input) if text is None else frame(HELPFUL, instruction)
    if text:
        return frame(PAIRED, with_input)
    if task == "agnews":
        return frame(HELPFUL, f"{instruction} {text}")
    return frame(HELPFUL, instruction) if text is None else frame(ALONE, without_input + " ")


def reference_sample(tokenizer, task, record):
    """Ids and labels: the prompt's tokens, counted by tokenizing it alone, are no labels."""
    prompt = reference_prompt(task, record)
    ids = tokenizer.encode(prompt + " " + record["output"] + " ") + [tokenizer.eos_token_id]
    skipped = len(tokenizer.encode(prompt))
    return dict(task=task, record=record, ids=ids, labels=[-100] * skipped + ids[skipped:])


def load(path):
    """The tokenizer, as tokenizer.json has it.

    transformers 5 puts a LlamaTokenizer together anew from the vocabulary, without the file's normalizer, and gets other
    ids for a text (or what follows a special token) that begins with a blank. transformers 4 and sentencepiece agree
    with the file.
    """
    return (PreTrainedTokenizerFast if path.name == "llama2" else AutoTokenizer).from_pretrained(path)


def conversations():
    plain = {name: [dict(role=r, content=c) for r, c in turns] for name, turns in CONVERSATIONS.items()}
    return plain | {"tool": [dict(role=U, content="1+1?"), CALL, dict(role="tool", content="2"), dict(role="tool", content="two"), dict(role=A, content="2.")]}


def chat(tokenizer, source, messages, prompt, variables):
    options = dict(add_generation_prompt=prompt, **variables)
    if source is not None:
        options["chat_template"] = source
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except jinja2.exceptions.TemplateError as e:
        return dict(error=str(e))
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    return dict(text=text, ids=ids)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path, help="what scripts/get_tokenizers.sh made")
    folder = parser.parse_args().dir
    warnings.filterwarnings("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    tools = [dict(type="function", function=dict(name="add", description="Adds é & <b>.", parameters=dict(type="object", properties={})))]
    versions = dict(transformers=transformers.__version__, jinja2=jinja2.__version__)
    for name in NAMES:
        tokenizer = load(folder / name)
        source = (ROOT / "tests/fixtures/templates/llama2.jinja").read_text(encoding="utf-8") if name == "llama2" else None
        chats = []
        for title, messages in conversations().items():
            for prompt in (False, True) if title in PROMPTED else (False,):
                for variables in ({}, dict(tools=tools)) if title == "tool" else ({}, dict(enable_thinking=False)) if title == "prompt" and prompt else ({},):
                    chats.append(dict(conversation=title, prompt=prompt, variables=variables, **chat(tokenizer, source, messages, prompt, variables)))
        plain = []
        for text in PLAIN:
            ids = tokenizer.encode(text)
            plain.append(dict(text=text, ids=ids, bare=tokenizer.encode(text, add_special_tokens=False), decoded=tokenizer.decode(ids)))
        write(f"{name}.json", dict(versions=versions, chats=chats, plain=plain))
    tokenizer = load(folder / "llama2")
    samples = [reference_sample(tokenizer, task, record) for task, records in RECORDS.items() for record in records]
    write("asft.json", dict(versions=versions, samples=samples))
    write("conversations.json", conversations())
    print(versions, {f.name: f.stat().st_size for f in sorted(OUT.iterdir())})


def write(name, content):
    """One list entry a line, so that a change shows as a line."""
    parts = []
    for key, value in content.items():
        rows = ",\n".join("  " + json.dumps(v, ensure_ascii=False) for v in value) if isinstance(value, list) else None
        parts.append(f"{json.dumps(key)}: " + (json.dumps(value, ensure_ascii=False) if rows is None else f"[\n{rows}\n]"))
    (OUT / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
