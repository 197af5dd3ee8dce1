//! A gated DeltaNet, as model/delta_net.rs has it. GPUs have no kernels for its gates and its chunks: they are counted as the
//! products and tensors of the bodies for any device, in f32, and not launch by launch.

use super::super::workload::Mean;
use super::{Cost, Costs, F32, Part, Unit};
use crate::model::DeltaNetSpec;

/// Launches of `ops/delta_rule/gates.rs` in a pass, forward and backward, by reading, with the conversions around it.
const GATES: [f64; 2] = [16.0, 9.0];
/// The same of `ops/delta_rule/generic.rs` for a group of sequences, and for each chunk of it: a product, a sum, and a copy to where the
/// states are put together.
const GROUP: [f64; 2] = [78.0, 150.0];
const EACH_CHUNK: f64 = 3.0;
/// Tensors that are put together of those of several groups, and then in order.
const TOGETHER: [f64; 2] = [2.0, 3.0];

impl Costs<'_> {
    pub(super) fn delta_net_forward(&mut self, of: DeltaNetSpec) {
        let width = of.heads.value_width() as f64;
        let mixed = self.n * of.heads.mixed_width() as f64;
        self.convolution(of, 2.0 * mixed * self.w);
        self.chunks(of, false);
        self.head_norms(of, 2.0);
        self.gate_forward(width);
    }

    pub(super) fn delta_net_backward(&mut self, of: DeltaNetSpec) {
        let width = of.heads.value_width() as f64;
        for _ in 0..3 {
            self.rows(Part::Rows, 3.0 * self.n * self.hidden() * self.w); // sums of dx, of four projections
        }
        self.gate_backward(width);
        self.head_norms(of, if self.is_full() { 5.0 } else { 3.0 });
        self.chunks(of, true);
        let mixed = self.n * of.heads.mixed_width() as f64;
        self.convolution(of, mixed * (2.0 * self.w + F32));
        self.convolution(of, mixed * (self.w + F32));
        if self.is_full() {
            self.convolution(of, mixed * (self.w + F32));
        }
    }

    /// A launch of the convolution that moves so many bytes besides its weight and its table of rows.
    fn convolution(&mut self, of: DeltaNetSpec, bytes: f64) {
        let weight = of.window as f64 * of.heads.mixed_width() as f64;
        self.rows(Part::DeltaNet, bytes + (weight + self.n) * F32);
    }

    /// The gates, and the chunks of every group of sequences.
    fn chunks(&mut self, of: DeltaNetSpec, backward: bool) {
        let (pass, (forward_work, backward_work)) = (usize::from(backward), of.heads.work_per_row());
        let Mean { groups, chunks, places, .. } = self.mean;
        let together = if groups > 1.0 { TOGETHER[pass] * (groups + 1.0) } else { 0.0 };
        let launches = GATES[pass] + groups * GROUP[pass] + chunks * EACH_CHUNK + together;
        let moved = (of.heads.padded_per_row() + of.heads.kept_per_row()) as f64;
        self.found.push(Cost {
            part: Part::DeltaNet,
            unit: Unit::WideProducts,
            launches,
            flops: 2.0 * [forward_work, backward_work][pass] as f64 * places / launches,
            bytes: 2.0 * moved * F32 * places / launches,
        });
    }

    /// The norm of heads, which moves `tensors` of [n, Hv · Dv].
    fn head_norms(&mut self, of: DeltaNetSpec, tensors: f64) {
        let (n, heads) = (self.n, of.heads);
        let bytes = tensors * n * heads.value_width() as f64 * self.w;
        self.rows(Part::Rows, bytes + (heads.value_dim as f64 + n * heads.value_heads as f64) * F32);
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

    fn spec(kind: &str) -> ModelSpec {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 2, "vocab_size": 10,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "layer_types": [kind, kind],
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelSpec::load(dir.path()).unwrap()
    }

    /// Arithmetic of a step on one sample of so many tokens, as planned for the CPU and as predicted for a GPU.
    fn work(kind: &str, length: usize) -> [f64; 2] {
        let (spec, settings, none) = (spec(kind), Settings::default(), BTreeMap::new());
        let workload = Workload::of_one_step(Micro::new(&[length], length));
        let estimate = |gpu| Estimate::new(&spec, &settings, &[], &none, gpu).unwrap();
        let planned = estimate(None).mean_work(&workload);
        let gpu = estimate(Some(Serving::of(Accelerator::Cuda)));
        let costs = Costs::of_step(&gpu, &workload);
        let in_blocks = costs.iter().filter(|cost| cost.part != Part::Head);
        let predicted = in_blocks.map(|cost| cost.launches * cost.flops).sum();
        [planned.gemm_flops + planned.attention_flops, predicted]
    }

    #[test]
    fn a_step_grows_linearly_with_the_length_of_a_sample() {
        let ratios = |kind: &str| {
            let (short, long) = (work(kind, 4096), work(kind, 8 * 4096));
            [long[0] / short[0], long[1] / short[1]]
        };
        assert!(ratios("linear_attention").iter().all(|ratio| (ratio - 8.0).abs() < 1e-9));
        assert!(ratios("full_attention").iter().all(|ratio| *ratio > 20.0));
    }
}
