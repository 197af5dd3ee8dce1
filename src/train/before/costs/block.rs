//! A block, as model/block.rs has it.

use super::{Costs, F32, Forward, Part};
use crate::names::DOWN;

impl Costs<'_> {
    /// Where what the block returns has a factor.
    fn layer_scale(&mut self) {
        if self.run.spec.layer_scale {
            self.rows(Part::Rows, 2.0 * self.n * self.hidden() * self.w);
        }
    }

    pub(super) fn block_forward(&mut self, layer: usize, forward: Forward) {
        let (n, w, h, spec) = (self.n, self.w, self.hidden(), self.run.spec);
        let without_last = forward == Forward::Again && spec.ends_with_mlp(layer);
        for linear in spec.block_linears(layer) {
            if without_last && linear == DOWN {
                self.adapter_input(layer, linear);
            } else {
                self.linear_forward(layer, linear, forward != Forward::Reference);
            }
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
        if without_last {
            return self.residual_scales(1);
        }
        self.rows(Part::Rows, 3.0 * n * h * w); // the residual sum
        self.residual_scales(2);
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

    /// Where what is added to the residual stream, by so many, has a factor.
    fn residual_scales(&mut self, count: usize) {
        for _ in 0..if self.run.spec.residual_scale.is_some() { count } else { 0 } {
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
        self.residual_scales(2);
        if let Some(inputs) = spec.layer_inputs {
            self.gate_backward(inputs.size as f64);
            self.norm_backward(h, 3.0);
            self.rows(Part::Rows, 3.0 * n * h * w); // the sum
        }
        self.layer_scale();
    }

    /// A norm that moves `tensors` of [n, width].
    pub(super) fn norm(&mut self, width: f64, tensors: f64) {
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
