//! A mixture of experts, as model/mixture.rs has it: its rows, spread evenly, go through its experts one after another.

use super::super::estimate::Estimate;
use super::super::workload::Workload;
use super::{Costs, F32, Part};
use crate::model::{Experts, rows_at_once};
use crate::names::{EXPERT_LINEARS, ROUTER, in_expert};

impl Costs<'_> {
    pub(super) fn mixture_forward(&mut self, layer: usize, mixture: Experts) {
        let (h, w) = (self.hidden(), self.w);
        self.linear_forward(layer, ROUTER, false);
        self.logits_cast(mixture);
        self.each_expert(mixture, |costs| {
            costs.rows(Part::Rows, 2.0 * costs.n * h * w); // gathered
            for part in EXPERT_LINEARS {
                costs.linear_forward(layer, &in_expert(0, part), false);
            }
            costs.gate_forward(mixture.intermediate_size as f64);
        });
        if self.is_half() {
            self.rows(Part::Rows, self.n * mixture.per_token as f64 * (F32 + w)); // weights
        }
        self.sum(mixture, true);
        self.narrowed_sum();
        self.shared_expert(mixture, 2.0, Self::gate_forward);
    }

    pub(super) fn mixture_backward(&mut self, layer: usize, mixture: Experts) {
        let (all, h, w) = (self.n, self.hidden(), self.w);
        self.each_expert(mixture, |costs| {
            let values = costs.n * h;
            costs.rows(Part::Rows, 2.0 * values * w); // gathered
            if costs.is_half() {
                (0..2).for_each(|_| costs.rows(Part::Rows, values * (w + F32)));
            }
            // The weights' gradients, products and their sums; dy times the weights.
            costs.rows(Part::Rows, 3.0 * values * F32);
            costs.rows(Part::Rows, values * F32);
            if costs.is_half() {
                costs.rows(Part::Rows, costs.n * (F32 + w));
            }
            costs.rows(Part::Rows, 2.0 * values * w);
            for part in EXPERT_LINEARS {
                costs.linear_backward(layer, &in_expert(0, part));
            }
            costs.gate_backward(mixture.intermediate_size as f64);
            costs.rows(Part::Rows, 3.0 * values * w); // the sum of dx, of gate and up
        });
        self.sum(mixture, false);
        self.rows(Part::Rows, 2.0 * all * mixture.per_token as f64 * F32); // the weights' gradients put together
        self.logits_cast(mixture);
        self.linear_backward(layer, ROUTER);
        if self.is_half() {
            self.rows(Part::Rows, all * h * (w + F32)); // the router's dh
        }
        self.rows(Part::Rows, 3.0 * all * h * F32);
        self.narrowed_sum();
        // With the sums of dx: of gate and up, of the expert and its gate, and with the others' part.
        self.shared_expert(mixture, 11.0, Self::gate_backward);
    }

    /// The expert that all tokens go to, besides its linears: its own gate, `tensors` that its share moves, and a sum.
    fn shared_expert(&mut self, mixture: Experts, tensors: f64, gate: fn(&mut Self, f64)) {
        let Some(inner) = mixture.shared else { return };
        gate(self, inner as f64);
        let values = self.n * self.hidden() * self.w;
        self.rows(Part::Rows, tensors * values);
        self.rows(Part::Rows, 3.0 * values);
    }

    /// All experts' rows put together; then, some at a time, in the order of tokens, perhaps weighed, and added up in f32.
    fn sum(&mut self, mixture: Experts, weighed: bool) {
        let (tokens, w) = (self.n * self.hidden(), self.w);
        let rows = tokens * mixture.per_token as f64;
        self.rows(Part::Rows, 2.0 * rows * w);
        let before = self.found.len();
        self.rows(Part::Rows, 2.0 * rows * w);
        if weighed {
            self.rows(Part::Rows, 2.0 * rows * w + self.n * mixture.per_token as f64 * w);
        }
        if self.is_half() {
            self.rows(Part::Rows, rows * (w + F32));
        }
        self.rows(Part::Rows, (rows + tokens) * F32);
        let times = (self.n / rows_at_once(mixture.per_token, self.run.spec.hidden_size) as f64).ceil();
        for cost in &mut self.found[before..] {
            (cost.launches, cost.bytes) = (cost.launches * times, cost.bytes / times);
        }
        if times > 1.0 {
            self.rows(Part::Rows, 2.0 * tokens * F32); // what was added up put together
        }
    }

    /// The router's logits, or their gradients, from one type to the other.
    fn logits_cast(&mut self, mixture: Experts) {
        if self.is_half() {
            self.rows(Part::Rows, self.n * mixture.count as f64 * (self.w + F32));
        }
    }

    /// The sum in the compute type.
    fn narrowed_sum(&mut self) {
        if self.is_half() {
            self.rows(Part::Rows, self.n * self.hidden() * (F32 + self.w));
        }
    }

    /// What `one` costs for an expert's rows, for each expert that gets any.
    fn each_expert(&mut self, mixture: Experts, one: impl FnOnce(&mut Self)) {
        let (all, before) = (self.n, self.found.len());
        let rows = all * mixture.per_token as f64;
        let used = (mixture.count as f64).min(rows);
        self.n = rows / used;
        one(self);
        self.n = all;
        self.found[before..].iter_mut().for_each(|cost| cost.launches *= used);
    }

    /// How often in a step the host waits to read what a router computed, or its gradients: in every pass over each layer that
    /// has a mixture.
    pub fn routing_waits(run: &Estimate, workload: &Workload) -> f64 {
        let ((_, micro_batches), (_, extra)) = (workload.passes.mean(), workload.extra.mean());
        let again = usize::from(run.settings.train.gradient_checkpointing);
        let layers = (0..run.spec.num_hidden_layers).filter(|layer| run.spec.has_mixture(*layer)).count();
        let each = |references: usize| (layers * (2 + again + references)) as f64;
        let of_extra = run.needs.extra.map_or(0.0, |batch| extra * each(batch.reference_passes));
        micro_batches * each(run.needs.reference_passes) + of_extra
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::cards::Card;
    use super::super::super::prediction::Prediction;
    use super::super::super::workload::{Micro, Passes};
    use super::*;
    use crate::config::Settings;
    use crate::device::Accelerator;
    use crate::model::{ModelSpec, Quantize};
    use crate::ops::gpu::Serving;
    use crate::train::options::Tuning;
    use std::collections::BTreeMap;

    /// One layer of six experts, of which a token goes to two.
    fn spec() -> ModelSpec {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "hidden_size": 8,
            "intermediate_size": 16, "moe_intermediate_size": 4, "num_experts": 6, "num_experts_per_tok": 2,
            "decoder_sparse_step": 1, "norm_topk_prob": true, "max_position_embeddings": 64, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 10,
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelSpec::load(dir.path()).unwrap()
    }

    /// Launches of products of the router, and of experts; of what linears take besides products; and how often the host waits. A
    /// step has two micro-batches of four tokens.
    fn taken(settings: &Settings) -> [f64; 4] {
        let (spec, none, cuda) = (spec(), BTreeMap::new(), Serving::of(Accelerator::Cuda));
        let targets = ["model.layers.0.self_attn.q_proj".to_string()];
        let run = Estimate::new(&spec, settings, &targets, &none, Some(cuda)).unwrap();
        let micro = Micro::new(&[4], 3);
        let workload = Workload {
            largest: micro,
            passes: Passes { sum: micro.with(micro, |a, b| a + b), micro_batches: 2, steps: 1 },
            extra: Passes::default(),
            own_samples: 0,
            watched: Micro::default(),
            data_bytes: 96,
            steps_per_epoch: 1,
            total_steps: 10,
        };
        let costs = Costs::of_step(&run, &workload);
        // [4, 8] by six experts; eight rows among them, by [8, 4].
        let (router, expert) = (2.0 * 4.0 * 8.0 * 6.0, 2.0 * 8.0 / 6.0 * 8.0 * 4.0);
        let linears = || costs.iter().filter(|cost| cost.part == Part::Linears);
        let of = |flops: f64| linears().filter(move |cost| (cost.flops - flops).abs() < 1e-9);
        let [router, expert, widening] = [router, expert, 0.0].map(|flops| of(flops).map(|cost| cost.launches).sum());
        let prediction = Prediction::new(Card::named("h100").unwrap(), &run, &workload);
        let said = format!("reads where they go, {:.0} times a step", prediction.routing_waits);
        assert!(prediction.to_string().contains(&said), "{prediction}");
        [router, expert, widening, prediction.routing_waits]
    }

    #[test]
    fn routers_and_experts_cost_what_other_linears_do() {
        let mut settings = Settings::default();
        settings.train.gradient_checkpointing = false;
        // Forward and back; 3 linears of 6 experts.
        assert_eq!(taken(&settings), [2.0 * 2.0, 2.0 * 2.0 * 18.0, 0.0, 2.0 * 2.0]);
        // Each frozen matrix but the router is widened for each of its products.
        settings.model.quantize = Some(Quantize::Q8_0);
        assert_eq!(taken(&settings), [4.0, 72.0, 2.0 * 2.0 * (4.0 + 18.0), 4.0]);
        settings.train.gradient_checkpointing = true;
        assert_eq!(taken(&settings)[3], 2.0 * 3.0);
        // And the gradients of weights.
        (settings.model.quantize, settings.train.method) = (None, Tuning::Full);
        settings.train.gradient_checkpointing = false;
        assert_eq!(taken(&settings), [2.0 * 3.0, 2.0 * 3.0 * 18.0, 0.0, 4.0]);
    }
}
