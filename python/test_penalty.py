#!/usr/bin/env python3
"""asft_trainer.penalty against the goldens of asft's own penalty: python python/test_penalty.py [--asft BIN]

tests/fixtures/penalty holds values and gradients of the literal formula in f64 (tests/fixtures/make/penalty.py). Here each V is
factorised, written as a direction file, read by load_direction, and the penalty differentiated by autograd. Values may be off by
1e-5 of themselves, gradients by 1e-5 of their norm. The sign of V, which has no goldens, is held to the literal formula here.

With --asft, a direction file of that program is compared with its pair of models. With peft and transformers installed, the sum
over a model's layers is too. Needs torch and safetensors; exits with 1 at the first thing that is wrong.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
from asft_trainer.penalty import Direction, load_direction, lora_layers, module_penalty, penalty  # noqa: E402

TOLERANCE = 1e-5


def near(what, got, expected):
    """Equal as whole tensors, up to the tolerance of their norm."""
    got, expected = got.detach().double(), torch.as_tensor(expected).double()
    error, size = (got - expected.reshape(got.shape)).norm().item(), expected.norm().item()
    assert error <= TOLERANCE * max(size, 1e-30), f"{what}: off by {error:.2e} of {size:.2e}"


def refuses(what, call, *words):
    try:
        call()
    except ValueError as error:
        assert all(word in str(error) for word in words), f"{what}: {error}"
    else:
        raise AssertionError(f"{what}: not refused")


def write_directions(vs, path):
    """The direction file of some V, complete."""
    tensors = {}
    for module, v in vs.items():
        u, sigma, rows = torch.linalg.svd(v.double(), full_matrices=False)
        k = int((sigma > 1e-6 * sigma[0]).sum()) if v.any() else 0
        norm = v.double().norm()
        parts = dict(basis=u[:, :k], eigenvalues=sigma[:k] ** 2 / norm.clamp(min=1e-30), right_basis=rows[:k].T)
        parts |= dict(v_norm=norm.reshape(1), residual=torch.zeros(1))
        tensors |= {f"{module}.{part}": value.float().contiguous() for part, value in parts.items()}
    save_file(tensors, path, metadata={"format": "asft-direction", "version": "1"})


def options(case, index):
    """A golden's settings as module_penalty has them."""
    projector = case["projector"].split("_")[0]
    given = {"subspace_rank": {"subspace_rank": index["rank"]}, "subspace_energy": {"subspace_energy": index["energy"]}}
    return dict(penalize=case["penalize"], projector=projector, input_mix=case.get("input_mix", 0.0)) | given.get(case["projector"], {})


def test_goldens(scratch):
    folder = ROOT / "tests/fixtures/penalty"
    goldens, index = load_file(folder / "penalty.safetensors"), json.loads((folder / "index.json").read_text())
    write_directions({name: goldens[f"{name}.V"] for name in index["modules"]}, scratch / "d.safetensors")
    directions = load_direction(scratch / "d.safetensors")
    cases = [case for case in index["cases"] if case["form"] == "lora"]
    assert len(cases) >= 100, f"only {len(cases)} goldens"
    for case in cases:
        a, b = (goldens[f"{case['module']}.{name}"].clone().requires_grad_() for name in "AB")
        scale = index["alpha"] / index["r"] if case["scaled"] else 1.0
        value = index["lambda"] * scale**2 * module_penalty(a, b, directions[case["module"]], **options(case, index))
        value.backward()
        near(case["key"], value, goldens[f"{case['key']}.value"])
        for name, grad in (("A", a.grad), ("B", b.grad)):
            near(f"{case['key']} d{name}", torch.zeros_like(a if name == "A" else b) if grad is None else grad, goldens[f"{case['key']}.grad_{name}"])
    return f"{len(cases)} goldens"


def literal(delta, v, penalize):
    """The released projector's formula, dense in f64."""
    c = v @ v.T / v.norm()
    against = (delta * v).sum().div(v.norm()).clamp(max=0.0).square() if penalize.endswith("reverse") else 0.0
    return (delta - c @ delta).square().sum() + against


def test_sign():
    torch.manual_seed(3)
    v, a, b = torch.randn(9, 13), torch.randn(2, 13), torch.randn(9, 2)
    with tempfile.TemporaryDirectory() as scratch:
        write_directions({"m": v}, Path(scratch) / "d.safetensors")
        direction = load_direction(Path(scratch) / "d.safetensors")["m"]
    # Turned so that one of the two moves against V.
    for sign in (1.0, -1.0):
        parameters = [a.clone().requires_grad_(), (sign * b).requires_grad_()]
        dense = [parameter.detach().double().requires_grad_() for parameter in parameters]
        value = module_penalty(*parameters, direction, "orthogonal+reverse")
        expected = literal(dense[1] @ dense[0], v.double(), "orthogonal+reverse")
        near("sign", value, expected.detach())
        for got, true in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, dense)):
            near("sign's gradient", got, true)
    return "the sign of V, both ways"


def test_refusals(scratch):
    save_file({"m.basis": torch.zeros(2, 1)}, scratch / "other.safetensors")
    refuses("another file", lambda: load_direction(scratch / "other.safetensors"), "direction file")
    a, b = torch.randn(2, 5), torch.randn(4, 2)
    full = Direction(torch.eye(4), torch.ones(4), torch.eye(5)[:, :4], 2.0, 0.0)
    cut = full._replace(residual=0.5)
    refuses("full rank", lambda: module_penalty(a, b, full, projector="equation"), "full rank")
    refuses("truncated", lambda: module_penalty(a, b, cut, projector="subspace", subspace_rank=5), "--tolerance")
    refuses("a misspelt mode", lambda: module_penalty(a, b, full, "ortogonal"), "orthogonal")
    nothing = Direction(torch.zeros(4, 0), torch.zeros(0), torch.zeros(5, 0), 0.0, 0.0)
    refuses("a misspelt projector, V = 0", lambda: module_penalty(a, b, nothing, projector="subspce"), "'subspce'", "subspace")
    unused = {
        "a rank without a subspace": (dict(subspace_rank=2), "subspace_rank", "'released'"),
        "an energy without a subspace": (dict(penalize="all", subspace_energy=0.5), "subspace_energy", "'released'"),
        "a rank and an energy": (dict(projector="subspace", subspace_rank=2, subspace_energy=0.5), "exclude"),
        "no rank": (dict(projector="subspace", subspace_rank=0), "at least 1", "0"),
        "an energy above 1": (dict(projector="subspace", subspace_energy=90), "(0, 1]", "90"),
        "a mix without input": (dict(input_mix=0.3), "input_mix", "'orthogonal'"),
        "a negative mix": (dict(penalize="input", input_mix=-0.1), "input_mix", "-0.1"),
        "input and columns": (dict(penalize="input", projector="equation"), "rows", "'equation'"),
    }
    for what, (given, *words) in unused.items():
        refuses(what, lambda: module_penalty(a, b, full, **given), *words)
    try:
        module_penalty(a, b, full, "all", subspace_rnk=2)
    except TypeError as error:
        assert "subspace_rnk" in str(error)
    else:
        raise AssertionError("a misspelt setting: not refused")
    refuses("another shape", lambda: module_penalty(a.T, b, full), "(4, 2)")
    return "refusals"


def test_model():
    """The sum over a PEFT model, and that the gradients reach A and B."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=30)
    base = LlamaForCausalLM(LlamaConfig(**sizes))
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    layers = list(lora_layers(model))
    vs = {path: torch.randn(b.shape[0], a.shape[1]) for path, a, b, _ in layers}
    assert len(vs) == 4 and "model.layers.1.self_attn.v_proj" in vs, vs.keys()
    with tempfile.TemporaryDirectory() as scratch:
        write_directions(vs, Path(scratch) / "d.safetensors")
        directions = load_direction(Path(scratch) / "d.safetensors")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty(model, directions, scaled=True)
    expected = sum(literal(2.0 * b.double() @ a.double(), vs[path].double(), "orthogonal") for path, a, b, _ in layers)
    near("the model", value, expected.detach())
    value.backward()
    assert all(a.grad.any() and b.grad.any() for _, a, b, _ in layers)
    refuses("a missing direction", lambda: penalty(model, dict(list(directions.items())[1:])), "q_proj")
    return "a PEFT model"


def test_program(asft, scratch):
    """A direction file of asft's own: C of the pair's weights."""
    pair = [ROOT / "sandbox/aligned", ROOT / "sandbox/unaligned"]
    out = scratch / "sandbox.safetensors"
    command = [asft, "direction", "--quiet", "--aligned", pair[0], "--unaligned", pair[1], "--tolerance", "0", "--out", out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    aligned, unaligned = (load_file(model / "model.safetensors") for model in pair)
    directions = load_direction(out)
    torch.manual_seed(5)
    for module, direction in directions.items():
        v = aligned[f"{module}.weight"].double() - unaligned[f"{module}.weight"].double()
        a, b = torch.randn(4, v.shape[1]), torch.randn(v.shape[0], 4)
        near(module, module_penalty(a, b, direction), literal(b.double() @ a.double(), v, "orthogonal"))
    return f"{len(directions)} modules of a file that asft wrote"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--asft", type=Path, metavar="BIN", help="the program, to make a direction file with")
    asft = arguments.parse_args().asft
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        done = [test_goldens(scratch), test_sign(), test_refusals(scratch)]
        if asft:
            done.append(test_program(asft.resolve(), scratch))
        if all(importlib.util.find_spec(name) for name in ("peft", "transformers")):
            done.append(test_model())
    print("asft_trainer.penalty: " + ", ".join(done))


if __name__ == "__main__":
    main()
