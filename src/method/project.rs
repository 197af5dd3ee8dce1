//! Safe LoRA (arXiv 2405.16833, IBM/SafeLoRA) on a finished adapter: ΔW ← C ΔW, folded into B ← C B, for the modules whose
//! update C turns the most.
//!
//! The turn is measured by cos(C ΔW, ΔW), which depends on neither scale nor rank: modules at or below a threshold are
//! projected, or the N lowest. Where V = 0 there is nothing to project onto, and where B A = 0 nothing to project: such
//! modules have no cosine and stay as they are. The published code differs in details: it rounds cosines to five digits
//! before comparing them, projects every module that ties with the N-th, and matches modules to directions by position.
//!
//! A truncated direction leaves out a part of C with a spectral norm of at most ρ (`residual`), so ‖C B − Ĉ B‖_F ≤ ρ ‖B‖_F.

use super::direction_file::Directions;
use super::shares::Products;
use super::spectral::Direction;
use crate::adapter::Adapter;
use crate::ensure_valid;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use serde::Serialize;
use std::fmt;

/// Which modules are projected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// Those whose cosine is at most this.
    Threshold(f64),
    /// This many, those with the lowest cosines.
    Lowest(usize),
}

/// The outcome for one module.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleProjection {
    pub module: String,
    pub projected: bool,
    /// cos(C ΔW, ΔW); `None` if V = 0 or ΔW = 0.
    pub cosine: Option<f64>,
    /// How far that can be from the cosine with all of C.
    pub cosine_bound: f64,
    /// ‖C ΔW‖ / ‖ΔW‖: how much a projection leaves; `None` if V = 0 or ΔW = 0.
    pub kept: Option<f64>,
    /// An upper bound on ‖C B − Ĉ B‖ / ‖B‖, due to the direction's truncation.
    pub residual: f64,
}

/// The outcome for a whole adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Projection {
    pub modules: Vec<ModuleProjection>,
}

/// The adapter with the chosen modules projected, and the outcome for each, in natural order.
///
/// # Errors
/// A direction that lacks some of the adapter's modules, or has them in other shapes; more modules asked for than can
/// be projected.
pub fn project(adapter: &Adapter, directions: &Directions, choice: Choice) -> Result<(Adapter, Projection)> {
    let names = directions.modules().iter().filter(|name| adapter.modules.contains_key(*name));
    let mut modules = vec![];
    for name in names {
        let module = &adapter.modules[name];
        let direction = directions.read_without_right(name)?;
        let products = Products::lora(Some(&direction), &module.a, &module.b, 1.0);
        let products = products.with_context(|| format!("module {name}"))?;
        modules.push(ModuleProjection {
            module: name.clone(),
            projected: false,
            cosine: products.cosine(),
            cosine_bound: products.cosine_bound(&direction),
            kept: products.aligned(),
            residual: direction.residual.into(),
        });
    }
    choose(&mut modules, choice)?;
    let mut out = adapter.clone();
    for report in modules.iter().filter(|report| report.projected) {
        let direction = directions.read_without_right(&report.module)?;
        let module = out.modules.get_mut(&report.module).context("a module that was just read")?;
        module.b = projected(&direction, &module.b)?;
    }
    Ok((out, Projection { modules }))
}

/// C B in f32.
fn projected(direction: &Direction, b: &Tensor) -> Result<Tensor> {
    Ok(direction.apply(&b.to_dtype(DType::F64)?)?.to_dtype(DType::F32)?)
}

fn choose(modules: &mut [ModuleProjection], choice: Choice) -> Result<()> {
    match choice {
        Choice::Threshold(threshold) => {
            for module in modules {
                module.projected = module.cosine.is_some_and(|cosine| cosine <= threshold);
            }
        }
        Choice::Lowest(count) => {
            let mut order: Vec<(f64, usize)> =
                modules.iter().enumerate().filter_map(|(i, module)| Some((module.cosine?, i))).collect();
            ensure_valid!(
                count <= order.len(),
                "--layers {count}: only {} of the adapter's {} modules can be projected (an update and a direction that \
                 are not zero)",
                order.len(),
                modules.len()
            );
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (_, i) in order.into_iter().take(count) {
                modules[i].projected = true;
            }
        }
    }
    Ok(())
}

impl Projection {
    pub fn projected(&self) -> usize {
        self.modules.iter().filter(|module| module.projected).count()
    }

    /// The number of modules whose direction is truncated too far to tell on which side of `threshold` their cosine lies.
    pub fn undecided(&self, threshold: f64) -> usize {
        let open = |m: &&ModuleProjection| m.cosine.is_some_and(|c| (c - threshold).abs() < m.cosine_bound);
        self.modules.iter().filter(open).count()
    }

    /// The largest bound on ‖C B − Ĉ B‖ / ‖B‖ among the projected modules.
    pub fn worst_residual(&self) -> f64 {
        self.modules.iter().filter(|module| module.projected).map(|module| module.residual).fold(0.0, f64::max)
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.modules.iter().map(|m| m.module.len()).max().unwrap_or(0).max(6);
        writeln!(f, "{:width$}  {:>8}  {:>9}  {:>11}  projected", "module", "cosine", "bound", "|C dW|/|dW|")?;
        for m in &self.modules {
            let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
            let kept = m.kept.map_or("-".into(), |kept| format!("{kept:.3e}"));
            let (cosine, mark) = (number(m.cosine, 5), if m.projected { "yes" } else { "no" });
            writeln!(f, "{:width$}  {cosine:>8}  {:>9.1e}  {kept:>11}  {mark}", m.module, m.cosine_bound)?;
        }
        Ok(())
    }
}
