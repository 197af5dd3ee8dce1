//! How long a step should take on an NVIDIA card by its data sheet: each launch as long as its arithmetic or its bytes need,
//! whichever is longer, and a moment to begin (a roofline).
//!
//! Shares of what the sheet promises are assumed, not measured, and printed with the result.

use super::cards::Card;
use super::costs::{Cost, Costs, Part, Unit};
use super::estimate::Estimate;
use super::workload::Workload;
use candle_core::DType;
use indicatif::{FormattedDuration, HumanBytes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Of the peak, what cuBLAS reaches in the large products of a step.
const PRODUCT_SHARE: f64 = 0.7;
/// What the kernels of attention reach: they load a tile, wait, and multiply.
const ATTENTION_SHARE: f64 = 0.2;
/// Of the bandwidth, what kernels reach that stream through memory.
const BANDWIDTH_SHARE: f64 = 0.8;
/// From the end of one launch to the beginning of the next.
const LAUNCH_SECONDS: f64 = 4e-6;

/// A step's time on one card.
#[derive(Debug, Serialize)]
pub struct Prediction {
    pub card: &'static str,
    /// Where the card's numbers stand.
    pub source: &'static str,
    pub usable_memory_bytes: usize,
    /// Whether the memory planned fits.
    pub fits: bool,
    pub step_seconds: f64,
    pub run_seconds: f64,
    pub tokens_per_second: f64,
    /// Those of `parts` together, and how long they take to begin.
    pub launches: f64,
    pub launch_seconds: f64,
    pub parts: BTreeMap<Part, Share>,
    /// How often in a step the host waits to read a mixture's routing; what that takes is in no other number.
    pub routing_waits: f64,
    pub assumed: Assumed,
}

/// What a part of a step comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Without `launch_seconds`.
    pub seconds: f64,
    pub launches: f64,
    pub flops: f64,
    pub bytes: f64,
}

/// What the prediction rests on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumed {
    /// Of products in the compute type, and in f32.
    pub peak_flops_per_second: f64,
    pub peak_f32_flops_per_second: f64,
    pub product_share: f64,
    pub attention_share: f64,
    pub bytes_per_second: f64,
    pub bandwidth_share: f64,
    pub seconds_per_launch: f64,
}

impl Assumed {
    fn new(card: &Card, dtype: DType) -> Self {
        Self {
            peak_flops_per_second: if dtype == DType::F32 { card.f32_flops } else { card.half_flops },
            peak_f32_flops_per_second: card.f32_flops,
            product_share: PRODUCT_SHARE,
            attention_share: ATTENTION_SHARE,
            bytes_per_second: card.bytes_per_second,
            bandwidth_share: BANDWIDTH_SHARE,
            seconds_per_launch: LAUNCH_SECONDS,
        }
    }

    /// How long one of these launches takes, once it has begun.
    fn seconds(&self, cost: &Cost) -> f64 {
        let rate = match cost.unit {
            Unit::Products => self.peak_flops_per_second * self.product_share,
            Unit::WideProducts => self.peak_f32_flops_per_second * self.product_share,
            Unit::Attention => self.peak_flops_per_second * self.attention_share,
            Unit::Memory => f64::INFINITY,
        };
        (cost.flops / rate).max(cost.bytes / (self.bytes_per_second * self.bandwidth_share))
    }
}

impl Prediction {
    pub fn new(card: &Card, estimate: &Estimate, workload: &Workload) -> Self {
        let assumed = Assumed::new(card, estimate.settings.model.dtype.into());
        let mut parts = BTreeMap::<Part, Share>::new();
        for cost in Costs::of_step(estimate, workload) {
            let share = parts.entry(cost.part).or_default();
            share.seconds += cost.launches * assumed.seconds(&cost);
            share.launches += cost.launches;
            share.flops += cost.launches * cost.flops;
            share.bytes += cost.launches * cost.bytes;
        }
        let launches: f64 = parts.values().map(|share| share.launches).sum();
        let launch_seconds = launches * assumed.seconds_per_launch;
        let step_seconds = launch_seconds + parts.values().map(|share| share.seconds).sum::<f64>();
        let (mean, each_step) = workload.passes.mean();
        let usable_memory_bytes = card.usable_bytes();
        Self {
            card: card.name,
            source: card.source,
            usable_memory_bytes,
            fits: estimate.memory(workload).total() <= usable_memory_bytes,
            step_seconds,
            run_seconds: step_seconds * workload.total_steps as f64,
            tokens_per_second: mean.tokens * each_step / step_seconds,
            launches,
            launch_seconds,
            parts,
            routing_waits: Costs::routing_waits(estimate, workload),
            assumed,
        }
    }
}

/// Seconds to be shown: at least one, and however many.
pub fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(1.0)).unwrap_or(Duration::MAX)
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Linears => "the model's linears",
            Self::Attention => "attention",
            Self::DeltaNet => "gated DeltaNets",
            Self::Rows => "norms, rotations, gates, sums",
            Self::Adapters => "adapters",
            Self::Head => "head and loss",
            Self::Penalty => "penalty",
            Self::Optimizer => "AdamW, gradients' norm",
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        writeln!(
            f,
            "time     {} a step, {:.0} tokens/s, {} in all, predicted for the card {}, not measured:",
            milliseconds(self.step_seconds),
            self.tokens_per_second,
            FormattedDuration(duration(self.run_seconds)),
            self.card
        )?;
        for (part, share) in &self.parts {
            writeln!(
                f,
                "           {:<29} {:>10}  {:>8.2} TFLOP  {:>10}  {:>6.0} launches",
                part.name(),
                milliseconds(share.seconds),
                share.flops / 1e12,
                HumanBytes(share.bytes as u64).to_string(),
                share.launches
            )?;
        }
        let label = "beginning launches";
        let begin = milliseconds(self.launch_seconds);
        writeln!(f, "           {label:<29} {begin:>10}  {:>41.0} launches", self.launches)?;
        let Assumed { peak_flops_per_second, peak_f32_flops_per_second, .. } = self.assumed;
        writeln!(
            f,
            "assumed  {:.0} TFLOP/s in the compute type, {:.1} in f32, {:.2} TB/s ({})",
            peak_flops_per_second / 1e12,
            peak_f32_flops_per_second / 1e12,
            self.assumed.bytes_per_second / 1e12,
            self.source
        )?;
        write!(
            f,
            "         {:.0} % of the peak in products, {:.0} % in attention, {:.0} % of the bandwidth; {:.0} µs to begin a \
             launch; every kernel of asft's own in use, for memory too",
            self.assumed.product_share * 100.0,
            self.assumed.attention_share * 100.0,
            self.assumed.bandwidth_share * 100.0,
            self.assumed.seconds_per_launch * 1e6
        )?;
        if self.routing_waits > 0.0 {
            write!(
                f,
                "\n         tokens spread evenly over the experts; the host reads where they go, {:.0} times a step, and the GPU \
                 waits meanwhile: that is not in the time",
                self.routing_waits
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::{Micro, Passes};
    use super::*;
    use crate::config::Settings;
    use crate::device::Accelerator;
    use crate::method::Penalize;
    use crate::model::{ModelSpec, Quantize};
    use crate::ops::gpu::Serving;
    use std::collections::BTreeMap;

    /// One layer with 8 values a token, two heads of four on one of keys, an MLP of 16 and ten words.
    fn small_spec() -> ModelSpec {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 8,
            "intermediate_size": 16, "max_position_embeddings": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
            "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "vocab_size": 10,
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelSpec::load(dir.path()).unwrap()
    }

    /// A run that adapts q, on an NVIDIA card.
    fn on_card<'a>(
        spec: &'a ModelSpec,
        settings: &'a Settings,
        quantised: &'a BTreeMap<String, usize>,
    ) -> Estimate<'a> {
        let (targets, cuda) = (["model.layers.0.self_attn.q_proj".to_string()], Serving::of(Accelerator::Cuda));
        Estimate::new(spec, settings, &targets, quantised, Some(cuda)).unwrap()
    }

    #[test]
    fn a_run_without_end_has_a_duration_too() {
        assert_eq!(duration(90.0).as_secs(), 90);
        assert_eq!(
            [f64::INFINITY, 1e300, f64::NAN].map(duration),
            [Duration::MAX, Duration::MAX, Duration::from_secs(1)]
        );
    }

    #[test]
    fn a_small_step_is_as_counted_by_hand() {
        let (spec, mut settings) = (small_spec(), Settings::default());
        (settings.lora.rank, settings.lora.dropout, settings.asft.penalize) = (2, 0.0, Penalize::None);
        settings.train.gradient_checkpointing = false;
        let none = BTreeMap::new();
        let estimate = on_card(&spec, &settings, &none);
        // Two micro-batches of one sequence of four tokens, three of them labels; one step of both.
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
        let card = Card::named("h100").unwrap();
        let got = Prediction::new(card, &estimate, &workload);
        let expected = [
            // q, k, v, o, gate, up, down: 576 weights, 64 inputs and 64 outputs a token; forward and back.
            (Part::Linears, 14, 2 * 2 * 4 * 576, 2 * 4 * (576 + 4 * (64 + 64))),
            // Half of 16 scores for each of two heads of four values, nine products; q, k, v and o; k and v are half as wide.
            (Part::Attention, 4, 9 * 16 * 8, 416 + 288 + 576 + 576),
            (Part::Rows, 6 + 8, 0, 2528 + 4064),
            (Part::Adapters, 4 + 7, 6 * 128, 6 * 224 + 2 * 64 + 2 * 384 + 128),
            (Part::Head, 10, 2 * 480, 256 + 2 * 536 + 360 + 864 + 128 + 352),
        ];
        for (part, launches, flops, bytes) in expected {
            let share = got.parts[&part];
            assert_eq!(
                (share.launches, share.flops, share.bytes),
                (2.0 * f64::from(launches), 2.0 * f64::from(flops), 2.0 * f64::from(bytes)),
                "{part:?}"
            );
        }
        // 32 values that train: gradients for the norm; θ, m and v and gradients, of which three are written.
        let optimizer = got.parts[&Part::Optimizer];
        assert_eq!((optimizer.launches, optimizer.bytes), (2.0, 8.0 * 32.0 * 4.0));
        assert!(!got.parts.contains_key(&Part::Penalty));
        // So little arithmetic that memory counts alone.
        let bytes = f64::from(2 * (8704 + 1856 + 6592 + 2368 + 3032) + 1024);
        let seconds = bytes / (3.35e12 * 0.8) + 108.0 * 4e-6;
        assert!((got.step_seconds / seconds - 1.0).abs() < 1e-9, "{} {seconds}", got.step_seconds);
        assert_eq!((got.run_seconds, got.launches), (10.0 * got.step_seconds, 108.0));
        assert!(got.fits);
        // A direction of rank 8: two products with U, and four launches for A, B, their images and gradients of rank 2.
        settings.asft.penalize = Penalize::Orthogonal;
        let estimate = on_card(&spec, &settings, &none);
        let penalty = Prediction::new(card, &estimate, &workload).parts[&Part::Penalty];
        let bytes = 384.0 + 512.0 + 4.0 * (3.0 * 16.0 + 8.0) + 4.0 * 64.0 + 4.0 * (64.0 + 64.0);
        assert_eq!((penalty.launches, penalty.flops, penalty.bytes), (6.0, 256.0 + 512.0, bytes));
        // Each weight is widened for each of its products.
        settings.model.quantize = Some(Quantize::Q8_0);
        let estimate = on_card(&spec, &settings, &none);
        let linears = Prediction::new(card, &estimate, &workload).parts[&Part::Linears];
        assert_eq!(linears.launches, 2.0 * 28.0);
        assert!(linears.bytes > got.parts[&Part::Linears].bytes + 2.0 * 2.0 * 576.0 * 4.0);
        // The head once for losses and gradients together.
        settings.model.quantize_head = true;
        let estimate = on_card(&spec, &settings, &none);
        let head = Prediction::new(card, &estimate, &workload).parts[&Part::Head];
        assert_eq!(head.launches, 2.0 * 11.0);
    }

    #[test]
    fn a_launch_takes_as_long_as_its_slower_side() {
        let assumed = Assumed::new(Card::named("a100").unwrap(), DType::BF16);
        let cost = |unit, flops, bytes| Cost { part: Part::Linears, unit, launches: 1.0, flops, bytes };
        let close = |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
        close(assumed.seconds(&cost(Unit::Products, 312e9, 1e6)), 1e-3 / 0.7);
        close(assumed.seconds(&cost(Unit::WideProducts, 19.5e9, 1e6)), 1e-3 / 0.7);
        close(assumed.seconds(&cost(Unit::Attention, 312e9, 1e6)), 1e-3 / 0.2);
        close(assumed.seconds(&cost(Unit::Products, 1e6, 2.039e9)), 1e-3 / 0.8);
        close(assumed.seconds(&cost(Unit::Memory, 1e18, 2.039e9)), 1e-3 / 0.8);
        let assumed = Assumed::new(Card::named("a100").unwrap(), DType::F32);
        close(assumed.seconds(&cost(Unit::Products, 19.5e9, 1e6)), 1e-3 / 0.7);
    }
}
