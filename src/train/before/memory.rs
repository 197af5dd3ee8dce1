//! Whether a run fits the memory of its device, and what would make it fit: checked before its weights are loaded, and
//! told if memory runs out all the same.

use super::estimate::{Estimate, Memory};
use super::inputs::Inputs;
use super::workload::Workload;
use crate::config::Settings;
use crate::invalid;
use crate::memory::Capacity;
use crate::model::{Dtype, ModelSpec, Quantize};
use crate::ops::gpu::Serving;
use crate::train::options::Tuning;
use anyhow::{Context, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A change is worth naming if it saves at least this share.
const WORTH_NAMING: f64 = 0.02;

/// How a GPU's library says that it has no memory left: CUDA's driver, cuBLAS, Metal through candle.
const NO_MEMORY: [&str; 4] =
    ["OUT_OF_MEMORY", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Failed to create metal resource: Buffer"];

/// Whether there is enough for a run: what to say about it, and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Room {
    Enough(String, Value),
    /// By the estimate, more is needed than is available now.
    Tight(String, Value),
}

/// What a run will take, and what would take less.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    memory: Memory,
    on_cpu: bool,
    advice: String,
    /// What was free once all was loaded.
    free: Option<usize>,
}

impl MemoryPlan {
    /// For a run on the CPU, or on a `gpu` where these kernels serve. `quantised`: the bytes of each weight that the checkpoint holds
    /// quantised.
    pub fn new(
        settings: &Settings,
        spec: &ModelSpec,
        targets: &[String],
        quantised: &BTreeMap<String, usize>,
        inputs: &Inputs,
        gpu: Option<Serving>,
    ) -> Result<Self> {
        let workload = Workload::of(settings, inputs)?;
        let peak = |changed: &Settings| -> Result<Memory> {
            let estimate = Estimate::new(spec, changed, targets, quantised, gpu).context("lora")?;
            let same_work = changed.train.batch_size == settings.train.batch_size;
            Ok(if same_work { estimate.memory(&workload) } else { estimate.memory(&Workload::of(changed, inputs)?) })
        };
        let memory = peak(settings)?;
        let advice = advice(settings, memory.total(), |changed| Ok(peak(changed)?.total()))?;
        Ok(Self { memory, on_cpu: gpu.is_none(), advice, free: None })
    }

    /// Compares it with what there is.
    ///
    /// # Errors
    /// The weights and the trained parameters, without which nothing works, exceed the device's limit.
    pub fn check(&self, there_is: Capacity) -> Result<Room> {
        let (needed, certain) = (self.memory.total(), self.memory.weights + self.memory.trained);
        let Capacity { available, limit } = there_is;
        let fields =
            json!({"peak_memory_bytes": needed, "available_memory_bytes": available, "limit_memory_bytes": limit});
        let (place, whole) = if self.on_cpu {
            ("", "the machine has {} with its swap space")
        } else {
            (" on the GPU", "the GPU has {}")
        };
        let text = format!("the run needs about {} of memory{place}", size(needed));
        if certain <= limit && needed <= available {
            return Ok(Room::Enough(format!("{text}, {} are available", size(available)), fields));
        }
        let parts = format!("{text} ({} of it for weights and what trains)", size(certain));
        if certain > limit {
            let whole = whole.replace("{}", &size(limit).to_string());
            return Err(invalid!("{parts}, {whole}; {}", self.advice));
        }
        Ok(Room::Tight(format!("{parts}, {} are available; {}", size(available), self.advice), fields))
    }

    /// Remembers what the device has free once all is loaded, to tell later what became of it.
    pub fn all_is_loaded(&mut self, free: Option<usize>) {
        self.free = free;
    }

    /// What to say if memory runs out all the same, if that is what `error` says. `free`: what is still free.
    pub fn exhausted(&self, error: &anyhow::Error, free: Option<usize>) -> Option<String> {
        let text = format!("{error:#}");
        NO_MEMORY.iter().any(|words| text.contains(words)).then(|| {
            let Memory { weights, trained, direction, activations, logits, before, process } = self.memory;
            let of_step = if activations >= logits { "activations" } else { "activations and logits" };
            let at_first = before > self.memory.step();
            let grows =
                if at_first { ("the pass before the first step", before) } else { (of_step, activations.max(logits)) };
            let parts = [
                ("weights", weights),
                ("what trains", if at_first { 0 } else { trained }),
                ("the direction", direction),
                grows,
                ("the context", process),
            ];
            let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
            let parts: Vec<String> = parts.map(|(part, bytes)| format!("{part} {}", size(*bytes))).collect();
            let (total, parts) = (size(self.memory.total()), parts.join(", "));
            let known = self.known(free, grows);
            format!("the device has no memory left; the run was planned at {total} ({parts}){known}; {}", self.advice)
        })
    }

    /// What the device had free and has now, and the part that grew meanwhile, with its plan. The device does not say who has the
    /// difference.
    fn known(&self, free: Option<usize>, (grows, planned): (&str, usize)) -> String {
        let (Some(at_first), Some(free)) = (self.free, free) else { return String::new() };
        let known = format!("; {} were free when all was loaded, {} are now", size(at_first), size(free));
        match at_first.saturating_sub(free) {
            0 => known,
            taken => format!(
                "{known}: {} went to {grows}, planned at {}, or to other processes and gaps in memory",
                size(taken),
                size(planned)
            ),
        }
    }
}

fn size(bytes: usize) -> HumanBytes {
    HumanBytes(bytes as u64)
}

/// The settings that would lower the peak, each with the resulting peak.
fn advice(settings: &Settings, needed: usize, peak: impl Fn(&Settings) -> Result<usize>) -> Result<String> {
    type Change = fn(&mut Settings);
    let changes: [(&str, Change); 5] = [
        ("train.method = \"lora\"", |s| s.train.method = Tuning::Lora),
        ("model.dtype = \"bf16\"", |s| {
            s.model.dtype = if s.model.dtype == Dtype::F32 { Dtype::Bf16 } else { s.model.dtype }
        }),
        ("model.quantize = \"nf4\"", |s| {
            let frozen = s.train.method == Tuning::Lora;
            s.model.quantize = s.model.quantize.or(frozen.then_some(Quantize::Nf4));
        }),
        ("train.gradient_checkpointing = true", |s| s.train.gradient_checkpointing = true),
        ("train.batch_size = 1 (with more train.gradient_accumulation)", |s| s.train.batch_size = 1),
    ];
    let mut found = vec![];
    for (name, change) in changes {
        let mut changed = settings.clone();
        change(&mut changed);
        let less = peak(&changed)?;
        if (less as f64) < needed as f64 * (1.0 - WORTH_NAMING) {
            found.push(format!("{name}: {}", size(less)));
        }
    }
    Ok(match found.as_slice() {
        [] => "a smaller model or a lower data.max_length takes less".to_string(),
        found => format!("less would be needed with {}, or with a lower data.max_length", found.join(", or with ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_what_helps_and_by_how_much() {
        let mut settings = Settings::default();
        settings.train.method = Tuning::Full;
        let peak = |s: &Settings| {
            let half = if s.model.dtype == Dtype::F32 { 1 } else { 2 };
            Ok((if s.train.method == Tuning::Full { 4000 } else { 1000 } / half + 10 * s.train.batch_size) << 20)
        };
        let needed = peak(&settings).unwrap();
        let text = advice(&settings, needed, peak).unwrap();
        let expected = "less would be needed with train.method = \"lora\": 1.05 GiB, or with model.dtype = \"bf16\": \
                        2.03 GiB, or with a lower data.max_length";
        assert_eq!(text, expected);
        (settings.train.method, settings.model.dtype, settings.train.batch_size) = (Tuning::Lora, Dtype::Bf16, 1);
        assert!(advice(&settings, 510 << 20, peak).unwrap().contains("data.max_length"));
    }

    fn plan(on_cpu: bool) -> MemoryPlan {
        let gib = |n: usize| n << 30;
        let (weights, activations) = (gib(14), gib(6));
        let (trained, logits, process) = (gib(1), gib(2), gib(1));
        let memory = Memory { weights, trained, direction: 0, activations, logits, before: 0, process };
        MemoryPlan { memory, on_cpu, advice: "train less".to_string(), free: None }
    }

    #[test]
    fn a_gpu_is_told_from_the_machine() {
        let there_is = |available: usize, limit: usize| Capacity { available: available << 30, limit: limit << 30 };
        for (on_cpu, has) in [(true, "the machine has 12.00 GiB with its swap space"), (false, "the GPU has 12.00 GiB")]
        {
            let plan = plan(on_cpu);
            assert!(matches!(plan.check(there_is(23, 24)), Ok(Room::Enough(..))));
            let Ok(Room::Tight(text, fields)) = plan.check(there_is(20, 24)) else { panic!("20 of 22 GiB are enough") };
            assert_eq!(fields["peak_memory_bytes"], 22u64 << 30);
            assert!(text.contains("needs about 22.00 GiB") && text.contains("20.00 GiB are available; train less"));
            assert_eq!(text.contains("on the GPU"), !on_cpu);
            let error = plan.check(there_is(12, 12)).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            assert!(error.to_string().contains(&format!("{has}; train less")), "{error}");
        }
    }

    #[test]
    fn an_error_of_no_memory_is_told_with_the_plan() {
        let plan = plan(false);
        for text in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "Metal error Failed to create metal resource: Buffer",
        ] {
            let error = anyhow::anyhow!("{text}").context("forward");
            let told = plan.exhausted(&error, None).unwrap();
            let parts = "planned at 22.00 GiB (weights 14.00 GiB, what trains 1.00 GiB, activations 6.00 GiB, the context \
                         1.00 GiB); train less";
            assert!(told.contains(parts), "{told}");
        }
        let mut loaded = plan.clone();
        loaded.all_is_loaded(Some(9 << 30));
        let grown = "; 9.00 GiB were free when all was loaded, 1.00 GiB are now: 8.00 GiB went to activations, planned at 6.00 GiB, or to \
                     other processes and gaps in memory";
        let same = "; 9.00 GiB were free when all was loaded, 9.00 GiB are now";
        for (free, known) in [(Some(1 << 30), grown), (Some(9 << 30), same), (None, "")] {
            let told = loaded.exhausted(&anyhow::anyhow!("out of memory"), free).unwrap();
            assert!(told.ends_with(&format!("the context 1.00 GiB){known}; train less")), "{told}");
        }
        assert_eq!(plan.exhausted(&anyhow::anyhow!("disk full"), None), None);
        let mut first = plan.clone();
        first.memory.before = 9 << 30;
        let told = first.exhausted(&anyhow::anyhow!("out of memory"), None).unwrap();
        let parts =
            "planned at 24.00 GiB (weights 14.00 GiB, the pass before the first step 9.00 GiB, the context 1.00 GiB)";
        assert!(told.contains(parts), "{told}");
    }
}
