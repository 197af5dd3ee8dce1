//! `[defence]` of the config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A way to train that is to keep a model safe, beside or in place of the penalty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DefenceKind {
    /// The ordinary loss on the ordinary data.
    #[default]
    None,
    /// Each label token's loss bends where its probability leaves that of the model without its adapter, most sharply on
    /// the first tokens of a response (Qi et al., arXiv 2406.05946).
    ConstrainedSft,
    /// Steps on the training data alternate with steps on safety data, held together by a proximal term (Huang et al.,
    /// arXiv 2405.18641).
    Lisa,
    /// The last hidden states at the end of some prompts are held near those of the aligned model (Lu et al., arXiv
    /// 2605.05995).
    Anchor,
    /// The loss includes what the update does to the inputs that some prompts give each layer.
    Activations,
    /// The loss includes the divergence from the model without its adapter on safety data.
    Kl,
    /// As `kl`, and the part of the step's gradient that works against it is taken out (Yi et al., arXiv 2508.07172).
    SafeGrad,
    /// The result is an exponential moving average of what trains (Kim et al., arXiv 2508.12531).
    Ema,
    /// The update does nothing to the inputs that some prompts give each layer (Zhang et al., arXiv 2510.14301, in part).
    NullSpace,
}

impl fmt::Display for DefenceKind {
    /// As the config has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// `[defence]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DefenceOptions {
    /// The defence.
    pub kind: DefenceKind,
    /// `constrained_sft`: β of the first, second, ... token of a response; the last one is that of all further tokens.
    /// The larger, the more strictly a token is held.
    pub betas: Vec<f64>,
    /// `lisa`, `kl`, `safe_grad`: safety samples, in the format and with the columns of `data.train`.
    pub alignment_data: Option<String>,
    /// `lisa`: steps on the safety samples in each round; they come first.
    pub alignment_steps: usize,
    /// `lisa`: steps on the training samples in each round.
    pub finetune_steps: usize,
    /// `lisa`: weight ρ of the proximal term (ρ / 2) ‖θ − θ'‖², θ' being what trains as it was at the last switch. `kl`,
    /// `safe_grad`: weight ρ of the divergence.
    pub rho: f64,
    /// `lisa`: share of all steps before which there is no proximal term.
    pub proximal_after: f64,
    /// `anchor`, `activations`, `null_space`: prompts whose answers are to stay as they are; answers in the file are not read.
    pub prompts: Option<String>,
    /// `anchor`, `activations`: weight λ of its term.
    pub weight: f64,
    /// `anchor`, `kl`, `safe_grad`: how many of the prompts or safety samples go into each step. `activations`, `null_space`: how many of
    /// the prompts go through the model at once before the first.
    pub batch_size: usize,
    /// `activations`: how many directions of each layer's inputs count. `null_space`: how many are closed to the update, at most.
    pub rank: usize,
    /// `null_space`: share of each layer's squared inputs on the prompts that those directions hold; fewer do not suffice.
    pub energy: f64,
    /// `ema`: share β of the average that each step leaves.
    pub decay: f64,
}

impl Default for DefenceOptions {
    fn default() -> Self {
        Self {
            kind: DefenceKind::None,
            betas: vec![0.5, 2.0, 2.0, 2.0, 2.0, 0.1],
            alignment_data: None,
            alignment_steps: 100,
            finetune_steps: 900,
            rho: 1.0,
            proximal_after: 0.1,
            prompts: None,
            weight: 50.0,
            batch_size: 8,
            rank: 128,
            energy: 0.99,
            decay: 0.99,
        }
    }
}

impl DefenceKind {
    /// Whether it needs `alignment_data`.
    pub fn needs_alignment_data(self) -> bool {
        matches!(self, Self::Lisa | Self::Kl | Self::SafeGrad)
    }

    /// Whether it needs `prompts`.
    pub fn needs_prompts(self) -> bool {
        matches!(self, Self::Anchor | Self::Activations | Self::NullSpace)
    }

    /// Whether it compares with the model without its adapter in each step, or is about what an adapter is; full tuning has none.
    pub fn needs_adapter(self) -> bool {
        matches!(self, Self::ConstrainedSft | Self::Activations | Self::Kl | Self::SafeGrad | Self::NullSpace)
    }
}

impl DefenceOptions {
    /// Every file that they name.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.alignment_data.iter().chain(&self.prompts)
    }
}
