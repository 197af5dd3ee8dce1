//! What a step of mean size launches on an NVIDIA GPU with asft's kernels: how often, the arithmetic, and the bytes that are
//! read and written.
//!
//! Written beside `model/block.rs` and what it calls, top to bottom and back. A tensor counts once for each launch that reads it,
//! as in `ops/traffic.rs`; a test compares a layer's with that. Left out: what a defence computes on its own parameters, sliding
//! windows (attention is counted as if there were none), adding up the gradients of several micro-batches, scattering full
//! tuning's gradient of the embedding, the sign's part of `orthogonal+reverse` (which goes module by module), a subspace's
//! smaller rank, and launches that a step makes but once.

use super::estimate::Estimate;
use super::workload::Workload;
use crate::names::{HEAD, in_block};
use crate::ops::cross_entropy::chunk_rows;
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
    /// Tokens and label tokens of a micro-batch, and Σ T² over its sequences.
    n: f64,
    labels: f64,
    squares: f64,
    found: Vec<Cost>,
}

impl<'a> Costs<'a> {
    pub fn of_step(run: &'a Estimate<'a>, workload: &Workload) -> Vec<Cost> {
        let (mean, each_step) = workload.mean();
        let [n, labels, squares] = mean;
        let mut costs = Self { run, w: run.width() as f64, n, labels, squares, found: vec![] };
        costs.micro_batch();
        costs.found.iter_mut().for_each(|cost| cost.launches *= each_step);
        costs.penalty();
        costs.optimizer();
        costs.found
    }

    fn micro_batch(&mut self) {
        let checkpointing = self.run.settings.train.gradient_checkpointing;
        let (h, w, n) = (self.hidden(), self.w, self.n);
        self.rows(Part::Head, 2.0 * n * h * w); // embedding
        for layer in 0..self.run.spec.num_hidden_layers {
            for _ in 0..self.run.needs.reference_passes {
                self.block_forward(layer, false);
            }
            for _ in 0..1 + usize::from(checkpointing) {
                self.block_forward(layer, true);
            }
            self.block_backward(layer);
        }
        self.head();
    }

    fn hidden(&self) -> f64 {
        self.run.spec.hidden_size as f64
    }

    /// Widths of q and of k (or v).
    fn heads(&self) -> (f64, f64) {
        let (queries, keys) = self.run.spec.head_widths();
        (queries as f64, keys as f64)
    }

    fn is_full(&self) -> bool {
        self.run.settings.train.method == Tuning::Full
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

    // ---- a block, as model/block.rs has it -------------------------------------------------------------------------

    fn block_forward(&mut self, layer: usize, adapted: bool) {
        let (n, w, h, (q, kv)) = (self.n, self.w, self.hidden(), self.heads());
        let spec = self.run.spec;
        let (heads, inner) = (spec.num_attention_heads as f64, spec.inner_size(layer) as f64);
        for linear in spec.block_linears(layer) {
            self.linear_forward(layer, linear, adapted);
        }
        self.mixture(layer, 1.0);
        self.norm(h, 2.0);
        self.heads_pass(layer, q, kv);
        let bytes = n * (2.0 * q + 2.0 * kv) * w + heads * n * F32;
        self.launch(Part::Attention, Unit::Attention, 2.0 * self.squares * q, bytes);
        self.norm(h, 4.0); // with the residual sum
        self.rows(Part::Rows, 3.0 * n * inner * w); // the gate
        for _ in 0..spec.norms.after() {
            self.norm(h, 2.0);
        }
        self.rows(Part::Rows, 3.0 * n * h * w); // the residual sum
        self.residual_scales();
    }

    /// Where what is added to the residual stream has a factor.
    fn residual_scales(&mut self) {
        for _ in 0..if self.run.spec.residual_scale.is_some() { 2 } else { 0 } {
            self.rows(Part::Rows, 2.0 * self.n * self.hidden() * self.w);
        }
    }

    fn block_backward(&mut self, layer: usize) {
        let (n, w, h, (q, kv)) = (self.n, self.w, self.hidden(), self.heads());
        let spec = self.run.spec;
        let (heads, inner) = (spec.num_attention_heads as f64, spec.inner_size(layer) as f64);
        for linear in spec.block_linears(layer) {
            self.linear_backward(layer, linear);
        }
        self.mixture(layer, if self.is_full() { 2.0 } else { 1.0 });
        for _ in 0..3 {
            self.rows(Part::Rows, 3.0 * n * h * w); // sums of dx: two of q, k and v, one of gate and up
        }
        for _ in 0..spec.norms.after() {
            self.norm_backward(h, 3.0);
        }
        self.rows(Part::Rows, 5.0 * n * inner * w); // the gate
        self.norm_backward(h, 4.0);
        self.norm_backward(h, 4.0);
        // Rows' sums of o ∘ dy; then three products for dq, and four for dk and dv, of which two are the scores again.
        let (sums, seen) = (heads * n * F32, n * (2.0 * q + 2.0 * kv) * w + 2.0 * heads * n * F32);
        self.launch(Part::Attention, Unit::Memory, 0.0, 2.0 * n * q * w + sums);
        self.launch(Part::Attention, Unit::Attention, 3.0 * self.squares * q, seen + n * q * w);
        self.launch(Part::Attention, Unit::Attention, 4.0 * self.squares * q, seen + 2.0 * n * kv * w);
        self.heads_pass(layer, q, kv);
        self.residual_scales();
    }

    /// Norms of heads, if there are any, and rotations of q and k, either way.
    fn heads_pass(&mut self, layer: usize, q: f64, kv: f64) {
        let (n, w, d) = (self.n, self.w, self.run.spec.head_dim as f64);
        for width in [q, kv] {
            if self.run.spec.qk_norm.is_some() {
                self.rows(Part::Rows, 2.0 * n * width * w + n * width / d * F32);
            }
            if self.run.spec.layers.get(layer).is_some_and(|layer| layer.rope.is_some()) {
                self.rows(Part::Rows, 2.0 * n * width * w + n * d * F32);
            }
        }
    }

    /// The products of a layer's experts, if it has any, `times` over: each expert's weights once, for the rows that it gets if
    /// they are spread evenly.
    fn mixture(&mut self, layer: usize, times: f64) {
        let Some(experts) = self.run.spec.experts.filter(|_| self.run.spec.has_mixture(layer)) else { return };
        let (h, inner, count) = (self.hidden(), experts.intermediate_size as f64, experts.count as f64);
        self.product([self.n, count, h]);
        let rows = self.n * experts.per_token as f64;
        let used = count.min(rows);
        let before = self.found.len();
        for [d_out, d_in] in [[inner, h], [inner, h], [h, inner]] {
            self.product([rows / used, d_out, d_in]);
        }
        self.found[before..].iter_mut().for_each(|cost| cost.launches *= used * times);
        // Gathered, weighed and added up, in f32.
        self.rows(Part::Rows, rows * h * (2.0 * self.w + 3.0 * F32));
    }

    /// A norm that moves `tensors` of [n, width].
    fn norm(&mut self, width: f64, tensors: f64) {
        let (n, w) = (self.n, self.w);
        if self.run.spec.norm_offset {
            self.rows(Part::Rows, 2.0 * width * F32); // 1 + the weight
        }
        self.rows(Part::Rows, tensors * n * width * w + (width + n) * F32);
    }

    fn norm_backward(&mut self, width: f64, tensors: f64) {
        if self.is_full() {
            self.rows(Part::Rows, 2.0 * self.n * width * self.w); // the weight's gradient
        }
        self.norm(width, tensors);
    }

    // ---- a linear, as model/linear.rs has it -----------------------------------------------------------------------

    /// The rank of a linear's adapter.
    fn rank(&self, layer: usize, linear: &str) -> Option<f64> {
        let size = self.run.targets.get(&in_block(layer, linear))?;
        (!self.is_full()).then_some(size.rank as f64)
    }

    fn shape(&self, linear: &str) -> (f64, f64) {
        let (d_out, d_in) = self.run.spec.linear_shape(linear).unwrap_or_default();
        (d_out as f64, d_in as f64)
    }

    fn is_half(&self) -> bool {
        self.w < F32
    }

    fn linear_forward(&mut self, layer: usize, linear: &str, adapted: bool) {
        let ((d_out, d_in), n, w) = (self.shape(linear), self.n, self.w);
        self.converted_weight(layer, linear);
        self.product([n, d_out, d_in]);
        if self.run.spec.has_bias(linear) {
            self.rows(Part::Linears, (2.0 * n + 1.0) * d_out * w);
        }
        let Some(r) = self.rank(layer, linear).filter(|_| adapted) else { return };
        if self.run.settings.lora.dropout > 0.0 || self.is_half() {
            self.rows(Part::Adapters, n * d_in * (w + F32)); // z
        }
        self.wide_product(Part::Adapters, [n, r, d_in]);
        self.rows(Part::Adapters, 2.0 * n * r * F32);
        self.wide_product(Part::Adapters, [n, d_out, r]);
        self.rows(Part::Adapters, n * d_out * (2.0 * w + F32));
    }

    fn linear_backward(&mut self, layer: usize, linear: &str) {
        let ((d_out, d_in), n, w) = (self.shape(linear), self.n, self.w);
        self.converted_weight(layer, linear);
        self.product([n, d_in, d_out]);
        if self.is_full() {
            self.product([d_out, d_in, n]);
            self.scaled_gradient(Part::Linears, d_out * d_in, self.w);
        }
        let Some(r) = self.rank(layer, linear) else { return };
        if self.is_half() {
            self.rows(Part::Adapters, n * d_out * (w + F32)); // dy
        }
        self.wide_product(Part::Adapters, [n, r, d_out]);
        self.rows(Part::Adapters, 2.0 * n * r * F32);
        self.wide_product(Part::Adapters, [r, d_in, n]);
        self.wide_product(Part::Adapters, [d_out, r, n]);
        self.rows(Part::Adapters, 2.0 * d_out * r * F32);
        self.scaled_gradient(Part::Adapters, r * d_in, F32);
        self.scaled_gradient(Part::Adapters, d_out * r, F32);
        self.wide_product(Part::Adapters, [n, d_in, r]);
        self.rows(Part::Adapters, n * d_in * (2.0 * w + F32));
    }

    /// A weight that is not in the compute type is brought there for each product: one that trains from f32, a quantised one
    /// from its format.
    fn converted_weight(&mut self, layer: usize, linear: &str) {
        let (d_out, d_in) = self.run.spec.linear_shape(linear).unwrap_or_default();
        let (values, name) = ((d_out * d_in) as f64, format!("{}.weight", in_block(layer, linear)));
        if self.is_full() {
            if self.is_half() {
                self.rows(Part::Linears, values * (F32 + self.w));
            }
        } else if let Some(bytes) = self.run.quantised_bytes(&name, &[d_out, d_in]) {
            self.rows(Part::Linears, bytes as f64 + values * self.w);
        }
    }

    /// In half precision the mean's factor is applied to gradients in f32, widened if they are narrower.
    fn scaled_gradient(&mut self, part: Part, values: f64, width: f64) {
        if !self.is_half() {
            return;
        }
        if width < F32 {
            self.rows(part, values * (width + F32));
        }
        self.rows(part, 2.0 * values * F32);
    }

    // ---- what is not in a block ------------------------------------------------------------------------------------

    /// The final norm, and the head with the loss, a chunk of label tokens at a time.
    fn head(&mut self) {
        let (h, m, w) = (self.hidden(), self.labels, self.w);
        let (vocab, passes) = (self.run.spec.vocab_size, self.run.needs.reference_passes);
        let chunks = (m / chunk_rows(vocab, m.ceil() as usize, false) as f64).ceil().max(1.0);
        let (rows, values) = (m / chunks, m / chunks * vocab as f64);
        let product = Cost {
            part: Part::Head,
            unit: Unit::Products,
            launches: chunks,
            flops: 2.0 * values * h,
            bytes: (rows * h + vocab as f64 * h + values) * w,
        };
        let logits = Cost { bytes: product.bytes + values * (F32 - w), ..product };
        let losses = Cost { unit: Unit::Memory, flops: 0.0, bytes: values * (2.0 * F32 + w), ..product };
        self.found.extend([logits, losses, product]);
        for _ in 0..passes {
            self.found.extend([logits, losses]);
        }
        if self.is_full() {
            self.found.push(product);
        } else if let Some(bytes) = self.run.quantised_bytes(HEAD, &[vocab, self.run.spec.hidden_size]) {
            // Widened once for all chunks.
            let bytes = bytes as f64 + vocab as f64 * h * w;
            let launches = (1 + passes) as f64;
            self.found.push(Cost { unit: Unit::Memory, launches, flops: 0.0, bytes, ..product });
        }
        // The rows with labels selected, normed, put together, and back; the gradient of all rows.
        for tensors in [2.0, 2.0, 2.0, 3.0] {
            self.rows(Part::Head, tensors * m * h * w);
        }
        self.rows(Part::Head, self.n * h * w);
        self.rows(Part::Head, (m + 2.0 * self.n) * h * w);
    }

    /// As method/penalty.rs and ops/low_rank/grouped.rs have it, once a step.
    fn penalty(&mut self) {
        let asft = &self.run.settings.asft;
        if !asft.is_active() {
            return;
        }
        let (part, by_direction) = (Part::Penalty, asft.needs_direction());
        let modules: Vec<_> = self.run.sized_targets().collect();
        // Values moved by the launches for all modules together: the weights of y, the parts of S and T, and the gradients.
        let mut together = [0.0; 3];
        for ((d_out, d_in), rank) in modules {
            let (k, d_out, d_in, r) = (d_out.min(d_in) as f64, d_out as f64, d_in as f64, rank as f64);
            if self.is_full() {
                // M twice, each time Uᵀ x and U y, and what is left of x.
                for _ in 0..if by_direction { 2 } else { 0 } {
                    self.wide_product(part, [k, d_in, d_out]);
                    self.wide_product(part, [d_out, d_in, k]);
                    self.rows(part, 3.0 * d_out * d_in * F32);
                }
                self.rows(part, 6.0 * d_out * d_in * F32);
                continue;
            }
            let (of_a, of_b, mut images) = (r * d_in, r * d_out, r * d_out);
            if by_direction {
                self.wide_product(part, [k, r, d_out]);
                self.wide_product(part, [d_out, 2.0 * r, k]);
                together[0] += 3.0 * k * r + k;
                images += 2.0 * of_b;
            }
            together[1] += of_a + images;
            together[2] += of_a + images + 2.0 * (of_a + of_b);
        }
        for values in together.into_iter().filter(|values| *values > 0.0) {
            self.rows(part, values * F32);
        }
        if together[2] > 0.0 {
            self.rows(part, 0.0); // the values, of r × r sums
        }
    }

    fn optimizer(&mut self) {
        let values = self.run.trained_elements() as f64;
        self.rows(Part::Optimizer, values * F32);
        self.rows(Part::Optimizer, 7.0 * values * F32);
    }
}
