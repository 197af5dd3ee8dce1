"""Writes what fuzzing starts from: fuzz/corpus/TARGET/seed-NAME, out of the fixtures in tests/ and the cases below.

Usage: python3 fuzz/seeds.py (Python's standard library only). Every file is an input for the target of that name in
fuzz/src/lib.rs.
"""

import json
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
# As in fuzz/src/lib.rs.
FORMATS = ["alpaca", "chat", "sharegpt", "prompt_completion", "text", "tokenized"]

ALPACA = [{"instruction": "2 + 2?", "input": "", "output": "4"}, {"instruction": "a", "input": "b", "output": "c\n"}]
CHAT = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]}]
CALLS = [{"messages": [{"role": "user", "content": "hi"},
                       {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                       {"role": "tool", "content": "1"}, {"role": "assistant", "content": "one"}],
          "tools": [{"type": "function", "function": {"name": "f"}}]}]
SHAREGPT = [{"system": "s", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello."}]},
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{\"name\": \"f\"}"}]}]
COMPLETION = [{"prompt": "a ", "completion": "b"}]
TEXT = [{"text": "Anything. \u00e9\U0001f980"}]
TOKENIZED = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
RECORDS = {"alpaca": ALPACA, "chat": CHAT + CALLS, "sharegpt": SHAREGPT, "prompt_completion": COMPLETION, "text": TEXT,
           "tokenized": TOKENIZED}


def write(target, name, content):
    path = CORPUS / target / f"seed-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def config():
    for path in sorted([ROOT / "configs/tiny.toml", *(ROOT / "configs/models").glob("*.toml"), *(ROOT / "configs/sandbox").glob("*.toml")]):
        write("config", path.stem, path.read_text())
    text = (ROOT / "configs/tiny.toml").read_text()
    sets = ["asft.lambda=1", "output.dir=2026", "lora.target_modules=[\"q_proj\"]", "train={batch_size=2, epochs=3}",
            "data.columns.input=context", "train.seed = 7", "data.validation=0.5"]
    write("config", "sets", "\0".join([text, *sets]))


def records():
    for index, name in enumerate(FORMATS):
        lines = "\n".join(json.dumps(record) for record in RECORDS[name])
        write("json", name, bytes([index]) + lines.encode())
        write("json", name + "-array", bytes([index + 6]) + json.dumps(RECORDS[name], indent=1).encode())
    write("table", "alpaca", b"\0instruction,input,output\n\"a, \"\"b\"\"\nc\",d,e\n1,,2\n")
    write("table", "completion", b"\x03\xef\xbb\xbfprompt\tcompletion\r\na\tb\r\n")
    write("table", "text", b"\x04text\nabc\n\n\"d\"\n")
    write("table", "chat", b"\x01messages\n" + json.dumps(CHAT[0]["messages"]).encode() + b"\n")
    write("table", "tokenized", b"\x05input_ids\tlabels\n[5, 6]\t[5, 6]\n")
    for path in sorted((ROOT / "tests/fixtures/parquet").glob("*.parquet")):
        write("parquet", path.stem, b"\x01" + path.read_bytes())


def safetensors():
    def file(header, data=b""):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data
    write("safetensors", "empty", file({}))
    write("safetensors", "half", file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                                       "b": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [8, 14]},
                                       "c": {"dtype": "F16", "shape": [], "data_offsets": [14, 16]},
                                       "__metadata__": {"format": "pt"}}, bytes(range(16))))
    write("safetensors", "types", file({"i": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
                                        "f8": {"dtype": "F8_E4M3", "shape": [0, 9], "data_offsets": [8, 8]}}, bytes(8)))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write("index", "one", json.dumps({"metadata": {"total_size": 1}, "weight_map": {name: "model.safetensors"}}))
    write("index", "missing", json.dumps({"weight_map": {"a": "./model.safetensors", "b": "x/y", "c": "../z"}}))


def four_bit():
    def file(parts):
        header, data = {}, b""
        for name, (dtype, shape, values) in parts.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data

    def floats(values):
        return struct.pack(f"<{len(values)}f", *values)
    name, table = "model.layers.0.self_attn.q_proj.weight", [i / 8 - 1 for i in range(16)]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 50]}
    nested = state | {"nested_blocksize": 2, "nested_dtype": "float32", "nested_offset": 0.5}

    def weight(state, absmax, more):
        text = json.dumps(state).encode()
        return file({name: ("U8", [75, 1], bytes(range(75))), f"{name}.absmax": absmax,
                     f"{name}.quant_map": ("F32", [16], floats(table)), **more,
                     f"{name}.quant_state.bitsandbytes__nf4": ("U8", [len(text)], text)})
    write("four_bit", "plain", weight(state, ("F32", [3], floats([1, 2, 3])), {}))
    write("four_bit", "nested", weight(nested, ("U8", [3], bytes([0, 127, 255])), {
        f"{name}.nested_absmax": ("F32", [2], floats([0.1, 0.2])),
        f"{name}.nested_quant_map": ("F32", [256], floats([i / 128 - 1 for i in range(256)]))}))
    write("four_bit", "infinite", weight(state, ("F32", [3], floats([1, float("inf"), 3])), {}))
    write("four_bit", "eight_bits", file({name: ("I8", [1, 2], b"ab"), f"{name[:-7]}.SCB": ("F32", [1], floats([1]))}))


def gguf():
    """A Llama with a block of tiny tensors, of several types, and what a header may say."""
    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()

    def whole(key, value):
        return string(key) + struct.pack("<II", 4, value)

    def file(metadata, tensors, alignment=32):
        header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata)
        offset, data = 0, b""
        for name, dimensions, kind, values in tensors:
            header += string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
            data += values + bytes(-len(values) % alignment)
            offset = len(data)
        return header + bytes(-len(header) % alignment) + data

    sizes = {"embedding_length": 32, "feed_forward_length": 32, "block_count": 1, "context_length": 64, "attention.head_count": 2}

    def metadata(architecture):
        eps = string(f"{architecture}.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
        return [string("general.architecture") + struct.pack("<I", 8) + string(architecture), eps,
                *(whole(f"{architecture}.{key}", value) for key, value in sizes.items())]

    f32 = struct.pack("<32f", *range(32))
    tensors = [("token_embd.weight", [32, 2], 1, bytes(128)), ("output_norm.weight", [32], 0, f32),
               ("blk.0.attn_q.weight", [32, 4], 2, bytes(range(72))), ("blk.0.attn_k.weight", [32, 4], 8, bytes(136)),
               ("blk.0.attn_v.weight", [256], 12, bytes(144)), ("rope_freqs.weight", [8], 0, f32[4:36])]
    tokens = string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("b")
    flags = string("gemma3.attention.sliding_window_pattern") + struct.pack("<IIQ", 9, 7, 1) + b"\1"
    write("gguf", "llama", file([*metadata("llama"), tokens], tensors))
    write("gguf", "gemma3", file([*metadata("gemma3"), flags, whole("gemma3.attention.sliding_window", 8)], tensors[:2]))
    write("gguf", "aligned", file([*metadata("qwen2"), whole("general.alignment", 64)], tensors[:3], 64))
    write("gguf", "tokenizer", file([
        *(string(f"tokenizer.ggml.{key}") + struct.pack("<I", 8) + string(value) for key, value in [("model", "gpt2"), ("pre", "qwen2")]),
        string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 6) + b"".join(map(string, ["<s>", "a", "b", "\u0120", "aa", "\u0120a"])),
        string("tokenizer.ggml.token_type") + struct.pack("<IIQ6i", 9, 5, 6, 3, 1, 1, 1, 1, 4),
        string("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, 2) + string("a a") + string("\u0120 a"),
        whole("tokenizer.ggml.bos_token_id", 0), string("tokenizer.ggml.add_bos_token") + struct.pack("<IB", 7, 1)], []))
    write("gguf", "empty", file([], []))


def models():
    fixtures = ROOT / "tests/fixtures"
    for path in sorted(fixtures.glob("*/model/config.json")):
        write("model", path.parent.parent.name, path.read_text())
    for path in sorted(fixtures.glob("rope/*/config.json")):
        write("model", "rope-" + path.parent.name, path.read_text())
    for path in sorted(fixtures.glob("*/adapter/adapter_config.json")):
        write("adapter", path.parent.parent.name, path.read_text())
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
              "rank_pattern": {"layers.1.*q_proj": 4}, "alpha_pattern": {"v_proj": 16}, "bias": "none"}
    write("adapter", "patterns", json.dumps(fields))


def tokenizers():
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "a", "b", "W", "\u0120", "aa", "\u0120a"])}
    added = [{"id": 1, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True}]
    piece = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    bpe = {"type": "BPE", "vocab": vocab, "merges": [["a", "a"], ["\u0120", "a"]], "unk_token": "<unk>",
           "byte_fallback": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": "a+|\\s"}, "behavior": "Isolated", "invert": False}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    cases = {
        "bpe": {"model": bpe, "pre_tokenizer": level, "decoder": level, "post_processor": template,
                "added_tokens": added},
        "split": {"model": bpe, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
                  "normalizer": {"type": "Sequence", "normalizers": [
                      {"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                      {"type": "Prepend", "prepend": "\u2581"}]}},
        "word_level": {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
                       "pre_tokenizer": {"type": "Whitespace"}},
        "word_piece": {"model": {"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>",
                                 "continuing_subword_prefix": "##", "max_input_chars_per_word": 9},
                       "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                                      "strip_accents": None, "lowercase": True},
                       "pre_tokenizer": {"type": "BertPreTokenizer"},
                       "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
        "unigram": {"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                              "vocab": [["<unk>", 0.0], ["a", -1.0], ["\u2581a", -2.0], ["aa", -2.5]]},
                    "pre_tokenizer": piece,
                    "decoder": {"type": "Sequence", "decoders": [
                        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}},
    }
    for name, case in cases.items():
        text = json.dumps({"version": "1.0", **case})
        write("tokenizer", name, text)
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "add_eos_token": True,
                "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
                "chat_template": [{"name": "default", "template": "{{ messages }}"}]}
    write("tokenizer", "settings", json.dumps({"version": "1.0", **cases["bpe"]}) + "\0" + json.dumps(settings))


def templates():
    for path in sorted((ROOT / "tests/fixtures/templates").glob("*.jinja")):
        write("template", path.stem, path.read_text())
    record = json.dumps(CALLS[0])
    for name in ["chatml", "llama3", "gemma"]:
        write("conversation", name, (ROOT / f"tests/fixtures/templates/{name}.jinja").read_text() + "\0" + record)
    loop = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}{{ eos_token }}{% endfor %}"
    write("conversation", "loop", loop + "\0" + record)


def requests():
    sampled = {"temperature": 1.5, "top_p": 0.5, "seed": -3, "n": 2, "stop": ["\n", "end"], "max_tokens": 9}
    streamed = {"stream": True, "stream_options": {"include_usage": True}, "user": "me"}
    told = {"logprobs": True, "top_logprobs": 3}
    neutral = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logit_bias": {}}
    parts = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    chat = {"model": "tuned", "messages": parts}
    for name, more in {"plain": {}, "sampled": sampled, "streamed": streamed, "told": told, "neutral": neutral}.items():
        write("request", f"chat-{name}", json.dumps({**chat, **more}))
    scored = {"echo": True, "logprobs": 1, "max_tokens": 0}
    prompts = {"text": "hot \u00e9\U0001f980", "texts": ["a", "b"], "ids": [5, 6, 7], "lists": [[5], [6, 447]]}
    for name, prompt in prompts.items():
        write("request", f"completion-{name}", json.dumps({"model": "base", "prompt": prompt, **scored}))


config()
records()
safetensors()
four_bit()
gguf()
models()
tokenizers()
templates()
requests()
print(sum(1 for _ in CORPUS.glob("*/seed-*")), "seeds")
