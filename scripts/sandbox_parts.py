"""Cuts an adapter down to parts of its updates, in f64: those of docs/results/sandbox-parts.txt.

    python scripts/sandbox_parts.py ADAPTER DIRECTION OUT

writes OUT/PART, OUT/PART-random and OUT/PART-matched for PART in columns, without_columns, rows and without_rows, and prints
the size of each, |part| / |dW|. `asft eval --adapter` measures them. Needs NumPy and safetensors.
"""

import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

ENERGY = 0.9  # the share of |V|^2 that V's leading subspace holds


def random_basis(module, seed, rows, columns):
    draws = np.random.default_rng([seed, sum(map(ord, module))])
    return np.linalg.qr(draws.standard_normal((rows, columns)))[0]


def bases(direction, module, update, side):
    """V's leading directions [n, k]; as many at random; and random ones that hold as large a share of the update."""
    held = np.cumsum(direction[module + ".eigenvalues"].astype(float)) / float(direction[module + ".v_norm"][0])
    if held[-1] < ENERGY:
        sys.exit(f"{module}: the direction holds only {held[-1]:.3f} of |V|^2; compute it with a smaller --tolerance")
    k = int(np.searchsorted(held, ENERGY - 1e-12)) + 1
    own = direction[module + (".right_basis" if side == "rows" else ".basis")][:, :k].astype(float)
    x = update.T if side == "rows" else update
    whole = random_basis(module, 2, len(x), len(x))
    share = np.linalg.norm(own.T @ x) / np.linalg.norm(x)
    shares = np.sqrt(np.cumsum(np.linalg.norm(whole.T @ x, axis=1) ** 2)) / np.linalg.norm(x)
    matched = whole[:, : int(np.searchsorted(shares, share)) + 1]
    return {"": own, "-random": random_basis(module, 1, len(x), k), "-matched": matched}


def main(adapter, direction, out):
    weights = {name: x.astype(float) for name, x in load_file(adapter / "adapter_model.safetensors").items()}
    direction = load_file(direction)
    names = sorted(name for name in weights if ".lora_A" in name)
    total = np.sqrt(sum(np.linalg.norm(weights[b_of(name)] @ weights[name]) ** 2 for name in names))
    for side in ["columns", "rows"]:
        parts = {}
        for name in names:
            a, b = weights[name], weights[b_of(name)]
            module = name.replace("base_model.model.", "").rsplit(".lora_", 1)[0]
            for kind, basis in bases(direction, module, b @ a, side).items():
                inside = (a @ basis @ basis.T, b) if side == "rows" else (a, basis @ (basis.T @ b))
                outside = (a - inside[0], b) if side == "rows" else (a, b - inside[1])
                for part, pair in [(side, inside), ("without_" + side, outside)]:
                    parts.setdefault(part + kind, {}).update({name: pair[0], b_of(name): pair[1]})
        for part, tensors in parts.items():
            size = np.sqrt(sum(np.linalg.norm(tensors[b_of(name)] @ tensors[name]) ** 2 for name in names))
            print(f"{part}: {100 * size / total:.1f} %")
            (out / part).mkdir(parents=True, exist_ok=True)
            tensors = {name: np.ascontiguousarray(x.astype(np.float32)) for name, x in tensors.items()}
            save_file(tensors, out / part / "adapter_model.safetensors", metadata={"format": "pt"})
            shutil.copy(adapter / "adapter_config.json", out / part)


def b_of(name):
    return name.replace(".lora_A", ".lora_B")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:4]))
