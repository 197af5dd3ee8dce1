"""The penalty of asft in PyTorch, from a direction file that `asft direction` wrote, for a model with PEFT's LoRA layers.

    from asft_trainer.penalty import load_direction, penalty
    directions = load_direction("direction.safetensors")
    loss = task_loss + 1.0 * penalty(model, directions)        # once per optimizer step

For each module, with V = W_aligned - W_unaligned = U diag(sigma) R', sigma_i^2 = c_i |V|, and the update dW = B A, C = U diag(c) U':

    orthogonal           |(I - C) dW|^2                 aligned   |C dW|^2             all   |dW|^2
    orthogonal+reverse   the first + min(0, <dW, V> / |V|)^2
    input                (d_in / |V|^2) |dW V'|^2 + mix |dW|^2

all norms being Frobenius norms. Nothing of d_out x d_out or d_out x d_in is formed: with G = M B, where M stands before dW, the value is
<G'G, A A'>, at a cost of O(r (d_out k + r d_in)); autograd differentiates that. docs/method.md has the formulas, arXiv 2506.08473 the method.

Shapes: A [r, d_in], B [d_out, r], U [d_out, k], c [k], R [d_in, k]. Needs torch and safetensors; PEFT itself is not imported.
"""

import json
from typing import NamedTuple

import torch
from safetensors import safe_open

PENALIZE = ("orthogonal", "orthogonal+reverse", "aligned", "input", "all")
PROJECTOR = ("released", "equation", "subspace")
# As asft has it: a residual at rounding level means that V has no more directions.
COMPLETE = 1e-5
# The share of |V|^2 that a subspace keeps unless it is told.
ENERGY = 0.9


class Direction(NamedTuple):
    """One module's V in f32: U [d_out, k], c [k], R [d_in, k], |V|, and a bound on |C - U diag(c) U'|_2. k = 0 where V = 0."""

    basis: torch.Tensor
    eigenvalues: torch.Tensor
    right_basis: torch.Tensor
    v_norm: float
    residual: float

    @property
    def is_complete(self):
        return self.residual <= COMPLETE * (self.eigenvalues[0].item() if len(self.eigenvalues) else 0.0)


def load_direction(path, device="cpu"):
    """The directions of a file by module path, such as `model.layers.0.self_attn.q_proj`: dict[str, Direction].

    Raises ValueError if the file is not of the format asft-direction, version 1.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        if (metadata.get("format"), metadata.get("version")) != ("asft-direction", "1"):
            raise ValueError(f"{path}: expected a direction file, version 1; found {json.dumps(metadata)[:200]}")
        modules = sorted(name.removesuffix(".basis") for name in names if name.endswith(".basis"))
        read = lambda module, part: file.get_tensor(f"{module}.{part}")
        return {
            module: Direction(
                *(read(module, part) for part in ("basis", "eigenvalues", "right_basis")),
                *(read(module, part).item() for part in ("v_norm", "residual")),
            )
            for module in modules
        }


def spectrum(direction, projector, subspace_rank=None, subspace_energy=None):
    """The eigenvalues [k'] of what stands for C, on the first k' columns of U. The settings are those that `check` accepts.

    Raises ValueError for `equation` where V has full rank or the file leaves directions out, and for a subspace that the file
    does not hold.
    """
    c, kept = direction.eigenvalues, len(direction.eigenvalues)
    if projector == "released" or kept == 0:
        return c
    if projector == "equation":
        if not direction.is_complete:
            raise ValueError("projector equation needs all of V; recompute the direction with --tolerance 0")
        if kept == len(direction.basis):
            raise ValueError(f"projector equation: V has full rank ({kept}), so C is the identity and nothing is penalised")
        return torch.ones_like(c)
    rank = subspace_rank
    if rank is None:
        share = torch.cumsum(c.double(), 0) / direction.v_norm
        rank = int((share < (ENERGY if subspace_energy is None else subspace_energy)).sum()) + 1
    if rank > kept and not direction.is_complete:
        raise ValueError(f"the subspace needs {rank} directions and the file keeps {kept}; recompute it with a smaller --tolerance")
    return torch.ones_like(c[: min(rank, kept)])


def check(penalize, projector, input_mix, subspace_rank, subspace_energy):
    """Raises ValueError for a name that is unknown and for a setting that would have no effect, as asft refuses them."""
    for key, value, known in (("penalize", penalize, PENALIZE), ("projector", projector, PROJECTOR)):
        if value not in known:
            raise ValueError(f"{key} {value!r}; expected one of {', '.join(known)}")
    if projector != "subspace" and (subspace_rank, subspace_energy) != (None, None):
        raise ValueError(f"subspace_rank and subspace_energy have no effect with projector {projector!r}; expected 'subspace'")
    if subspace_rank is not None and subspace_energy is not None:
        raise ValueError("subspace_rank and subspace_energy exclude each other; give one")
    if subspace_rank is not None and subspace_rank < 1:
        raise ValueError(f"subspace_rank must be at least 1, got {subspace_rank}")
    if subspace_energy is not None and not 0.0 < subspace_energy <= 1.0:
        raise ValueError(f"subspace_energy must be in (0, 1], got {subspace_energy}")
    if not 0.0 <= input_mix < float("inf"):
        raise ValueError(f"input_mix must be a number >= 0, got {input_mix}")
    if penalize != "input" and input_mix != 0.0:
        raise ValueError(f"input_mix has no effect with penalize {penalize!r}; expected 'input'")
    if penalize == "input" and projector != "released":
        raise ValueError(f"penalize 'input' is on V's rows, and projector {projector!r} on its columns; leave that out")


def module_penalty(
    a, b, direction, penalize="orthogonal", projector="released", *, input_mix=0.0, subspace_rank=None, subspace_energy=None
):
    """The penalty of dW = B A without lambda, a scalar f32 tensor that autograd can differentiate.

    a: [r, d_in], b: [d_out, r]; direction: the module's, on their device. input_mix belongs to penalize "input"; subspace_rank,
    or else subspace_energy, a share of |V|^2 (0.9 if neither is given), to projector "subspace".
    Raises ValueError for an unknown mode or projector, a setting that these do not use, or a direction of other shapes.
    """
    check(penalize, projector, input_mix, subspace_rank, subspace_energy)
    expected, found = (len(direction.basis), len(direction.right_basis)), (b.shape[0], a.shape[1])
    if expected != found:
        raise ValueError(f"the direction is of a weight {expected}, the update {found}")
    # In half precision |dW|^2 would be lost in rounding.
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        if penalize == "all":
            return product(b, b, a, a)
        if penalize == "input":
            return input_penalty(a, b, direction, input_mix)
        c = spectrum(direction, projector, subspace_rank, subspace_energy)
        return output_penalty(a, b, direction, penalize, c)


def output_penalty(a, b, direction, penalize, c):
    """The penalties on V's columns, with C's eigenvalues c [k']."""
    basis = direction.basis[:, : len(c)]
    aligned = basis @ (c[:, None] * (basis.T @ b))  # C B [d_out, r]
    g = aligned if penalize == "aligned" else b - aligned
    value = product(g, g, a, a)
    return value + against(a, b, direction) if penalize == "orthogonal+reverse" else value


def product(x, y, a, h):
    """<X'Y, H A'> for x, y [n, r] and a, h [r, d]: summed in f64 where the device has it."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    x, y, a, h = (t.to(wide) for t in (x, y, a, h))
    return ((x.T @ y) * (h @ a.T)).sum().float()


def input_penalty(a, b, direction, mix):
    """(d_in / |V|^2) |dW V'|^2 + mix |dW|^2 = <B'B, H A'>, H = (w o A R) R' + mix A, w_i = d_in c_i / |V|."""
    h = mix * a
    if direction.v_norm > 0.0:
        weights = a.shape[1] / direction.v_norm * direction.eigenvalues
        h = h + (weights * (a @ direction.right_basis)) @ direction.right_basis.T
    return product(b, b, a, h)


def against(a, b, direction):
    """min(0, p)^2 with p = <dW, V> / |V| = sum_ij w_i (U'B)_ij (A R)_ji, w_i = sqrt(c_i / |V|), of all directions in the file."""
    if direction.v_norm == 0.0:
        return torch.zeros((), device=a.device)
    weights = (direction.eigenvalues / direction.v_norm).sqrt()
    p = (weights[:, None] * (direction.basis.T @ b) * (a @ direction.right_basis).T).sum()
    return p.clamp(max=0.0).square()


def lora_layers(model, adapter="default"):
    """The LoRA layers of a PEFT model: yields (module path in the base model, A [r, d_in], B [d_out, r], alpha / r)."""
    for name, module in model.named_modules():
        if adapter in (getattr(module, "lora_A", None) or {}):
            path = name.removeprefix("base_model.model.")
            yield path, module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter]


def penalty(model, directions, penalize="orthogonal", projector="released", *, scaled=False, adapter="default", **options):
    """The sum over a PEFT model's LoRA layers, without lambda: a scalar f32 tensor. Add lambda times it once per optimizer step.

    scaled: whether dW includes alpha / r (asft.scaled); options: as for module_penalty. The layers' directions are moved to
    their devices at every call where they are elsewhere: load them onto the model's to avoid that.
    Raises ValueError if there are no LoRA layers, or with the names of all layers that have no direction.
    """
    layers = list(lora_layers(model, adapter))
    if not layers:
        raise ValueError(f"the model has no linear LoRA layers of the adapter {adapter!r}")
    missing = [path for path, *_ in layers if path not in directions]
    if missing:
        raise ValueError(f"no direction for {len(missing)} of {len(layers)} layers: {', '.join(missing[:20])}")
    terms = []
    for path, a, b, scale in layers:
        parts = (part.to(a.device) if torch.is_tensor(part) else part for part in directions[path])
        term = module_penalty(a, b, Direction(*parts), penalize, projector, **options)
        terms.append((scale**2 if scaled else 1.0) * term.to(layers[0][1].device))
    return torch.stack(terms).sum()
