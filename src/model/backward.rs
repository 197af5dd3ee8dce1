//! The decoder's forward and backward passes in one, without a tape: the value of a function of its last hidden states,
//! and the gradients of everything that trains.
//!
//! With gradient checkpointing only each block's input is kept, and the block is run again in the backward pass, but for
//! the last product, whose result nothing there needs; without it every block's intermediates are kept. Both compute the
//! same numbers: the dropout masks depend on a key, not on how often they are drawn.

use super::block::Saved;
use super::{Decoder, DropoutKey, Gradients, Sequences};
use crate::names::{EMBEDDING, HEAD};
use crate::ops::scalar::Scalar;
use crate::ops::sum::add;
use crate::ops::{cross_entropy, divergence};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// What is minimised instead of a label token's cross-entropy: maps the token's number in the batch and its
/// cross-entropy to a value and its slope.
pub type Objective<'a> = &'a dyn Fn(usize, f64) -> (f64, f64);

/// How a pass with gradients goes through the blocks.
#[derive(Clone, Copy)]
pub struct Through {
    pub checkpointing: bool,
    /// `None`: without dropout.
    pub dropout_key: Option<DropoutKey>,
}

impl Decoder {
    /// Sum of the cross-entropy over the batch's label tokens; adds the gradients of `scale` times that sum.
    pub fn loss_and_gradients(
        &self,
        sequences: Sequences,
        scale: f64,
        checkpointing: bool,
        dropout_key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<f64> {
        self.objective_and_gradients(sequences, scale, checkpointing, dropout_key, None, gradients)?.read()
    }

    /// As [`Decoder::loss_and_gradients`], with each label token's cross-entropy replaced by a function of it, if one
    /// is given. Without one, nothing waits for the device.
    pub fn objective_and_gradients(
        &self,
        sequences: Sequences,
        scale: f64,
        checkpointing: bool,
        dropout_key: Option<DropoutKey>,
        objective: Option<Objective>,
        gradients: &mut Gradients,
    ) -> Result<Scalar> {
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(Scalar::Known(0.0));
        }
        let through = Through { checkpointing, dropout_key };
        self.value_and_gradients(sequences, rows, scale, through, gradients, |h, scale, gradients| {
            self.objective_at_head(h, &targets, scale, objective, gradients)
        })
    }

    /// Sum over the batch's label positions of KL(p ‖ q), the divergence of the next token's distribution q from that of the
    /// model without its adapters, p; adds the gradients of `scale` times that sum. Nothing waits for the device.
    ///
    /// # Errors
    /// A head that trains: both models are to share it.
    pub fn divergence_and_gradients(
        &mut self,
        sequences: Sequences,
        scale: f64,
        through: Through,
        gradients: &mut Gradients,
    ) -> Result<Scalar> {
        ensure!(!self.trains, "a divergence from the model without adapters, and a head that trains");
        let (rows, _) = sequences.targets();
        if rows.is_empty() {
            return Ok(Scalar::Known(0.0));
        }
        let Sequences { input_ids, lengths, .. } = sequences;
        let reference = self.without_adapters(|model| model.features(input_ids, lengths, rows.clone()))?;
        let (reference, head, cap) = (self.for_head(reference)?, self.head(), self.spec.logit_softcap);
        self.value_and_gradients(sequences, rows, scale, through, gradients, |h, scale, _| {
            let (sum, dh) = divergence::forward_backward(&reference, &self.for_head(h.clone())?, head, scale, cap)?;
            Ok((sum, self.for_head(dh)?))
        })
    }

    /// The value of a function of the hidden states after the final norm at `rows` of the sequences, whose labels do not
    /// count; adds the gradients of `scale` times that value. `function` gets these states, h: [rows, hidden_size] in the
    /// compute type, and a factor; it returns its value and the gradient by h of the factor times the value, in the type
    /// of h, and adds those of what else it depends on.
    pub fn value_and_gradients(
        &self,
        Sequences { input_ids, lengths, .. }: Sequences,
        rows: Vec<u32>,
        scale: f64,
        Through { checkpointing, dropout_key }: Through,
        gradients: &mut Gradients,
        function: impl FnOnce(&Tensor, f64, &mut Gradients) -> Result<(Scalar, Tensor)>,
    ) -> Result<Scalar> {
        let pass = self.pass(lengths, dropout_key)?;
        // The gradients of a mean over thousands of tokens are too small for f16: there the sum's gradients go through
        // the layers, and the mean's factor is applied in f32.
        let (scale, factor) = if self.dtype == DType::F32 { (scale, 1.0) } else { (1.0, scale) };
        gradients.set_factor(factor);
        let mut x = self.embed(input_ids)?;
        let (mut across, inputs_saved) = self.across(input_ids, &x)?;
        let inputs_saved = inputs_saved.filter(|_| self.trains);
        let mut kept: Vec<Kept> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(&x, &pass, None, &mut across)?;
            kept.push(if checkpointing { Kept::Input(x) } else { Kept::Saved(Box::new(saved)) });
            x = y;
        }
        let rows = Tensor::new(rows, self.device())?;
        let (h, saved) = self.norm.forward(&x.index_select(&rows, 0)?)?;
        let (value, dh) = function(&h, scale, gradients)?;
        let dx = self.norm.backward(&saved, &dh, gradients)?;
        let mut dx = x.zeros_like()?.index_add(&rows, &dx, 0)?;
        drop((x, h, saved));
        for (block, kept) in self.blocks.iter().zip(kept).rev() {
            let mut widened = None;
            let saved = match kept {
                Kept::Saved(saved) => *saved,
                Kept::Input(x) => {
                    // Either pass would widen quantised weights for itself.
                    widened = Some(block.keep_widened());
                    block.saved(&x, &pass, &mut across)?
                }
            };
            dx = block.backward(&saved, &dx, &pass, &mut across, gradients)?;
            drop(widened);
        }
        if self.trains {
            if let (Some(own), Some(saved)) = (&self.layer_inputs, &inputs_saved) {
                let of_inputs: Vec<Tensor> = std::mem::take(&mut across.input_gradients).into_values().collect();
                dx = add(&dx, &own.backward(saved, input_ids, &of_inputs, gradients)?)?;
            }
            let ids = Tensor::new(input_ids, self.device())?;
            let dx = (dx.to_dtype(DType::F32)? * self.embedding_scale().unwrap_or(1.0))?;
            // Its zeros are gone before it is added to others.
            let gradient = self.embed_tokens.tensor()?.zeros_like()?.index_add(&ids, &dx, 0)?;
            gradients.add(EMBEDDING, gradient)?;
        }
        gradients.set_factor(1.0);
        Ok(value)
    }

    /// Head and loss, h: [M, hidden_size] -> (loss, the gradient of `scale` times it by h).
    fn objective_at_head(
        &self,
        h: &Tensor,
        targets: &[u32],
        scale: f64,
        objective: Option<Objective>,
        gradients: &mut Gradients,
    ) -> Result<(Scalar, Tensor)> {
        let (h, cap) = (self.for_head(h.clone())?, self.spec.logit_softcap);
        let (losses, mut dh) = cross_entropy::losses_backward(&h, self.head(), targets, scale, self.trains, cap)?;
        let loss = match objective {
            None => losses.sum()?,
            Some(objective) => {
                ensure!(!self.trains, "an objective of single tokens, and a head that trains");
                let (values, slopes): (Vec<f64>, Vec<f64>) =
                    losses.read()?.into_iter().enumerate().map(|(i, loss)| objective(i, loss)).unzip();
                let slopes: Vec<f32> = slopes.into_iter().map(|slope| slope as f32).collect();
                let slopes = Tensor::from_vec(slopes, (targets.len(), 1), self.device())?;
                let weighted = dh.hidden.to_dtype(DType::F32)?.broadcast_mul(&slopes)?;
                dh.hidden = weighted.to_dtype(dh.hidden.dtype())?;
                Scalar::Known(values.iter().sum())
            }
        };
        if let Some(d_head) = dh.head {
            gradients.add(if self.lm_head.is_some() { HEAD } else { EMBEDDING }, d_head)?;
        }
        Ok((loss, self.for_head(dh.hidden)?))
    }
}

/// What a block keeps for its backward pass.
enum Kept {
    Input(Tensor),
    Saved(Box<Saved>),
}
