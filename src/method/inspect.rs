//! Where an update goes: for each module its size, how much of it is aligned or orthogonal, and which way along V it leans.
//!
//! All shares are ratios of Frobenius norms, for the effective update ΔW (alpha / r included): ‖C ΔW‖ / ‖ΔW‖ and ‖(I −
//! C) ΔW‖ / ‖ΔW‖ with the paper's C, which is not a projector, so that their squares need not add up to 1; and ‖P ΔW‖ /
//! ‖ΔW‖ and ‖(I − P) ΔW‖ / ‖ΔW‖ with the subspace projector, whose squares add up to 1; and `input` = √d_in ‖ΔW Vᵀ‖ / (‖ΔW‖
//! ‖V‖), on the side of V's rows, which is 1 by chance. None of them depends on V's
//! sign; `signed` = ⟨ΔW, V⟩ / (‖ΔW‖ ‖V‖) does. The unaligned model lies at −V. How they are computed:
//! [`super::shares`].

use super::shares::{Products, subspace};
use super::spectral::{Direction, Keep};
use crate::error::listing;
use crate::ops::sum::total;
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt;

/// What is known about one module's update.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleShares {
    pub module: String,
    pub d_out: usize,
    pub d_in: usize,
    /// ‖ΔW‖_F
    pub norm: f64,
    /// ‖V‖_F
    pub v_norm: f64,
    /// ‖C ΔW‖ / ‖ΔW‖
    pub aligned: Option<f64>,
    /// ‖(I − C) ΔW‖ / ‖ΔW‖
    pub orthogonal: Option<f64>,
    /// ‖P ΔW‖ / ‖ΔW‖
    pub subspace_aligned: Option<f64>,
    /// ‖(I − P) ΔW‖ / ‖ΔW‖
    pub subspace_orthogonal: Option<f64>,
    /// Columns of P.
    pub subspace_rank: usize,
    /// Share of ‖V‖_F² in P's range.
    pub subspace_energy: f64,
    /// cos(C ΔW, ΔW), by which Safe LoRA chooses.
    pub cosine: Option<f64>,
    /// √d_in ‖ΔW Vᵀ‖ / (‖ΔW‖ ‖V‖)
    pub input: Option<f64>,
    /// ⟨ΔW, V⟩ / (‖ΔW‖ ‖V‖)
    pub signed: Option<f64>,
    /// How far off `aligned` and `orthogonal` can each be because the direction is truncated.
    pub share_bound: f64,
    /// The same for `cosine`.
    pub cosine_bound: f64,
    /// How far off `signed` can be, because of that and of rounding.
    pub signed_bound: f64,
    #[serde(skip)]
    products: Products,
    /// Σ c² / d_out: the mean of ‖C X‖² / ‖X‖² for a random X.
    #[serde(skip)]
    c_chance: f64,
}

/// The same for all modules together, and what a random update of the same norms and shapes would show.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    /// √Σ ‖ΔW‖²
    pub norm: f64,
    /// √Σ ‖V‖²
    pub v_norm: f64,
    pub aligned: Option<f64>,
    pub aligned_by_chance: Option<f64>,
    pub orthogonal: Option<f64>,
    pub subspace_aligned: Option<f64>,
    pub subspace_aligned_by_chance: Option<f64>,
    pub subspace_orthogonal: Option<f64>,
    pub input: Option<f64>,
    /// Σ ⟨ΔW, V⟩ / (norm · v_norm)
    pub signed: Option<f64>,
    /// Standard deviation of `signed` for random updates.
    pub signed_by_chance: Option<f64>,
    pub signed_bound: f64,
    /// Σ ⟨ΔW, V⟩ / Σ ‖V‖²: how far along V the update goes, in units of V's norm. −1 would be the unaligned model.
    pub along_v: Option<f64>,
}

/// An update, module by module.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub modules: Vec<ModuleShares>,
    pub total: Totals,
    pub verdict: String,
}

/// What the modules are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// By layer
    Layer,
    /// |dW|, largest first
    Norm,
    /// |C dW| / |dW|, largest first
    Aligned,
    /// |(I - P) dW| / |dW|, largest first
    Orthogonal,
    /// cos(C dW, dW), lowest first: the order in which Safe LoRA projects
    Cosine,
    /// <dW, V> / (|dW| |V|), most against V first
    Signed,
}

impl ModuleShares {
    /// `products`: those of ΔW with `direction`, which holds R and was made with `keep`; `rank`: an upper bound on the rank
    /// of ΔW.
    pub fn new(module: &str, (direction, keep): (&Direction, Keep), products: Products, rank: usize) -> Result<Self> {
        let ((d_out, d_in), (subspace_rank, subspace_energy)) = (direction.shape, subspace(direction));
        let c_square: f64 = direction.eigenvalues.iter().map(|&c| f64::from(c).powi(2)).sum();
        Ok(Self {
            module: module.to_string(),
            d_out,
            d_in,
            norm: products.norm(),
            v_norm: direction.v_norm.into(),
            aligned: products.aligned(),
            orthogonal: products.orthogonal(),
            subspace_aligned: products.subspace_aligned(),
            subspace_orthogonal: products.subspace_orthogonal(),
            subspace_rank,
            subspace_energy,
            cosine: products.cosine(),
            input: products.input(direction),
            signed: products.signed(direction),
            share_bound: direction.residual.into(),
            cosine_bound: products.cosine_bound(direction),
            signed_bound: products.signed_bound(direction, rank, keep)?,
            products,
            c_chance: c_square / d_out as f64,
        })
    }
}

impl Inspection {
    /// `modules` in natural order.
    pub fn new(modules: Vec<ModuleShares>) -> Self {
        let total = totals(&modules);
        let verdict = verdict(&total);
        Self { modules, total, verdict }
    }

    /// Sorts the modules; those without a value come last.
    pub fn sort(&mut self, order: Order) {
        // Smaller keys first.
        let key = |m: &ModuleShares| match order {
            Order::Layer => Some(0.0),
            Order::Norm => Some(-m.norm),
            Order::Aligned => m.aligned.map(|x| -x),
            Order::Orthogonal => m.subspace_orthogonal.map(|x| -x),
            Order::Cosine => m.cosine,
            Order::Signed => m.signed,
        };
        self.modules.sort_by(|a, b| {
            let (a, b) = (key(a).unwrap_or(f64::INFINITY), key(b).unwrap_or(f64::INFINITY));
            a.total_cmp(&b)
        });
    }
}

fn totals(modules: &[ModuleShares]) -> Totals {
    // Where V = 0 nothing is aligned or orthogonal: such modules count in no share.
    let directed = || modules.iter().filter(|m| m.v_norm > 0.0);
    let sum = |of: &dyn Fn(&ModuleShares) -> f64| total(directed().map(of));
    let square = sum(&|m| m.products.square);
    let v_square = sum(&|m| m.v_norm.powi(2));
    let inner = sum(&|m| m.products.v_inner);
    let ratio = |part: f64| (square > 0.0).then(|| (part.max(0.0) / square).sqrt());
    let norms = (square * v_square).sqrt();
    let signed = |value: f64| (norms > 0.0).then(|| value / norms);
    let elements = |m: &ModuleShares| (m.d_out * m.d_in) as f64;
    Totals {
        norm: modules.iter().map(|m| m.products.square).sum::<f64>().sqrt(),
        v_norm: v_square.sqrt(),
        aligned: ratio(sum(&|m| m.products.c_square)),
        aligned_by_chance: ratio(sum(&|m| m.products.square * m.c_chance)),
        orthogonal: ratio(sum(&|m| m.products.orthogonal_square())),
        subspace_aligned: ratio(sum(&|m| m.products.p_square)),
        subspace_aligned_by_chance: ratio(sum(&|m| m.products.square * m.subspace_rank as f64 / m.d_out as f64)),
        subspace_orthogonal: ratio(sum(&|m| m.products.square - m.products.p_square)),
        input: ratio(sum(&|m| m.products.input_square)),
        signed: signed(inner),
        signed_by_chance: signed(sum(&|m| m.products.square * m.v_norm.powi(2) / elements(m)).sqrt()),
        signed_bound: signed(sum(&|m| m.signed_bound * m.norm * m.v_norm)).unwrap_or(0.0),
        along_v: (v_square > 0.0).then(|| inner / v_square),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.modules.iter().map(|m| m.module.len()).max().unwrap_or(0).max(10);
        let head = ["|dW|", "C", "I-C", "P", "I-P", "cosine", "input", "signed"];
        write!(f, "{:width$}", "module")?;
        head.iter().try_for_each(|name| write!(f, "  {name:>9}"))?;
        writeln!(f)?;
        let row = |name: &str, norm: f64, shares: [Option<f64>; 6], signed: Option<f64>| {
            let shares: String = shares.map(|share| format!("  {:>9}", four(share))).concat();
            let signed = signed.map_or("-".into(), |x| format!("{x:+.5}"));
            format!("{name:width$}  {norm:>9.3e}{shares}  {signed:>9}")
        };
        for m in &self.modules {
            let shares = [m.aligned, m.orthogonal, m.subspace_aligned, m.subspace_orthogonal, m.cosine, m.input];
            writeln!(f, "{}", row(&m.module, m.norm, shares, m.signed))?;
        }
        let t = &self.total;
        let shares = [t.aligned, t.orthogonal, t.subspace_aligned, t.subspace_orthogonal, None, t.input];
        writeln!(f, "{}", row("all", t.norm, shares, t.signed))?;
        let chance = [t.aligned_by_chance, None, t.subspace_aligned_by_chance, None, None, Some(1.0)];
        let spread = t.signed_by_chance.map_or("-".into(), |x| format!("±{x:.5}"));
        let shares: String = chance.map(|share| format!("  {:>9}", four(share))).concat();
        writeln!(f, "{:width$}  {:>9}{shares}  {spread:>9}", "by chance", "")?;
        writeln!(
            f,
            "C: |C dW| / |dW|, and so on; cosine: of C dW and dW; input: sqrt(d_in) |dW V'| / (|dW| |V|); signed: <dW, V> / (|dW| |V|), negative towards the unaligned model"
        )?;
        let bound = |of: fn(&ModuleShares) -> f64| self.modules.iter().map(of).fold(0.0, f64::max);
        writeln!(
            f,
            "what the direction file leaves out or rounds can change a C share by {:.0e}, a cosine by {:.0e}, signed by {:.0e} at most",
            bound(|m| m.share_bound),
            bound(|m| m.cosine_bound),
            bound(|m| m.signed_bound)
        )?;
        let zero: Vec<&str> = self.modules.iter().filter(|m| m.v_norm == 0.0).map(|m| m.module.as_str()).collect();
        if !zero.is_empty() {
            writeln!(f, "V = 0 in {}: no direction to compare with there", listing(&zero, 10))?;
        }
        writeln!(f, "verdict: {}", self.verdict)
    }
}

/// Five decimals, or three significant digits where those would be mostly zeros.
fn four(share: Option<f64>) -> String {
    match share {
        None => "-".to_string(),
        Some(value) if value == 0.0 || value >= 1e-3 => format!("{value:.5}"),
        Some(value) => format!("{value:.2e}"),
    }
}

/// Standard deviations beyond which chance is no longer an explanation.
const BEYOND_CHANCE: f64 = 4.0;

/// What the numbers say, in plain words and without claiming more than they do.
fn verdict(total: &Totals) -> String {
    let (Some(signed), Some(spread), Some(along), Some(inside), Some(expected)) =
        (total.signed, total.signed_by_chance, total.along_v, total.subspace_aligned, total.subspace_aligned_by_chance)
    else {
        return "nothing to judge: the update or the direction is zero".to_string();
    };
    let lean = if signed.abs() <= BEYOND_CHANCE * spread {
        "it leans neither along V nor against it (no more than a random update would)".to_string()
    } else {
        let percent = short_percent(100.0 * along.abs());
        let certain = if signed.abs() > total.signed_bound {
            ""
        } else {
            ", as far as the direction file holds V (all of it: `asft direction --tolerance 0`)"
        };
        if signed > 0.0 {
            format!("it leans along V, further from the unaligned model, by {percent} of V's length{certain}")
        } else {
            format!(
                "it leans against V, towards the unaligned model: it takes back {percent} of the alignment V{certain}"
            )
        }
    };
    let ratio = inside / expected.max(f64::MIN_POSITIVE);
    let held = if ratio > 1.25 {
        format!("it keeps to V's leading directions {ratio:.1} times as much as a random update would")
    } else if ratio < 0.8 {
        format!("it avoids V's leading directions ({ratio:.2} times what a random update would hold)")
    } else {
        "it keeps to V's leading directions about as much as a random update would".to_string()
    };
    format!("{lean}; {held}")
}

fn short_percent(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0} %") } else { format!("{value:.2} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(signed: f64, inside: f64) -> Totals {
        let some = Some(1.0);
        Totals {
            norm: 1.0,
            v_norm: 2.0,
            aligned: some,
            aligned_by_chance: some,
            orthogonal: some,
            subspace_aligned: Some(inside),
            subspace_aligned_by_chance: Some(0.2),
            subspace_orthogonal: some,
            input: some,
            signed: Some(signed),
            signed_by_chance: Some(0.01),
            signed_bound: 0.06,
            along_v: Some(signed / 2.0),
        }
    }

    #[test]
    fn the_verdict_says_which_way_and_how_much() {
        let says = |signed: f64, inside: f64, words: &str| {
            let verdict = verdict(&total(signed, inside));
            assert!(verdict.contains(words), "{verdict}");
        };
        says(-0.2, 0.2, "towards the unaligned model: it takes back 10 % of the alignment");
        says(0.1, 0.2, "further from the unaligned model, by 5.00 % of V's length;");
        says(0.03, 0.2, "neither along V nor against it");
        says(0.05, 0.2, "by 2.50 % of V's length, as far as the direction file holds V");
        says(0.0, 0.6, "3.0 times as much as a random update");
        says(0.0, 0.1, "avoids");
        says(0.0, 0.2, "about as much as a random update");
    }
}
