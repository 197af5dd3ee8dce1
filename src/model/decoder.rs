//! The decoder-only transformer: embedding, blocks, final norm, output head; forward, and backward without a tape.
//!
//! With gradient checkpointing only each block's input is kept, and the block is run again in the backward pass;
//! without it every block's intermediates are kept. Both compute the same numbers: the dropout masks depend on a key,
//! not on how often they are drawn.

use super::block::{Block, Saved};
use super::load::{EMBEDDING, HEAD};
use super::norm::Norm;
use super::{Gradients, KvCache, Lora, ModelSpec, Parameters, Pass};
use crate::ops::cross_entropy;
use crate::ops::linear;
use crate::ops::rope::Angles;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// A batch of equally long (padded) sequences: B · T ids and labels, row after row. Labels < 0 are not trained on;
/// the label at position t + 1 is the target of position t.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    pub input_ids: &'a [u32],
    pub labels: &'a [i64],
    pub batch: usize,
}

impl Sequences<'_> {
    /// T
    fn length(&self) -> usize {
        self.input_ids.len() / self.batch
    }

    /// Rows of the hidden states that predict a label, and those labels.
    fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        let length = self.length();
        (0..self.labels.len())
            .filter(|i| (i + 1) % length != 0)
            .filter_map(|i| u32::try_from(self.labels[i + 1]).ok().map(|label| (i as u32, label)))
            .unzip()
    }
}

pub struct Decoder {
    pub(super) spec: ModelSpec,
    /// [vocab_size, hidden_size]
    pub(super) embed_tokens: Tensor,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// [vocab_size, hidden_size]; `None`: the embedding.
    pub(super) lm_head: Option<Tensor>,
    pub(super) parameters: Parameters,
    pub(super) trains: bool,
}

impl Decoder {
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What trains: the adapter's matrices, or every tensor of the model.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Puts adapters on linears, by module path, and makes `parameters` what trains.
    ///
    /// # Errors
    /// A module that is no linear of a block.
    pub fn attach(&mut self, mut adapters: BTreeMap<String, Lora>, parameters: Parameters) -> Result<()> {
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            linear.lora = adapters.remove(&linear.module);
        }
        anyhow::ensure!(adapters.is_empty(), "no such linears: {:?}", adapters.keys());
        self.parameters = parameters;
        Ok(())
    }

    /// The weight of a block linear, [d_out, d_in].
    pub fn weight(&self, module: &str) -> Result<&Tensor> {
        let mut linears = self.blocks.iter().flat_map(Block::linears);
        let found = linears.find(|linear| linear.module == module);
        Ok(&found.with_context(|| format!("{module} is not a linear of the model"))?.weight)
    }

    fn head(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    fn pass(&self, batch: usize, length: usize, start: usize, dropout_key: Option<u64>) -> Result<Pass> {
        let positions: Vec<u32> = (0..batch).flat_map(|_| start as u32..(start + length) as u32).collect();
        Ok(Pass { batch, angles: Angles::new(&self.spec, &positions, self.device())?, dropout_key })
    }

    /// ids -> [ids, hidden_size]
    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.embed_tokens.index_select(&Tensor::new(ids, self.device())?, 0)?)
    }

    /// Hidden states after the last block, [B · T, hidden_size], keeping nothing.
    fn hidden(&self, ids: &[u32], pass: &Pass) -> Result<Tensor> {
        self.blocks.iter().try_fold(self.embed(ids)?, |x, block| Ok(block.forward(&x, pass, None)?.0))
    }

    /// Logits of every position, [B · T, vocab_size].
    pub fn logits(&self, input_ids: &[u32], batch: usize) -> Result<Tensor> {
        let pass = self.pass(batch, input_ids.len() / batch, 0, None)?;
        let (x, _) = self.norm.forward(&self.hidden(input_ids, &pass)?)?;
        linear::forward(&x, self.head(), None)
    }

    /// Logits after the last of `ids`, [vocab_size]; the positions before are in the cache, and these join them.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let pass = self.pass(1, ids.len(), cache.position, None)?;
        let mut x = self.embed(ids)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(&x, &pass, Some(cache))?.0;
        }
        cache.position += ids.len();
        let (x, _) = self.norm.forward(&x.narrow(0, ids.len() - 1, 1)?.contiguous()?)?;
        Ok(linear::forward(&x, self.head(), None)?.squeeze(0)?)
    }

    /// Sum of the cross-entropy over the batch's label tokens.
    pub fn loss(&self, sequences: Sequences) -> Result<f64> {
        let pass = self.pass(sequences.batch, sequences.length(), 0, None)?;
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(0.0);
        }
        let x = self.hidden(sequences.input_ids, &pass)?.index_select(&Tensor::new(rows, self.device())?, 0)?;
        cross_entropy::forward(&self.norm.forward(&x)?.0, self.head(), &targets)
    }

    /// Sum of the cross-entropy over the batch's label tokens; adds the gradients of `scale` times that sum.
    pub fn loss_and_gradients(
        &self,
        sequences: Sequences,
        scale: f64,
        checkpointing: bool,
        dropout_key: Option<u64>,
        gradients: &mut Gradients,
    ) -> Result<f64> {
        let pass = self.pass(sequences.batch, sequences.length(), 0, dropout_key)?;
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(0.0);
        }
        let mut x = self.embed(sequences.input_ids)?;
        let mut kept: Vec<Kept> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(&x, &pass, None)?;
            kept.push(if checkpointing { Kept::Input(x) } else { Kept::Saved(Box::new(saved)) });
            x = y;
        }
        let (loss, mut dx) = self.head_backward(&x, rows, &targets, scale, gradients)?;
        drop(x);
        for (block, kept) in self.blocks.iter().zip(kept).rev() {
            let saved = match kept {
                Kept::Saved(saved) => *saved,
                Kept::Input(x) => block.forward(&x, &pass, None)?.1,
            };
            dx = block.backward(&saved, &dx, &pass, gradients)?;
        }
        if self.trains {
            let ids = Tensor::new(sequences.input_ids, self.device())?;
            gradients.add(EMBEDDING, self.embed_tokens.zeros_like()?.index_add(&ids, &dx, 0)?)?;
        }
        Ok(loss)
    }

    /// Final norm, head and loss over the label rows of x: [B · T, hidden_size] -> (loss, dx of x's shape).
    fn head_backward(
        &self,
        x: &Tensor,
        rows: Vec<u32>,
        targets: &[u32],
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<(f64, Tensor)> {
        let rows = Tensor::new(rows, self.device())?;
        let (h, saved) = self.norm.forward(&x.index_select(&rows, 0)?)?;
        let (loss, dh) = cross_entropy::forward_backward(&h, self.head(), targets, scale, self.trains)?;
        if let Some(d_head) = dh.head {
            gradients.add(if self.lm_head.is_some() { HEAD } else { EMBEDDING }, d_head)?;
        }
        let dx = self.norm.backward(&saved, &dh.hidden, gradients)?;
        Ok((loss, x.zeros_like()?.index_add(&rows, &dx, 0)?))
    }
}

/// What a block leaves behind for its backward pass.
enum Kept {
    Input(Tensor),
    Saved(Box<Saved>),
}
