//! What was computed for a direction file, module by module.

use super::spectral::Phases;
use crate::error::listing;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// What was computed for one module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleReport {
    pub module: String,
    pub d_out: usize,
    pub d_in: usize,
    /// Number of directions kept; 0 if V = 0.
    pub rank: usize,
    pub v_norm: f32,
    /// C's largest eigenvalue.
    pub largest: f32,
    pub residual: f32,
    pub seconds: f64,
    pub phases: Phases,
}

/// What was computed for all of them.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub out: PathBuf,
    pub modules: Vec<ModuleReport>,
    /// Targeted modules left out with `allow_missing`, with the reason.
    pub skipped: Vec<String>,
    pub seconds: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.modules.iter().map(|m| m.module.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:width$}  {:>13}  {:>5}  {:>9}  {:>9}  {:>9}",
            "module", "shape", "rank", "|V|", "c_1", "residual"
        )?;
        for m in &self.modules {
            let shape = format!("{} x {}", m.d_out, m.d_in);
            writeln!(
                f,
                "{:width$}  {shape:>13}  {:>5}  {:>9.3e}  {:>9.3e}  {:>9.3e}",
                m.module, m.rank, m.v_norm, m.largest, m.residual
            )?;
        }
        let equal: Vec<&str> = self.modules.iter().filter(|m| m.rank == 0).map(|m| m.module.as_str()).collect();
        if !equal.is_empty() {
            writeln!(
                f,
                "V = 0 in {}: the models are equal there, and the penalty is plain shrinkage",
                listing(&equal, 10)
            )?;
        }
        for skipped in &self.skipped {
            writeln!(f, "left out: {skipped}")?;
        }
        let largest = self.modules.iter().map(|m| m.largest).fold(0.0, f32::max);
        write!(
            f,
            "{} modules in {:.1} s -> {}\nC's eigenvalues reach {largest:.3e}; the smaller that is beside 1, the nearer is \
             the released penalty to plain shrinkage (asft.projector = \"subspace\" differs)",
            self.modules.len(),
            self.seconds,
            self.out.display()
        )
    }
}
