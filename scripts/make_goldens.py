#!/usr/bin/env python3
"""Golden fixtures from PyTorch + transformers + PEFT for the Rust tests. Writes tests/fixtures/; f32 on CPU, one thread.

    python scripts/make_goldens.py [--out tests/fixtures] [--only CASE]

versions.json               python, torch, transformers, peft and the seed that made the numbers.
<case>/case.json            hyperparameters of the case (adapter, curves, generation), so that no test repeats them.
<case>/model/               config.json + safetensors: a random model, large weights so that every feature shows.
<case>/unaligned/           llama_gqa only: model/ minus a low-rank-plus-noise difference in every block linear.
<case>/adapter/             LoRA adapter as PEFT writes it (r 4, alpha 12; q, v, o, down; B is not zero).
<case>/batch.safetensors    input_ids, labels, attention_mask, all i64 [4, T]; right padded; -100 on prompt, padding and a
                            second-turn gap in sample 0. Labels are unshifted: position t is predicted at t - 1.
<case>/expected.safetensors f32 unless said otherwise; M is a module path (model.layers.0.self_attn.q_proj), P a parameter name:
    base.logits, lora.logits, merged.logits [4, T, V]   base; base + adapter; after peft merge_and_unload.
                            Rows where attention_mask is 0 mean nothing: do not compare them.
    lora.loss, lora.grad.M.lora_A, lora.grad.M.lora_B   mean cross-entropy over label tokens and its gradients
    full.loss, full.grad.P                              the same for the base without adapter, every parameter;
                                                        a tied head counts once, under model.embed_tokens.weight
    lora.loss64, full.loss64 [1] f64                    the losses in f64 from the f32 logits
    curve.{loss,task_loss,penalty,grad_norm} [10]       10 AdamW steps from the adapter on the batch; loss = task_loss +
    curve.final.M.lora_A, .lora_B                       penalty, penalty = lambda sum ||(I - C) B A||_F^2, C = V V^T / ||V||_F;
                                                        grad_norm is the global L2 norm before clipping
    fullcurve.*  (llama_gqa)                            10 steps of full tuning, penalty on W - W_aligned of q_proj and v_proj;
                                                        fullcurve.final.P, for size only of layer 0, embedding, final norm and head
    generate.prompt [n], generate.tokens [16] i64       greedy continuation by base + adapter, no stop token
    bf16.logits, bf16.grad.M.lora_A, .lora_B            base + adapter once more, the base in bf16 and the adapter in f32

Cases: llama_gqa (4 heads, 2 kv, untied, config in the transformers 4 dialect without head_dim), llama3_rope (llama3 rope
scaling with all three bands, tied, head_dim 16 != 48/4, transformers 5 dialect, sharded), llama_linear_bias (linear rope
scaling, attention and mlp biases, 6 heads, 3 kv, transformers 4 dialect), and one of each other family, windows shorter
than the sequences: mistral (window 8, head_dim 16, transformers 4 dialect), qwen2 (qkv biases, tied, window 7 from layer 1
on), qwen3 (q/k norm, head_dim 20), gemma2 (soft-caps that bite, alternating windows, transformers 4 dialect), gemma3_text
(q/k norm, two ropes, the global one scaled, transformers 5 dialect; model4/ holds the same config.json in the dialect of 4).

rope/<kind>/config.json, expected.safetensors: llama_gqa's weights, adapter and batch under other kinds of rope scaling;
lora.logits, lora.loss64 and lora.grad as above, each sequence run by itself (dynamic and longrope look at its length).

penalty/penalty.safetensors, penalty/index.json: the literal formula in f64 with torch autograd, lambda 0.7. Per module N:
    N.V [out, in], N.A [r, in], N.B [out, r], N.delta [out, in]   f32 inputs
    N.lora.<penalize>.<projector>.<bare|scaled>.{value,grad_A,grad_B}   f64, Delta W = B A, or (alpha / r) B A when scaled
    N.full.<penalize>.<projector>.{value,grad}                          f64, Delta W = delta
  penalize: orthogonal ||(I - X) Delta W||_F^2 | aligned ||X Delta W||_F^2 | all ||Delta W||_F^2   ("none" is 0, not stored)
  projector: paper X = V V^T / ||V||_F | subspace_rank, subspace_energy X = U_k U_k^T, k in index.json.
  By rank: k = min(3, rank of V). By energy: the smallest k whose sum of squared singular values is >= 0.9 ||V||_F^2.
  V = 0 gives X = 0 and k = 0. "all" knows no X and is stored once, under paper.
"""
import argparse
import json
import platform
import shutil
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SEED = 20240611
LAYERS, HIDDEN, INTER, VOCAB, MAX_POS, STD = 3, 48, 56, 97, 64, 0.2
RANK, ALPHA = 4, 12
TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
STEPS = 10
CURVE = dict(lr=5e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, clip=1.0)
FULLCURVE = dict(lr=1e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, clip=1.0, penalty_modules=["q_proj", "v_proj"])
LAMBDA = 0.5
LENGTHS, PROMPTS = [22, 17, 13, 9], [6, 5, 3, 2]
GENERATED = 16

COMMON = dict(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=LAYERS,
              max_position_embeddings=MAX_POS, bos_token_id=1, eos_token_id=2, attention_dropout=0.0)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
CASES = {
    "llama_gqa": dict(model_type="llama", seed=1, **HEADS, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=PLAIN),
    "llama3_rope": dict(model_type="llama", seed=0, **HEADS, head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
                        rope_parameters=dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=0.5,
                                             high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama_linear_bias": dict(model_type="llama", seed=2, num_attention_heads=6, num_key_value_heads=3, rms_norm_eps=1e-5,
                              tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
                              rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
    "mistral": dict(model_type="mistral", seed=3, **HEADS, head_dim=16, rms_norm_eps=1e-5, sliding_window=8,
                    tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=5000.0)),
    "qwen2": dict(model_type="qwen2", seed=4, **HEADS, rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=True,
                  sliding_window=7, max_window_layers=1, rope_parameters=PLAIN),
    "qwen3": dict(model_type="qwen3", seed=5, num_attention_heads=4, num_key_value_heads=1, head_dim=20, rms_norm_eps=1e-6,
                  tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=50000.0)),
    "gemma2": dict(model_type="gemma2", seed=8, **HEADS, head_dim=16, query_pre_attn_scalar=20, attn_logit_softcapping=4.0,
                   final_logit_softcapping=3.0, sliding_window=7, rope_parameters=PLAIN),
    "gemma3_text": dict(model_type="gemma3_text", seed=7, **HEADS, head_dim=16, query_pre_attn_scalar=20, sliding_window=6,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                        rope_parameters=dict(full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=4.0),
                                             sliding_attention=dict(rope_type="default", rope_theta=100.0))),
}
# How transformers 4 wrote the same thing; everything else in config.json is equal in both dialects.
DIALECT4 = {
    "llama_gqa": dict(rope_theta=10000.0, rope_scaling=None),
    "llama_linear_bias": dict(rope_theta=10000.0, rope_scaling=dict(rope_type="linear", factor=2.5), head_dim=8),
    "mistral": dict(rope_theta=5000.0, head_dim=16),
    "gemma2": dict(rope_theta=10000.0, head_dim=16, hidden_act="gelu_pytorch_tanh"),
}
GEMMA3_DIALECT4 = dict(rope_theta=5000.0, rope_local_base_freq=100.0, rope_scaling=dict(rope_type="linear", factor=4.0),
                       sliding_window_pattern=2, head_dim=16)
HALF = HIDDEN // 4 // 2          # frequencies of llama_gqa's heads
ROPES = {
    "dynamic": dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
    "yarn": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16),
    "yarn_mscale": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=16,
                        beta_slow=2, mscale=0.7, mscale_all_dim=0.4, truncate=False),
    "longrope": dict(rope_type="longrope", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16,
                     short_factor=[1.0 + 0.1 * i for i in range(HALF)], long_factor=[2.0 + 0.5 * i for i in range(HALF)]),
}


# ---- models and files ------------------------------------------------------------------------------------------

def random_model(case):
    settings = {k: v for k, v in CASES[case].items() if k != "seed"}
    config = AutoConfig.for_model(**COMMON, **json.loads(json.dumps(settings)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    offset = 0 if case.startswith("gemma") else 1          # Gemma stores norm weights as w - 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(offset + 0.2 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.3 * torch.randn_like(p))
            else:
                p.copy_(STD * torch.randn_like(p))
    return model


def is_block_linear(name):
    return name.endswith("_proj.weight")


def difference(shape):
    """Rank 3 with falling strength plus noise; ||V||_F is about 1.3, so C has eigenvalues that matter."""
    out, inn = shape
    scale = torch.tensor([1.0, 0.6, 0.3])
    u, v = torch.randn(out, 3) / out ** 0.5, torch.randn(inn, 3) / inn ** 0.5
    return u * scale @ v.T + 0.01 * torch.randn(out, inn)


def write_config4(source, fields, target):
    """Rewrite a config.json the way transformers 4 spelled it."""
    new = json.loads(source.read_text())
    for key in ("rope_parameters", "dtype", "head_dim", "layer_types"):
        new.pop(key, None)
    new.update(fields, torch_dtype="float32", transformers_version="4.46.3")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")


def save_model(case, model, folder):
    model.save_pretrained(folder, max_shard_size="100KB" if case == "llama3_rope" else "5GB")
    if case in DIALECT4:
        write_config4(folder / "config.json", DIALECT4[case], folder / "config.json")
    if case == "gemma3_text":
        write_config4(folder / "config.json", GEMMA3_DIALECT4, folder.parent / "model4" / "config.json")


def load_model(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def load_adapted(case_dir, dtype=torch.float32):
    return PeftModel.from_pretrained(load_model(case_dir / "model", dtype), case_dir / "adapter", is_trainable=True).eval()


def make_adapter(case, case_dir):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(case_dir / "model"), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_((0.15 if "lora_A" in name else 0.05) * torch.randn_like(p))
    model.peft_config["default"].base_model_name_or_path = f"fixtures/{case}"
    folder = case_dir / "adapter"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    written = json.loads((folder / "adapter_config.json").read_text())
    written["target_modules"].sort()             # PEFT writes a set, so its order would change from run to run
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")


def make_batch():
    width = max(LENGTHS)
    ids = torch.randint(3, VOCAB, (len(LENGTHS), width))
    mask = (torch.arange(width)[None] < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask == 1, ids, torch.zeros_like(ids))
    labels = torch.where(mask == 1, ids, torch.full_like(ids, -100))
    for row, prompt in enumerate(PROMPTS):
        labels[row, :prompt] = -100
    labels[0, 12:15] = -100                      # a second user turn
    return dict(input_ids=ids, labels=labels, attention_mask=mask)


# ---- reference computations ------------------------------------------------------------------------------------

def cross_entropy(logits, labels):
    """Mean over label tokens; labels unshifted."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def lora_parameters(model):
    """{'model.layers.0.self_attn.q_proj.lora_A': parameter}"""
    return {n.removeprefix("base_model.model.").removesuffix(".default.weight"): p
            for n, p in model.named_parameters() if "lora_" in n}


def loss_and_grads(model, parameters, batch):
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)
    model.zero_grad()
    out = model(**batch)
    mine = cross_entropy(out.logits.float(), batch["labels"])
    torch.testing.assert_close(out.loss, mine, rtol=1e-6, atol=0)
    mine.backward()
    loss64 = cross_entropy(out.logits.detach().double(), batch["labels"])
    return out.logits.detach(), mine.detach(), loss64, {n: p.grad.clone() for n, p in parameters.items()}


def paper_c(aligned, unaligned):
    """C = V V^T / ||V||_F for each block linear, in f64 then rounded to f32."""
    c = {}
    for name in aligned:
        if is_block_linear(name):
            v = aligned[name].double() - unaligned[name].double()
            c[name.removesuffix(".weight")] = (v @ v.T / v.norm()).float()
    return c


def lora_penalty(parameters, c):
    total = torch.zeros((), dtype=next(iter(parameters.values())).dtype)
    for name, a in parameters.items():
        if name.endswith(".lora_A"):
            module = name.removesuffix(".lora_A")
            delta = parameters[module + ".lora_B"] @ a
            total = total + (delta - c[module].to(delta) @ delta).pow(2).sum()
    return total


def full_penalty(parameters, aligned, c, modules):
    total = torch.zeros(())
    for name, w in parameters.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in modules:
            delta = w - aligned[name]
            total = total + (delta - c[module] @ delta).pow(2).sum()
    return total


def adamw_curve(model, parameters, batch, setting, penalty):
    """STEPS optimizer steps on one batch; returns the recorded rows and the final parameters."""
    params = list(parameters.values())
    optimizer = torch.optim.AdamW(params, lr=setting["lr"], betas=tuple(setting["betas"]), eps=setting["eps"],
                                  weight_decay=setting["weight_decay"], foreach=False)
    rows = dict(loss=[], task_loss=[], penalty=[], grad_norm=[])
    for _ in range(STEPS):
        optimizer.zero_grad()
        task, extra = cross_entropy(logits_of(model, batch), batch["labels"]), penalty(parameters)
        (task + extra).backward()
        norm = torch.nn.utils.clip_grad_norm_(params, setting["clip"])
        optimizer.step()
        for key, value in (("loss", task + extra), ("task_loss", task), ("penalty", extra), ("grad_norm", norm)):
            rows[key].append(value.item())
    return {k: torch.tensor(v) for k, v in rows.items()}, {n: p.detach().clone() for n, p in parameters.items()}


def relative(a, b):
    return max(((a[k].double() - b[k].double()).norm() / b[k].double().norm()).item() for k in b)


def greedy(model, prompt):
    """HF generate, checked against an uncached argmax loop; also the smallest gap between best and second token."""
    model.generation_config.eos_token_id = None
    tokens = model.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False,
                            max_new_tokens=GENERATED, pad_token_id=0)[0, len(prompt):]
    ids, gap = prompt.clone(), float("inf")
    with torch.no_grad():
        for _ in range(GENERATED):
            top = model(input_ids=ids[None]).logits[0, -1].topk(2)
            gap = min(gap, (top.values[0] - top.values[1]).item())
            ids = torch.cat([ids, top.indices[:1]])
    assert tokens.tolist() == ids[len(prompt):].tolist(), "generate and the plain loop disagree"
    assert gap > 1e-3, f"a near-tie ({gap:.1e}) would make the golden fragile; change the prompt"
    return tokens, gap


# ---- one case ----------------------------------------------------------------------------------------------------

def make_case(case, out):
    torch.manual_seed(SEED + CASES[case]["seed"])
    case_dir = out / case
    shutil.rmtree(case_dir, ignore_errors=True)
    case_dir.mkdir(parents=True)
    model = random_model(case)
    save_model(case, model, case_dir / "model")
    batch = make_batch()
    save_file(batch, case_dir / "batch.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(logits_of(load_model(case_dir / "model"), batch), logits_of(model, batch), rtol=0, atol=0)
    aligned = {n: p.detach().clone() for n, p in model.named_parameters()}
    if case == "llama_gqa":
        other = {n: p - difference(p.shape) if is_block_linear(n) else p for n, p in aligned.items()}
        twin = load_model(case_dir / "model")
        twin.load_state_dict(other)
        save_model(case, twin, case_dir / "unaligned")
    make_adapter(case, case_dir)
    lam = LAMBDA if case == "llama_gqa" else 0.0

    expected = {}
    # full tuning, no adapter
    base = load_model(case_dir / "model")
    logits, loss, loss64, grads = loss_and_grads(base, dict(base.named_parameters()), batch)
    expected |= {"base.logits": logits, "full.loss": loss.reshape(1), "full.loss64": loss64.reshape(1)}
    expected |= {f"full.grad.{n}": g for n, g in grads.items()}
    # adapter
    adapted = load_adapted(case_dir)
    logits, loss, loss64, lora_grads = loss_and_grads(adapted, lora_parameters(adapted), batch)
    expected |= {"lora.logits": logits, "lora.loss": loss.reshape(1), "lora.loss64": loss64.reshape(1)}
    expected |= {f"lora.grad.{n}": g for n, g in lora_grads.items()}
    # merged
    merged = load_adapted(case_dir).merge_and_unload()
    with torch.no_grad():
        expected["merged.logits"] = logits_of(merged, batch)
    # greedy
    prompt = torch.tensor([1, *batch["input_ids"][1, :5].tolist()])
    tokens, gap = greedy(load_adapted(case_dir), prompt)
    expected |= {"generate.prompt": prompt, "generate.tokens": tokens}
    # half precision
    half = load_adapted(case_dir, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in lora_parameters(half).values())
    logits, _, _, half_grads = loss_and_grads(half, lora_parameters(half), batch)
    expected |= {"bf16.logits": logits.float()} | {f"bf16.grad.{n}": g for n, g in half_grads.items()}
    # curves
    c = paper_c(aligned, load_file(case_dir / "unaligned" / "model.safetensors")) if lam else None
    penalty = (lambda p: lam * lora_penalty(p, c)) if lam else (lambda p: torch.zeros(()))
    finals = {}
    # f64 only to know how much rounding matters; there transformers' mask overflows where a window meets padding.
    windowed = CASES[case].get("sliding_window") is not None
    for dtype in (torch.float32,) if windowed else (torch.float64, torch.float32):
        adapted = load_adapted(case_dir).to(dtype)
        rows, finals[dtype] = adamw_curve(adapted, lora_parameters(adapted), batch, CURVE, penalty)
    expected |= {f"curve.{k}": v for k, v in rows.items()} | {f"curve.final.{k}": v for k, v in finals[torch.float32].items()}
    drift = "not compared" if windowed else f"{relative(finals[torch.float32], finals[torch.float64]):.1e}"
    if lam:
        base = load_model(case_dir / "model")
        full_rows, final = adamw_curve(base, dict(base.named_parameters()), batch, FULLCURVE,
                                       lambda p: lam * full_penalty(p, aligned, c, FULLCURVE["penalty_modules"]))
        expected |= {f"fullcurve.{k}": v for k, v in full_rows.items()} | {
            f"fullcurve.final.{k}": v for k, v in final.items() if ".layers." not in k or ".layers.0." in k}
    save_file({k: v.contiguous() for k, v in expected.items()}, case_dir / "expected.safetensors")

    note = dict(adapter=dict(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS), lengths=LENGTHS, steps=STEPS,
                label_tokens=int((batch["labels"][:, 1:] != -100).sum()), curve=CURVE | {"lambda": lam},
                fullcurve=FULLCURVE | {"lambda": lam} if lam else None, generated=GENERATED)
    (case_dir / "case.json").write_text(json.dumps(note, indent=2) + "\n")
    live = batch["attention_mask"].bool()
    print(f"{case}: logits max {expected['base.logits'].abs().max():.2f}, adapter moves them "
          f"{(expected['lora.logits'] - expected['base.logits'])[live].abs().max():.3f}, merge differs "
          f"{(expected['merged.logits'] - expected['lora.logits'])[live].abs().max():.1e}")
    print(f"  curve {[round(x, 4) for x in rows['loss'].tolist()]}, f32 against f64 final {drift}; greedy gap {gap:.3f}")
    if lam:
        print(f"  penalty {[round(x, 4) for x in rows['penalty'].tolist()]}")
        print(f"  full {[round(x, 4) for x in full_rows['loss'].tolist()]}, penalty {[round(x, 5) for x in full_rows['penalty'].tolist()]}")
        top = {k: torch.linalg.eigvalsh(v)[-1].item() for k, v in c.items() if "layers.0" in k}
        print("  largest eigenvalue of C, layer 0:", {k.rsplit(".", 1)[-1]: round(v, 3) for k, v in top.items()})


def make_ropes(out):
    """llama_gqa's weights under other kinds of rope scaling."""
    source = out / "llama_gqa"
    batch = load_file(source / "batch.safetensors")
    shutil.rmtree(out / "rope", ignore_errors=True)
    for kind, rope in ROPES.items():
        folder = out / "rope" / kind
        folder.mkdir(parents=True)
        settings = {k: v for k, v in CASES["llama_gqa"].items() if k != "seed"}
        settings |= dict(rope_parameters=rope, max_position_embeddings=16 if kind == "dynamic" else MAX_POS)
        config = AutoConfig.for_model(**COMMON | settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        model.load_state_dict(load_file(source / "model" / "model.safetensors"))
        model = PeftModel.from_pretrained(model, source / "adapter", is_trainable=True).eval()
        parameters, expected, total = lora_parameters(model), {}, int((batch["labels"][:, 1:] != -100).sum())
        loss, rows = 0.0, []
        for row, length in enumerate(LENGTHS):
            part = {k: v[row:row + 1, :length] for k, v in batch.items()}
            with torch.no_grad():        # a short sequence makes transformers forget the frequencies of the longest one so far
                logits_of(model, {k: v[:, :2] for k, v in part.items()})
            logits = logits_of(model, part)
            rows.append(torch.nn.functional.pad(logits.detach(), (0, 0, 0, max(LENGTHS) - length)))
            labels = part["labels"][0, 1:]
            task = torch.nn.functional.cross_entropy(logits[0, :-1].double(), labels, ignore_index=-100, reduction="sum") / total
            task.backward()
            loss += task.item()
        config.save_pretrained(folder)
        expected |= {"lora.logits": torch.cat(rows), "lora.loss64": torch.tensor([loss], dtype=torch.float64)}
        expected |= {f"lora.grad.{n}": p.grad for n, p in parameters.items()}
        save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
        print(f"rope {kind}: loss {loss:.4f}")


# ---- the penalty, literally, in f64 --------------------------------------------------------------------------------

PENALTY_LAMBDA, ENERGY, BY_RANK = 0.7, 0.9, 3
SHAPES = {  # name: out, in, rank of V (None: full)
    "wide": (10, 16, None), "tall": (18, 8, None), "square": (12, 12, None), "zero": (11, 7, 0), "low_rank": (11, 18, 2),
}


def exact_v(out, inn, rank):
    """f32 V. Low rank is exact: factors on a coarse grid make a product without rounding."""
    if rank == 0:
        return torch.zeros(out, inn)
    if rank is None:
        u, v = torch.randn(out, 3), torch.randn(inn, 3)
        return (0.2 * (u * torch.tensor([1.0, 0.5, 0.25]) @ v.T) + 0.04 * torch.randn(out, inn)).contiguous()
    u, v = torch.randint(-8, 9, (out, rank)) / 8, torch.randint(-8, 9, (inn, rank)) / 8
    return u @ v.T


def projectors(v):
    """The three X of a V, in f64, and the k of the subspaces."""
    v = v.double()
    u, s, _ = torch.linalg.svd(v, full_matrices=False)
    rank = int((s > 1e-9 * max(s[0].item(), 1e-30)).sum()) if s[0] > 0 else 0
    share = s.pow(2).cumsum(0) / s.pow(2).sum() if rank else torch.zeros(0)
    by_energy = int((share < ENERGY).sum()) + 1 if rank else 0
    assert all(abs(x - ENERGY) > 1e-3 for x in share.tolist()), "energy threshold too close to call"
    by_rank = min(BY_RANK, rank)
    if 0 < by_rank < len(s):
        assert s[by_rank - 1] - s[by_rank] > 1e-3, "a near-double singular value at the cut"
    paper = v @ v.T / v.norm() if rank else torch.zeros(len(v), len(v), dtype=torch.float64)
    return (dict(paper=paper, subspace_rank=u[:, :by_rank] @ u[:, :by_rank].T, subspace_energy=u[:, :by_energy] @ u[:, :by_energy].T),
            dict(rank=rank, k_by_rank=by_rank, k_by_energy=by_energy, singular_values=[round(x, 6) for x in s.tolist()]))


def literal(delta, x, penalize):
    eye = torch.eye(len(x), dtype=torch.float64)
    term = {"orthogonal": (eye - x) @ delta, "aligned": x @ delta, "all": delta}[penalize]
    return PENALTY_LAMBDA * term.pow(2).sum()


def make_penalty(out):
    torch.manual_seed(SEED + 100)
    folder = out / "penalty"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors, modules, cases = {}, {}, []
    for name, (d_out, d_in, rank) in SHAPES.items():
        v = exact_v(d_out, d_in, rank)
        a, b, delta = 0.3 * torch.randn(RANK, d_in), 0.3 * torch.randn(d_out, RANK), 0.2 * torch.randn(d_out, d_in)
        tensors |= {f"{name}.V": v, f"{name}.A": a, f"{name}.B": b, f"{name}.delta": delta}
        xs, info = projectors(v)
        modules[name] = dict(d_out=d_out, d_in=d_in, r=RANK, v_norm=v.double().norm().item(), **info)
        for penalize in ("orthogonal", "aligned", "all"):
            for projector, x in xs.items():
                if penalize == "all" and projector != "paper":      # no X in it: stored once
                    continue
                for scaled in (False, True):
                    a64, b64 = a.double().requires_grad_(), b.double().requires_grad_()
                    value = literal((ALPHA / RANK if scaled else 1.0) * (b64 @ a64), x, penalize)
                    value.backward()
                    key = f"{name}.lora.{penalize}.{projector}.{'scaled' if scaled else 'bare'}"
                    tensors |= {f"{key}.value": value.detach().reshape(1), f"{key}.grad_A": a64.grad, f"{key}.grad_B": b64.grad}
                    cases.append(dict(key=key, form="lora", module=name, penalize=penalize, projector=projector, scaled=scaled))
                d64 = delta.double().requires_grad_()
                value = literal(d64, x, penalize)
                value.backward()
                key = f"{name}.full.{penalize}.{projector}"
                tensors |= {f"{key}.value": value.detach().reshape(1), f"{key}.grad": d64.grad}
                cases.append(dict(key=key, form="full", module=name, penalize=penalize, projector=projector, scaled=False))
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "penalty.safetensors")
    index = {"lambda": PENALTY_LAMBDA, "alpha": ALPHA, "r": RANK, "energy": ENERGY, "rank": BY_RANK, "modules": modules, "cases": cases}
    lines = json.dumps(index).replace(', {"key"', ',\n  {"key"')          # one case a line
    (folder / "index.json").write_text(lines + "\n")
    print(f"penalty: {len(cases)} cases,", {n: (m['rank'], m['k_by_rank'], m['k_by_energy']) for n, m in modules.items()}, "(rank, k by rank, k by energy)")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures")
    ap.add_argument("--only", choices=[*CASES, "rope", "penalty"])
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    peft=peft.__version__, seed=SEED)
    print(json.dumps(versions))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    for case in CASES:
        if args.only in (None, case):
            make_case(case, args.out)
    if args.only in (None, "rope"):
        make_ropes(args.out)
    if args.only in (None, "penalty"):
        make_penalty(args.out)
    print(f"{sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file()) / 1e6:.2f} MB under the output folder")


if __name__ == "__main__":
    main()
