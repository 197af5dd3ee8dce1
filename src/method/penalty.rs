//! The AsFT penalty λ ‖M s ΔW‖_F² and its gradients in closed form, without forming ΔW = B A, C or I − C.
//!
//! M is symmetric: I − C (`orthogonal`), C (`aligned`) or I (`all`), with C = U diag(c) Uᵀ, and s = alpha / r where
//! `scaled`, else 1. For LoRA, with G = M B:
//!
//! ```text
//! S = A Aᵀ, T = GᵀG                                   [r, r]
//! value = λ s² ⟨T, S⟩    ∂A = 2 λ s² T A    ∂B = 2 λ s² (M G) S
//! ```
//!
//! `orthogonal+reverse` adds the squared negative part of the update's component along V, see [`super::sign`]. `input` penalises on
//! the other side of ΔW, see [`super::input`].
//!
//! M is only ever applied, through U, and so is M², since UᵀU = I: with y = Uᵀx, (I − C) x = x − U (c ∘ y),
//! (I − C)² x = x − U ((2c − c²) ∘ y), and C² x = U (c² ∘ y). For LoRA this reads U twice, which dominates the cost:
//! O(r (d_out k + r d_in)) per module. Where C is far from I, T = Bᵀ (M G) to f32's precision, and G itself is not needed;
//! nor is M ΔW in full tuning. U is applied in f32; the r × r products, where the value could cancel, are accumulated in f64 where the device
//! has it (all but Metal).
//!
//! Shapes: A [r, d_in], B [d_out, r], U [d_out, k], c [k].

use super::input::{self, Input};
use super::options::{AsftOptions, DEFAULT_SUBSPACE_ENERGY, Lambda, Penalize, Projector};
use super::sign::Sign;
use super::spectral::Direction;
use super::term::{FullTerm, Term};
use crate::ops::linear;
use crate::ops::low_rank::grouped::{self, Adapted};
use crate::ops::low_rank::{self, Image};
use crate::ops::scalar::{Scalar, wide};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

/// Elements widened to f64 at a time when a large matrix is squared and summed.
const SUM_CHUNK: usize = 1 << 20;

/// The largest c up to which Bᵀ H, with H = (I − C)² B, stands for T = GᵀG: ‖G‖ is at least half of ‖B‖, and rounding costs hardly
/// more than it does in G.
const MILD: f32 = 0.5;

const WITHOUT_DIRECTION: &str = "a penalty by direction without a direction";

/// What the penalty multiplies by: one module's C, or the projector that `asft.projector` puts in its place, on the
/// training device. This is not another [`Direction`], which describes V as it is: here the eigenvalues are the
/// projector's, and U has only the columns that it keeps. If those are all of U, on the same device, the two share its
/// memory.
#[derive(Clone, Debug)]
pub struct Operator {
    d_out: usize,
    /// U [d_out, k] and c [k, 1]; `None` if V, and with it C, is 0.
    parts: Option<(Tensor, Tensor)>,
    /// 2c − c² [k, 1], if no c is more than [`MILD`].
    removed: Option<Tensor>,
    /// V itself, if its sign counts; `None` if V = 0.
    sign: Option<Sign>,
    /// V's rows, if they are what counts, in place of `parts`; `None` if V = 0.
    input: Option<Input>,
}

impl Operator {
    /// Takes what `options.projector` needs from a module's direction, which for `random` and `random_subspace` is
    /// [`super::random_direction`]'s, and moves it to `device`. Only a direction that holds R has V's rows, which `input` uses, and
    /// V's sign, which `orthogonal+reverse` uses, along all directions whatever the projector keeps.
    ///
    /// # Errors
    /// A direction that is truncated too far for the requested subspace; a V of full rank for the equation's projector.
    pub fn new(options: &AsftOptions, direction: &Direction, device: &Device) -> Result<Self> {
        let (d_out, c) = (direction.shape.0, &direction.eigenvalues);
        let (k, spectrum) = match options.projector {
            _ if c.is_empty() => (0, vec![]),
            Projector::Released | Projector::Random => (c.len(), c.clone()),
            Projector::Equation => {
                let k = column_space(direction)?;
                (k, vec![1.0; k])
            }
            Projector::Subspace | Projector::RandomSubspace => {
                let k = subspace_dimension(options, direction)?;
                (k, vec![1.0; k])
            }
        };
        let nothing = Self { d_out, parts: None, removed: None, sign: None, input: None };
        if k == 0 {
            return Ok(nothing);
        }
        let direction = direction.to_device(device)?;
        if options.penalize == Penalize::Input {
            return Ok(Self { input: Some(Input::new(&direction)?), ..nothing });
        }
        let sign = direction.right.is_some().then(|| Sign::new(&direction)).transpose()?;
        let basis = direction.basis.narrow(1, 0, k)?.contiguous()?;
        let mild = spectrum.iter().all(|c| *c <= MILD);
        let c = Tensor::from_vec(spectrum, (k, 1), device)?;
        let removed = mild.then(|| low_rank::twice_removed(&c)).transpose()?;
        Ok(Self { parts: Some((basis, c)), removed, sign, ..nothing })
    }

    /// Number of directions kept; 0 where V = 0.
    pub fn rank(&self) -> usize {
        let of_rows = self.input.as_ref().map_or(0, Input::rank);
        self.parts.as_ref().map_or(of_rows, |(_, c)| c.elem_count())
    }

    /// C x = U (c ∘ (Uᵀx)) for x [d_out, n]; `None` if C = 0.
    fn apply(&self, x: &Tensor) -> Result<Option<Tensor>> {
        anyhow::ensure!(x.dim(0)? == self.d_out, "direction has {} rows, the update {:?}", self.d_out, x.shape());
        let Some((basis, c)) = &self.parts else { return Ok(None) };
        let inner = low_rank::coordinates(basis, x)?; // [k, n]
        Ok(Some(linear::backward_input(basis, &inner.broadcast_mul(c)?)?))
    }
}

/// Whether a direction holds all of V: a residual at rounding level means that V has no more directions.
fn is_complete(direction: &Direction) -> bool {
    let largest = direction.eigenvalues.first().copied().unwrap_or(0.0);
    f64::from(direction.residual) <= 1e-5 * f64::from(largest)
}

/// The dimension of V's column space, where it is less than the whole space.
fn column_space(direction: &Direction) -> Result<usize> {
    let ((d_out, _), kept) = (direction.shape, direction.rank());
    ensure_valid!(
        is_complete(direction),
        "asft.projector = \"equation\" is the projector on all of V's columns, and the direction file leaves some out; recompute it \
         with --tolerance 0"
    );
    ensure_valid!(
        kept < d_out,
        "asft.projector = \"equation\": V has full rank ({kept} of {d_out}), so C = V (VᵀV)⁻¹ Vᵀ is the identity and nothing would be \
         penalised; use \"released\" or \"subspace\""
    );
    Ok(kept)
}

/// k of the subspace projector: as given, or the fewest with Σ σ_i² ≥ energy ‖V‖_F², where σ_i² = c_i ‖V‖_F.
fn subspace_dimension(options: &AsftOptions, direction: &Direction) -> Result<usize> {
    let kept = direction.rank();
    if direction.v_norm == 0.0 {
        return Ok(0);
    }
    let complete = is_complete(direction);
    if let Some(rank) = options.subspace_rank {
        ensure_valid!(
            rank <= kept || complete,
            "asft.subspace_rank = {rank}, but the direction file keeps {kept} directions here; recompute it with a \
             smaller --tolerance or a larger --rank"
        );
        return Ok(rank.min(kept));
    }
    let energy = options.subspace_energy.unwrap_or(DEFAULT_SUBSPACE_ENERGY);
    direction.leading(energy).or(complete.then_some(kept)).ok_or_else(|| {
        invalid!(
            "asft.subspace_energy = {energy}, but the {kept} directions in the file hold only {:.3} of ‖V‖²; recompute it \
             with a smaller --tolerance",
            direction.energy()
        )
    })
}

/// A module of several whose penalties are computed together, as [`Penalty::lora`] has it, and the gradients of its A and B so far.
pub struct Together<'a> {
    pub operator: Option<&'a Operator>,
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub scale: f64,
    pub gradients: [&'a Tensor; 2],
}

impl<'a> Together<'a> {
    /// U and c; none where C = 0.
    fn parts(&self) -> Option<&'a (Tensor, Tensor)> {
        self.operator?.parts.as_ref()
    }
}

/// The penalty of one run.
#[derive(Clone, Debug)]
pub struct Penalty {
    lambda: f64,
    penalize: Penalize,
    input_mix: f64,
    scaled: bool,
}

impl Penalty {
    /// With `lambda = "auto"`, λ is 1 until it is set.
    pub fn new(options: &AsftOptions) -> Result<Self> {
        options.validate()?;
        let lambda = match options.lambda {
            Lambda::Fixed(lambda) => lambda,
            Lambda::Found(_) => 1.0,
        };
        Ok(Self { lambda, penalize: options.penalize, input_mix: options.input_mix, scaled: options.scaled })
    }

    /// Whether there is anything to add; in plain fine-tuning every term would be zero.
    pub fn is_active(&self) -> bool {
        self.penalize != Penalize::None && self.lambda != 0.0
    }

    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    pub fn set_lambda(&mut self, lambda: f64) {
        self.lambda = lambda;
    }

    /// The weight of ‖M B A‖² in the penalty of a module with this alpha / r.
    fn weight(&self, scale: f64) -> f64 {
        self.lambda * if self.scaled { scale * scale } else { 1.0 }
    }

    /// ‖M ΔW‖² of the effective update ΔW = (alpha / r) B A divided by a LoRA term's value; 0 if λ is 0.
    pub fn square_of_value(&self, scale: f64) -> f64 {
        if self.is_active() { scale * scale / self.weight(scale) } else { 0.0 }
    }

    /// The penalty of ΔW = B A. `scale` is alpha / r, which counts only if `asft.scaled` is set. `operator` may be missing only
    /// where the penalty does not depend on V.
    pub fn lora(&self, operator: Option<&Operator>, a: &Tensor, b: &Tensor, scale: f64) -> Result<Term> {
        if !self.is_active() {
            return Ok(Term { value: Scalar::Known(0.0), grad_a: a.zeros_like()?, grad_b: b.zeros_like()? });
        }
        let weight = self.weight(scale);
        if self.penalize == Penalize::Input {
            let input = operator.context(WITHOUT_DIRECTION)?.input.as_ref();
            return input::lora(input, a, b, self.input_mix, weight);
        }
        let ([x, y], mg) = self.images(operator, b)?;
        let (square, grad_a, grad_b) = low_rank::products(a, (&x, &y), &mg, 2.0 * weight)?;
        let value = square.times(weight);
        let term = Term { value, grad_a, grad_b };
        match self.sign(operator)? {
            Some(sign) => sign.add_lora(term, a, b, weight),
            None => Ok(term),
        }
    }

    /// The penalties of several modules: their values, [modules] in f64, and their gradients added in place. None, and nothing
    /// done, where that is not one piece of work: then [`Penalty::lora`] does it module by module.
    pub fn lora_together(&self, modules: &[Together]) -> Result<Option<Tensor>> {
        let (by_direction, image) = (self.image().is_some(), self.image().unwrap_or(Image::Rest));
        // C = 0 leaves nothing of an aligned part; a sign is no matter of products alone, and V's rows are another side.
        let apart = |module: &&Together| {
            (by_direction && module.operator.is_none()) || (image == Image::Aligned && module.parts().is_none())
        };
        let alone = matches!(self.penalize, Penalize::OrthogonalReverse | Penalize::Input);
        if !self.is_active() || alone || modules.iter().any(|m| apart(&m)) {
            return Ok(None);
        }
        let adapted = modules.iter().map(|module| Adapted {
            a: module.a,
            b: module.b,
            direction: module.parts().filter(|_| by_direction).map(|(basis, c)| (basis, c)),
            weight: self.weight(module.scale),
            gradients: module.gradients,
        });
        grouped::add(&adapted.collect::<Vec<_>>(), image)
    }

    /// The penalty of ΔW = W − W_aligned [d_out, d_in] itself.
    pub fn full(&self, operator: Option<&Operator>, delta_w: &Tensor) -> Result<FullTerm> {
        if !self.is_active() {
            return Ok(FullTerm { value: Scalar::Known(0.0), grad: delta_w.zeros_like()? });
        }
        if self.penalize == Penalize::Input {
            let input = operator.context(WITHOUT_DIRECTION)?.input.as_ref();
            return input::full(input, delta_w, self.input_mix, self.lambda);
        }
        let ([x, y], mg) = match self.rest_twice(operator, delta_w)? {
            Some(mg) => ([delta_w.clone(), mg.clone()], mg),
            None => {
                let g = self.apply(operator, delta_w)?;
                ([g.clone(), g.clone()], self.apply(operator, &g)?)
            }
        };
        let value = inner_product_by_blocks(&x, &y)?.times(self.lambda);
        let grad = (mg * (2.0 * self.lambda))?;
        let term = FullTerm { value, grad };
        match self.sign(operator)? {
            Some(sign) => sign.add_full(term, delta_w, self.lambda),
            None => Ok(term),
        }
    }

    /// V's sign, if the penalty uses it; also `None` if V = 0.
    fn sign<'a>(&self, operator: Option<&'a Operator>) -> Result<Option<&'a Sign>> {
        match operator.filter(|operator| self.penalize == Penalize::OrthogonalReverse && operator.parts.is_some()) {
            None => Ok(None),
            Some(operator) => {
                operator.sign.as_ref().context("a penalty by sign without V's right singular vectors").map(Some)
            }
        }
    }

    /// What of an update is penalised by V's columns; `None` where they do not count.
    fn image(&self) -> Option<Image> {
        match self.penalize {
            Penalize::Orthogonal | Penalize::OrthogonalReverse => Some(Image::Rest),
            Penalize::Aligned => Some(Image::Aligned),
            Penalize::Input | Penalize::All | Penalize::None => None,
        }
    }

    /// M x, of an active penalty.
    fn apply(&self, operator: Option<&Operator>, x: &Tensor) -> Result<Tensor> {
        let Some(image) = self.image() else { return Ok(x.clone()) };
        let aligned = operator.context(WITHOUT_DIRECTION)?.apply(x)?;
        Ok(match (image, aligned) {
            (Image::Rest, Some(aligned)) => (x - aligned)?,
            (Image::Rest, None) => x.clone(),
            (Image::Aligned, Some(aligned)) => aligned,
            (Image::Aligned, None) => x.zeros_like()?,
        })
    }

    /// M M x for M = I − C, where ‖M x‖² is ⟨x, M M x⟩ to f32's precision.
    fn rest_twice(&self, operator: Option<&Operator>, x: &Tensor) -> Result<Option<Tensor>> {
        let operator = operator.filter(|_| self.image() == Some(Image::Rest));
        let parts = operator.and_then(|operator| operator.parts.as_ref().zip(operator.removed.as_ref()));
        parts.map(|((basis, _), removed)| low_rank::rest_twice(basis, removed, x)).transpose()
    }

    /// X and Y with T = XᵀY, and M M B, of an active penalty.
    fn images(&self, operator: Option<&Operator>, b: &Tensor) -> Result<([Tensor; 2], Tensor)> {
        if let Some(mg) = self.rest_twice(operator, b)? {
            return Ok(([b.clone(), mg.clone()], mg));
        }
        let (g, mg) = match self.image().zip(operator.and_then(|operator| operator.parts.as_ref())) {
            Some((image, (basis, c))) => low_rank::images(basis, c, b, image)?,
            None => {
                let zero_or_b = self.apply(operator, b)?;
                (zero_or_b.clone(), zero_or_b)
            }
        };
        Ok(([g.clone(), g], mg))
    }
}

/// ⟨x, y⟩ of two small matrices.
fn inner_product(x: &Tensor, y: &Tensor) -> Result<Scalar> {
    Scalar::of((x * y)?.sum_all()?)
}

/// ⟨x, y⟩ of two matrices, a block of rows at a time, so that the f64 copies stay small.
fn inner_product_by_blocks(x: &Tensor, y: &Tensor) -> Result<Scalar> {
    let (rows, columns) = x.dims2()?;
    let block = (SUM_CHUNK / columns.max(1)).max(1);
    let wide = wide(x.device());
    (0..rows).step_by(block).try_fold(Scalar::Known(0.0), |sum, start| {
        let part = |of: &Tensor| of.narrow(0, start, block.min(rows - start))?.to_dtype(wide);
        sum.plus(inner_product(&part(x)?, &part(y)?)?)
    })
}
