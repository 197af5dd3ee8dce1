//! The golden models, batches and numbers of PyTorch; see `tests/fixtures/make/goldens.py`.

use super::files::fixture;
use super::tensors::{max_difference, relative_error, to_vec};
use asft::adapter::{self, Adapter};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::data::{Example, collate};
use asft::model::{Decoder, DeviceKind, ModelSpec, Sequences, Weights};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// The folders of the golden models.
pub const CASES: [&str; 27] = [
    "llama_gqa",
    "llama3_rope",
    "llama_linear_bias",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "granite",
    "olmo2",
    "olmo3",
    "phi3",
    "glm4",
    "qwen3_moe",
    "qwen3_moe_raw",
    "gemma3",
    "mistral3",
    "qwen3_vl",
    "qwen3_5_text",
    "qwen3_5",
    "qwen3_5_moe_text",
    "qwen3_5_moe",
    "gemma4_text",
    "gemma4_shared",
    "gemma4_wide",
    "gemma4",
];

/// Where the goldens are computed: `ASFT_TEST_DEVICE`, which `scripts/gpu_check.sh` sets; else the CPU.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let name = std::env::var("ASFT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_string());
        let kind: DeviceKind = serde_json::from_value(name.into()).expect("ASFT_TEST_DEVICE is a kind of device");
        kind.open().unwrap()
    })
}

pub fn spec(case: &str) -> ModelSpec {
    ModelSpec::load(&fixture(case).join("model")).unwrap()
}

/// The base's weights as they are stored.
pub fn base_checkpoint(case: &str) -> Checkpoint {
    Checkpoint::open(&fixture(case).join("model")).unwrap()
}

/// The adapter as PEFT wrote it.
pub fn golden_adapter(case: &str) -> Adapter {
    adapter::load(&fixture(case).join("adapter"), device()).unwrap()
}

/// Puts an adapter on a base, ready to train.
pub fn attach(model: &mut Decoder, adapter: &Adapter) {
    let (loras, parameters) = adapter.trainable().unwrap();
    model.attach(loras, parameters).unwrap();
}

/// The base in f32.
pub fn base(case: &str, trains: bool) -> Decoder {
    base_in(case, trains, DType::F32)
}

/// The base in a compute type.
pub fn base_in(case: &str, trains: bool, dtype: DType) -> Decoder {
    let weights = if trains { Weights::Trained } else { Weights::Frozen };
    Decoder::load(&spec(case), &base_checkpoint(case), (device(), dtype), weights, &ProgressBar::hidden()).unwrap()
}

/// The base with its golden adapter, ready to train.
pub fn adapted(case: &str) -> Decoder {
    adapted_in(case, DType::F32)
}

/// As [`adapted`], in a compute type.
pub fn adapted_in(case: &str, dtype: DType) -> Decoder {
    let mut model = base_in(case, false, dtype);
    let adapter = golden_adapter(case);
    adapter.check_fits(model.spec()).unwrap();
    attach(&mut model, &adapter);
    model
}

/// How far the base's logits are from the golden's with another spec and other weights.
pub fn logit_error(case: &str, spec: &ModelSpec, change: impl Fn(&str, Tensor) -> Tensor) -> f64 {
    let (stored, scratch) = (base_checkpoint(case), tempfile::tempdir().unwrap());
    let read = |name: &str| change(name, stored.tensor(name, DType::F32, &Device::Cpu).unwrap());
    let tensors: BTreeMap<String, Tensor> = stored.names().map(|name| (name.to_string(), read(name))).collect();
    save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
    let weights = Checkpoint::open(scratch.path()).unwrap();
    let place = (device(), DType::F32);
    let model = Decoder::load(spec, &weights, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
    let batch = GoldenBatch::load(case);
    let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    max_difference(&logits, &batch.live(&Golden::expected(case).values("base.logits"), spec.vocab_size))
}

/// Every tensor of a safetensors file, integers included.
pub struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    pub fn load(path: &Path) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self(tensors.into_iter().collect())
    }

    pub fn expected(case: &str) -> Self {
        Self::load(&fixture(case).join("expected.safetensors"))
    }

    #[track_caller]
    pub fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no golden {name}"))
    }

    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.0.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }

    #[track_caller]
    pub fn values(&self, name: &str) -> Vec<f64> {
        to_vec(self.get(name))
    }

    /// Integers, exactly.
    #[track_caller]
    pub fn integers(&self, name: &str) -> Vec<i64> {
        self.get(name).flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// Asserts that the adapter's matrices end where ten golden steps do.
#[track_caller]
pub fn check_end(golden: &Golden, trained: &Adapter, case: &str) {
    for (name, module) in &trained.modules {
        for (matrix, tensor) in [("lora_A", &module.a), ("lora_B", &module.b)] {
            let expected = golden.values(&format!("curve.final.{name}.{matrix}"));
            let error = relative_error(&to_vec(tensor), &expected);
            assert!(error <= 1e-3, "{case} {name} {matrix}: {error}");
        }
    }
}

/// A golden batch without the padding that PyTorch needs.
pub struct GoldenBatch {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
    pub lengths: Vec<usize>,
    /// Rows of the padded batch that are tokens.
    pub rows: Vec<usize>,
}

impl GoldenBatch {
    pub fn load(case: &str) -> Self {
        let golden = Golden::load(&fixture(case).join("batch.safetensors"));
        let mask = golden.integers("attention_mask");
        let width = golden.get("input_ids").dims()[1];
        let lengths = mask.chunks(width).map(|row| row.iter().filter(|&&m| m == 1).count()).collect();
        let rows: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] == 1).collect();
        let live = |name: &str| {
            let values = golden.integers(name);
            rows.iter().map(|&i| values[i]).collect::<Vec<i64>>()
        };
        let input_ids = live("input_ids").into_iter().map(|id| id as u32).collect();
        Self { input_ids, labels: live("labels"), lengths, rows }
    }

    /// The samples one by one.
    pub fn examples(&self) -> Vec<Example> {
        let mut start = 0;
        let cut = |&length: &usize| {
            let range = start..start + length;
            start += length;
            Example { input_ids: self.input_ids[range.clone()].to_vec(), labels: self.labels[range].to_vec() }
        };
        self.lengths.iter().map(cut).collect()
    }

    pub fn sequences(&self) -> Sequences<'_> {
        Sequences { input_ids: &self.input_ids, labels: &self.labels, lengths: &self.lengths }
    }

    /// Labels that some position predicts.
    pub fn label_tokens(&self) -> usize {
        collate(&self.examples()).label_tokens()
    }

    /// The rows of a golden [B, T, V] that are tokens, one after another.
    pub fn live(&self, padded: &[f64], vocab_size: usize) -> Vec<f64> {
        self.rows.iter().flat_map(|&row| padded[row * vocab_size..][..vocab_size].to_vec()).collect()
    }
}
