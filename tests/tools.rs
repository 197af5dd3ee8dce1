//! `asft project`, `asft inspect` and `asft landscape` as a user runs them, against goldens of the literal formulas (see
//! `tests/fixtures/make/project.py`), and one clear error for each kind of bad input.

mod common;

use asft::adapter;
use asft::checkpoint::{Checkpoint, save_tensors};
use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use common::{Golden, fixture, relative_error, to_vec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TOLERANCE: f64 = 1e-5;
const ALL: &str = "q_proj,v_proj,o_proj,down_proj";

fn asft(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("HF_HUB_OFFLINE", "1").args(arguments);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    let output = asft(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A scratch folder with a direction of whole rank in it.
fn with_direction(aligned: &Path, unaligned: &Path, targets: &str) -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("direction.safetensors");
    let pair = ["direction", "--aligned", text(aligned), "--unaligned", text(unaligned), "--out", text(&path)];
    asft(&pair).args(["--tolerance", "0", "--target-modules", targets]).assert().success();
    (scratch, path)
}

fn golden_direction() -> (TempDir, PathBuf) {
    with_direction(&fixture("llama_gqa").join("model"), &fixture("llama_gqa").join("unaligned"), ALL)
}

fn tiny_direction() -> (TempDir, PathBuf) {
    with_direction(Path::new("tests/tiny/aligned"), Path::new("tests/tiny/unaligned"), "q_proj,v_proj")
}

fn golden() -> Golden {
    Golden::load(&fixture("project").join("expected.safetensors"))
}

/// Rows of a report by module.
fn by_module(report: &Value) -> BTreeMap<&str, &Value> {
    report["modules"].as_array().unwrap().iter().map(|m| (m["module"].as_str().unwrap(), m)).collect()
}

#[track_caller]
fn near(what: &str, got: &Value, expected: f64) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what}: {got}"));
    assert!((got - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{what}: {got} instead of {expected}");
}

#[test]
fn projecting_every_module_gives_what_safe_lora_gives() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (source, out) = (fixture("llama_gqa").join("adapter"), scratch.path().join("out"));
    let paths = ["--adapter", text(&source), "--direction", text(&direction), "--out", text(&out)];
    let report = json(&[&["project", "--json", "--threshold", "1"][..], &paths].concat());
    assert_eq!(report["projected"], 12);
    let (before, after) = (adapter::load(&source, &Device::Cpu).unwrap(), adapter::load(&out, &Device::Cpu).unwrap());
    let mut worst = 0f64;
    for (module, row) in by_module(&report) {
        near(module, &row["cosine"], golden.values(&format!("{module}.cosine"))[0]);
        near(module, &row["kept"], golden.values(&format!("{module}.aligned"))[0]);
        let (old, new) = (&before.modules[module], &after.modules[module]);
        assert_eq!((new.rank(), new.alpha), (4, 12.0));
        assert_eq!(to_vec(&new.a), to_vec(&old.a));
        worst = worst.max(relative_error(&to_vec(&new.b), &golden.values(&format!("{module}.lora_B"))));
    }
    assert!(worst <= TOLERANCE, "relative error {worst:e}");
    // The folder is a whole one, for the same base.
    let read = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read(&out, "adapter_config.json"), read(&source, "adapter_config.json"));
    assert!(read(&out, "README.md").contains("base_model: \"fixtures/llama_gqa\""));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2, "something was left behind");
    asft(&["project"]).args(paths).assert().code(2);
}

#[test]
fn only_the_lowest_cosines_are_projected() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let source = fixture("llama_gqa").join("adapter");
    let adapter = ["project", "--json", "--adapter", text(&source), "--direction", text(&direction), "--out"];
    let mut cosines: Vec<(f64, String)> = golden
        .with_prefix("model.")
        .filter_map(|(name, value)| Some((to_vec(value)[0], format!("model.{}", name.strip_suffix(".cosine")?))))
        .collect();
    cosines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let chosen = |report: &Value| -> Vec<String> {
        let modules = by_module(report);
        let mut names: Vec<_> =
            modules.iter().filter(|(_, m)| m["projected"] == true).map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    };
    let first = |count: usize| {
        let mut names: Vec<String> = cosines[..count].iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    };
    let by_number = scratch.path().join("by_number");
    assert_eq!(chosen(&json(&[&adapter[..], &[text(&by_number), "--layers", "3"]].concat())), first(3));
    let between = ((cosines[4].0 + cosines[5].0) / 2.0).to_string();
    let by_threshold = scratch.path().join("by_threshold");
    assert_eq!(chosen(&json(&[&adapter[..], &[text(&by_threshold), "--threshold", &between]].concat())), first(5));
    // The others are as they were, to the bit.
    let load = |dir: &Path| adapter::load(dir, &Device::Cpu).unwrap();
    let (before, after) = (load(&source), load(&by_number));
    for (name, module) in &before.modules {
        let same = to_vec(&module.b) == to_vec(&after.modules[name].b);
        assert_eq!(same, !first(3).contains(name), "{name}");
    }
}

const SHARES: [&str; 7] =
    ["norm", "aligned", "orthogonal", "subspace_aligned", "subspace_orthogonal", "cosine", "signed"];

#[test]
fn the_shares_of_an_adapter_are_those_of_its_whole_matrices() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (source, svg) = (fixture("llama_gqa").join("adapter"), scratch.path().join("map.svg"));
    let adapter = ["inspect", "--adapter", text(&source), "--direction", text(&direction)];
    let report = json(&[&adapter[..], &["--json", "--sort", "signed", "--svg", text(&svg)]].concat());
    let modules = by_module(&report);
    assert_eq!(modules.len(), 12);
    for (module, row) in modules {
        for share in SHARES {
            near(&format!("{module} {share}"), &row[share], golden.values(&format!("{module}.{share}"))[0]);
        }
    }
    let signed: Vec<f64> =
        report["modules"].as_array().unwrap().iter().map(|m| m["signed"].as_f64().unwrap()).collect();
    assert!(signed.is_sorted(), "{signed:?}");
    assert!(report["verdict"].as_str().is_some_and(|verdict| verdict.contains("V")));
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("down_proj") && svg.trim_end().ends_with("</svg>"));
    let output = asft(&adapter).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("verdict: ")), "{table}");
}

/// `model` with every weight of the adapter moved as the golden has it.
fn tuned(model: &Path, source: &Path, out: &Path) {
    let (checkpoint, adapter) = (Checkpoint::open(model).unwrap(), adapter::load(source, &Device::Cpu).unwrap());
    let mut tensors = BTreeMap::new();
    for name in checkpoint.names() {
        let weight = checkpoint.tensor(name, DType::F64, &Device::Cpu).unwrap();
        let module = name.strip_suffix(".weight").and_then(|module| adapter.modules.get(module));
        let moved = module.map(|module| {
            let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
            let update = (wide(&module.b).matmul(&wide(&module.a)).unwrap() * adapter.scale(module)).unwrap();
            ((&weight + update).unwrap() + (&weight * 0.01).unwrap()).unwrap()
        });
        tensors.insert(name.to_string(), moved.unwrap_or(weight).to_dtype(DType::F32).unwrap());
    }
    std::fs::create_dir(out).unwrap();
    save_tensors(&out.join("model.safetensors"), &tensors).unwrap();
}

#[test]
fn the_shares_of_a_tuned_model_are_those_of_its_difference() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (base, out) = (fixture("llama_gqa").join("model"), scratch.path().join("tuned"));
    tuned(&base, &fixture("llama_gqa").join("adapter"), &out);
    let models = ["--model", text(&out), "--base", text(&base), "--direction", text(&direction)];
    let report = json(&[&["inspect", "--json"][..], &models].concat());
    for (module, row) in by_module(&report) {
        for share in SHARES {
            near(&format!("{module} {share}"), &row[share], golden.values(&format!("full.{module}.{share}"))[0]);
        }
    }
}

fn eval(model: &Path) -> f64 {
    json(&["eval", "--json", "--data", "tests/tiny/train.jsonl", "--model", text(model)])["loss"].as_f64().unwrap()
}

/// The tiny model moved by `alpha` of each weight's norm along V, by hand.
fn moved_along_v(alpha: f64, out: &Path) {
    let open = |side: &str| Checkpoint::open(&PathBuf::from("tests/tiny").join(side)).unwrap();
    let (aligned, unaligned) = (open("aligned"), open("unaligned"));
    let norm = |x: &Tensor| to_vec(x).iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut tensors = BTreeMap::new();
    for name in aligned.names() {
        let weight = aligned.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let moves = name.ends_with("q_proj.weight") || name.ends_with("v_proj.weight");
        let weight = if moves {
            let v = (&weight - unaligned.tensor(name, DType::F32, &Device::Cpu).unwrap()).unwrap();
            (&weight + (&v * (alpha * norm(&weight) / norm(&v))).unwrap()).unwrap()
        } else {
            weight
        };
        tensors.insert(name.to_string(), weight);
    }
    std::fs::create_dir(out).unwrap();
    for entry in std::fs::read_dir("tests/tiny/aligned").unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, out.join(path.file_name().unwrap())).unwrap();
    }
    save_tensors(&out.join("model.safetensors"), &tensors).unwrap();
}

/// The tiny aligned model with the unaligned one's block linears.
fn unaligned_linears(out: &Path) -> PathBuf {
    moved_along_v(0.0, out);
    let open = |side: &str| Checkpoint::open(&PathBuf::from("tests/tiny").join(side)).unwrap();
    let (aligned, unaligned) = (open("aligned"), open("unaligned"));
    let pick = |name: &str| if name.contains("_proj.") { &unaligned } else { &aligned };
    let tensor = |name: &str| (name.to_string(), pick(name).tensor(name, DType::F32, &Device::Cpu).unwrap());
    save_tensors(&out.join("model.safetensors"), &aligned.names().map(tensor).collect()).unwrap();
    out.to_path_buf()
}

#[test]
fn a_landscape_is_what_moved_models_measure() {
    let (scratch, direction) = tiny_direction();
    let landscape = |name: &str, seed: &str| -> String {
        let out = scratch.path().join(name);
        let model = ["landscape", "--model", "tests/tiny/aligned", "--direction", text(&direction)];
        let plan = ["--points", "3", "--grid", "3", "--repeats", "2", "--seed", seed, "--out", text(&out)];
        let output = asft(&model).args(["--data", "toy=tests/tiny/train.jsonl"]).args(plan).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for picture in ["curves", "grid"] {
            let svg = std::fs::read_to_string(out.join(format!("{picture}.svg"))).unwrap();
            assert!(
                svg.starts_with("<svg") && svg.contains("toy") && svg.contains("nats per label token"),
                "{picture}"
            );
            let png = std::fs::read(out.join(format!("{picture}.png"))).unwrap();
            assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{picture}");
        }
        std::fs::read_to_string(out.join("landscape.json")).unwrap()
    };
    let text = landscape("a", "1");
    assert_eq!(text, landscape("b", "1"), "one seed, one landscape");
    assert_ne!(text, landscape("c", "2"));
    let record: Value = serde_json::from_str(&text).unwrap();
    let found = &record["landscape"];
    assert_eq!(found["steps"], serde_json::json!([-0.5, 0.0, 0.5]));
    let curves = found["curves"].as_array().unwrap();
    assert_eq!(curves.iter().filter(|curve| curve["axis"] == "orthogonal").count(), 2);
    let along = &curves[0];
    assert_eq!(along["axis"], "aligned");
    near("the model itself", &along["values"][0][1], eval(Path::new("tests/tiny/aligned")));
    for (i, alpha) in [(0, -0.5), (2, 0.5)] {
        let model = scratch.path().join(format!("moved-{i}"));
        moved_along_v(alpha, &model);
        near("moved along V", &along["values"][0][i], eval(&model));
        // The grid's middle row is that curve.
        assert_eq!(found["grid"]["values"][0][1][i], along["values"][0][i]);
    }
    // In norms of V, the unaligned model is at -1, and nothing of the tiny pair differs but what the direction holds.
    let out = scratch.path().join("d");
    let model =
        ["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--unit", "direction"];
    let plan = ["--range", "1", "--points", "3", "--grid", "0", "--repeats", "1"];
    let (_scratch, whole) =
        with_direction(Path::new("tests/tiny/aligned"), Path::new("tests/tiny/unaligned"), "all-linear");
    asft(&model).args(plan).arg("--direction").arg(&whole).arg("--out").arg(&out).assert().success();
    let record: Value = serde_json::from_str(&std::fs::read_to_string(out.join("landscape.json")).unwrap()).unwrap();
    assert_eq!(record["unaligned_at"]["farthest"], -1.0);
    let expected = eval(&unaligned_linears(&scratch.path().join("unaligned")));
    near("the unaligned model", &record["landscape"]["curves"][0]["values"][0][0], expected);
}

/// Asserts exit code 2 and one `error:` line with all of `needles`.
#[track_caller]
fn refused(arguments: &[&str], needles: &[&str]) {
    let output = asft(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error")).count(), 1, "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
    }
}

#[test]
fn adapters_and_directions_that_do_not_fit_are_refused() {
    let (scratch, direction) = golden_direction();
    let (_tiny_scratch, tiny) = tiny_direction();
    let source = fixture("llama_gqa").join("adapter");
    let (out, copy) = (scratch.path().join("out"), scratch.path().join("copy"));
    let both = |adapter: &Path, direction: &Path, needles: &[&str]| {
        let paths = ["--adapter", text(adapter), "--direction", text(direction)];
        refused(&[&["project", "--out", text(&out)][..], &paths].concat(), needles);
        refused(&[&["inspect"][..], &paths].concat(), needles);
        assert!(!out.exists());
    };
    both(&source, &tiny, &["o_proj is not in the direction", "--target-modules", "fixtures/llama_gqa"]);
    both(Path::new("nowhere"), &direction, &["nowhere", "does not exist"]);
    both(&source, Path::new("nowhere"), &["direction file nowhere does not exist"]);
    both(&fixture("gemma2").join("adapter"), &direction, &["does not fit the direction"]);
    // Of the same shapes, and no word of what it was trained on: used, with a note.
    let same_shapes = fixture("qwen2").join("adapter");
    let output = asft(&["inspect", "--adapter", text(&same_shapes), "--direction", text(&direction)]).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: the adapter names fixtures/qwen2 as its base"));

    // An adapter that says which weights it was trained on: others.
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

/// A model against itself: no direction, so nothing is projected, judged or moved along.
#[test]
fn without_a_direction_nothing_is_claimed() {
    let model = fixture("llama_gqa").join("model");
    let (scratch, direction) = with_direction(&model, &model, ALL);
    let (source, out) = (fixture("llama_gqa").join("adapter"), scratch.path().join("out"));
    let paths = ["--json", "--adapter", text(&source), "--direction", text(&direction)];
    let report = json(&[&["project"][..], &paths, &["--threshold", "1", "--out", text(&out)]].concat());
    assert_eq!(report["projected"], 0);
    let load = |dir: &Path| adapter::load(dir, &Device::Cpu).unwrap();
    let (before, after) = (load(&source), load(&out));
    assert!(before.modules.iter().all(|(name, module)| to_vec(&module.b) == to_vec(&after.modules[name].b)));
    let report = json(&[&["inspect"][..], &paths].concat());
    assert!(report["verdict"].as_str().unwrap().starts_with("nothing to judge"));
    let first = &report["modules"][0];
    assert!(first["norm"].as_f64().unwrap() > 0.0 && first["aligned"].is_null() && first["signed"].is_null());
    let (_scratch, nowhere) =
        with_direction(Path::new("tests/tiny/aligned"), Path::new("tests/tiny/aligned"), "q_proj");
    let basin = scratch.path().join("basin");
    let landscape = ["landscape", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"];
    refused(
        &[&landscape[..], &["--direction", text(&nowhere), "--out", text(&basin)]].concat(),
        &["V = 0 in every module"],
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (scratch, direction) = golden_direction();
    let (source, base) = (fixture("llama_gqa").join("adapter"), fixture("llama_gqa").join("model"));
    let out = scratch.path().join("out");
    let project = ["project", "--adapter", text(&source), "--direction", text(&direction), "--out", text(&out)];
    refused(&[&project[..], &["--layers", "13"]].concat(), &["only 12 of the adapter's 12 modules"]);
    refused(&[&project[..], &["--threshold", "2"]].concat(), &["--threshold should be a cosine"]);
    let inspect = ["inspect", "--direction", text(&direction), "--model"];
    refused(
        &[&inspect[..], &[text(&base), "--base", "tests/tiny/aligned"]].concat(),
        &["in --base", "[48, 56] in the direction"],
    );
    let unaligned = fixture("llama_gqa").join("unaligned");
    refused(
        &[&inspect[..], &[text(&base), "--base", text(&unaligned)]].concat(),
        &["--base", "computed from other aligned weights"],
    );
    let landscape = ["landscape", "--data", "tests/tiny/train.jsonl", "--direction", text(&direction), "--out"];
    let landscape = [&landscape[..], &[text(&out), "--model"]].concat();
    refused(&[&landscape[..], &["tests/tiny/aligned"]].concat(), &["does not fit this model"]);
    refused(&[&landscape[..], &["tests/tiny/aligned", "--points", "4"]].concat(), &["--points should be odd"]);
    let (_tiny_scratch, tiny) = tiny_direction();
    let landscape = ["landscape", "--model", "tests/tiny/aligned", "--direction", text(&tiny), "--out", text(&out)];
    refused(&[&landscape[..], &["--data", "nothing.jsonl"]].concat(), &["nothing.jsonl"]);
    assert!(!out.exists());
}
