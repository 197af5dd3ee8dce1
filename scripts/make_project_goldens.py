#!/usr/bin/env python3
"""Golden numbers for `asft project` and `asft inspect`: Safe LoRA and the shares of an update by the literal formulas.

    python scripts/make_project_goldens.py [--fixtures tests/fixtures]

Reads llama_gqa/{model,unaligned,adapter} (see make_goldens.py) and writes project/expected.safetensors, f64 on the CPU from
f32 weights; no random numbers are drawn. Per adapted module M, with V = W_model - W_unaligned, C = V V^T / ||V||_F and
dW = (alpha / r) B A, all of them formed as whole matrices:

    M.cosine        [1]      cos(C dW, dW) of the matrices as vectors, as torch.nn.functional.cosine_similarity gives it
    M.lora_B        [out, r] C B, f32: what Safe LoRA puts in B's place
    M.norm          [1]      ||dW||_F
    M.aligned       [1]      ||C dW||_F / ||dW||_F
    M.orthogonal    [1]      ||(I - C) dW||_F / ||dW||_F
    M.subspace_aligned, M.subspace_orthogonal [1]   the same with P = U_k U_k^T, the fewest left singular vectors of V whose
                             squared singular values add up to 0.9 ||V||_F^2
    M.signed        [1]      <dW, V> / (||dW||_F ||V||_F)
    full.M.*        [1]      norm, aligned, orthogonal, subspace_*, cosine, signed of dW = (alpha / r) B A + 0.01 W: a full-rank
                             update, as that of the checkpoint model + dW from model

The header's metadata names the versions of Python and torch.
"""
import argparse
import json
import platform
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ENERGY = 0.9
PREFIX = "base_model.model."


def shares(update, v):
    """The literal formulas for one module; update and v are [out, in] in f64."""
    c = v @ v.T / v.norm()
    identity = torch.eye(v.shape[0], dtype=torch.float64)
    u, sigma, _ = torch.linalg.svd(v)
    held = torch.cumsum(sigma**2, 0) / (sigma**2).sum()
    k = int((held < ENERGY).sum()) + 1
    p = u[:, :k] @ u[:, :k].T
    size = update.norm()
    cosine = torch.nn.functional.cosine_similarity((c @ update).reshape(1, -1), update.reshape(1, -1))
    return c, {
        "norm": size,
        "aligned": (c @ update).norm() / size,
        "orthogonal": ((identity - c) @ update).norm() / size,
        "subspace_aligned": (p @ update).norm() / size,
        "subspace_orthogonal": ((identity - p) @ update).norm() / size,
        "cosine": cosine[0],
        "signed": (update * v).sum() / (size * v.norm()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=Path("tests/fixtures"))
    fixtures = parser.parse_args().fixtures
    torch.set_num_threads(1)
    case = fixtures / "llama_gqa"
    aligned = load_file(case / "model" / "model.safetensors")
    unaligned = load_file(case / "unaligned" / "model.safetensors")
    adapter = load_file(case / "adapter" / "adapter_model.safetensors")
    config = json.loads((case / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    out = {}
    for name in sorted(key for key in adapter if key.endswith(".lora_B.weight")):
        module = name.removeprefix(PREFIX).removesuffix(".lora_B.weight")
        b = adapter[name].double()
        a = adapter[name.replace("lora_B", "lora_A")].double()
        w = aligned[f"{module}.weight"]
        v = (w - unaligned[f"{module}.weight"]).double()
        c, numbers = shares(scale * (b @ a), v)
        out[f"{module}.lora_B"] = (c @ b).float()
        out |= {f"{module}.{key}": value.reshape(1) for key, value in numbers.items()}
        # What a checkpoint in f32 makes of it.
        tuned = (w.double() + scale * (b @ a) + 0.01 * w.double()).float()
        numbers = shares(tuned.double() - w.double(), v)[1]
        out |= {f"full.{module}.{key}": value.reshape(1) for key, value in numbers.items()}
    folder = fixtures / "project"
    folder.mkdir(exist_ok=True)
    metadata = {"python": platform.python_version(), "torch": torch.__version__}
    save_file({key: value.contiguous() for key, value in out.items()}, folder / "expected.safetensors", metadata)


if __name__ == "__main__":
    main()
