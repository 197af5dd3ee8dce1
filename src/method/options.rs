//! `[asft]` of the config: what is penalised, and how strongly.

use crate::ensure_valid;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Share of ‖V‖_F² that the subspace projector keeps when neither rank nor energy is given.
pub const DEFAULT_SUBSPACE_ENERGY: f64 = 0.9;

/// The part of an update ΔW that is penalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Penalize {
    /// ‖(I − C) ΔW‖²: the method. C's eigenvalues are usually small, so this is close to `all`.
    #[default]
    Orthogonal,
    /// ‖C ΔW‖²: the paper's ablation, which penalises what the method allows.
    Aligned,
    /// ‖ΔW‖²: plain shrinkage, the control that any claim must beat.
    All,
    /// Nothing: plain fine-tuning.
    None,
}

/// What stands for C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projector {
    /// C = V Vᵀ / ‖V‖_F as published. Not a projector: its eigenvalues are σ_i² / ‖V‖_F.
    #[default]
    Paper,
    /// P = U_k U_kᵀ, the orthogonal projector on V's leading left singular vectors.
    Subspace,
}

/// `[asft]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AsftOptions {
    /// Weight of the penalty.
    pub lambda: f64,
    /// The part of the update that is penalised.
    pub penalize: Penalize,
    /// What stands for C.
    pub projector: Projector,
    /// `subspace`: the number of leading singular vectors (not together with `subspace_energy`).
    pub subspace_rank: Option<usize>,
    /// `subspace`: keep the fewest vectors with this share of ‖V‖_F² (default 0.9).
    pub subspace_energy: Option<f64>,
    /// Penalise the effective update (alpha / rank) B A instead of the bare B A of the reference.
    pub scaled: bool,
    /// A direction file. Without one the direction is computed from the model pair.
    pub direction: Option<String>,
}

impl Default for AsftOptions {
    fn default() -> Self {
        Self {
            lambda: 1.0,
            penalize: Penalize::default(),
            projector: Projector::default(),
            subspace_rank: None,
            subspace_energy: None,
            scaled: false,
            direction: None,
        }
    }
}

impl AsftOptions {
    /// Checks the values against each other.
    pub fn validate(&self) -> Result<()> {
        let lambda = self.lambda;
        ensure_valid!(lambda.is_finite() && lambda >= 0.0, "asft.lambda must be a number >= 0, got {lambda}");
        let subspace_keys = self.subspace_rank.is_some() || self.subspace_energy.is_some();
        ensure_valid!(
            self.projector == Projector::Subspace || !subspace_keys,
            "asft.subspace_rank and asft.subspace_energy have no effect without asft.projector = \"subspace\""
        );
        ensure_valid!(
            self.subspace_rank.is_none() || self.subspace_energy.is_none(),
            "asft.subspace_rank and asft.subspace_energy exclude each other; give one"
        );
        ensure_valid!(self.subspace_rank != Some(0), "asft.subspace_rank must be at least 1");
        if let Some(energy) = self.subspace_energy {
            ensure_valid!(energy > 0.0 && energy <= 1.0, "asft.subspace_energy must be in (0, 1], got {energy}");
        }
        Ok(())
    }

    /// Whether the penalty depends on the direction V at all.
    pub fn needs_direction(&self) -> bool {
        matches!(self.penalize, Penalize::Orthogonal | Penalize::Aligned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_refused() {
        AsftOptions::default().validate().unwrap();
        for text in [
            "lambda = -1.0",
            "subspace_rank = 3",
            "projector = 'subspace'\nsubspace_rank = 3\nsubspace_energy = 0.5",
            "projector = 'subspace'\nsubspace_energy = 1.5",
            "projector = 'subspace'\nsubspace_rank = 0",
        ] {
            let options: AsftOptions = toml::from_str(text).unwrap();
            assert!(options.validate().is_err(), "{text}");
        }
        assert!(toml::from_str::<AsftOptions>("lamda = 1.0").is_err());
    }
}
