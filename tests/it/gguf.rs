//! GGUF files as the base: every family's metadata, names and order of rows. Files by gguf-py:
//! `tests/fixtures/make/gguf_files.py`.

use crate::support::command::{asft, refused, stdout, succeeds, text, train};
use crate::support::files::{copy_files, fixture, read_json_lines, tiny};
use crate::support::goldens::{golden_adapter, spec};
use crate::support::tensors::{relative_error, to_vec};
use asft::adapter::save_gguf;
use asft::checkpoint::{Checkpoint, Stored, weight_hash};
use asft::model::{ModelSpec, Rope};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use half::bf16;
use std::fs::File;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

/// How the rope turns the first positions.
fn turns(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let stretch = rope.stretch(head_dim, 0, 8);
    stretch.frequencies.iter().map(|frequency| frequency * stretch.magnitude).collect()
}

#[test]
fn metadata_say_what_config_json_says() {
    for case in ["llama_linear_bias", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"] {
        let (mut read, mut expected) = (ModelSpec::load(&file(case)).unwrap(), spec(case));
        if case == "qwen2" {
            // Windows are switched off in all of Qwen's models, and llama.cpp has none for them.
            expected.layers.iter_mut().for_each(|layer| layer.window = None);
        }
        // The scale of attention went through f32, Llama 3.1's scaling through factors.
        assert!((read.attention_scale / expected.attention_scale - 1.0).abs() < 1e-7, "{case}");
        read.attention_scale = expected.attention_scale;
        for (rope, expected) in read.ropes.iter().zip(&expected.ropes) {
            for (a, b) in turns(rope, read.head_dim).into_iter().zip(turns(expected, read.head_dim)) {
                assert!((a / b - 1.0).abs() < 1e-6, "{case}: {a} {b}");
            }
        }
        if case == "llama3_rope" {
            (read.ropes, read.max_position_embeddings) = (expected.ropes.clone(), expected.max_position_embeddings);
        }
        assert_eq!(read, expected, "{case}");
    }
}

#[test]
fn tensors_are_those_of_the_model_folder() {
    for case in ["llama_linear_bias", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"] {
        let (read, folder) =
            (Checkpoint::open(&file(case)).unwrap(), Checkpoint::open(&fixture(case).join("model")).unwrap());
        assert_eq!(read.names().collect::<Vec<_>>(), folder.names().collect::<Vec<_>>(), "{case}");
        for name in folder.names() {
            let expected = folder.read_f32(name).unwrap();
            let (values, info) = (read.read_f32(name).unwrap(), read.info(name).unwrap());
            assert_eq!(info.shape, folder.info(name).unwrap().shape, "{case} {name}");
            for (value, expected) in values.into_iter().zip(expected) {
                // Matrices are in BF16 there; Gemma's norms come back from w + 1.
                let expected = if info.shape.len() == 2 { bf16::from_f32(expected).to_f32() } else { expected };
                let rounding = if case.starts_with("gemma") && info.shape.len() == 1 { 1.2e-7 } else { 0.0 };
                assert!((value - expected).abs() <= rounding, "{case} {name}: {value} {expected}");
            }
        }
    }
}

#[test]
fn an_exact_file_has_the_hashes_of_the_folder() {
    let (read, folder) = (Checkpoint::open(&file("tiny")).unwrap(), Checkpoint::open(&tiny("aligned")).unwrap());
    let modules =
        ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.k_proj", "model.layers.1.mlp.down_proj"];
    let modules = modules.map(String::from);
    let hash = |checkpoint: &Checkpoint| -> Vec<String> {
        let names = modules.iter().map(|module| format!("{module}.weight"));
        let of =
            |name: String| weight_hash(&checkpoint.info(&name).unwrap().shape, &checkpoint.read_f32(&name).unwrap());
        names.map(of).collect()
    };
    assert_eq!(hash(&read), hash(&folder));
    assert_eq!(read.info("model.embed_tokens.weight").unwrap().stored, Stored::Plain(safetensors::Dtype::F16));
    assert_eq!(ModelSpec::load(&file("tiny")).unwrap(), ModelSpec::load(&tiny("aligned")).unwrap());
}

/// Rows of heads in Meta's order, as llama.cpp's converter has them.
fn interleaved(matrix: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    let halves = matrix.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

#[test]
fn an_exported_adapter_is_the_same_update_in_the_order_of_the_file() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("lora.gguf");
    // Permuted or not, one rank and alpha or several.
    for (adapter, case) in [
        ("llama_linear_bias", "llama_linear_bias"),
        ("mistral", "mistral"),
        ("qwen3", "qwen3"),
        ("gemma2", "gemma2"),
        ("lora_options", "llama_gqa"),
    ] {
        let (mut adapter, spec) = (golden_adapter(adapter), spec(case));
        for (use_rslora, scaled_to_nothing) in [(false, false), (true, false), (false, true)] {
            adapter.use_rslora = use_rslora;
            if scaled_to_nothing {
                adapter.modules.values_mut().next().unwrap().alpha = 0.0;
            }
            save_gguf(&adapter, &spec, &path).unwrap();
            let mut file = File::open(&path).unwrap();
            let content = Content::read(&mut file).unwrap();
            let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
            assert_eq!((text("general.type"), text("adapter.type")), ("adapter".into(), "lora".into()));
            let alpha = f64::from(content.metadata["adapter.lora.alpha"].to_f32().unwrap());
            assert_eq!(content.tensor_infos.len(), 2 * adapter.modules.len());
            for (module, own) in &adapter.modules {
                let (layer, part) = module.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
                let (name, heads) = match part {
                    "self_attn.q_proj" => ("attn_q", Some(spec.num_attention_heads)),
                    "self_attn.k_proj" => ("attn_k", Some(spec.num_key_value_heads)),
                    "self_attn.v_proj" => ("attn_v", None),
                    "self_attn.o_proj" => ("attn_output", None),
                    "mlp.gate_proj" => ("ffn_gate", None),
                    "mlp.up_proj" => ("ffn_up", None),
                    _ => ("ffn_down", None),
                };
                let mut read = |ending: &str| {
                    let name = format!("blk.{layer}.{name}.weight.lora_{ending}");
                    content.tensor(&mut file, &name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap()
                };
                let (a, b) = (read("a"), read("b"));
                assert_eq!(to_vec(&a), to_vec(&own.a), "{case} {module}");
                // llama.cpp takes an alpha of 0 for none.
                assert!(alpha != 0.0);
                let update = (b.matmul(&a).unwrap() * (alpha / a.dims()[0] as f64)).unwrap();
                let expected = (own.b.matmul(&own.a).unwrap() * adapter.scale(own)).unwrap();
                let heads = heads.filter(|_| ["llama", "mistral"].contains(&spec.model_type.as_str()));
                let expected = heads.map_or(expected.clone(), |heads| interleaved(&expected, heads));
                let error = relative_error(&to_vec(&update), &to_vec(&expected));
                assert!(error < 1e-6, "{case} {module}: {error}");
            }
        }
    }
}

#[test]
fn export_writes_what_a_run_trained() {
    let scratch = tempfile::tempdir().unwrap();
    let (run, out) = (scratch.path().join("run"), scratch.path().join("lora.gguf"));
    succeeds(train(&run, &["train.max_steps=1"], &["-q"]));
    let arguments = ["export", "--format", "gguf", "--model", "tests/tiny/aligned", "--out", text(&out)];
    succeeds(asft(&arguments).args(["--adapter", text(&run)]));
    let content = Content::read(&mut File::open(&out).unwrap()).unwrap();
    assert!(content.tensor_infos.contains_key("blk.2.attn_v.weight.lora_b"), "{:?}", content.tensor_infos.keys());
    assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), "llama");
}

#[test]
fn a_merged_file_is_the_merged_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    let (run, file, folder) = (place("run"), place("model.gguf"), place("folder"));
    // Large steps, so that the update shows in the text.
    succeeds(train(&run, &["train.max_steps=4", "train.learning_rate=0.05"], &["-q"]));
    let adapter = ["--model", "tests/tiny/aligned", "--adapter", text(&run), "--out"];
    succeeds(asft(&["export", "--format", "gguf", "--merged"]).args(adapter).arg(&file));
    succeeds(asft(&["merge"]).args(adapter).arg(&folder));
    assert_eq!(ModelSpec::load(&file).unwrap(), ModelSpec::load(&folder).unwrap());
    let (read, merged) = (Checkpoint::open(&file).unwrap(), Checkpoint::open(&folder).unwrap());
    assert_eq!(read.names().collect::<Vec<_>>(), merged.names().collect::<Vec<_>>());
    for name in merged.names() {
        assert_eq!(read.read_f32(name).unwrap(), merged.read_f32(name).unwrap(), "{name}");
    }
    let answer = |model: &Path, more: &[&str]| {
        stdout(asft(&["generate", "--prompt", "hi", "--max-new-tokens", "8", "--model", text(model)]).args(more))
    };
    let same_tokenizer = answer(&file, &["--tokenizer", "tests/tiny/aligned"]);
    assert_eq!(same_tokenizer, answer(&folder, &[]));
    let content = Content::read(&mut File::open(&file).unwrap()).unwrap();
    assert_eq!(content.metadata["tokenizer.ggml.pre"].to_string().unwrap(), "smollm");
    assert_eq!(content.metadata["tokenizer.ggml.bos_token_id"].to_u32().unwrap(), 1);
    assert_eq!(content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 448);
    // The file's own tokenizer is the same.
    assert_eq!(answer(&file, &[]), same_tokenizer);
    // Its base is an input, though only the adapter names it.
    let own_base = place("base.gguf");
    std::fs::copy(&file, &own_base).unwrap();
    let before = std::fs::read(&own_base).unwrap();
    let run_on_file = place("run_on_file");
    succeeds(train(&run_on_file, &[&format!("model.aligned={}", own_base.display()), "train.max_steps=1"], &["-q"]));
    let export = ["export", "--format", "gguf", "--merged", "--overwrite", "--adapter", text(&run_on_file)];
    refused(asft(&export).arg("--out").arg(&own_base), &["is an input, the adapter's base", "give another path"]);
    assert_eq!(std::fs::read(&own_base).unwrap(), before);
    // What splits text in a way without a name is refused.
    let other = place("other");
    copy_files(&tiny("aligned"), &other);
    let json = std::fs::read_to_string(other.join("tokenizer.json")).unwrap();
    std::fs::write(
        other.join("tokenizer.json"),
        json.replace("\"individual_digits\": true", "\"individual_digits\": false"),
    )
    .unwrap();
    let export =
        ["export", "--format", "gguf", "--merged", "--adapter", text(&run), "--out", text(&file), "--overwrite"];
    refused(asft(&export).args(["--model", text(&other)]), &["in a way that has no name here"]);
}

const TINY: &str = "tests/fixtures/gguf/tiny.gguf";

#[test]
fn a_run_on_a_file_is_the_run_on_the_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let losses = |name: &str, sets: &[&str]| {
        let dir = scratch.path().join(name);
        let sets = [sets, &["train.max_steps=3"]].concat();
        succeeds(train(&dir, &sets, &["-q"]));
        let rows = read_json_lines(&dir.join("metrics.jsonl"));
        rows.iter()
            .filter(|row| row.get("loss").is_some())
            .map(|row| (row["loss"].clone(), row["grad_norm"].clone()))
            .collect::<Vec<_>>()
    };
    let file = losses("file", &[&format!("model.aligned={TINY}"), "model.tokenizer=tests/tiny/aligned"]);
    assert_eq!(file.len(), 3);
    assert_eq!(file, losses("folder", &[]));
    // The adapter says which weights it was trained on, whatever they lay in.
    let (adapter, prompt) = (scratch.path().join("file/adapter"), ["--prompt", "hi", "--max-new-tokens", "4"]);
    let on =
        |model: &[&str]| stdout(asft(&["generate", "--adapter", text(&adapter), "--model"]).args(model).args(prompt));
    assert_eq!(on(&[TINY, "--tokenizer", "tests/tiny/aligned"]), on(&["tests/tiny/aligned"]));
    let merged = |name: &str, model: &[&str]| {
        let out = scratch.path().join(name);
        succeeds(asft(&["merge", "--adapter", text(&adapter), "--out", text(&out), "--model"]).args(model));
        (ModelSpec::load(&out).unwrap(), Checkpoint::open(&out).unwrap(), out)
    };
    let (spec, file, out) = merged("of-file", &[TINY, "--tokenizer", "tests/tiny/aligned"]);
    let (expected, folder, _) = merged("of-folder", &["tests/tiny/aligned"]);
    assert_eq!(
        (spec, file.content_hash(file.names()).unwrap()),
        (expected, folder.content_hash(folder.names()).unwrap())
    );
    assert!(out.join("tokenizer.json").is_file() && out.join("model.safetensors").is_file());
}

#[test]
fn a_file_needs_the_tokenizer_of_its_model() {
    let scratch = tempfile::tempdir().unwrap();
    let generate = |more: &[&str]| {
        let mut command = asft(&["generate", "--model", TINY, "--prompt", "hi"]);
        command.args(more);
        command
    };
    refused(generate(&[]), &["tiny.gguf needs the tokenizer of its model", "--tokenizer"]);
    let run = scratch.path().join("run");
    refused(
        train(&run, &[&format!("model.aligned={TINY}")], &["--dry-run"]),
        &["tiny.gguf needs the tokenizer", "model.tokenizer"],
    );
    // A vocabulary in which two tokens have changed places.
    let other = scratch.path().join("other");
    copy_files(&tiny("aligned"), &other);
    let file = other.join("tokenizer.json");
    let json = std::fs::read_to_string(&file).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    (vocabulary["a"], vocabulary["b"]) = (b, a);
    std::fs::write(&file, json.to_string()).unwrap();
    refused(generate(&["--tokenizer", text(&other)]), &["is not that of", "tiny.gguf", "1 more differ"]);
}
