//! Directions and quantised weights: not made of them, but accepted for a quantised form of what they were made of.

use crate::support::direction::request;
use crate::support::tensors::norm;
use asft::checkpoint::gguf::{Planned, Written, write};
use asft::checkpoint::{Checkpoint, Stored, save_tensors};
use asft::error::exit_code;
use asft::method::direction::{check, compute};
use asft::method::direction_file::Directions;
use asft::quant::ggml::GgmlType;
use asft::quant::{Format, Kind};
use candle_core::{Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SHAPES: [(&str, &str, usize); 2] = [("self_attn.q_proj", "attn_q", 48), ("self_attn.v_proj", "attn_v", 16)];
const COLUMNS: usize = 64;

/// Weights of two layers by their Hugging Face names.
type Weights = BTreeMap<String, Tensor>;

fn weights(scale: f64) -> Weights {
    let mut weights = Weights::new();
    for layer in 0..2 {
        for (part, _, rows) in SHAPES {
            let weight = Tensor::randn(0f32, scale as f32, (rows, COLUMNS), &Device::Cpu).unwrap();
            weights.insert(format!("model.layers.{layer}.{part}.weight"), weight);
        }
    }
    weights
}

/// Each weight and that of the same name.
fn sum(one: &Weights, other: &Weights) -> Weights {
    one.iter().map(|(name, weight)| (name.clone(), (weight + &other[name]).unwrap())).collect()
}

fn folder(dir: &Path, name: &str, weights: &Weights) -> PathBuf {
    let folder = dir.join(name);
    save_tensors(&folder.join("model.safetensors"), weights).unwrap();
    folder
}

/// A Qwen, whose rows are in the same order.
fn file(dir: &Path, name: &str, weights: &Weights, kind: GgmlType) -> PathBuf {
    let path = dir.join(format!("{name}.gguf"));
    let (mut planned, mut values) = (vec![], vec![]);
    for layer in 0..2 {
        for (part, stored, rows) in SHAPES {
            planned.push(Planned { name: format!("blk.{layer}.{stored}.weight"), shape: vec![rows, COLUMNS], kind });
            let weight = &weights[&format!("model.layers.{layer}.{part}.weight")];
            values.push(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
    }
    let metadata = [("general.architecture".to_string(), Written::Text("qwen2".to_string()))];
    let mut values = values.into_iter();
    write(&path, &metadata, &planned, |_| kind.quantise(&values.next().unwrap())).unwrap();
    path
}

#[test]
fn a_direction_is_accepted_for_the_quantised_form_of_its_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    // V is a third of what Q4_0 leaves.
    let aligned = weights(0.1);
    let unaligned = sum(&aligned, &weights(0.003));
    let out = dir.join("d.safetensors");
    let pair = (folder(dir, "aligned", &aligned), folder(dir, "unaligned", &unaligned));
    compute(&request(&pair.0, &pair.1, out.clone()), &ProgressBar::hidden()).unwrap();
    let directions = Directions::open(&out).unwrap();
    let checked = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        directions.check_against(&directions.shapes(), Some(&checkpoint)).map_err(|error| {
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        })
    };
    for kind in [GgmlType::Q8_0, GgmlType::Q5_1, GgmlType::Q4_0, GgmlType::F16] {
        let name = kind.name();
        let same = checked(&file(dir, name, &aligned, kind));
        if kind == GgmlType::F16 {
            // Not quantised: another weight is another weight.
            assert!(same.unwrap_err().contains("computed from other aligned weights"));
            continue;
        }
        same.unwrap();
        let error = checked(&file(dir, name, &unaligned, kind)).unwrap_err();
        assert!(error.contains("those of the unaligned model") || error.contains("more than the"), "{name}: {error}");
        let error = checked(&file(dir, name, &weights(0.1), kind)).unwrap_err();
        assert!(error.contains("from the aligned one, more than the") && error.contains(name), "{error}");
    }
    // A file of an older version has no sketches.
    let mut tensors = candle_core::safetensors::load(&out, &Device::Cpu).unwrap();
    tensors.retain(|name, _| !name.ends_with(".sketches"));
    let metadata = Checkpoint::open_file(&out).unwrap().metadata().clone();
    let old = dir.join("old.safetensors");
    safetensors::serialize_to_file(&tensors, Some(metadata), &old).unwrap();
    let old = Directions::open(&old).unwrap();
    old.check_against(&old.shapes(), Some(&Checkpoint::open(&pair.0).unwrap())).unwrap();
    let quantised = Checkpoint::open(&file(dir, "again", &aligned, GgmlType::Q8_0)).unwrap();
    let error = old.check_against(&old.shapes(), Some(&quantised)).unwrap_err().to_string();
    assert!(error.contains("has no sketch"), "{error}");
}

#[test]
fn no_direction_is_made_of_quantised_weights_unless_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let (aligned, unaligned) = (weights(0.1), weights(0.1));
    let quantised = file(dir, "aligned", &aligned, GgmlType::Q4_0);
    let full = folder(dir, "unaligned", &unaligned);
    for (one, other) in [(&quantised, &full), (&full, &quantised)] {
        let mut request = request(one, other, dir.join("d.safetensors"));
        let error = compute(&request, &ProgressBar::hidden()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        let text = error.to_string();
        assert!(text.contains("aligned.gguf are quantised (Q4_0)") && text.contains("--allow-quantised"), "{text}");
        assert!(check(&request).is_err() && !request.out.exists());
        request.allow_quantised = true;
        compute(&request, &ProgressBar::hidden()).unwrap();
        // It knows the weights that it was made of.
        let directions = Directions::open(&request.out).unwrap();
        directions.check_against(&directions.shapes(), Some(&Checkpoint::open(one).unwrap())).unwrap();
        std::fs::remove_file(&request.out).unwrap();
    }
}

#[test]
fn four_bits_of_bitsandbytes_leave_half_of_what_is_allowed() {
    let weight = Tensor::randn(0f32, 0.1, (64, 1024), &Device::Cpu).unwrap();
    let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for kind in [Kind::Nf4, Kind::Fp4] {
        let back = Format::FourBit(kind).quantise((64, 1024), &values).unwrap().widened();
        let back = Tensor::from_vec(back, (64, 1024), &Device::Cpu).unwrap();
        let error = norm(&(back - &weight).unwrap()) / norm(&weight);
        let share = error / Stored::FourBit.worst_error().unwrap();
        assert!((0.3..0.55).contains(&share), "{kind:?}: {error}");
    }
}
