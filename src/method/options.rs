//! `[asft]` of the config: what is penalised, and how strongly.

use crate::{ensure_valid, invalid};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The error of C allowed by default, in spectral norm and relative to C's largest eigenvalue.
pub const DEFAULT_TOLERANCE: f64 = 1e-3;

/// Share of ‖V‖_F² that the subspace projector keeps when neither rank nor energy is given.
pub const DEFAULT_SUBSPACE_ENERGY: f64 = 0.9;

/// The part of an update ΔW that is penalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Penalize {
    /// ‖(I − C) ΔW‖²: the released method. C's eigenvalues are usually small, so this is close to `all`.
    #[default]
    Orthogonal,
    /// ‖C ΔW‖²: the paper's ablation, which penalises what the method allows.
    Aligned,
    /// ‖(I − C) ΔW‖² + min(0, ⟨ΔW, V⟩ / ‖V‖)²: the method, and what moves against V, which is un-aligning. The
    /// released penalty knows V's directions but not its sign.
    #[serde(rename = "orthogonal+reverse")]
    OrthogonalReverse,
    /// (d_in / ‖V‖²) ‖ΔW Vᵀ‖² + ε ‖ΔW‖², ε being `input_mix`: what the update does to the inputs that alignment trained on, which
    /// V's rows span. Its control is `projector = "random"`.
    Input,
    /// ‖ΔW‖²: plain shrinkage, the control that any claim must beat.
    All,
    /// Nothing: plain fine-tuning.
    None,
}

/// What stands for C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projector {
    /// C = V Vᵀ / ‖V‖_F, as in the released code, after Safe LoRA. Not a projector: its eigenvalues are σ_i² / ‖V‖_F. Older configs
    /// call it `paper`.
    #[default]
    #[serde(alias = "paper")]
    #[schemars(extend("x-older" = ["paper"]))]
    Released,
    /// C = V (VᵀV)⁻¹ Vᵀ, the projector of the paper's equation 3: onto all of V's column space. A V of full rank makes it the
    /// identity, which leaves nothing to penalise: that is refused.
    Equation,
    /// P = U_k U_kᵀ, the orthogonal projector on V's leading left singular vectors.
    Subspace,
    /// C with V's singular values, but random singular vectors: the control that shows what V's directions add.
    Random,
    /// The orthogonal projector on a random subspace as large as that of `subspace`, whose control it is.
    RandomSubspace,
}

impl Projector {
    /// Whether it takes random singular vectors in place of V's.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::RandomSubspace)
    }

    /// Whether it has C's eigenvalues; others' are 1.
    pub fn has_spectrum(self) -> bool {
        matches!(self, Self::Released | Self::Random)
    }

    /// Whether it is on leading singular vectors, so many as `subspace_rank` or `subspace_energy` says.
    pub fn is_subspace(self) -> bool {
        matches!(self, Self::Subspace | Self::RandomSubspace)
    }
}

/// λ: a number, or found while training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Lambda {
    Fixed(f64),
    Found(Found),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Found {
    /// As large as `asft.max_orthogonal` asks for.
    #[serde(rename = "auto")]
    Auto,
}

impl Lambda {
    pub const AUTO: Self = Self::Found(Found::Auto);
}

impl From<f64> for Lambda {
    fn from(value: f64) -> Self {
        Self::Fixed(value)
    }
}

impl fmt::Display for Lambda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => value.fmt(f),
            Self::Found(Found::Auto) => f.write_str("auto"),
        }
    }
}

impl fmt::Display for Penalize {
    /// As written in the config.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Projector {
    /// As written in the config.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// `[asft]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AsftOptions {
    /// Weight of the penalty, or "auto": as large as it takes to keep the penalised part of the update within
    /// `max_orthogonal`, found while training by dual ascent.
    pub lambda: Lambda,
    /// With `lambda = "auto"`: the most that √(Σ ‖(I − C) ΔW‖² / Σ ‖W‖²) may be, over the targeted layers, W being
    /// their weights and ΔW the effective update, alpha / rank included.
    pub max_orthogonal: Option<f64>,
    /// The part of the update that is penalised.
    pub penalize: Penalize,
    /// What stands for C.
    pub projector: Projector,
    /// `subspace`, `random_subspace`: the number of leading singular vectors (not together with `subspace_energy`).
    pub subspace_rank: Option<usize>,
    /// `subspace`, `random_subspace`: keep the fewest vectors with this share of ‖V‖_F² (default 0.9).
    pub subspace_energy: Option<f64>,
    /// `penalize = "input"`: the weight of ‖ΔW‖² beside what is done to inputs, relative to it.
    pub input_mix: f64,
    /// `random`, `random_subspace`: seed of the singular vectors. Every layer has its own stream of it.
    pub projector_seed: u64,
    /// Penalise the effective update (alpha / rank) B A instead of the bare B A of the reference.
    pub scaled: bool,
    /// A direction file. Without one the direction is computed from the model pair.
    pub direction: Option<String>,
    /// Accuracy of a direction that the run computes itself: the largest error of C, in spectral norm, as a share of
    /// C's largest eigenvalue. The same as `asft direction --tolerance`; 0 keeps all of C.
    pub tolerance: f64,
}

impl Default for AsftOptions {
    fn default() -> Self {
        Self {
            lambda: Lambda::Fixed(1.0),
            max_orthogonal: None,
            penalize: Penalize::default(),
            projector: Projector::default(),
            subspace_rank: None,
            subspace_energy: None,
            input_mix: 0.0,
            projector_seed: 0,
            scaled: false,
            direction: None,
            tolerance: DEFAULT_TOLERANCE,
        }
    }
}

impl AsftOptions {
    /// Checks each value, and the values against each other.
    pub fn validate(&self) -> Result<()> {
        self.validate_lambda()?;
        let subspace_keys = self.subspace_rank.is_some() || self.subspace_energy.is_some();
        ensure_valid!(
            self.projector.is_subspace() || !subspace_keys,
            "asft.subspace_rank and asft.subspace_energy have no effect without asft.projector = \"subspace\" or \
             \"random_subspace\""
        );
        ensure_valid!(
            self.subspace_rank.is_none() || self.subspace_energy.is_none(),
            "asft.subspace_rank and asft.subspace_energy exclude each other; give one"
        );
        ensure_valid!(self.subspace_rank != Some(0), "asft.subspace_rank must be at least 1");
        if let Some(energy) = self.subspace_energy {
            ensure_valid!(energy > 0.0 && energy <= 1.0, "asft.subspace_energy must be in (0, 1], got {energy}");
        }
        ensure_valid!(
            self.projector.is_random() || self.projector_seed == 0,
            "asft.projector_seed has no effect without asft.projector = \"random\" or \"random_subspace\""
        );
        self.validate_input()?;
        let tolerance = self.tolerance;
        ensure_valid!(
            (0.0..1.0).contains(&tolerance),
            "asft.tolerance must be at least 0 and below 1, got {tolerance}"
        );
        Ok(())
    }

    fn validate_input(&self) -> Result<()> {
        let (input, mix) = (self.penalize == Penalize::Input, self.input_mix);
        ensure_valid!(mix.is_finite() && mix >= 0.0, "asft.input_mix must be a number >= 0, got {mix}");
        ensure_valid!(input || mix == 0.0, "asft.input_mix has no effect without asft.penalize = \"input\"");
        ensure_valid!(
            !input || matches!(self.projector, Projector::Released | Projector::Random),
            "asft.penalize = \"input\" is on V's rows, and asft.projector = \"{}\" on its columns; leave that key out, or make it \
             \"random\", the control",
            self.projector
        );
        Ok(())
    }

    fn validate_lambda(&self) -> Result<()> {
        let Lambda::Fixed(lambda) = self.lambda else {
            let Some(limit) = self.max_orthogonal else {
                return Err(invalid!(
                    "asft.lambda = \"auto\" needs asft.max_orthogonal, the most that the penalised part of the update \
                     may be as a share of the weights' norm, such as 0.01"
                ));
            };
            ensure_valid!(limit.is_finite() && limit > 0.0, "asft.max_orthogonal must be above 0, got {limit}");
            ensure_valid!(
                self.penalize != Penalize::None,
                "asft.lambda = \"auto\" has no effect with asft.penalize = \"none\""
            );
            return Ok(());
        };
        ensure_valid!(
            lambda.is_finite() && lambda >= 0.0,
            "asft.lambda must be a number >= 0 or \"auto\", got {lambda}"
        );
        ensure_valid!(
            self.max_orthogonal.is_none(),
            "asft.max_orthogonal has no effect without asft.lambda = \"auto\""
        );
        Ok(())
    }

    /// Whether there is a penalty at all.
    pub fn is_active(&self) -> bool {
        self.penalize != Penalize::None && self.lambda != Lambda::Fixed(0.0)
    }

    /// Whether the penalty depends on the direction V at all.
    pub fn needs_direction(&self) -> bool {
        !matches!(self.penalize, Penalize::All | Penalize::None)
    }

    /// Whether the penalty needs V's right singular vectors: for its sign, or for its rows.
    pub fn needs_right(&self) -> bool {
        matches!(self.penalize, Penalize::OrthogonalReverse | Penalize::Input)
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
            "projector_seed = 1",
            "tolerance = 1.0",
            "tolerance = -1e-3",
            "lambda = 'auto'",
            "lambda = 'auto'\nmax_orthogonal = 0.0",
            "lambda = 'auto'\nmax_orthogonal = 0.1\npenalize = 'none'",
            "max_orthogonal = 0.1",
            "input_mix = 0.1",
            "penalize = 'input'\ninput_mix = -0.1",
            "penalize = 'input'\nprojector = 'subspace'",
            "penalize = 'input'\nprojector = 'equation'",
        ] {
            let options: AsftOptions = toml::from_str(text).unwrap();
            assert!(options.validate().is_err(), "{text}");
        }
        assert!(toml::from_str::<AsftOptions>("lamda = 1.0").is_err());
        assert!(toml::from_str::<AsftOptions>("lambda = 'automatic'").is_err());
    }

    #[test]
    fn names_are_those_of_the_config() {
        let text = "lambda = 'auto'\nmax_orthogonal = 0.01\npenalize = 'orthogonal+reverse'\nprojector = 'random'";
        let options: AsftOptions = toml::from_str(text).unwrap();
        options.validate().unwrap();
        assert!(options.needs_right() && options.is_active());
        assert_eq!(options.lambda, Lambda::AUTO);
        assert_eq!(
            format!("{} {} {}", options.penalize, options.projector, options.lambda),
            "orthogonal+reverse random auto"
        );
        assert_eq!(Lambda::from(0.5).to_string(), "0.5");
        let older: AsftOptions = toml::from_str("projector = 'paper'").unwrap();
        assert_eq!((older.projector.to_string(), older == AsftOptions::default()), ("released".to_string(), true));
        let input: AsftOptions = toml::from_str("penalize = 'input'\ninput_mix = 0.3\nprojector = 'random'").unwrap();
        input.validate().unwrap();
        assert!(input.needs_direction() && input.needs_right());
    }
}
