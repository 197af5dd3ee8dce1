//! A linear with its adapter, as model/linear.rs has it.

use super::{Costs, F32, Part};
use crate::names::in_block;

impl Costs<'_> {
    /// The rank of a linear's adapter.
    fn rank(&self, layer: usize, linear: &str) -> Option<f64> {
        let size = self.run.targets.get(&in_block(layer, linear))?;
        (!self.is_full()).then_some(size.rank as f64)
    }

    fn shape(&self, layer: usize, linear: &str) -> (f64, f64) {
        let (d_out, d_in) = self.run.spec.linear_shape(layer, linear).unwrap_or_default();
        (d_out as f64, d_in as f64)
    }

    pub(super) fn linear_forward(&mut self, layer: usize, linear: &str, adapted: bool) {
        let ((d_out, d_in), n, w) = (self.shape(layer, linear), self.n, self.w);
        self.converted_weight(layer, linear);
        self.product([n, d_out, d_in]);
        if self.run.spec.has_bias(linear) {
            self.rows(Part::Linears, (2.0 * n + 1.0) * d_out * w);
        }
        if !adapted {
            return;
        }
        let Some(r) = self.adapter_input(layer, linear) else { return };
        self.rows(Part::Adapters, 2.0 * n * r * F32);
        self.wide_product(Part::Adapters, [n, d_out, r]);
        self.rows(Part::Adapters, n * d_out * (2.0 * w + F32));
    }

    /// What the backward pass needs of an adapter's forward pass, if there is one. Returns its rank.
    pub(super) fn adapter_input(&mut self, layer: usize, linear: &str) -> Option<f64> {
        let (r, (_, d_in), n) = (self.rank(layer, linear)?, self.shape(layer, linear), self.n);
        if self.run.settings.lora.dropout > 0.0 || self.is_half() {
            self.rows(Part::Adapters, n * d_in * (self.w + F32)); // z
        }
        self.wide_product(Part::Adapters, [n, r, d_in]);
        Some(r)
    }

    pub(super) fn linear_backward(&mut self, layer: usize, linear: &str) {
        let ((d_out, d_in), n, w) = (self.shape(layer, linear), self.n, self.w);
        if self.is_full() || !self.run.keeps_widened(layer, linear) {
            self.converted_weight(layer, linear);
        }
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
        let (d_out, d_in) = self.run.spec.linear_shape(layer, linear).unwrap_or_default();
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
}
