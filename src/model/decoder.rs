//! The decoder-only transformer: embedding, blocks, final norm, output head. Its backward pass is in backward.rs.

use super::block::Block;
use super::layer_inputs::{self, LayerInputs};
use super::norm::Norm;
use super::{Across, DropoutKey, KvCache, Lora, ModelSpec, Parameters, Pass, Rope, Rotations, Watch};
use crate::ensure_valid;
use crate::error::listing;
use crate::names::{EMBEDDING, HEAD, LAYER_EMBEDDING, LoraMatrix};
use crate::ops::attention::Layout;
use crate::ops::sum::{is_finite, scaled_by};
use crate::ops::weight::Weight;
use crate::ops::{cross_entropy, linear, rounded, softcap};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// Sequences one after another, without padding. Labels < 0 are not trained on; within a sequence, the label at
/// position t + 1 is the target of position t.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    pub input_ids: &'a [u32],
    pub labels: &'a [i64],
    /// The length of each sequence; they add up to the number of ids.
    pub lengths: &'a [usize],
}

impl Sequences<'_> {
    /// Rows of the hidden states that predict a label, and those labels.
    pub(super) fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        let mut start = 0;
        let predicting = self.lengths.iter().flat_map(|length| {
            let rows = start..start + length.saturating_sub(1);
            start += length;
            rows
        });
        predicting.filter_map(|i| Some((i as u32, u32::try_from(*self.labels.get(i + 1)?).ok()?))).unzip()
    }
}

/// A clone shares the weights.
#[derive(Clone)]
pub struct Decoder {
    pub(super) spec: ModelSpec,
    /// Type of the activations.
    pub(super) dtype: DType,
    /// [vocab_size, hidden_size]
    pub(super) embed_tokens: Weight,
    /// Inputs that layers have besides, in models that have them.
    pub(super) layer_inputs: Option<LayerInputs>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// [vocab_size, hidden_size]; `None`: the embedding.
    pub(super) lm_head: Option<Weight>,
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

    /// Attaches adapters to linear layers, by module path, and makes `parameters` what trains.
    ///
    /// # Errors
    /// A module that is not a linear layer of a block.
    pub fn attach(&mut self, mut adapters: BTreeMap<String, Lora>, parameters: Parameters) -> Result<()> {
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            linear.lora = adapters.remove(&linear.module);
        }
        anyhow::ensure!(adapters.is_empty(), "no such linears: {:?}", adapters.keys());
        self.parameters = parameters;
        Ok(())
    }

    /// The weight of a block linear, [d_out, d_in].
    pub fn weight(&self, module: &str) -> Result<&Weight> {
        let mut linears = self.blocks.iter().flat_map(Block::linears);
        let found = linears.find(|linear| linear.module == module);
        Ok(&found.with_context(|| format!("{module} is not a linear of the model"))?.weight)
    }

    /// Replaces the frozen weight of a block linear with `weight` [d_out, d_in], cast to the compute type and device.
    ///
    /// # Errors
    /// A module that is not a linear layer of a block; another shape; weights that train.
    pub fn set_weight(&mut self, module: &str, weight: &Tensor) -> Result<()> {
        anyhow::ensure!(!self.trains, "{module}: a weight that trains is moved through its parameter");
        let mut linears = self.blocks.iter_mut().flat_map(Block::linears_mut);
        let linear = linears.find(|linear| linear.module == module);
        let linear = linear.with_context(|| format!("{module} is not a linear of the model"))?;
        let (is, was) = (weight.dims2()?, linear.weight.dims()?);
        anyhow::ensure!(is == was, "{module}: the weight is {was:?}, got {is:?}");
        linear.weight = weight.to_dtype(self.dtype)?.to_device(linear.weight.device())?.into();
        Ok(())
    }

    pub(super) fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// A pass over whole sequences.
    pub(super) fn pass(&self, lengths: &[usize], dropout_key: Option<DropoutKey>) -> Result<Pass> {
        let stretches: Vec<(usize, usize)> = lengths.iter().map(|&length| (0, length)).collect();
        Ok(Pass { layout: Layout::new(lengths), rotations: self.rotations(&stretches)?, dropout_key })
    }

    /// For each of the spec's ropes, the rotations of the (start, length) stretches.
    fn rotations(&self, stretches: &[(usize, usize)]) -> Result<Vec<Rotations>> {
        let of = |(number, rope): (usize, &Rope)| {
            rope.rotations(self.spec.turned_head_dim(number), stretches, self.device())
        };
        self.spec.ropes.iter().enumerate().map(of).collect()
    }

    /// ids -> [ids, hidden_size] in the compute type
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = self.embed_tokens.rows(ids, self.dtype)?;
        scaled_by(rows, self.embedding_scale())
    }

    /// What the layers of a pass begin with besides x: [ids, hidden_size], the embeddings.
    pub(super) fn across(&self, ids: &[u32], x: &Tensor) -> Result<(Across, Option<layer_inputs::Saved>)> {
        let mut across = Across::default();
        let Some(own) = &self.layer_inputs else { return Ok((across, None)) };
        let (inputs, saved) = own.forward(ids, x)?;
        across.inputs = inputs;
        Ok((across, Some(saved)))
    }

    /// The embeddings' factor, rounded to the compute type as in transformers.
    pub(super) fn embedding_scale(&self) -> Option<f64> {
        self.spec.embedding_scale.map(|scale| rounded(scale, self.dtype))
    }

    /// x: [N, hidden_size] after the final norm, or its gradient, times the factor of the logits
    pub(super) fn for_head(&self, x: Tensor) -> Result<Tensor> {
        scaled_by(x, self.spec.logit_scale)
    }

    /// x: [N, hidden_size] after the final norm -> logits [N, vocab_size] in f32
    fn head_logits(&self, x: Tensor) -> Result<Tensor> {
        let logits = linear::forward_f32(&self.for_head(x)?, self.head())?;
        self.spec.logit_softcap.map_or(Ok(logits.clone()), |cap| softcap::forward(&logits, cap))
    }

    /// Hidden states after the last block, [N, hidden_size], keeping nothing.
    fn hidden(&self, ids: &[u32], pass: &Pass) -> Result<Tensor> {
        let x = self.embed(ids)?;
        let mut across = self.across(ids, &x)?.0;
        self.blocks.iter().try_fold(x, |x, block| Ok(block.forward(&x, pass, None, &mut across)?.0))
    }

    /// Logits of every position of the sequences, [N, vocab_size] in f32.
    pub fn logits(&self, input_ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let pass = self.pass(lengths, None)?;
        let (x, _) = self.norm.forward(&self.hidden(input_ids, &pass)?)?;
        self.head_logits(x)
    }

    /// Hidden states after the final norm at `rows` of the sequences, [rows, hidden_size].
    pub fn features(&self, input_ids: &[u32], lengths: &[usize], rows: Vec<u32>) -> Result<Tensor> {
        let pass = self.pass(lengths, None)?;
        let x = self.hidden(input_ids, &pass)?.index_select(&Tensor::new(rows, self.device())?, 0)?;
        Ok(self.norm.forward(&x)?.0)
    }

    /// The log-probability of each sequence's label tokens given what precedes them: natural logarithm, summed over the
    /// sequence; 0 for a sequence without labels.
    pub fn log_likelihoods(&self, sequences: Sequences) -> Result<Vec<f64>> {
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(vec![0.0; sequences.lengths.len()]);
        }
        let x = self.features(sequences.input_ids, sequences.lengths, rows.clone())?;
        let losses = cross_entropy::losses(&self.for_head(x)?, self.head(), &targets, self.spec.logit_softcap)?;
        let mut scored = rows.into_iter().zip(losses).peekable();
        let mut end = 0;
        let of_sequence = |length: &usize| {
            end += length;
            let own = std::iter::from_fn(|| scored.next_if(|(row, _)| (*row as usize) < end));
            -own.map(|(_, loss)| loss).sum::<f64>()
        };
        Ok(sequences.lengths.iter().map(of_sequence).collect())
    }

    /// Logits after the last of each sequence's fresh ids, [sequences, vocab_size] in f32. `fresh`: as for [`Decoder::extend`].
    ///
    /// # Errors
    /// A slot with no room left.
    pub fn next_logits(&self, fresh: &[(usize, &[u32])], cache: &mut KvCache) -> Result<Tensor> {
        let mut rows = 0;
        let last = fresh.iter().map(|(_, ids)| {
            rows += ids.len();
            rows.saturating_sub(1) as u32
        });
        let last: Vec<u32> = last.collect();
        self.logits_at(&self.extend(fresh, cache)?, &last)
    }

    /// Hidden states of fresh ids after the last block, [ids, hidden_size]. `fresh`: (slot of the cache, ids); the ids before them
    /// are in the cache, and these are added to it.
    ///
    /// # Errors
    /// A slot with no room left.
    pub fn extend(&self, fresh: &[(usize, &[u32])], cache: &mut KvCache) -> Result<Tensor> {
        let counts: Vec<(usize, usize)> = fresh.iter().map(|(slot, ids)| (*slot, ids.len())).collect();
        let spans = cache.extend(&counts)?;
        let stretches: Vec<(usize, usize)> = spans.iter().map(|span| (span.k_len - span.q_len, span.q_len)).collect();
        let pass = Pass { layout: Layout::cached(spans), rotations: self.rotations(&stretches)?, dropout_key: None };
        let ids: Vec<u32> = fresh.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let mut x = self.embed(&ids)?;
        let mut across = self.across(&ids, &x)?.0;
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(&x, &pass, Some(cache), &mut across)?.0;
        }
        Ok(x)
    }

    /// Logits at `rows`, in ascending order, of hidden states x after the last block: [rows, vocab_size] in f32.
    pub fn logits_at(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let all = rows.len() == x.dim(0)?;
        let x = if all { x.clone() } else { x.index_select(&Tensor::new(rows, self.device())?, 0)? };
        self.head_logits(self.norm.forward(&x)?.0)
    }

    /// Sum of the cross-entropy over the batch's label tokens.
    pub fn loss(&self, sequences: Sequences) -> Result<f64> {
        let pass = self.pass(sequences.lengths, None)?;
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(0.0);
        }
        let x = self.hidden(sequences.input_ids, &pass)?.index_select(&Tensor::new(rows, self.device())?, 0)?;
        let x = self.for_head(self.norm.forward(&x)?.0)?;
        cross_entropy::forward(&x, self.head(), &targets, self.spec.logit_softcap)
    }

    /// The cross-entropy of each of the batch's label tokens under the model without its adapters.
    pub fn reference_losses(&mut self, sequences: Sequences) -> Result<Vec<f64>> {
        self.without_adapters(|model| model.losses(sequences))
    }

    /// The adapters by module path.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, &Lora)> {
        let linears = self.blocks.iter().flat_map(Block::linears);
        linears.filter_map(|linear| Some((linear.module.as_str(), linear.lora.as_ref()?)))
    }

    /// Runs `of` while `watch` sees the inputs of every adapted linear.
    pub fn watched<T>(&mut self, watch: &Watch, of: impl FnOnce(&mut Self) -> T) -> T {
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut).filter(|linear| linear.lora.is_some()) {
            linear.watch = Some(Watch::clone(watch));
        }
        let found = of(self);
        self.blocks.iter_mut().flat_map(Block::linears_mut).for_each(|linear| linear.watch = None);
        found
    }

    /// What `of` finds in the model without its adapters.
    pub fn without_adapters<T>(&mut self, of: impl FnOnce(&Self) -> T) -> T {
        let linears = self.blocks.iter_mut().flat_map(Block::linears_mut);
        let loras: Vec<Option<Lora>> = linears.map(|linear| linear.lora.take()).collect();
        let found = of(self);
        for (linear, lora) in self.blocks.iter_mut().flat_map(Block::linears_mut).zip(loras) {
            linear.lora = lora;
        }
        found
    }

    fn losses(&self, sequences: Sequences) -> Result<Vec<f64>> {
        let (rows, targets) = sequences.targets();
        if targets.is_empty() {
            return Ok(vec![]);
        }
        let x = self.for_head(self.features(sequences.input_ids, sequences.lengths, rows)?)?;
        cross_entropy::losses(&x, self.head(), &targets, self.spec.logit_softcap)
    }
}

impl Decoder {
    /// To be called if a result is not finite: refuses weights that hold NaN or infinity, by name.
    ///
    /// # Errors
    /// Such weights, all listed.
    pub fn refuse_damaged_weights(&self) -> Result<()> {
        let mut damaged = vec![];
        let mut look = |name: &str, finite: bool| {
            if !finite {
                damaged.push(name.to_string());
            }
        };
        look(EMBEDDING, self.embed_tokens.is_finite()?);
        if let Some(own) = &self.layer_inputs {
            look(LAYER_EMBEDDING, own.embedding.is_finite()?);
            look(&format!("{}.weight", own.projection.module), own.projection.weight.is_finite()?);
        }
        for linear in self.blocks.iter().flat_map(Block::linears) {
            look(&format!("{}.weight", linear.module), linear.weight.is_finite()?);
            if let Some(lora) = &linear.lora {
                look(&LoraMatrix::A.name(&linear.module), is_finite(&lora.a)?);
                look(&LoraMatrix::B.name(&linear.module), is_finite(&lora.b)?);
            }
        }
        for (module, weight) in self.blocks.iter().flat_map(Block::mixture_weights) {
            look(&format!("{module}.weight"), weight.is_finite()?);
        }
        if let Some(head) = &self.lm_head {
            look(HEAD, head.is_finite()?);
        }
        ensure_valid!(
            damaged.is_empty(),
            "the model or its adapter is damaged: NaN or infinite values in {}",
            listing(&damaged, 8)
        );
        Ok(())
    }
}
