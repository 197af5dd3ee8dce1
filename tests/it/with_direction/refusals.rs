//! Adapters, directions and options that do not go together.

use super::*;
use crate::support::command::{ends, refused};
use crate::support::files::copy_files;
use crate::support::tensors::to_vec;
use asft::adapter;
use asft::checkpoint::save_tensors;
use asft::hub::Resolved;
use asft::method::direction::{DirectionRequest, compute};
use asft::method::spectral::Keep;
use asft::names::Targets;
use candle_core::{Device, Tensor};
use indicatif::ProgressBar;

#[test]
fn adapters_and_directions_that_do_not_fit_are_refused() {
    let (scratch, direction) = golden_direction();
    let (_tiny_scratch, tiny) = tiny_direction();
    let source = fixture("llama_gqa").join("adapter");
    let (out, copy) = (scratch.path().join("out"), scratch.path().join("copy"));
    let both = |adapter: &Path, direction: &Path, needles: &[&str]| {
        let paths = ["--adapter", text(adapter), "--direction", text(direction)];
        refused(asft(&["project", "--out", text(&out)]).args(paths), needles);
        refused(asft(&["inspect"]).args(paths), needles);
        assert!(!out.exists());
    };
    both(&source, &tiny, &["o_proj is not in the direction", "--target-modules", "fixtures/llama_gqa"]);
    both(Path::new("nowhere"), &direction, &["nowhere", "does not exist"]);
    both(&source, Path::new("nowhere"), &["direction file nowhere does not exist"]);
    both(&fixture("gemma2").join("adapter"), &direction, &["does not fit the direction"]);
    // Of the same shapes, without a record of what it was trained on: used, with a note.
    let same_shapes = fixture("qwen2").join("adapter");
    let inspect = asft(&["inspect", "--adapter", text(&same_shapes), "--direction", text(&direction)]);
    ends(inspect, 0, &["warning: the adapter names fixtures/qwen2 as its base"]);

    // An adapter that records other weights as its base.
    std::fs::create_dir(&copy).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(source.join(name), copy.join(name)).unwrap();
    }
    std::fs::write(copy.join("asft.json"), r#"{"asft_version": "0.1.0", "base_weights": "00"}"#).unwrap();
    both(&copy, &direction, &["trained on other weights", "fixtures/llama_gqa"]);

    // A damaged one.
    let weights = candle_core::safetensors::load(source.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let damage = |(name, x): (String, Tensor)| {
        let x = if name.contains("layers.1.self_attn.q_proj.lora_B") { (x * f64::NAN).unwrap() } else { x };
        (name, x)
    };
    save_tensors(&copy.join("adapter_model.safetensors"), &weights.into_iter().map(damage).collect()).unwrap();
    both(&copy, &direction, &["layers.1.self_attn.q_proj.lora_B.weight holds values that are not finite"]);
}

/// A direction of a model against itself, which `asft direction` refuses to make and a run that only measures makes.
fn flat_direction(model: &Path, out: PathBuf, targets: &str) -> PathBuf {
    let model = Resolved { place: model.to_path_buf(), tokenizer: None, id: None, revision: None };
    let request = DirectionRequest {
        aligned: model.clone(),
        unaligned: model,
        out,
        targets: Targets::List(targets.split(',').map(str::to_string).collect()),
        keep: Keep::Tolerance(0.0),
        allow_missing: false,
        allow_equal: true,
        allow_quantised: false,
    };
    compute(&request, &ProgressBar::hidden()).unwrap().out
}

/// A model against itself: no direction, so nothing is projected, judged or moved along.
#[test]
fn without_a_direction_nothing_is_claimed() {
    let model = fixture("llama_gqa").join("model");
    let scratch = tempfile::tempdir().unwrap();
    let direction = flat_direction(&model, scratch.path().join("direction.safetensors"), ALL);
    let (source, out) = (fixture("llama_gqa").join("adapter"), scratch.path().join("out"));
    let paths = ["--json", "--adapter", text(&source), "--direction", text(&direction)];
    let report = json(asft(&["project", "--threshold", "1", "--out", text(&out)]).args(paths));
    assert_eq!(report["projected"], 0);
    let load = |dir: &Path| adapter::load(dir, &Device::Cpu).unwrap();
    let (before, after) = (load(&source), load(&out));
    assert!(before.modules.iter().all(|(name, module)| to_vec(&module.b) == to_vec(&after.modules[name].b)));
    let report = json(asft(&["inspect"]).args(paths));
    assert!(report["verdict"].as_str().unwrap().starts_with("nothing to judge"));
    let first = &report["modules"][0];
    assert!(first["norm"].as_f64().unwrap() > 0.0 && first["aligned"].is_null() && first["signed"].is_null());
    let nowhere = flat_direction(&tiny("aligned"), scratch.path().join("nowhere.safetensors"), "q_proj");
    let basin = scratch.path().join("basin");
    let landscape = ["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"];
    let paths = ["--direction", text(&nowhere), "--out", text(&basin)];
    refused(asft(&landscape).args(paths), &["V = 0 in every module"]);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (scratch, direction) = golden_direction();
    let (source, base) = (fixture("llama_gqa").join("adapter"), fixture("llama_gqa").join("model"));
    let out = scratch.path().join("out");
    let project = ["project", "--adapter", text(&source), "--direction", text(&direction), "--out", text(&out)];
    refused(asft(&project).args(["--layers", "13"]), &["only 12 of the adapter's 12 modules"]);
    refused(asft(&project).args(["--threshold", "2"]), &["--threshold should be a cosine"]);
    let inspect = ["inspect", "--direction", text(&direction), "--model"];
    let models = [text(&base), "--base", "tests/tiny/aligned"];
    refused(asft(&inspect).args(models), &["in --base", "[48, 56] in the direction"]);
    let unaligned = fixture("llama_gqa").join("unaligned");
    let models = [text(&base), "--base", text(&unaligned)];
    refused(asft(&inspect).args(models), &["--base", "computed from other aligned weights"]);
    let landscape = ["landscape", "--data", "tests/tiny/train.jsonl", "--direction", text(&direction), "--out"];
    let landscape = [&landscape[..], &[text(&out), "--model"]].concat();
    refused(asft(&landscape).args(["tests/tiny/aligned"]), &["does not fit this model"]);
    refused(asft(&landscape).args(["tests/tiny/aligned", "--points", "4"]), &["--points should be odd"]);
    let (_tiny_scratch, tiny) = tiny_direction();
    let landscape = ["landscape", "--model", "tests/tiny/aligned", "--direction", text(&tiny), "--out", text(&out)];
    refused(asft(&landscape).args(["--data", "nothing.jsonl"]), &["nothing.jsonl"]);
    assert!(!out.exists());
}

/// What its config names must be there, as far as the direction or the model knows the linears.
#[test]
fn an_adapter_that_lost_matrices_is_refused() {
    let (scratch, direction) = golden_direction();
    let (source, out, base) =
        (scratch.path().join("adapter"), scratch.path().join("out"), fixture("llama_gqa").join("model"));
    copy_files(&fixture("llama_gqa").join("adapter"), &source);
    let weights = source.join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    tensors.retain(|name, _| !name.contains("v_proj"));
    save_tensors(&weights, &tensors.into_iter().collect()).unwrap();
    let by_direction = ["--adapter", text(&source), "--direction", text(&direction)];
    let by_model = ["--adapter", text(&source), "--model", text(&base)];
    let needle = ["model.layers.0.self_attn.v_proj is named there and has no matrices"];
    refused(asft(&["inspect"]).args(by_direction), &needle);
    refused(asft(&["project", "--out", text(&out)]).args(by_direction), &needle);
    refused(asft(&["merge", "--out", text(&out)]).args(by_model), &needle);
    assert!(!out.exists());
}
