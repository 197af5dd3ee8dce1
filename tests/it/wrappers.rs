//! Text models inside multimodal classes: two layouts on disk, adapters for either class, and what stays as it is.
//!
//! That they compute what PyTorch does is in the parity tests, which run on them like on all others.

use crate::support::command::{asft, refused, succeeds, text, train};
use crate::support::files::{copy_files, fixture, read_json, tiny};
use crate::support::goldens::*;
use crate::support::runs::interrupt;
use crate::support::tensors::{max_difference, to_vec};
use asft::adapter::{self, LoraOptions};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, ModelSpec, Rope, RopeScaling, Weights};
use asft::names::{Naming, PathPattern, Targets};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const WRAPPERS: [&str; 6] = ["gemma3", "gemma4", "mistral3", "qwen3_vl", "qwen3_5", "qwen3_5_moe"];

/// What the golden adapters of a case are for, in the order of a regular expression and in that of the blocks.
fn adapted_linears(case: &str) -> (&'static str, &'static [&'static str]) {
    match case {
        "qwen3_5" => (
            r"linear_attn\.in_proj_a|linear_attn\.in_proj_b|linear_attn\.in_proj_qkv|linear_attn\.in_proj_z|linear_attn\.out_proj|mlp\.down_proj|self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj",
            &[
                "in_proj_qkv",
                "in_proj_z",
                "in_proj_b",
                "in_proj_a",
                "out_proj",
                "down_proj",
                "q_proj",
                "v_proj",
                "o_proj",
            ],
        ),
        "qwen3_5_moe" => (
            r"linear_attn\.in_proj_a|linear_attn\.in_proj_b|linear_attn\.in_proj_qkv|linear_attn\.in_proj_z|linear_attn\.out_proj|mlp\.shared_expert\.down_proj|mlp\.shared_expert\.gate_proj|self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj",
            &[
                "in_proj_qkv",
                "in_proj_z",
                "in_proj_b",
                "in_proj_a",
                "out_proj",
                "gate_proj",
                "down_proj",
                "q_proj",
                "v_proj",
                "o_proj",
            ],
        ),
        _ => (
            r"mlp\.down_proj|self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj",
            &["q_proj", "v_proj", "o_proj", "down_proj"],
        ),
    }
}

fn tensors(dir: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap().into_iter().collect()
}

/// `language_model.model.*` for `model.language_model.*`, and the other way round.
fn in_other_layout(name: &str) -> String {
    let pairs = [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")];
    for (inner, outer) in pairs {
        for (from, to) in [(inner, outer), (outer, inner)] {
            if let Some(rest) = name.strip_prefix(from) {
                return format!("{to}{rest}");
            }
        }
    }
    name.strip_prefix("model.").map_or_else(|| format!("model.{name}"), str::to_string)
}

/// The golden model with the other layout's names.
fn other_layout(case: &str, dir: &Path) -> PathBuf {
    let out = dir.join(case);
    copy_files(&fixture(case).join("model"), &out);
    let renamed = tensors(&out).into_iter().map(|(name, tensor)| (in_other_layout(&name), tensor)).collect();
    save_tensors(&out.join("model.safetensors"), &renamed).unwrap();
    out
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut value = read_json(path);
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn logits(dir: &Path, case: &str) -> Vec<f64> {
    let (spec, checkpoint) = (ModelSpec::load(dir).unwrap(), Checkpoint::open(dir).unwrap());
    let place = (device(), DType::F32);
    let model = Decoder::load(&spec, &checkpoint, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
    let batch = GoldenBatch::load(case);
    to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap())
}

#[test]
fn both_layouts_on_disk_are_one_model_and_a_merge_keeps_each() {
    let scratch = tempfile::tempdir().unwrap();
    for case in WRAPPERS {
        let (one, other) = (fixture(case).join("model"), other_layout(case, scratch.path()));
        let [first, second] = [&one, &other].map(|dir| Checkpoint::open(dir).unwrap());
        assert!(first.names().eq(second.names()) && first.is_wrapped());
        assert!(first.names().all(|name| name.starts_with("model.layers.") || !name.contains("layers")), "{case}");
        assert_eq!(first.content_hash(first.names()).unwrap(), second.content_hash(second.names()).unwrap());
        assert_eq!(logits(&one, case), logits(&other, case));

        let adapter = golden_adapter(case);
        for (name, source, checkpoint) in [("one", &one, &first), ("other", &other, &second)] {
            let out = scratch.path().join(format!("{case}-{name}"));
            let dtype = Some(DType::BF16);
            adapter::merge(source, checkpoint, &adapter, &out, dtype, &ProgressBar::hidden()).unwrap();
            let (before, after) = (tensors(source), tensors(&out));
            assert!(before.keys().eq(after.keys()), "{case}");
            for (name, tensor) in &before {
                let is_text = name.contains("language_model") || name.contains("lm_head");
                let expected = if is_text { DType::BF16 } else { DType::F32 };
                assert_eq!(after[name].dtype(), expected, "{name}");
                assert!(is_text || to_vec(tensor) == to_vec(&after[name]), "{name}");
            }
        }
    }
}

#[test]
fn a_stored_head_that_differs_wins_over_a_tie() {
    let scratch = tempfile::tempdir().unwrap();
    for (case, key) in [("mistral3", None), ("qwen3_vl", Some(true)), ("llama_gqa", Some(true))] {
        let dir = scratch.path().join(case);
        copy_files(&fixture(case).join("model"), &dir);
        edit(&dir.join("config.json"), |config| match key {
            Some(tied) => config["tie_word_embeddings"] = tied.into(),
            None => drop(config.as_object_mut().unwrap().remove("tie_word_embeddings")),
        });
        assert!(!ModelSpec::load(&dir).unwrap().tie_word_embeddings, "{case}");
        // A copy says it, for readers that do not look.
        let copy = scratch.path().join(format!("{case}-copy"));
        let checkpoint = Checkpoint::open(&dir).unwrap();
        asft::checkpoint::rewrite(&dir, &checkpoint, &copy, None, |_| Ok(None), &ProgressBar::hidden()).unwrap();
        assert_eq!(read_json(&copy.join("config.json"))["tie_word_embeddings"], false, "{case}");
        let batch = GoldenBatch::load(case);
        let expected = batch.live(&Golden::expected(case).values("base.logits"), spec(case).vocab_size);
        assert!(max_difference(&logits(&dir, case), &expected) <= 1e-4, "{case}");
    }
}

#[test]
fn adapters_are_written_for_the_base_s_class_and_read_for_either() {
    let scratch = tempfile::tempdir().unwrap();
    for case in WRAPPERS {
        let mut adapter = golden_adapter(case);
        assert_eq!(adapter.layout, Naming::Wrapper, "{case}");
        adapter.check_fits(&spec(case)).unwrap();
        let save = |adapter: &adapter::Adapter, name: &str| {
            let dir = scratch.path().join(format!("{case}-{name}"));
            adapter::save(adapter, &spec(case), &base_checkpoint(case), "", &dir).unwrap();
            (
                read_json(&dir.join("adapter_config.json"))["target_modules"].clone(),
                adapter::load(&dir, device()).unwrap(),
            )
        };
        let (pattern, read) = save(&adapter, "wrapper");
        let pattern = pattern.as_str().unwrap();
        let (linears, short_names) = adapted_linears(case);
        assert_eq!(pattern, format!(r"model\.language_model\.layers\.\d+\.({linears})"));
        let matching = PathPattern::new("t", pattern).unwrap();
        for hidden in ["model.vision_tower.transformer.layers.0.attention.q_proj", "model.layers.0.self_attn.q_proj"] {
            assert!(!matching.matches(hidden).unwrap());
        }
        assert!(read.modules.keys().eq(adapter.modules.keys()) && read.layout == Naming::Wrapper);

        adapter.layout = Naming::Text;
        let (names, read) = save(&adapter, "text");
        assert_eq!(names, json!(short_names));
        assert!(read.modules.keys().eq(adapter.modules.keys()) && read.layout == Naming::Text);
        read.check_fits(&spec(case)).unwrap();

        // Some layers; and linears in different layers.
        adapter.layout = Naming::Wrapper;
        adapter.modules.retain(|name, _| !name.contains(".1."));
        let (pattern, _) = save(&adapter, "some");
        assert!(pattern.as_str().unwrap().contains(r"layers\.(0|2)\."), "{pattern}");
        adapter.modules.pop_first();
        let (paths, _) = save(&adapter, "odd");
        assert!(
            paths
                .as_array()
                .unwrap()
                .iter()
                .all(|path| path.as_str().unwrap().starts_with("model.language_model.layers."))
        );
    }
}

#[test]
fn vision_modules_are_no_targets() {
    let spec = spec("gemma3");
    let targets = |targets: Targets| LoraOptions { target_modules: targets, ..Default::default() }.targets(&spec);
    for none in [
        Targets::List(vec!["q_proj".into(), "model.vision_tower.encoder.layers.0.self_attn.q_proj".into()]),
        Targets::List(vec!["fc1".into()]),
        Targets::Regex(r".*vision_tower.*q_proj".into()),
        Targets::Regex(r"(?!.*language_model).*q_proj".into()),
    ] {
        let error = targets(none).unwrap_err();
        assert_eq!(asft::error::exit_code(&error), 2);
        assert!(error.to_string().contains("not its vision tower's"), "{error:#}");
    }
    let in_class = r"model\.language_model\.layers\.[02]\..*q_proj";
    for (written, count) in [
        (Targets::Regex(in_class.into()), 2),
        (Targets::Regex(r"(?!.*vision_tower).*q_proj".into()), 3),
        (Targets::List(vec!["language_model.layers.1.mlp.up_proj".into(), "q_proj".into()]), 4),
        (Targets::AllLinear, 21),
    ] {
        let found = targets(written).unwrap();
        assert!(found.len() == count && found.iter().all(|module| module.starts_with("model.layers.")), "{found:?}");
    }
}

/// What the golden of ministral3 is there to see.
#[test]
fn queries_that_grow_and_yarn_s_magnitudes_show() {
    let (case, batch) = ("mistral3", GoldenBatch::load("mistral3"));
    let expected = batch.live(&Golden::expected(case).values("base.logits"), spec(case).vocab_size);
    let without = |change: fn(&mut Rope)| {
        let mut spec = spec(case);
        spec.ropes.iter_mut().for_each(change);
        let place = (device(), DType::F32);
        let checkpoint = base_checkpoint(case);
        let model = Decoder::load(&spec, &checkpoint, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
        max_difference(&to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap()), &expected)
    };
    assert!(without(|_| {}) <= 1e-4);
    assert!(without(|rope| rope.growth = None) > 1e-2);
    let unscaled = without(|rope| {
        if let RopeScaling::Yarn { attention_factor, .. } = &mut rope.scaling {
            *attention_factor = 1.0;
        }
    });
    assert!(unscaled > 1e-2);
}

/// The tiny model of a kind as a Mistral inside its multimodal class, with something that is no text model.
fn wrapped_tiny(kind: &str, scratch: &Path) -> PathBuf {
    let dir = scratch.join(kind);
    copy_files(&tiny(kind), &dir);
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, tensor) in tensors(&dir) {
        all.insert(name.replacen("model.", "language_model.model.", 1), tensor);
    }
    let zeros = Tensor::zeros((4, 4), DType::F16, &Device::Cpu).unwrap();
    all.insert("vision_tower.transformer.layers.0.attention.q_proj.weight".to_string(), zeros);
    save_tensors(&dir.join("model.safetensors"), &all).unwrap();
    edit(&dir.join("config.json"), |config| {
        let mut inner = config.clone();
        (inner["model_type"], inner["sliding_window"]) = ("mistral".into(), Value::Null);
        *config = json!({"model_type": "mistral3", "dtype": "float16", "text_config": inner, "eos_token_id": 2});
    });
    dir
}

#[test]
fn a_run_on_a_wrapper_is_the_run_on_its_text_model() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, inside) = (scratch.path(), wrapped_tiny("aligned", scratch.path()));
    let model = format!("model.aligned={}", inside.display());
    let sets = ["train.max_steps=4", "output.save_every_steps=2"];
    let dirs = ["plain", "inside", "again"].map(|name| base.join(name));
    succeeds(train(&dirs[0], &sets, &["-q"]));
    // The unaligned model is the text model alone.
    let inside_sets = [&sets[..], &[&model]].concat();
    succeeds(train(&dirs[1], &inside_sets, &["-q"]));
    interrupt(&dirs[1], "adapter", &[4]);
    succeeds(train(&dirs[1], &inside_sets, &["-q", "--resume"]));
    let read = |dir: &Path| adapter::load(&dir.join("adapter"), device()).unwrap();
    let [plain, wrapped] = [&dirs[0], &dirs[1]].map(|dir| read(dir));
    for (name, module) in &plain.modules {
        let other = &wrapped.modules[name];
        assert!(to_vec(&module.b) == to_vec(&other.b) && to_vec(&module.a) == to_vec(&other.a), "{name}");
    }
    assert_eq!((plain.layout, wrapped.layout), (Naming::Text, Naming::Wrapper));
    let card = std::fs::read_to_string(dirs[1].join("adapter/README.md")).unwrap();
    assert!(card.contains("AutoModelForImageTextToText") && card.contains("does nothing"), "{card}");

    // Each adapter on either class; the export for the other class.
    let adapters = dirs.each_ref().map(|dir| dir.join("adapter"));
    for (model, adapter) in [(tiny("aligned"), &adapters[1]), (inside.clone(), &adapters[0])] {
        let out = base.join("merged");
        let arguments =
            ["merge", "--overwrite", "--model", text(&model), "--adapter", text(adapter), "--out", text(&out)];
        succeeds(asft(&arguments));
        assert!(tensors(&model).keys().eq(tensors(&out).keys()));
    }
    succeeds(train(&dirs[2], &[&sets[..], &[&model, "export.layout=text"]].concat(), &["-q"]));
    let names = tensors_of_adapter(&adapters[2]);
    assert!(names.iter().all(|name| name.starts_with("base_model.model.model.layers.")), "{names:?}");

    let odd = ["--set", "lora.target_modules=[\"vision_tower.transformer.layers.0.attention.q_proj\"]"];
    let mut command = train(&base.join("refused"), &[&model], &[]);
    refused(command.args(odd), &["nothing matches", "not its vision tower's"]);
    // A config of the class without its tensors.
    let bare = base.join("bare");
    copy_files(&tiny("aligned"), &bare);
    std::fs::copy(inside.join("config.json"), bare.join("config.json")).unwrap();
    let bare = format!("model.aligned={}", bare.display());
    refused(train(&base.join("refused"), &[&bare], &[]), &["no tensor is in model.language_model"]);
}

fn tensors_of_adapter(dir: &Path) -> Vec<String> {
    let file = Checkpoint::open_file(&dir.join("adapter_model.safetensors")).unwrap();
    file.names().map(str::to_string).collect()
}
