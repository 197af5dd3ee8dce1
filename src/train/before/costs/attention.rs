//! Attention, as model/attention.rs has it: by the kernel, or for heads that are too wide for it by the body for any device.

use super::{Cost, Costs, F32, Part, Unit};
use crate::ops::attention::MAX_HEAD_DIM;

impl Costs<'_> {
    pub(super) fn attention_forward(&mut self, layer: usize) {
        let (n, w, (q, kv), heads) = (self.n, self.w, self.heads(layer), self.run.spec.num_attention_heads as f64);
        if self.run.spec.fused_qkv {
            for width in [q, kv, kv] {
                self.rows(Part::Linears, 2.0 * n * width * w); // taken apart
            }
        }
        self.heads_pass(layer, q, kv);
        if self.has_kernel(layer) {
            let bytes = n * (2.0 * q + 2.0 * kv) * w + heads * n * F32;
            self.launch(Part::Attention, Unit::Attention, 2.0 * self.mean.squares * q, bytes);
        } else {
            self.scores_forward(layer);
        }
        if self.run.spec.gated_attention {
            (0..2).for_each(|_| self.rows(Part::Rows, 2.0 * n * q * w)); // queries and gates taken apart
            self.gate_forward(q);
        }
    }

    pub(super) fn attention_backward(&mut self, layer: usize) {
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
        if self.has_kernel(layer) {
            // Rows' sums of o ∘ dy; then three products for dq, and four for dk and dv, of which two are the scores again.
            let (sums, seen) = (heads * n * F32, n * (2.0 * q + 2.0 * kv) * w + 2.0 * heads * n * F32);
            self.launch(Part::Attention, Unit::Memory, 0.0, 2.0 * n * q * w + sums);
            self.launch(Part::Attention, Unit::Attention, 3.0 * self.mean.squares * q, seen + n * q * w);
            self.launch(Part::Attention, Unit::Attention, 4.0 * self.mean.squares * q, seen + 2.0 * n * kv * w);
        } else {
            self.scores_backward(layer);
        }
        self.heads_pass(layer, q, kv);
    }

    /// Whether the kernel takes heads of this size.
    fn has_kernel(&self, layer: usize) -> bool {
        self.run.spec.heads(layer).head_dim <= MAX_HEAD_DIM
    }

    /// The body for any device: products of whole sequences, and what goes over all their scores, masked or not.
    fn scores_forward(&mut self, layer: usize) {
        let (scores, (n, w, (q, kv))) = (self.scores(), (self.n, self.w, self.heads(layer)));
        for _ in 0..2 {
            self.launch(Part::Attention, Unit::Products, 2.0 * self.mean.squares * q, n * (q + kv) * w + scores * w);
        }
        self.scores_cast(); // widened
        // Scaled, masked, softened.
        self.over_scores(3.0 + if self.run.spec.attention_softcap.is_some() { 3.0 } else { 0.0 });
        self.scores_cast(); // probabilities
    }

    fn scores_backward(&mut self, layer: usize) {
        let (scores, (n, w, (q, kv))) = (self.scores(), (self.n, self.w, self.heads(layer)));
        // dv, dp, dq and dk.
        for _ in 0..4 {
            self.launch(Part::Attention, Unit::Products, 2.0 * self.mean.squares * q, n * (q + kv) * w + scores * w);
        }
        self.rows(Part::Attention, n * q * (2.0 * w + 2.0 * F32)); // rows' sums of o ∘ dy
        self.scores_cast(); // dp widened
        self.scores_cast(); // probabilities widened
        // The sums taken off; times the probabilities; scaled.
        self.over_scores(3.5 + if self.run.spec.attention_softcap.is_some() { 4.0 } else { 0.0 });
        self.scores_cast(); // ds
    }

    /// Scores of all heads.
    fn scores(&self) -> f64 {
        self.run.spec.num_attention_heads as f64 * self.mean.squares
    }

    /// Operations that read all scores in f32 and write as many.
    fn over_scores(&mut self, operations: f64) {
        let bytes = 2.0 * self.scores() * F32 * operations;
        let launches = operations.floor();
        self.found.push(Cost {
            part: Part::Attention,
            unit: Unit::Memory,
            launches,
            flops: 0.0,
            bytes: bytes / launches,
        });
    }

    /// Scores from one type to the other.
    fn scores_cast(&mut self) {
        if self.is_half() {
            self.rows(Part::Attention, self.scores() * (self.w + F32));
        }
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
}

#[cfg(test)]
mod tests {
    use super::super::super::estimate::Estimate;
    use super::super::super::workload::{Micro, Workload};
    use super::*;
    use crate::config::Settings;
    use crate::device::Accelerator;
    use crate::model::ModelSpec;
    use crate::ops::gpu::Serving;
    use std::collections::BTreeMap;

    /// Attention's costs in a step on two sequences of four tokens, of a layer with two heads of this size on one of keys.
    fn attention(head_dim: usize) -> Vec<Cost> {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": head_dim, "num_hidden_layers": 1, "vocab_size": 10,
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let (spec, mut settings, none) = (ModelSpec::load(dir.path()).unwrap(), Settings::default(), BTreeMap::new());
        settings.train.gradient_checkpointing = false;
        let micro = Micro::new(&[4, 4], 8);
        let workload = Workload::of_one_step(micro);
        let run = Estimate::new(&spec, &settings, &[], &none, Some(Serving::of(Accelerator::Cuda))).unwrap();
        Costs::of_step(&run, &workload).into_iter().filter(|cost| cost.part == Part::Attention).collect()
    }

    #[test]
    fn heads_beyond_the_kernel_are_products_over_all_scores() {
        let flops = |costs: &[Cost]| -> f64 { costs.iter().map(|cost| cost.launches * cost.flops).sum() };
        let (kernel, wide) = (attention(256), attention(258));
        assert!(kernel.iter().all(|cost| cost.unit != Unit::Products));
        assert!(wide.iter().all(|cost| cost.unit != Unit::Attention));
        // Nine products over half of the scores, with those that are made again; six over all of them.
        assert_eq!(flops(&kernel), 9.0 * 32.0 * (2.0 * 256.0));
        assert_eq!(flops(&wide), 6.0 * 2.0 * 32.0 * (2.0 * 258.0));
        // 64 scores in f32: each is read and written some seven times besides its products.
        let bytes: f64 = wide.iter().filter(|cost| cost.flops == 0.0).map(|cost| cost.launches * cost.bytes).sum();
        assert_eq!(bytes, 8.0 * 516.0 * 16.0 + 6.5 * 2.0 * 64.0 * 4.0);
    }
}
