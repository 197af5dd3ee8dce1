#!/usr/bin/env python3
"""One client of a running `asft serve`, against asft's own commands; check_serve_clients.sh runs it.

    python scripts/serve_clients.py openai|inspect|lm-eval --asft BIN --address URL --key KEY --model DIR --adapter DIR
                                    --work DIR

The server has the toy model as "aligned" and an adapter of it as "tuned". Each check is printed as "ok" or "FAIL";
exit 1 when any fails. `--work`: an empty folder for data and logs.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

DATA = Path("tests/tiny/train.jsonl")
# What generates at most so many tokens, everywhere.
TOKENS = 48
failures = 0


def check(name, holds, detail=""):
    global failures
    failures += not holds
    print(f"{'ok' if holds else 'FAIL':4} {name} {detail}".rstrip())


def run(args, *arguments):
    command = [args.asft, "-q", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measured(args, data, *arguments, adapter=False):
    """The one evaluation that `asft eval` prints."""
    adapters = ["--adapter", args.adapter] if adapter else []
    arguments = ["eval", "--json", "--model", args.model, *adapters, "--data", data, *arguments]
    return json.loads(run(args, *arguments))["models"][0]["evaluations"][0]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(count):
    """(prompt, answer) of the toy model's own training data."""
    records = [json.loads(line) for line in DATA.read_text().splitlines()[:count]]
    return [("\n".join(filter(None, [r["instruction"], r["input"]])), r["output"]) for r in records]


def check_openai(args):
    import openai

    client = openai.OpenAI(base_url=args.address, api_key=args.key, max_retries=0)
    check("models", [model.id for model in client.models.list()] == ["aligned", "tuned"])
    prompt = questions(1)[0][0]
    asked = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": TOKENS}
    for model, adapters in [("aligned", []), ("tuned", ["--adapter", args.adapter])]:
        expected = run(args, "generate", "--model", args.model, *adapters, "--prompt", prompt, "--max-new-tokens", TOKENS)
        answer = client.chat.completions.create(model=model, **asked, logprobs=True, top_logprobs=2)
        text = answer.choices[0].message.content
        check(f"{model}: chat equals asft generate", text == expected.removesuffix("\n"), repr(text))
        check(f"{model}: logprobs spell the text", "".join(t.token for t in answer.choices[0].logprobs.content) == text)
        streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model=model, **streamed))
        parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        check(f"{model}: stream equals the whole", "".join(parts) == text and chunks[-1].usage == answer.usage)
    texts = [answer for _, answer in questions(6)]
    scored = client.completions.create(model="aligned", prompt=texts, echo=True, logprobs=1, max_tokens=0)
    scores = [score for choice in scored.choices for score in choice.logprobs.token_logprobs if score is not None]
    data = write(args.work / "texts.jsonl", [{"input_ids": ids, "labels": ids} for ids in token_ids(args, texts)])
    loss = measured(args, data, "--format", "tokenized")["loss"]
    check("echo: mean score equals asft eval's loss", abs(sum(scores) / len(scores) + loss) < 1e-4, f"{loss:.6f}")
    refused = [
        (openai.NotFoundError, {"model": "other", **asked}),
        (openai.BadRequestError, {"model": "aligned", **asked, "frequency_penalty": 1}),
        (openai.BadRequestError, {"model": "aligned", **asked, "max_tokens": 10**6}),
    ]
    for kind, arguments in refused:
        check(f"refused as {kind.__name__}", raises(kind, lambda: client.chat.completions.create(**arguments)))
    stranger = openai.OpenAI(base_url=args.address, api_key="other", max_retries=0)
    check("refused as AuthenticationError", raises(openai.AuthenticationError, stranger.models.list))


def raises(kind, call):
    try:
        call()
    except kind:
        return True
    return False


def token_ids(args, texts):
    """Ids by asft's own tokenizer, from the ids that it saves with logits."""
    from struct import unpack

    for number, text in enumerate(texts):
        path = args.work / f"logits-{number}.safetensors"
        run(args, "generate", "--model", args.model, "--raw", "--prompt", text, "--max-new-tokens", 1, "--logits", path)
        raw = path.read_bytes()
        length = unpack("<Q", raw[:8])[0]
        start, end = json.loads(raw[8 : 8 + length])["input_ids"]["data_offsets"]
        yield list(unpack(f"<{(end - start) // 8}q", raw[8 + length :][start:end]))


def answers(args, prompts, adapters):
    """What `asft generate` answers, trimmed."""
    lines = run(args, "generate", "--model", args.model, *adapters, "--data", prompts, "--max-new-tokens", TOKENS)
    return [json.loads(line)["answer"].strip() for line in lines.splitlines()]


def answered(args):
    """(prompt, reference) of 24 questions, the file of them, and what each model answers."""
    asked = questions(24)
    prompts = write(args.work / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in asked])
    said = {"aligned": answers(args, prompts, []), "tuned": answers(args, prompts, ["--adapter", args.adapter])}
    # Every other reference is what the base says itself: the toy model knows few of the others.
    asked = [(prompt, said["aligned"][i] if i % 2 else right) for i, (prompt, right) in enumerate(asked)]
    return asked, write(args.work / "asked.jsonl", [{"prompt": prompt, "output": answer} for prompt, answer in asked]), said


def accuracy_of(args, data, adapter):
    return measured(args, data, "--metric", "accuracy", "--max-new-tokens", TOKENS, adapter=adapter)["accuracy"]["rate"]


def check_inspect(args):
    os.environ |= {"ASFT_BASE_URL": args.address, "ASFT_API_KEY": args.key, "INSPECT_DISPLAY": "none"}
    from inspect_ai import Task, eval as evaluate
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import Score, accuracy, scorer
    from inspect_ai.solver import generate

    @scorer(metrics=[accuracy()])
    def same():
        async def score(state, target):
            return Score(value=state.output.completion.strip() == target.text.strip(), answer=state.output.completion)

        return score

    asked, data, said = answered(args)
    samples = MemoryDataset([Sample(input=prompt, target=answer) for prompt, answer in asked])
    task = Task(dataset=samples, solver=generate(), scorer=same(), name="toy")
    for model, adapter in [("aligned", False), ("tuned", True)]:
        log = evaluate(
            task,
            model=f"openai-api/asft/{model}",
            temperature=0.0,
            max_tokens=TOKENS,
            max_connections=8,
            log_dir=str(args.work / "inspect"),
        )[0]
        check(f"{model}: the evaluation ends", log.status == "success", log.status)
        found = log.results.scores[0].metrics["accuracy"].value
        check(f"{model}: accuracy equals asft eval's", abs(found - accuracy_of(args, data, adapter)) < 1e-9, f"{found:.4f}")
        heard = [sample.output.completion.strip() for sample in log.samples]
        check(f"{model}: answers equal asft generate's", heard == said[model], f"{heard[1]!r}")


def check_lm_eval(args):
    os.environ |= {"OPENAI_API_KEY": args.key, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    answers = sorted({answer for _, answer in questions(400)})[:40:10]
    items = [
        {"prompt": f"{prompt}\n", "choices": [right, *(a for a in answers if a != right)][:4], "label": 0}
        for prompt, right in questions(24)
    ]
    data = write(args.work / "items.jsonl", items)
    texts = write(args.work / "texts.jsonl", [{"text": answer} for _, answer in questions(24)])
    verbatim = args.work / "verbatim.jinja"
    verbatim.write_text("{{ messages[0]['content'] }}")

    def task(name, path, **fields):
        shared = {"task": name, "dataset_path": "json", "test_split": "test", "target_delimiter": ""}
        return ConfigurableTask(config={**shared, "dataset_kwargs": {"data_files": {"test": str(path)}}, **fields})

    choice = task(
        "choice",
        data,
        output_type="multiple_choice",
        doc_to_text="{{prompt}}",
        doc_to_choice="{{choices}}",
        doc_to_target="label",
        metric_list=[{"metric": "acc"}],
    )
    rolling = task(
        "rolling",
        texts,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity"}],
    )
    check_chats(args, simple_evaluate, task)
    for model, adapter in [("aligned", False), ("tuned", True)]:
        server = {
            "model": model,
            "base_url": f"{args.address}/completions",
            "tokenizer": str(args.model),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 4,
            "max_length": 256,
        }
        asked = {"tasks": [choice, rolling], "batch_size": 4, "bootstrap_iters": 0}
        found = simple_evaluate("local-completions", model_args=server, **asked)
        options = ["--metric", "accuracy", "--match", "choice", "--reference", "label", "--template", verbatim]
        expected = measured(args, data, *options, adapter=adapter)["accuracy"]["rate"]
        accuracy = found["results"]["choice"]["acc,none"]
        check(f"{model}: acc equals asft eval's choice", abs(accuracy - expected) < 1e-9, f"{accuracy:.4f}")
        check_rolling(args, model, found["samples"]["rolling"], adapter)


def check_chats(args, simple_evaluate, task):
    _, data, said = answered(args)
    chat = task(
        "chat",
        data,
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{output}}",
        generation_kwargs={"until": [], "max_gen_toks": TOKENS, "temperature": 0},
        filter_list=[{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    for model, adapter in [("aligned", False), ("tuned", True)]:
        server = {"model": model, "base_url": f"{args.address}/chat/completions", "num_concurrent": 4}
        asked = {"tasks": [chat], "bootstrap_iters": 0, "apply_chat_template": True}
        found = simple_evaluate("local-chat-completions", model_args=server, **asked)
        matches = found["results"]["chat"]["exact_match,none"]
        check(f"{model}: exact_match equals asft eval's accuracy", abs(matches - accuracy_of(args, data, adapter)) < 1e-9, f"{matches:.4f}")
        samples = sorted(found["samples"]["chat"], key=lambda sample: sample["doc_id"])
        heard = [sample["resps"][0][0].strip() for sample in samples]
        check(f"{model}: answers equal asft generate's", heard == said[model], f"{heard[1]!r}")


def check_rolling(args, model, samples, adapter):
    """The harness scores a text after the token that begins texts, or the one that ends them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(args.model))
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    total, records = 0.0, []
    for sample in samples:
        ids = [first, *tokenizer.encode(sample["doc"]["text"], add_special_tokens=False)]
        records.append({"input_ids": ids, "labels": ids})
        total += sample["filtered_resps"][0]
    data = write(args.work / "rolling.jsonl", records)
    found = measured(args, data, "--format", "tokenized", adapter=adapter)
    tokens = sum(len(record["input_ids"]) - 1 for record in records)
    check(f"{model}: rolling likelihoods equal asft eval's loss", abs(total / tokens + found["loss"]) < 1e-4, f"{total:.4f}")


CLIENTS = {
    "openai": (check_openai, ["openai"]),
    "inspect": (check_inspect, ["inspect-ai", "openai"]),
    "lm-eval": (check_lm_eval, ["lm-eval", "transformers"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("client", choices=CLIENTS)
    for name in ["--asft", "--address", "--key"]:
        parser.add_argument(name, required=True)
    for name in ["--model", "--adapter", "--work"]:
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    run_checks, packages = CLIENTS[args.client]
    print("==", ", ".join(f"{package} {version(package)}" for package in packages))
    run_checks(args)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
