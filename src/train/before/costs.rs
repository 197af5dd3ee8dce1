//! What a step of mean size launches on an NVIDIA GPU with asft's kernels: how often, the arithmetic, and the bytes that are
//! read and written.
//!
//! A file for each part, written beside `model/block.rs` and what it calls, top to bottom and back. A tensor counts once for each
//! launch that reads it, as in `ops/traffic.rs`; a test compares layers' with that. A mixture's tokens are taken to be spread
//! evenly over its experts. Left out: what a defence computes on its own parameters, sliding windows (attention is counted as if
//! there were none), adding up the gradients of several micro-batches, scattering full tuning's gradients of embeddings, the
//! sign's part of `orthogonal+reverse` (which goes module by module), a subspace's smaller rank, and launches that a step makes
//! but once.

mod attention;
mod block;
mod delta_net;
mod head;
mod layer_inputs;
mod linear;
mod mixture;
mod update;

use super::estimate::Estimate;
use super::workload::{Mean, Passes, Workload};
use crate::train::options::Tuning;
use serde::Serialize;

const F32: f64 = 4.0;

/// Where a step's time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// With the model's weights, biases included.
    Linears,
    Attention,
    /// The convolution and the chunks of a gated DeltaNet.
    DeltaNet,
    /// Norms, rotations, gates, sums.
    Rows,
    /// The adapters' products, masks and sums.
    Adapters,
    /// Embedding, final norm, head and loss.
    Head,
    Penalty,
    /// AdamW and the gradients' norm.
    Optimizer,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// cuBLAS, in the compute type.
    Products,
    /// cuBLAS, in f32.
    WideProducts,
    /// The kernels of attention, in the compute type.
    Attention,
    /// Nothing to speak of: memory alone counts.
    Memory,
}

/// What a block's forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    /// The model without its adapter.
    Reference,
    First,
    /// What the backward pass needs and checkpointing did not keep.
    Again,
}

/// Launches that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub part: Part,
    pub unit: Unit,
    pub launches: f64,
    /// Of one launch, 2 for each multiply-add.
    pub flops: f64,
    /// Read and written by one launch.
    pub bytes: f64,
}

/// Collects a step's costs.
pub struct Costs<'a> {
    run: &'a Estimate<'a>,
    /// Bytes of a value in the compute type.
    w: f64,
    /// The micro-batch, and its tokens, of which a mixture's experts have some each.
    mean: Mean,
    n: f64,
    /// Forward passes without the adapter over that micro-batch.
    references: usize,
    found: Vec<Cost>,
}

impl<'a> Costs<'a> {
    pub fn of_step(run: &'a Estimate<'a>, workload: &Workload) -> Vec<Cost> {
        let w = run.width() as f64;
        let mut costs = Self { run, w, mean: Mean::default(), n: 0.0, references: 0, found: vec![] };
        costs.micro_batches(&workload.passes, run.needs.reference_passes);
        if let Some(extra) = run.needs.extra {
            costs.micro_batches(&workload.extra, extra.reference_passes);
        }
        costs.penalty();
        costs.optimizer();
        costs.found
    }

    /// What the passes of a step cost.
    fn micro_batches(&mut self, passes: &Passes, references: usize) {
        let (mean, each_step) = passes.mean();
        (self.mean, self.n, self.references) = (mean, mean.tokens, references);
        let before = self.found.len();
        self.micro_batch();
        self.found.iter_mut().skip(before).for_each(|cost| cost.launches *= each_step);
    }

    fn micro_batch(&mut self) {
        let checkpointing = self.run.settings.train.gradient_checkpointing;
        let (h, w, n) = (self.hidden(), self.w, self.n);
        self.rows(Part::Head, 2.0 * n * h * w); // embedding
        self.layer_inputs();
        for layer in 0..self.run.spec.num_hidden_layers {
            for _ in 0..self.references {
                self.block_forward(layer, Forward::Reference);
            }
            self.block_forward(layer, Forward::First);
            if checkpointing {
                self.block_forward(layer, Forward::Again);
            }
            self.block_backward(layer);
        }
        if self.mean.label_tokens > 0.0 {
            self.head();
        }
    }

    fn hidden(&self) -> f64 {
        self.run.spec.hidden_size as f64
    }

    /// Widths of q and of k (or v) in a layer.
    fn heads(&self, layer: usize) -> (f64, f64) {
        let (queries, keys) = self.run.spec.head_widths(layer);
        (queries as f64, keys as f64)
    }

    fn is_full(&self) -> bool {
        self.run.settings.train.method == Tuning::Full
    }

    fn is_half(&self) -> bool {
        self.w < F32
    }

    fn launch(&mut self, part: Part, unit: Unit, flops: f64, bytes: f64) {
        self.found.push(Cost { part, unit, launches: 1.0, flops, bytes });
    }

    fn rows(&mut self, part: Part, bytes: f64) {
        self.launch(part, Unit::Memory, 0.0, bytes);
    }

    /// [m, k] times [k, n], all of them in the compute type.
    fn product(&mut self, [m, n, k]: [f64; 3]) {
        let bytes = (m * k + k * n + m * n) * self.w;
        self.launch(Part::Linears, Unit::Products, 2.0 * m * n * k, bytes);
    }

    /// The same in f32.
    fn wide_product(&mut self, part: Part, [m, n, k]: [f64; 3]) {
        self.launch(part, Unit::WideProducts, 2.0 * m * n * k, (m * k + k * n + m * n) * F32);
    }
}
