//! What the forward pass of a run keeps for the backward pass, and what a block's backward pass has besides.

use super::estimate::Estimate;
use super::workload::Micro;
use crate::model::rows_at_once;
use crate::ops::attention::{MAX_HEAD_DIM, MAX_SCORES};
use crate::ops::delta_rule::Shape;
use crate::train::options::Tuning;

const F32: usize = 4;

impl Estimate<'_> {
    /// What a block keeps for its backward pass, per token, besides what its mixer is between rows.
    fn block_bytes(&self, layer: usize) -> usize {
        self.bare_block_bytes(layer) + self.lora_bytes()
    }

    /// The same without adapters.
    fn bare_block_bytes(&self, layer: usize) -> usize {
        let spec = self.spec;
        let (h, inner) = (spec.hidden_size, spec.inner_size(layer));
        let (q, kv) = spec.head_widths(layer);
        // Inputs of the norms and of the linear layers, gate, up and their product.
        let mut values = 4 * h + 3 * inner + spec.norms.after() * h;
        let mut wide = 0;
        if let Some(of) = spec.delta_net_of(layer) {
            // Before and after the convolution; z, the core's output, its norm, and the product of the two.
            values += 2 * of.heads.mixed_width() + 4 * of.heads.value_width();
            wide += 3 * of.heads.value_heads;
        } else {
            // q, k, v and the attention's output.
            let kv = if spec.has_keys(layer) { kv } else { 0 };
            values += 2 * q + 2 * kv;
            values += if spec.qk_norm.is_some() { q + kv } else { 0 };
            values += if spec.gated_attention { 2 * q } else { 0 };
            // What becomes values, unless it is what becomes keys.
            let apart = spec.layers.get(layer).is_none_or(|layer| !layer.values_are_keys);
            values += if spec.value_norm && apart { kv } else { 0 };
        }
        if let Some(inputs) = spec.layer_inputs {
            // What the gate reads and gives, the product, and what is normed.
            values += 2 * h + 2 * inputs.size;
        }
        if let Some(experts) = self.mixture(layer) {
            // A token's row for each of its experts, and what that made of it before it is weighed.
            values += 2 * experts.per_token * h;
            // The shared expert's gate, up and product, and what it returns before it is weighed.
            values += experts.shared.map_or(0, |shared| 3 * shared + h);
        }
        values * self.width() + wide * F32
    }

    /// What layers hand to one another besides, per token: their own inputs, and keys and values that others see.
    pub(super) fn across_bytes(&self) -> usize {
        let spec = self.spec;
        let shared = (0..spec.num_hidden_layers).filter(|&layer| spec.shares_keys(layer));
        let keys: usize = shared.map(|layer| 2 * spec.head_widths(layer).1).sum();
        let inputs = self.layer_input_width();
        // With the gradients of both.
        2 * (keys + inputs) * self.width()
    }

    /// What a block's adapters keep per token: their input, if dropout or the compute type makes it differ from the
    /// linear layer's, and its product with A.
    fn lora_bytes(&self) -> usize {
        if self.settings.train.method == Tuning::Full || self.targets.is_empty() {
            return 0;
        }
        let copies = self.settings.lora.dropout > 0.0 || self.width() != F32;
        let bytes: usize =
            self.sized_targets().map(|((_, d_in), rank)| (rank + if copies { d_in } else { 0 }) * F32).sum();
        bytes / self.spec.num_hidden_layers
    }

    /// What a block's backward pass holds besides what is kept, per token: the gradients of the MLP, on a GPU without a kernel for
    /// them with the f32 tensors between its operations, else with what an adapter's products are in f32.
    fn transient_bytes(&self, layer: usize) -> usize {
        let (h, w) = (self.spec.hidden_size, self.width());
        // An expert at a time, which may get every token.
        let inner = self.mixture(layer).map_or(self.spec.mlp_size(layer), |experts| experts.intermediate_size);
        let widest = || self.target_shapes().map(|(d_out, d_in)| 2 * d_out.max(d_in)).max().unwrap_or(0);
        let between = match self.gpu {
            None => 0,
            Some(kernels) if kernels.gated_mlp => widest() * F32,
            Some(_) => 10 * inner * F32,
        };
        let mlp = 3 * inner * w + between;
        4 * h * w
            + match self.mixture(layer) {
                // What the experts return, and then that put together; little of it in the order of tokens and in f32 at a time.
                Some(experts) => (experts.per_token * h * w) + mlp.max(experts.per_token * h * w),
                None => mlp,
            }
    }

    /// What the experts return in the order of tokens, some at a time, and that in f32.
    pub(super) fn summed_bytes(&self, largest: Micro) -> usize {
        let of_layer = |layer: usize| {
            let (experts, h) = (self.mixture(layer)?, self.spec.hidden_size);
            let rows = rows_at_once(experts.per_token, h).min(largest.tokens);
            Some(rows * experts.per_token * h * (self.width() + F32))
        };
        (0..self.spec.num_hidden_layers).filter_map(of_layer).max().unwrap_or(0)
    }

    /// What all blocks keep at the end of a forward pass, and what a block's backward pass has besides.
    pub(super) fn blocks_bytes(&self, largest: Micro) -> (usize, usize) {
        let of_layer = |layer: usize| {
            let (kept, besides) = self.mixer_bytes(layer, largest);
            let each = [self.block_bytes(layer), self.transient_bytes(layer)];
            (largest.tokens * each[0] + kept, largest.tokens * each[1] + besides)
        };
        let layers = (0..self.spec.num_hidden_layers).map(of_layer);
        if self.settings.train.gradient_checkpointing {
            let inputs = self.spec.num_hidden_layers * self.spec.hidden_size * self.width();
            return (largest.tokens * inputs, layers.map(|(kept, besides)| kept + besides).max().unwrap_or(0));
        }
        layers.fold((0, 0), |(all, most), (kept, besides)| (all + kept, most.max(besides)))
    }

    /// What a block keeps of what its mixer is between rows, and what its backward pass has besides: more than so much for each token.
    fn mixer_bytes(&self, layer: usize, micro: Micro) -> (usize, usize) {
        match self.spec.delta_net_of(layer) {
            Some(of) => self.chunks_of(of.heads, micro),
            None => self.scores_of(layer, micro),
        }
    }

    /// The same of a gated DeltaNet: its states and U. Then on the CPU the gradients of what it read; on a GPU, which has no kernel for
    /// it, the square matrices of a group's chunks and what each head reads there, and what was made of the groups before.
    fn chunks_of(&self, heads: Shape, micro: Micro) -> (usize, usize) {
        let (tokens, padded, mixed) = (micro.tokens, micro.padded, heads.mixed_width());
        if self.gpu.is_none() {
            return (tokens * heads.kept_per_row() * F32, tokens * 2 * mixed * F32);
        }
        let others = if padded.groups > 1 { tokens * mixed * self.width() } else { 0 };
        (padded.places * heads.kept_per_row() * F32, padded.most_places * heads.padded_per_row() * F32 + others)
    }

    /// What a block keeps of its softmax on a GPU, and what its backward pass has besides.
    fn scores_of(&self, layer: usize, micro: Micro) -> (usize, usize) {
        let Some(kernels) = self.gpu else { return (0, 0) };
        let (heads, capped) = (self.spec.num_attention_heads, self.spec.attention_softcap.is_some());
        if kernels.attention && self.spec.heads(layer).head_dim <= MAX_HEAD_DIM {
            // The log-sum-exp; the sums that the gradient needs.
            let rows = heads * micro.tokens * F32;
            return (rows, rows);
        }
        let kept = heads * micro.squares * (self.width() + if capped { F32 } else { 0 });
        let group = micro.squares.min(MAX_SCORES / heads);
        // q, o and dy, and k, v and dv, once more in the order of heads.
        let (q, kv) = self.spec.head_widths(layer);
        let turned = 3 * micro.tokens * (q + kv) * self.width();
        (kept, heads * group * F32 * if capped { 6 } else { 4 } + turned)
    }

    /// What the pass that watches the inputs of adapted linears (train/defence/activations.rs) holds besides the weights: for each of
    /// them random columns and sums; one linear's inputs and products in the sums' type; a block's forward pass, with a widened weight; and the adapters' values.
    pub(super) fn before_bytes(&self, watched: Micro) -> usize {
        if self.needs.input_rank == 0 {
            return 0;
        }
        // Half of it on Metal.
        let wide = size_of::<f64>();
        let columns = |d_in: usize| self.needs.input_rank.min(d_in);
        let held: usize = self.target_shapes().map(|(_, d_in)| 2 * d_in * columns(d_in)).sum();
        // The inputs, and their products with the columns or their squares; the product and the new sum.
        let of_rows = |d_in: usize| watched.tokens * (d_in + d_in.max(columns(d_in)));
        let passing = self.target_shapes().map(|(_, d_in)| of_rows(d_in) + 2 * d_in * columns(d_in));
        let of_layer = |layer| {
            let (kept, besides) = self.mixer_bytes(layer, watched);
            watched.tokens * self.bare_block_bytes(layer) + kept + besides
        };
        let block = (0..self.spec.num_hidden_layers).map(of_layer).max().unwrap_or(0);
        let across = watched.tokens * self.across_bytes();
        wide * (held + passing.max().unwrap_or(0))
            + block
            + across
            + self.widened_once_bytes()
            + self.trained_elements() * F32
    }
}
