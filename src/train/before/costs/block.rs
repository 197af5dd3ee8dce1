//! A block, as model/block.rs has it.

use super::{Costs, F32, Part, Unit};

impl Costs<'_> {
    /// Where what the block returns has a factor.
    fn layer_scale(&mut self) {
        if self.run.spec.layer_scale {
            self.rows(Part::Rows, 2.0 * self.n * self.hidden() * self.w);
        }
    }

    pub(super) fn block_forward(&mut self, layer: usize, adapted: bool) {
        let (n, w, h, spec) = (self.n, self.w, self.hidden(), self.run.spec);
        for linear in spec.block_linears(layer) {
            self.linear_forward(layer, linear, adapted);
        }
        self.norm(h, 2.0);
        match spec.delta_net_of(layer) {
            Some(of) => self.delta_net_forward(of),
            None => self.attention_forward(layer),
        }
        self.norm(h, 4.0); // with the residual sum
        match self.run.mixture(layer) {
            Some(mixture) => self.mixture_forward(layer, mixture),
            None => {
                let inner = spec.mlp_size(layer) as f64;
                for _ in 0..if spec.fused_gate_up { 2 } else { 0 } {
                    self.rows(Part::Linears, 2.0 * n * inner * w); // taken apart
                }
                self.gate_forward(inner);
            }
        }
        for _ in 0..spec.norms.after() {
            self.norm(h, 2.0);
        }
        self.rows(Part::Rows, 3.0 * n * h * w); // the residual sum
        self.residual_scales();
        if let Some(inputs) = spec.layer_inputs {
            self.gate_forward(inputs.size as f64);
            self.norm(h, 2.0);
            self.rows(Part::Rows, 3.0 * n * h * w); // the sum
        }
        self.layer_scale();
    }

    /// The gate of `inner` values, forward.
    pub(super) fn gate_forward(&mut self, inner: f64) {
        self.rows(Part::Rows, 3.0 * self.n * inner * self.w);
    }

    /// The same back.
    pub(super) fn gate_backward(&mut self, inner: f64) {
        self.rows(Part::Rows, 5.0 * self.n * inner * self.w);
    }

    /// Where what is added to the residual stream has a factor.
    fn residual_scales(&mut self) {
        for _ in 0..if self.run.spec.residual_scale.is_some() { 2 } else { 0 } {
            self.rows(Part::Rows, 2.0 * self.n * self.hidden() * self.w);
        }
    }

    pub(super) fn block_backward(&mut self, layer: usize) {
        let (n, w, h, spec) = (self.n, self.w, self.hidden(), self.run.spec);
        for linear in spec.block_linears(layer) {
            self.linear_backward(layer, linear);
        }
        match self.run.mixture(layer) {
            Some(mixture) => self.mixture_backward(layer, mixture),
            None => {
                let inner = spec.mlp_size(layer) as f64;
                self.gate_backward(inner);
                if spec.fused_gate_up {
                    self.rows(Part::Linears, 4.0 * n * inner * w); // put together
                } else {
                    self.rows(Part::Rows, 3.0 * n * h * w); // the sum of dx
                }
            }
        }
        for _ in 0..spec.norms.after() {
            self.norm_backward(h, 3.0);
        }
        self.norm_backward(h, 4.0);
        self.norm_backward(h, 4.0);
        match spec.delta_net_of(layer) {
            Some(of) => self.delta_net_backward(of),
            None => self.attention_backward(layer),
        }
        self.residual_scales();
        if let Some(inputs) = spec.layer_inputs {
            self.gate_backward(inputs.size as f64);
            self.norm_backward(h, 3.0);
            self.rows(Part::Rows, 3.0 * n * h * w); // the sum
        }
        self.layer_scale();
    }

    fn attention_forward(&mut self, layer: usize) {
        let (n, w, (q, kv), heads) = (self.n, self.w, self.heads(layer), self.run.spec.num_attention_heads as f64);
        if self.run.spec.fused_qkv {
            for width in [q, kv, kv] {
                self.rows(Part::Linears, 2.0 * n * width * w); // taken apart
            }
        }
        self.heads_pass(layer, q, kv);
        let bytes = n * (2.0 * q + 2.0 * kv) * w + heads * n * F32;
        self.launch(Part::Attention, Unit::Attention, 2.0 * self.squares * q, bytes);
        if self.run.spec.gated_attention {
            (0..2).for_each(|_| self.rows(Part::Rows, 2.0 * n * q * w)); // queries and gates taken apart
            self.gate_forward(q);
        }
    }

    fn attention_backward(&mut self, layer: usize) {
        let (n, w, h, (q, kv)) = (self.n, self.w, self.hidden(), self.heads(layer));
        let heads = self.run.spec.num_attention_heads as f64;
        if self.run.spec.fused_qkv {
            self.rows(Part::Linears, 2.0 * n * (q + 2.0 * kv) * w); // put together
        } else if !self.run.spec.has_keys(layer) {
            (0..2).for_each(|_| self.rows(Part::Rows, 3.0 * n * kv * w)); // dk and dv added to those of the same keys
        } else if self.values_are_keys(layer) {
            self.rows(Part::Rows, 3.0 * n * h * w); // the sum of dx, of q and k
            self.rows(Part::Rows, 3.0 * n * kv * w); // that of dk and dv
        } else {
            (0..2).for_each(|_| self.rows(Part::Rows, 3.0 * n * h * w)); // sums of dx, of q, k and v
        }
        if self.run.spec.gated_attention {
            self.gate_backward(q);
            self.rows(Part::Rows, 4.0 * n * q * w); // queries and gates put together
        }
        // Rows' sums of o ∘ dy; then three products for dq, and four for dk and dv, of which two are the scores again.
        let (sums, seen) = (heads * n * F32, n * (2.0 * q + 2.0 * kv) * w + 2.0 * heads * n * F32);
        self.launch(Part::Attention, Unit::Memory, 0.0, 2.0 * n * q * w + sums);
        self.launch(Part::Attention, Unit::Attention, 3.0 * self.squares * q, seen + n * q * w);
        self.launch(Part::Attention, Unit::Attention, 4.0 * self.squares * q, seen + 2.0 * n * kv * w);
        self.heads_pass(layer, q, kv);
    }

    /// Norms of heads and of values, if there are any, and rotations of q and k, either way.
    fn heads_pass(&mut self, layer: usize, q: f64, kv: f64) {
        let (n, w, d, spec) = (self.n, self.w, self.run.spec.heads(layer).head_dim, self.run.spec);
        let rope = spec.layers.get(layer).and_then(|layer| spec.ropes.get(layer.rope?));
        let own = if spec.has_keys(layer) { &[q, kv][..] } else { &[q] };
        for &width in own {
            if spec.qk_norm.is_some() {
                self.rows(Part::Rows, 2.0 * n * width * w + n * width / d as f64 * F32);
            }
            if let Some(rope) = rope {
                self.rows(Part::Rows, 2.0 * n * width * w + n * rope.heads(d).rotary_dim as f64 * F32);
            }
        }
        if spec.value_norm && spec.has_keys(layer) {
            self.rows(Part::Rows, 2.0 * n * kv * w + n * kv / d as f64 * F32);
        }
    }

    fn values_are_keys(&self, layer: usize) -> bool {
        self.run.spec.layers.get(layer).is_some_and(|layer| layer.values_are_keys)
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
}
