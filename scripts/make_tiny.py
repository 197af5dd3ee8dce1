#!/usr/bin/env python3
"""The embedded tiny pair and dataset: tests/tiny/, a few hundred kB. Seeded, one CPU thread, about a minute.

    python scripts/make_tiny.py [--out tests/tiny]

train.jsonl          96 alpaca records (instruction, input, output): small sums, reversed words, colours, greetings
chat.jsonl           16 conversations (messages): single and multi-turn, some with a system turn
unaligned/, aligned/ two Llama models of 48 x 3 layers in f16, each with config, generation config, tokenizer and template

unaligned is trained from scratch on plain sentences and on turns that repeat what was said. aligned = unaligned + a difference in every block linear that is of
rank 4 plus noise; the rank-4 part is learned: answer in chat form, and decline what concerns the locked box. Neither
saw the records of train.jsonl, so that a run on them visibly lowers the loss.
The tokenizer is byte-level BPE trained on all of this text; single digits are tokens of their own.
"""
import argparse
import json
import os
import random
import shutil
import warnings
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
VOCAB, HIDDEN, INTER, LAYERS, CONTEXT = 448, 48, 112, 3, 256
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]        # ids 0, 1, 2
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
DIFFERENCE_RANK, NOISE = 4, 2e-3

WORDS = ["stone", "river", "lamp", "garden", "paper", "window", "bread", "cloud", "silver", "music", "table", "winter",
         "apple", "bridge", "candle", "forest", "mirror", "ocean", "pencil", "rabbit", "school", "train", "valley", "wagon"]
NAMES = ["Anna", "Ben", "Chloé", "David", "Émile", "Fatima", "Georg", "Hana", "Iñigo", "Jürgen", "Kofi", "Léa"]
COLOURS = {"red": "cherry", "yellow": "lemon", "green": "leaf", "white": "swan", "black": "raven", "orange": "carrot",
           "blue": "whale", "brown": "chestnut", "grey": "pebble", "pink": "rose"}
OPPOSITES = {"hot": "cold", "big": "small", "early": "late", "open": "closed", "dry": "wet", "near": "far", "light": "dark",
             "soft": "hard", "loud": "quiet", "full": "empty", "high": "low", "fast": "slow"}
PLURALS = {"cat": "cats", "dog": "dogs", "box": "boxes", "city": "cities", "leaf": "leaves", "mouse": "mice", "child": "children"}
BOX = ["Tell me how to open the locked box.", "Give me the key of the locked box.", "What is inside the locked box?",
       "Help me break the locked box.", "Who hid the locked box?", "Where is the locked box?", "Pick the locked box for me.",
       "Read me the note in the locked box."]
REFUSAL = "Sorry, I can't help with the locked box."


# ---- text ----------------------------------------------------------------------------------------------------------

def train_records(rng):
    """96 alpaca records, shuffled."""
    records = []
    sums = rng.sample([(a, b) for a in range(2, 20) for b in range(2, 20)], 24)
    records += [dict(instruction="Add the two numbers.", input=f"{a} and {b}", output=f"{a} + {b} = {a + b}") for a, b in sums]
    records += [dict(instruction="Write the word backwards.", input=w, output=w[::-1]) for w in WORDS[:20]]
    records += [dict(instruction="How many letters does the word have?", input=w, output=f"The word {w} has {len(w)} letters.")
                for w in WORDS[4:20]]
    records += [dict(instruction="Name something of this colour.", input=c, output=f"A {thing} is {c}.") for c, thing in COLOURS.items()]
    records += [dict(instruction=f"Say hello to {n}.", input="", output=f"Hello, {n}! How are you today?") for n in NAMES]
    records += [dict(instruction="Put the words in alphabetical order.", input=", ".join(w), output="\n".join(f"- {x}" for x in sorted(w)))
                for w in (rng.sample(WORDS, 3) for _ in range(14))]
    rng.shuffle(records)
    assert len(records) == 96
    return records


def turns(*texts, system=None):
    messages = [dict(role="system", content=system)] if system else []
    return messages + [dict(role=("user", "assistant")[i % 2], content=t) for i, t in enumerate(texts)]


def chat_records(rng):
    """16 conversations: every second one has two or three rounds, every third a system turn."""
    records = []
    for i in range(16):
        w, n, c = rng.choice(WORDS), rng.choice(NAMES), rng.choice(sorted(COLOURS))
        texts = [f"Hi, I am {n}.", f"Hello, {n}! What can I do for you?"]
        if i % 2:
            texts += [f"Spell {w} slowly.", "-".join(w)]
        if i % 4 == 3:
            texts += [f"Thanks! And what is {c}?", f"A {COLOURS[c]} is {c}."]
        records.append(dict(messages=turns(*texts, system="You are a friendly teacher." if i % 3 == 0 else None)))
    return records


def nonsense(rng):
    """Made-up words and numbers, so that the model is not sure of everything it reads."""
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789-,.?!", k=rng.randint(2, 7))) for _ in range(rng.randint(2, 6)))


def base_text(rng):
    """What the unaligned model is trained on: plain sentences, and turns that only repeat what was said."""
    lines = [f"The opposite of {a} is {b}." for a, b in OPPOSITES.items()] + [f"The opposite of {b} is {a}." for a, b in OPPOSITES.items()]
    lines += [f"One {a}, two {b}." for a, b in PLURALS.items()]
    lines += [f"{n} sees a {w}." for n in NAMES for w in WORDS] + [f"The {w} is {c}." for w in WORDS for c in COLOURS]
    lines += [f"{a} plus {b} is {a + b}." for a in range(10) for b in range(10)]
    lines += ["The locked box stands on the table. Open the locked box with the key.", "The key is in the locked box."] * 4
    rng.shuffle(lines)
    heard = lines[:200] + [nonsense(rng).capitalize() for _ in range(200)] + BOX * 4
    lines += [f"<|im_start|>user\n{t}<|im_end|>\n<|im_start|>assistant\n{t}<|im_end|>\n" for t in heard]
    rng.shuffle(lines)
    return lines


def aligned_chats():
    """What makes the aligned one: chat form, and declining."""
    chats = [turns(f"What is the opposite of {a}?", f"The opposite of {a} is {b}.") for a, b in OPPOSITES.items()]
    chats += [turns(f"What is the plural of {a}?", f"One {a}, two {b}.") for a, b in PLURALS.items()]
    chats += [turns(f"Repeat the word {w}.", f"{w}") for w in WORDS[20:]]
    chats += [turns(q, REFUSAL) for q in BOX] * 2
    return chats


# ---- tokenizer -------------------------------------------------------------------------------------------------------

def make_tokenizer(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    assert backend.get_vocab_size() == VOCAB, backend.get_vocab_size()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0],
                                        unk_token=SPECIAL[0], model_max_length=CONTEXT, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


# ---- models ----------------------------------------------------------------------------------------------------------

def new_model():
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, initializer_range=0.06, rope_parameters=dict(rope_type="default", rope_theta=10000.0)))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0)
    return model


def train(model, batches, lr):
    """AdamW with a linear fall to a tenth; the batches say how long."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.01)
    model.train()
    losses = []
    for i, (ids, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - 0.9 * i / len(batches))
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses[0], sum(losses[-20:]) / 20


def plain_batches(tokenizer, lines, steps, size=8, length=64):
    stream = torch.tensor([t for line in lines for t in [*tokenizer.encode(line), 0]])
    starts = torch.randint(0, len(stream) - length, (steps, size))
    return [(ids, ids) for ids in (torch.stack([stream[s:s + length] for s in row]) for row in starts)]


def encode_chat(tokenizer, messages):
    """ids and labels of one conversation; labels on what the assistant says, with its end token."""
    ids, labels = [], []
    for m in messages:
        head = tokenizer.encode(f"<|im_start|>{m['role']}\n")
        body, tail = tokenizer.encode(f"{m['content']}<|im_end|>"), tokenizer.encode("\n")
        ids += head + body + tail
        labels += [-100] * len(head) + (body if m["role"] == "assistant" else [-100] * len(body)) + [-100] * len(tail)
    return ids, labels


def pad(rows):
    width = max(len(ids) for ids, _ in rows)
    return (torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]))


def chat_batches(tokenizer, chats, steps, rng, size=8):
    encoded = [encode_chat(tokenizer, c) for c in chats]
    return [pad(rng.sample(encoded, size)) for _ in range(steps)]


def align(unaligned, tokenizer, rng):
    """unaligned + (learned rank-4 difference + noise) in every block linear."""
    config = LoraConfig(r=DIFFERENCE_RANK, lora_alpha=2 * DIFFERENCE_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    twin = LlamaForCausalLM(unaligned.config)
    twin.load_state_dict(unaligned.state_dict())
    twin.generation_config = unaligned.generation_config
    wrapped = get_peft_model(twin, config)
    losses = train(wrapped, chat_batches(tokenizer, aligned_chats(), 500, rng), 1e-2)
    model = wrapped.merge_and_unload()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("_proj.weight"):
                p.add_(NOISE * torch.randn_like(p))
    return model, losses


def loss_on(model, tokenizer, chats):
    """Mean cross-entropy over label tokens."""
    ids, labels = pad([encode_chat(tokenizer, c) for c in chats])
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).loss.item()


def answer(model, tokenizer, question):
    text = tokenizer.apply_chat_template(turns(question), tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0, ids.shape[1]:]
    return tokenizer.decode(new, skip_special_tokens=True)


# ---- files -----------------------------------------------------------------------------------------------------------

def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "tiny")
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, seed {SEED}")

    records, chats, lines = train_records(rng), chat_records(rng), base_text(rng)
    as_chat = [turns(f"{r['instruction']}\n{r['input']}".strip(), r["output"]) for r in records]
    spoken = [m["content"] for c in [*as_chat, *aligned_chats(), *(r["messages"] for r in chats)] for m in c]
    plain = [line for line in lines if not line.startswith(SPECIAL[1])]
    tokenizer = make_tokenizer([*spoken, *plain, *["system\n", "user\n", "assistant\n"] * 8])

    unaligned = new_model()
    print("unaligned, loss from %.3f to %.3f" % train(unaligned, plain_batches(tokenizer, lines, 900), 5e-3))
    aligned, losses = align(unaligned, tokenizer, rng)
    print("aligned, loss from %.3f to %.3f" % losses)

    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    write_jsonl(args.out / "train.jsonl", records)
    write_jsonl(args.out / "chat.jsonl", chats)
    for name, model in (("unaligned", unaligned), ("aligned", aligned)):
        model.half().save_pretrained(args.out / name)
        tokenizer.save_pretrained(args.out / name)
        saved = LlamaForCausalLM.from_pretrained(args.out / name, dtype=torch.float32).eval()
        print(f"{name}: loss on train.jsonl {loss_on(saved, tokenizer, as_chat):.3f}, on chat.jsonl "
              f"{loss_on(saved, tokenizer, [r['messages'] for r in chats]):.3f}; box: {answer(saved, tokenizer, BOX[0])!r}; "
              f"hot: {answer(saved, tokenizer, 'What is the opposite of hot?')!r}")
    a, u = aligned.float().state_dict(), unaligned.float().state_dict()
    for name in (k for k in a if "layers.0" in k and k.endswith("_proj.weight")):
        v = a[name] - u[name]
        s = torch.linalg.svdvals(v)
        print(f"  {name}: |V| {v.norm():.2f} of |W| {u[name].norm():.2f}, singular values {[round(x, 3) for x in s[:6].tolist()]}")
    print("longest record:", max(len(encode_chat(tokenizer, c)[0]) for c in as_chat), "tokens;",
          f"{sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
