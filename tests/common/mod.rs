//! What the parity tests share: fixtures by case, and whole-tensor comparison.

#![allow(dead_code, reason = "every test binary uses a part")]

use asft::adapter;
use asft::checkpoint::Checkpoint;
use asft::model::{Decoder, ModelSpec, Sequences};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The golden models; see `scripts/make_goldens.py`.
pub const CASES: [&str; 3] = ["llama_gqa", "llama3_rope", "llama_linear_bias"];

pub fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(case)
}

pub fn spec(case: &str) -> ModelSpec {
    ModelSpec::load(&fixture(case).join("model")).unwrap()
}

pub fn base(case: &str, trains: bool) -> Decoder {
    let checkpoint = Checkpoint::open(&fixture(case).join("model")).unwrap();
    Decoder::load(&spec(case), &checkpoint, &Device::Cpu, trains, &ProgressBar::hidden()).unwrap()
}

/// The base with its golden adapter, ready to train.
pub fn adapted(case: &str) -> Decoder {
    let mut model = base(case, false);
    let adapter = adapter::load(&fixture(case).join("adapter"), &Device::Cpu).unwrap();
    adapter.check_fits(model.spec()).unwrap();
    let (loras, parameters) = adapter.trainable().unwrap();
    model.attach(loras, parameters).unwrap();
    model
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
        self.get(name).to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Integers, exactly.
    #[track_caller]
    pub fn integers(&self, name: &str) -> Vec<i64> {
        self.get(name).flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// A golden batch: rows of ids and labels, padded on the right.
pub struct GoldenBatch {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
    pub mask: Vec<i64>,
    pub batch: usize,
}

impl GoldenBatch {
    pub fn load(case: &str) -> Self {
        let golden = Golden::load(&fixture(case).join("batch.safetensors"));
        let batch = golden.get("input_ids").dims()[0];
        let input_ids = golden.integers("input_ids").into_iter().map(|id| id as u32).collect();
        Self { input_ids, labels: golden.integers("labels"), mask: golden.integers("attention_mask"), batch }
    }

    pub fn length(&self) -> usize {
        self.input_ids.len() / self.batch
    }

    pub fn sequences(&self) -> Sequences<'_> {
        Sequences { input_ids: &self.input_ids, labels: &self.labels, batch: self.batch }
    }

    /// Labels that some position predicts.
    pub fn label_tokens(&self) -> usize {
        let length = self.length();
        (0..self.labels.len()).filter(|i| i % length != 0 && self.labels[*i] >= 0).count()
    }
}

pub fn to_vec(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = b.iter().map(|y| y * y).sum::<f64>().sqrt();
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt() / norm.max(1e-30)
}

/// Metadata of a safetensors file's header.
pub fn header_metadata(path: &Path) -> std::collections::HashMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap_or_default()
}
