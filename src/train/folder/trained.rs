//! What a run trains, and what that belongs to: all that checkpoints and the result are made from.

use crate::adapter::{Adapter, BaseIdentity, model_card};
use crate::checkpoint::Checkpoint;
use crate::hub::Resolved;
use crate::method::Penalize;
use crate::method::direction_file::Directions;
use crate::model::Parameters;
use crate::names::{EMBEDDING, HEAD};
use crate::train::step::trainer::Trainer;
use anyhow::Result;
use candle_core::Tensor;
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// A model in training and its base.
pub struct Trained {
    pub trainer: Trainer,
    pub base: Resolved,
    /// The base's weights.
    pub checkpoint: Checkpoint,
    /// As it was before training; `None` in full tuning.
    pub adapter: Option<Adapter>,
    /// What its updates are measured by in the end; `None` where the run needs no direction.
    pub directions: Option<Directions>,
    /// Content hashes of the inputs by the settings that name them.
    pub inputs: BTreeMap<String, String>,
    /// The identity of the adapter's base, computed when a checkpoint first needs it.
    identity: OnceCell<BaseIdentity>,
}

impl Trained {
    pub fn new(
        trainer: Trainer,
        base: Resolved,
        checkpoint: Checkpoint,
        adapter: Option<Adapter>,
        directions: Option<Directions>,
        inputs: BTreeMap<String, String>,
    ) -> Self {
        Self { trainer, base, checkpoint, adapter, directions, inputs, identity: OnceCell::new() }
    }

    pub fn parameters(&self) -> &Parameters {
        self.trainer.model.parameters()
    }

    /// The trained version of a tensor of the base, after full tuning.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        // A tied head may be stored nevertheless; if it were left as it was, transformers would untie the two.
        let tied = self.trainer.model.spec().tie_word_embeddings;
        let name = if tied && name == HEAD { EMBEDDING } else { name };
        self.parameters().get(name).map(|var| var.as_detached_tensor())
    }

    /// The identity of the base of `adapter`; the first call reads the weights.
    pub fn identity(&self, adapter: &Adapter) -> Result<&BaseIdentity> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let identity = BaseIdentity::of(adapter, &self.checkpoint)?;
        Ok(self.identity.get_or_init(|| identity))
    }
}

/// The model card of an adapter trained with this penalty, with `rows` for its table.
pub fn card(adapter: &Adapter, penalize: Penalize, rows: &[(&str, String)]) -> String {
    model_card(adapter, objective(penalize), rows)
}

/// What the loss was, for the model card.
fn objective(penalize: Penalize) -> &'static str {
    match penalize {
        Penalize::Orthogonal => {
            "with [AsFT](https://arxiv.org/abs/2506.08473) (anchoring safety during fine-tuning) the loss carries a \
             penalty on the part of each update that leaves the model's alignment direction"
        }
        Penalize::OrthogonalReverse => {
            "with [AsFT](https://arxiv.org/abs/2506.08473) (anchoring safety during fine-tuning) the loss carries a \
             penalty on the part of each update that leaves the model's alignment direction, and here also on what moves \
             against it"
        }
        Penalize::Aligned => {
            "the loss carries a penalty on the part of each update along the model's alignment direction, the ablation \
             of [AsFT](https://arxiv.org/abs/2506.08473)"
        }
        Penalize::Input => {
            "the loss carries a penalty on what each update does to the inputs that the model's alignment trained on, which the rows \
             of its alignment direction span, a variant of [AsFT](https://arxiv.org/abs/2506.08473)"
        }
        Penalize::All => {
            "the loss carries a penalty on the size of each update (plain shrinkage, no alignment direction)"
        }
        Penalize::None => "plain fine-tuning, without a penalty",
    }
}
