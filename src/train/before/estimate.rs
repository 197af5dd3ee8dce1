//! What a run will need, before its weights are loaded: memory by part, and the arithmetic of a step.
//!
//! Counted from the shapes: every tensor that `model/` keeps or makes, in its own type, with the CPU's kernels or with
//! the operations of `ops/` for any device. What the allocator loses between blocks is left out. `docs/performance.md`
//! compares the figures for a CPU with measured ones; those for a GPU were never measured (`docs/gpu.md`).

use super::workload::{Micro, Passes, Workload};
use crate::adapter::ModuleSize;
use crate::config::Settings;
use crate::method::Projector;
use crate::model::{Experts, ModelSpec};
use crate::names::{EMBEDDING, HEAD};
use crate::ops::cross_entropy::chunk_rows;
use crate::ops::divergence;
use crate::ops::gpu::Serving;
use crate::train::defence::{self, Needs};
use crate::train::options::Tuning;
use anyhow::Result;
use candle_core::DType;
use serde::Serialize;
use std::collections::BTreeMap;

const F32: usize = 4;
/// The process before anything is loaded: code, thread stacks, tokenizer.
const PROCESS_BYTES: usize = 60 << 20;

/// A GPU's context, the code of its kernels and cuBLAS's workspace. Assumed, not measured.
const CONTEXT_BYTES: usize = 700 << 20;
/// Without a kernel, f32 copies of a chunk of logits, besides the logits themselves, and one in the compute type.
const LOGIT_COPIES: usize = 4;

/// Bytes by part, at the peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen weights, in the compute type or quantised.
    pub weights: usize,
    /// What trains: values, gradients, AdamW's moments; in full tuning also the weights that the penalty starts from;
    /// and a defence's copies, gradients and hidden states.
    pub trained: usize,
    /// The penalty's U and c, and V's right singular vectors if they are used.
    pub direction: usize,
    /// What the forward pass keeps for the backward pass, and one block's temporaries; on a GPU without a kernel for them, scores
    /// too.
    pub activations: usize,
    /// A chunk of logits, and the gradient of the hidden states at the labels.
    pub logits: usize,
    /// What a defence's pass over its prompts before the first step takes, in the place of what trains and of a step.
    pub before: usize,
    /// The samples, the program itself; a GPU's context instead.
    pub process: usize,
}

impl Memory {
    pub fn total(&self) -> usize {
        self.weights + self.direction + self.step().max(self.before) + self.process
    }

    /// What trains, and what a step takes besides.
    pub fn step(&self) -> usize {
        self.trained + self.activations.max(self.logits)
    }
}

/// Work of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// For the linear layers and the head, 2 per multiply-add.
    pub gemm_flops: f64,
    /// For the attention scores and their products, above the diagonal too, as tiles compute them, and for the chunks of gated
    /// DeltaNets.
    pub attention_flops: f64,
    /// Bytes read and written by everything else.
    pub traffic_bytes: f64,
}

/// A run's needs.
pub struct Estimate<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) settings: &'a Settings,
    /// The targeted linear layers by module path.
    pub(super) targets: BTreeMap<String, ModuleSize>,
    /// The bytes of weights that the checkpoint holds quantised, by name.
    pub(super) quantised: &'a BTreeMap<String, usize>,
    /// The defence's.
    pub(super) needs: Needs,
    /// On a GPU, which kernels serve there.
    pub(super) gpu: Option<Serving>,
}

impl<'a> Estimate<'a> {
    /// On the CPU, or on a `gpu` where these kernels serve. `quantised`: the bytes of each weight that the checkpoint holds
    /// quantised.
    ///
    /// # Errors
    /// `lora.rank_pattern` or `lora.alpha_pattern` that does not fit the targets.
    pub fn new(
        spec: &'a ModelSpec,
        settings: &'a Settings,
        targets: &[String],
        quantised: &'a BTreeMap<String, usize>,
        gpu: Option<Serving>,
    ) -> Result<Self> {
        let needs = defence::of(&settings.defence).needs();
        Ok(Self { spec, settings, targets: settings.lora.sizes(targets)?, quantised, needs, gpu })
    }

    /// Memory at the peak: at the largest micro-batch, with all samples.
    pub fn memory(&self, workload: &Workload) -> Memory {
        let largest = workload.largest;
        let (trained, weights) = match self.settings.train.method {
            Tuning::Lora => (4 * self.adapter_elements() * F32, self.weight_bytes()),
            Tuning::Full => (self.full_bytes(), 0),
        };
        let extra = self.needs.extra.unwrap_or_default();
        let held = self.needs.copies + usize::from(extra.own_gradients);
        let states = if extra.holds_states { workload.own_samples * self.spec.hidden_size } else { 0 };
        let inputs: usize = self.target_shapes().map(|(_, d_in)| d_in * self.needs.input_rank.min(d_in)).sum();
        let trained = trained + (held * self.trained_elements() + states + inputs) * F32;
        let (kept, in_a_block) = self.blocks_bytes(largest);
        let kept_at_head = kept + largest.tokens * self.across_bytes();
        let rows = chunk_rows(self.spec.vocab_size, largest.label_tokens, self.gpu.is_none());
        let copies = match self.gpu {
            None => F32,
            // The logits, and their gradient, which in f32 takes their place.
            Some(kernels) if kernels.cross_entropy => F32 + if self.width() == F32 { 0 } else { self.width() },
            Some(_) => LOGIT_COPIES * F32 + self.width(),
        };
        let copies = if extra.reference_passes > 0 { copies.max(divergence::COPIES * F32) } else { copies };
        // Hidden states at the labels: selected, normed, and their gradients.
        let logits = rows * self.spec.vocab_size * copies + 4 * largest.label_tokens * self.spec.hidden_size * F32;
        Memory {
            weights,
            trained,
            direction: self.direction_bytes(),
            activations: kept_at_head + in_a_block + self.summed_bytes(largest) + self.widened_bytes(),
            logits: kept_at_head + logits + self.widened_at_head_bytes(),
            before: self.before_bytes(workload.watched),
            process: if self.gpu.is_none() { PROCESS_BYTES + workload.data_bytes } else { CONTEXT_BYTES },
        }
    }

    /// Work of a step of mean size. The mean is not weighted by how often each state of a defence occurs: its own
    /// samples are about as long as the others.
    pub fn mean_work(&self, workload: &Workload) -> Work {
        let each_step = |passes: &Passes, references| {
            let (all, count) = (self.work(passes.sum, references), passes.steps.max(1) as f64);
            [all.gemm_flops, all.attention_flops, all.traffic_bytes].map(|value| value / count)
        };
        let own_references = self.needs.extra.unwrap_or_default().reference_passes;
        let task = each_step(&workload.passes, self.needs.reference_passes);
        let extra = each_step(&workload.extra, own_references);
        let [gemm_flops, attention_flops, traffic_bytes] = std::array::from_fn(|i| task[i] + extra[i]);
        Work { gemm_flops, attention_flops, traffic_bytes }
    }

    /// Work over micro-batches of this sum. `reference`: passes without the adapter, whose outputs a defence compares with.
    fn work(&self, sum: Micro, reference: usize) -> Work {
        let full = self.settings.train.method == Tuning::Full;
        // Forward, the input's gradient, the weight's if it trains, and the forward again with checkpointing.
        let again = usize::from(self.settings.train.gradient_checkpointing);
        let block_passes = 2 + usize::from(full) + again + reference;
        let head_passes = 2 + usize::from(full) + reference;
        let (linears, spared) = (self.linear_elements(), again * self.spared_elements());
        let head = self.spec.vocab_size * self.spec.hidden_size;
        let lora = if full { 0 } else { self.adapter_elements() * (3 + again) };
        let inputs = self.layer_input_elements() * (1 + 2 * usize::from(full) + reference);
        let gemm = 2
            * (sum.tokens * (linears * block_passes + lora + inputs - spared) + sum.label_tokens * head * head_passes);
        // Two products forward, five backward; half of the square is masked, except for the tiles on the diagonal.
        let width: usize = self.attention_layers().map(|layer| self.spec.head_widths(layer).0).sum();
        let (forwards, squares) = (1 + again + reference, sum.squares as f64);
        let attention = squares * (width * (2 * forwards + 5)) as f64;
        let layers = 0..self.spec.num_hidden_layers;
        let traffic: usize = layers.clone().map(|layer| self.traffic_per_token(layer)).sum();
        let chunks: usize = layers.map(|layer| self.chunk_flops(layer, forwards)).sum();
        // The inputs of layers, once a pass: the projection, its norm, rows, sums and their parts.
        let inputs = 15 * self.layer_input_width() * self.width() * (1 + usize::from(full) + reference);
        Work {
            gemm_flops: gemm as f64,
            attention_flops: attention + (sum.tokens * chunks) as f64,
            traffic_bytes: (sum.tokens * (traffic * (3 + again + reference) + inputs)) as f64,
        }
    }

    /// Of the linears whose products a block's second forward pass leaves out.
    fn spared_elements(&self) -> usize {
        let layers = (0..self.spec.num_hidden_layers).filter(|&layer| self.spec.ends_with_mlp(layer));
        layers.map(|layer| self.spec.hidden_size * self.spec.mlp_size(layer)).sum()
    }

    /// Arithmetic of a layer's gated DeltaNet, if it has one, for a token and besides its linears.
    fn chunk_flops(&self, layer: usize, forwards: usize) -> usize {
        let work = self.spec.delta_net_of(layer).map(|of| of.heads.work_per_row());
        let (forward, backward) = work.unwrap_or_default();
        2 * (forward * forwards + backward)
    }

    pub(super) fn attention_layers(&self) -> impl Iterator<Item = usize> {
        (0..self.spec.num_hidden_layers).filter(|&layer| self.spec.delta_net_of(layer).is_none())
    }

    /// Values of all that trains.
    pub(super) fn trained_elements(&self) -> usize {
        match self.settings.train.method {
            Tuning::Lora => self.adapter_elements(),
            Tuning::Full => self.model_elements(),
        }
    }

    /// Bytes of one value in the compute type.
    pub(super) fn width(&self) -> usize {
        DType::from(self.settings.model.dtype).size_in_bytes()
    }

    /// Frozen weights in the compute type or quantised.
    fn weight_bytes(&self) -> usize {
        let dense = |shape: &[usize]| shape.iter().product::<usize>() * self.width();
        let bytes =
            |(name, shape): (String, Vec<usize>)| self.quantised_bytes(&name, &shape).unwrap_or_else(|| dense(&shape));
        self.spec.tensors().into_iter().map(bytes).sum()
    }

    /// What the frozen weight `name` takes, if it is quantised.
    pub(super) fn quantised_bytes(&self, name: &str, shape: &[usize]) -> Option<usize> {
        let as_loaded = || match (self.settings.model.compute().frozen().format(name), shape) {
            (Some(format), [rows, columns]) => Some(format.bytes((*rows, *columns))),
            _ => None,
        };
        // Embedding and head of a quantised checkpoint are widened for a GPU.
        let kept = self.gpu.is_none() || ![EMBEDDING, HEAD].contains(&name);
        self.quantised.get(name).copied().filter(|_| kept).or_else(as_loaded)
    }

    fn model_elements(&self) -> usize {
        self.spec.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn linear_elements(&self) -> usize {
        let modules = self.spec.linear_modules();
        let shapes = modules.iter().filter_map(|module| crate::adapter::module_shape(self.spec, module));
        let experts = |layer| match self.mixture(layer) {
            // What a token's share of the work is: the router and the experts that it goes to.
            Some(experts) => self.spec.hidden_size * (experts.count + 3 * self.spec.inner_size(layer)),
            None => 0,
        };
        let experts: usize = (0..self.spec.num_hidden_layers).map(experts).sum();
        experts + shapes.map(|(d_out, d_in)| d_out * d_in).sum::<usize>()
    }

    /// Values that a token has as inputs of all layers.
    pub(super) fn layer_input_width(&self) -> usize {
        self.spec.layer_inputs.map_or(0, |of| of.size * self.spec.num_hidden_layers)
    }

    /// Values of the projection that these come from.
    fn layer_input_elements(&self) -> usize {
        self.layer_input_width() * self.spec.hidden_size
    }

    /// Shapes (d_out, d_in) of the targeted linear layers.
    pub(super) fn target_shapes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.sized_targets().map(|(shape, _)| shape)
    }

    /// The same with their ranks.
    pub(super) fn sized_targets(&self) -> impl Iterator<Item = ((usize, usize), usize)> {
        let shape = |module: &str| crate::adapter::module_shape(self.spec, module);
        self.targets.iter().filter_map(move |(module, size)| Some((shape(module)?, size.rank)))
    }

    fn adapter_elements(&self) -> usize {
        self.sized_targets().map(|((d_out, d_in), rank)| rank * (d_out + d_in)).sum()
    }

    /// Values, gradients and moments of every tensor, an embedding's gradient twice more while it is summed (the larger one's, if
    /// layers have inputs of their own), and copies of the penalised weights.
    fn full_bytes(&self) -> usize {
        let of_inputs = self.spec.layer_inputs.map_or(0, |of| of.vocab_size * self.layer_input_width());
        let embedding = of_inputs.max(self.spec.vocab_size * self.spec.hidden_size);
        let penalised = self.settings.asft.is_active() || self.settings.output.log_modules_every.is_some();
        let starts = if penalised { self.target_shapes().map(|(a, b)| a * b).sum() } else { 0 };
        (4 * self.model_elements() + 2 * embedding + starts) * F32
    }

    /// At full rank; a direction file may hold fewer directions. Includes V's right singular vectors if they count or
    /// are logged and, if modules are logged, what is used in C's place.
    fn direction_bytes(&self) -> usize {
        if !self.settings.uses_direction() {
            return 0;
        }
        let asft = &self.settings.asft;
        let logged = self.settings.output.log_modules_every.is_some();
        let apart = logged && asft.needs_direction() && asft.projector != Projector::Released;
        let left = 1 + usize::from(apart);
        let random = apart && asft.needs_right() && asft.projector.is_random();
        let right = usize::from(logged || asft.needs_right()) + usize::from(random);
        let rows = |(d_out, d_in): (usize, usize)| left * d_out + right * d_in;
        self.target_shapes().map(|shape| rows(shape) * shape.0.min(shape.1) * F32).sum()
    }

    /// The mixture of a layer, if it has one.
    pub(super) fn mixture(&self, layer: usize) -> Option<Experts> {
        self.spec.experts.filter(|_| self.spec.has_mixture(layer))
    }

    /// Bytes that norms, rotations, activations, sums and buffers move in a pass over one block, per token.
    fn traffic_per_token(&self, layer: usize) -> usize {
        let spec = self.spec;
        let (q, kv) = spec.head_widths(layer);
        let mixer = match spec.delta_net_of(layer) {
            Some(of) => 8 * of.heads.mixed_width() + 8 * of.heads.value_width(),
            None => {
                let values = if spec.value_norm { 2 * kv } else { 0 };
                5 * (q + kv) + values + if spec.gated_attention { 7 * q } else { 0 }
            }
        };
        let scaled = if spec.layer_scale { 2 * spec.hidden_size } else { 0 };
        let plain = scaled + 14 * spec.hidden_size + mixer + 8 * spec.largest_inner_size();
        let lora: usize = match self.settings.train.method {
            Tuning::Lora => self.target_shapes().map(|(d_out, d_in)| 5 * d_out + 2 * d_in).sum(),
            Tuning::Full => 0,
        };
        (plain + lora / spec.num_hidden_layers) * self.width()
    }
}
