//! The gated delta rule (Gated DeltaNet, arXiv 2412.06464), head by head and sequence by sequence: with the state S: [Dk, Dv],
//!
//!   S ← e^g S;  u = β (v − Sᵀ k);  S ← S + k uᵀ;  o = Sᵀ q
//!
//! at each position, where k is divided by its length and q by its length and √Dk. g: [N, Hv] (at most 0) and β: [N, Hv] are in
//! f32; the mixed rows hold q, k: Hk heads of Dk, and v: Hv heads of Dv, one after another; o: [N, Hv · Dv]. Value head h reads key
//! head h / (Hv / Hk). A sequence starts with S = 0, or with the state that an earlier call ended with.
//!
//! Computed in chunks of C positions, so that the work grows linearly with a sequence. Within one, with c the running sum of g,
//! D_ij = e^(c_i − c_j), tril(…, −1) without the diagonal and S the state before it (the WY form of arXiv 2406.06484):
//!
//!   L = tril(β (K Kᵀ) ∘ D, −1);  (I + L) U = β (V − e^c K S);  P = tril((Q Kᵀ) ∘ D)
//!   O = e^c Q S + P U;           S' = e^(c_C) S + (e^(c_C − c) K)ᵀ U
//!
//! Backward, chunks in reverse, from dO and dS':
//!
//!   dU = Pᵀ dO + e^(c_C − c) K dS';  (I + L)ᵀ R = dU;  G = β R;  dV = G;  dS = e^(c_C) dS' + (e^c Q)ᵀ dO − (e^c K)ᵀ G
//!   dP = tril(dO Uᵀ);  dL = −tril(R Uᵀ, −1)
//!   dQ = e^c dO Sᵀ + (dP ∘ D) K;  dK = e^(c_C − c) U dS'ᵀ − e^c G Sᵀ + (dP ∘ D)ᵀ Q + (M + Mᵀ) K with M = β dL ∘ D
//!   dβ = rowsum(R ∘ (V − e^c K S)) + rowsum(dL ∘ (K Kᵀ) ∘ D);  dg from dc, of every e^c above.
//!
//! In f32, rounded once. The state before each chunk and U are kept for the backward pass.

mod constants;
mod gates;
mod generic;
mod groups;
mod kernel;
mod places;
mod shape;
mod slices;

pub use gates::Gates;
pub use groups::Padded;
pub use shape::{CHUNK, Shape};

use super::attention::{Layout, Span};
use super::fused;
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// What the backward pass needs.
pub struct Saved {
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    /// Whether all sequences started with a state of zeros.
    whole: bool,
    kept: Kept,
}

enum Kept {
    Kernel(Vec<kernel::Kept>),
    Generic(generic::Kept),
}

/// mixed: [N, mixed_width], decay (g), beta: [N, Hv] -> (o: [N, Hv · Dv], the states after the sequences, [spans, state_len] in
/// f32); `before`: the states before them, zeros if there are none.
pub fn forward(
    [mixed, decay, beta]: [&Tensor; 3],
    shape: Shape,
    layout: &Layout,
    before: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Saved)> {
    let spans = &layout.spans;
    check([mixed, decay, beta], shape, spans)?;
    let expected = [spans.len(), shape.state_len()];
    ensure!(before.is_none_or(|before| before.dims() == expected), "states before the sequences are not {expected:?}");
    let (output, after, kept) = if fused(&[mixed, decay, beta]) {
        let (output, after, kept) = kernel::forward([mixed, decay, beta], shape, spans, before)?;
        (output, after, Kept::Kernel(kept))
    } else {
        let (output, after, kept) = generic::forward([mixed, decay, beta], shape, layout, before)?;
        (output, after, Kept::Generic(kept))
    };
    let [mixed, decay, beta] = [mixed, decay, beta].map(Tensor::clone);
    Ok((output, after, Saved { mixed, decay, beta, whole: before.is_none(), kept }))
}

/// dy: [N, Hv · Dv] -> the gradients of mixed, in its type, and of decay and beta, in f32. The sequences are whole.
pub fn backward(saved: &Saved, dy: &Tensor, shape: Shape, layout: &Layout) -> Result<[Tensor; 3]> {
    let spans = &layout.spans;
    let inputs = [&saved.mixed, &saved.decay, &saved.beta];
    check(inputs, shape, spans)?;
    ensure!(saved.whole, "sequences that go on have no backward pass");
    let expected = [saved.mixed.dim(0)?, shape.value_width()];
    ensure!(dy.dims() == expected, "dy of {:?} for an output of {expected:?}", dy.dims());
    match &saved.kept {
        Kept::Kernel(kept) => kernel::backward(inputs, kept, &dy.contiguous()?, shape, spans),
        Kept::Generic(kept) => generic::backward(inputs, kept, dy, shape, layout),
    }
}

fn check([mixed, decay, beta]: [&Tensor; 3], shape: Shape, spans: &[Span]) -> Result<()> {
    let (n, Shape { key_heads, value_heads, key_dim, value_dim }) = (mixed.dim(0)?, shape);
    let sizes = [key_heads, value_heads, key_dim, value_dim];
    ensure!(!sizes.contains(&0) && value_heads.is_multiple_of(key_heads), "{shape:?} has no groups of heads");
    let fit = mixed.dims() == [n, shape.mixed_width()] && [decay, beta].iter().all(|x| x.dims() == [n, value_heads]);
    ensure!(fit, "{:?}, {:?} and {:?} are not of {shape:?}", mixed.dims(), decay.dims(), beta.dims());
    ensure!(decay.dtype() == DType::F32 && beta.dtype() == DType::F32, "decay and beta are not f32");
    let mut next = 0;
    for span in spans {
        ensure!(span.q_start == next, "{span:?} does not begin at row {next}");
        next += span.q_len;
    }
    ensure!(next == n, "the spans are of {next} rows, there are {n}");
    Ok(())
}

#[cfg(test)]
mod tests;
