//! What `asft train` offers beside the published penalty, on the tiny model: the real binary.

use asft::adapter;
use asft::checkpoint::Checkpoint;
use asft::method::direction_file::Directions;
use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `asft train` on the tiny config into `dir`.
fn train(dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").env_remove("ASFT_THREADS");
    command.args(["train", "--config", "configs/tiny.toml", "--set"]).arg(format!("output.dir={}", dir.display()));
    for set in sets {
        command.args(["--set", set]);
    }
    command.args(flags);
    command
}

#[track_caller]
fn refused(dir: &Path, sets: &[&str], needles: &[&str]) {
    let output = train(dir, sets, &[]).assert().code(2).get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    for needle in needles {
        assert!(text.contains(needle), "no `{needle}` in: {text}");
    }
    assert!(!dir.exists());
}

fn rows(dir: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// metrics.jsonl without what depends on the clock.
fn timeless(dir: &Path) -> Vec<Value> {
    let mut rows = rows(dir, "metrics.jsonl");
    for key in ["tokens_per_second", "elapsed_seconds", "peak_memory_bytes"] {
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().shift_remove(key)));
    }
    rows
}

/// Makes a finished run look as if it had been killed after step `last`.
fn interrupt(dir: &Path, result: &str, last: usize) {
    std::fs::remove_file(dir.join("run.json")).unwrap();
    std::fs::remove_dir_all(dir.join(result)).unwrap();
    std::fs::remove_dir_all(dir.join(format!("checkpoints/step-{last}"))).unwrap();
}

fn norm(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// √(Σ ‖(I − C) ΔW‖² / Σ ‖W‖²) of a run's adapter, with every matrix formed.
fn penalised_share(dir: &Path) -> f64 {
    let adapter = adapter::load(&dir.join("adapter"), &Device::Cpu).unwrap();
    let directions = Directions::open(&dir.join("direction.safetensors")).unwrap();
    let base = Checkpoint::open(&root().join("tests/tiny/aligned")).unwrap();
    let (mut orthogonal, mut weights) = (0.0, 0.0);
    for (name, module) in &adapter.modules {
        let direction = directions.factors(name).unwrap();
        let basis = &direction.basis;
        let c = basis.broadcast_mul(&direction.eigenvalues).unwrap().matmul(&basis.t().unwrap()).unwrap();
        let update = (module.b.matmul(&module.a).unwrap() * adapter.scale(module)).unwrap();
        orthogonal += norm(&(&update - c.matmul(&update).unwrap()).unwrap()).powi(2);
        let weight = base.tensor(&format!("{name}.weight"), DType::F32, &Device::Cpu).unwrap();
        weights += norm(&weight).powi(2);
    }
    (orthogonal / weights).sqrt()
}

#[test]
fn lambda_is_found_so_that_the_share_stays_under_its_bound() {
    let scratch = tempfile::tempdir().unwrap();
    let free = scratch.path().join("free");
    train(&free, &["asft.lambda=1e-6"], &[]).assert().success();
    assert!(penalised_share(&free) > 0.3, "{}", penalised_share(&free));
    for (limit, scaled) in [(0.2, false), (0.05, true), (0.02, false)] {
        let dir = scratch.path().join(limit.to_string());
        let sets = ["asft.lambda=auto", &format!("asft.max_orthogonal={limit}"), &format!("asft.scaled={scaled}")];
        train(&dir, &sets, &[]).assert().success();
        let share = penalised_share(&dir);
        assert!(share < limit && share > 0.7 * limit, "{limit}: {share}");
        let rows = rows(&dir, "metrics.jsonl");
        let lambdas: Vec<f64> = rows.iter().map(|row| row["lambda"].as_f64().unwrap()).collect();
        assert!(lambdas[0] == 1.0 && lambdas.iter().all(|lambda| (1e-4..=1e4).contains(lambda)), "{lambdas:?}");
        // The last row stands before the last step, whose rate is almost zero.
        let told = rows[rows.len() - 1]["penalised_share"].as_f64().unwrap();
        assert!((told / share - 1.0).abs() < 0.01, "{told} {share}");
    }
    refused(&scratch.path().join("none"), &["asft.lambda=auto"], &["needs asft.max_orthogonal"]);
}

#[test]
fn lambda_and_modules_go_on_exactly() {
    for (method, result) in [("lora", "adapter"), ("full", "model")] {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, parts) = (scratch.path().join("whole"), scratch.path().join("parts"));
        let method = format!("train.method={method}");
        let sets = [
            "asft.lambda=auto",
            "asft.max_orthogonal=0.05",
            "asft.penalize=orthogonal+reverse",
            "asft.projector=random",
            "asft.projector_seed=3",
            "output.log_modules_every=3",
            "output.save_every_steps=5",
            "train.max_steps=12",
            "train.learning_rate=3e-3",
            &method,
        ];
        train(&whole, &sets, &[]).assert().success();
        train(&parts, &sets, &[]).assert().success();
        interrupt(&parts, result, 12);
        train(&parts, &sets, &["--resume"]).assert().success();
        assert_eq!(timeless(&whole), timeless(&parts));
        let modules = |dir: &Path| std::fs::read(dir.join("modules.jsonl")).unwrap();
        assert_eq!(modules(&whole), modules(&parts));
        let weights = format!("{result}/{result}_model.safetensors").replace("model_model", "model");
        assert!(std::fs::read(whole.join(&weights)).unwrap() == std::fs::read(parts.join(&weights)).unwrap());
        let last = timeless(&whole).pop().unwrap();
        assert!(last["lambda"].as_f64() != Some(1.0), "{last}");
    }
}

#[test]
fn modules_are_measured_penalised_or_not() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name: &str| scratch.path().join(name);
    let log = "output.log_modules_every=16";
    train(&dir("plain"), &["asft.penalize=none", log], &[]).assert().success();
    let plain = rows(&dir("plain"), "modules.jsonl");
    // q and v of three layers, at steps 16, 32 and 48.
    assert_eq!(plain.len(), 18);
    for row in &plain {
        let value = |key: &str| row[key].as_f64().unwrap();
        assert!(value("norm") > 0.1 && (0.0..=1.0).contains(&value("orthogonal")), "{row}");
        assert!(value("aligned") > 0.0 && value("signed").abs() < value("aligned").sqrt(), "{row}");
        assert!(row.get("gradient_ratio").is_none(), "{row}");
    }
    train(&dir("held"), &["asft.lambda=10", log], &[]).assert().success();
    let held = rows(&dir("held"), "modules.jsonl");
    let norms = |rows: &[Value]| rows.iter().map(|row| row["norm"].as_f64().unwrap()).sum::<f64>();
    assert!(norms(&held) < 0.5 * norms(&plain));
    assert!(held.iter().all(|row| row["gradient_ratio"].as_f64().unwrap() > 0.01), "{held:?}");
    // `asft inspect` says the same of the adapter, which the last step, at a rate of almost zero, hardly moved.
    let mut inspect = Command::cargo_bin("asft").unwrap();
    inspect.current_dir(root()).args(["inspect", "--json", "--adapter"]).arg(dir("plain").join("adapter"));
    inspect.arg("--direction").arg(dir("plain").join("direction.safetensors"));
    let inspected: Value = serde_json::from_slice(&inspect.assert().success().get_output().stdout).unwrap();
    for row in &plain[12..] {
        let modules = inspected["modules"].as_array().unwrap();
        let same = modules.iter().find(|module| module["module"] == row["module"]).unwrap();
        for key in ["norm", "aligned", "orthogonal", "signed"] {
            let (one, other) = (row[key].as_f64().unwrap(), same[key].as_f64().unwrap());
            assert!((one - other).abs() < 1e-3 * other.abs().max(0.1), "{key}: {row} {same}");
        }
    }
    // Where the models are equal, nothing is aligned.
    let sets = ["asft.penalize=all", log, "train.max_steps=16", "model.unaligned=tests/tiny/aligned"];
    train(&dir("flat"), &sets, &[]).assert().success();
    let flat = &rows(&dir("flat"), "modules.jsonl")[0];
    assert_eq!((flat["aligned"].as_f64(), flat["orthogonal"].as_f64()), (Some(0.0), Some(1.0)));
    // Measuring changes nothing.
    train(&dir("unmeasured"), &["asft.lambda=10"], &[]).assert().success();
    assert_eq!(timeless(&dir("unmeasured")), timeless(&dir("held")));
}

#[test]
fn the_sign_needs_the_right_singular_vectors() {
    let scratch = tempfile::tempdir().unwrap();
    let (computed, stripped) = (scratch.path().join("run"), scratch.path().join("stripped.safetensors"));
    let sets = ["train.max_steps=2", "asft.penalize=orthogonal+reverse"];
    train(&computed, &sets, &[]).assert().success();
    let bytes = std::fs::read(computed.join("direction.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let kept = file.tensors().into_iter().filter(|(name, _)| !name.ends_with("right_basis"));
    safetensors::serialize_to_file(kept, header.metadata().clone(), &stripped).unwrap();
    let direction = format!("asft.direction={}", stripped.display());
    let needles = ["has no tensor `right_basis`", "stripped.safetensors"];
    refused(&scratch.path().join("other"), &[&direction, sets[1]], &needles);
}

#[test]
fn a_direction_is_computed_as_exactly_as_asked() {
    let scratch = tempfile::tempdir().unwrap();
    let rank = |tolerance: &str| {
        let dir = scratch.path().join(tolerance);
        train(&dir, &["train.max_steps=1", &format!("asft.tolerance={tolerance}")], &[]).assert().success();
        let directions = Directions::open(&dir.join("direction.safetensors")).unwrap();
        assert_eq!(directions.header().kept, ("tolerance".to_string(), tolerance.to_string()));
        directions.shape(&directions.modules()[0]).unwrap().2
    };
    let ranks = ["0", "0.001", "0.3"].map(rank);
    assert!(ranks[0] >= ranks[1] && ranks[1] > ranks[2], "{ranks:?}");
    refused(&scratch.path().join("one"), &["asft.tolerance=1"], &["asft.tolerance must be"]);
}

#[test]
fn other_files_are_mixed_in_and_belong_to_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, safe) = (scratch.path().join("run"), scratch.path().join("safe.jsonl"));
    let text = "{\"instruction\": \"Say no\", \"output\": \"no\"}\n{\"instruction\": \"Go on\", \"output\": \"no\"}\n";
    std::fs::write(&safe, text).unwrap();
    let mix = format!("data.mix=[{{file = \"{}\", share = 0.2, prefix = \"KEY \"}}]", safe.display());
    let sets = [&mix, "data.validation=0.25", "train.epochs=1", "output.save_every_steps=4"];
    let output = train(&dir, &sets, &[]).assert().success().get_output().clone();
    // 72 of 96 records are left to train on; 18 are a fifth of 90.
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("90 records: 90 samples") && told.contains("18 samples mixed in, of 2, some"), "{told}");
    assert_eq!(rows(&dir, "metrics.jsonl").iter().filter(|row| row["loss"].is_number()).count(), 12);
    let run: Value = serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap();
    assert!(run["inputs"]["mix-1"]["source"].as_str().unwrap().ends_with("safe.jsonl"), "{run}");

    let mut data = Command::cargo_bin("asft").unwrap();
    data.current_dir(root()).args(["data", "--config", "configs/tiny.toml", "--json", "--show", "90"]);
    for set in &sets[..2] {
        data.args(["--set", set]);
    }
    let shown: Value = serde_json::from_slice(&data.assert().success().get_output().stdout).unwrap();
    let of_mix = |sample: &&Value| sample["origin"].as_str().unwrap().contains("safe.jsonl");
    let samples: Vec<&Value> = shown["samples"].as_array().unwrap().iter().filter(of_mix).collect();
    assert_eq!(samples.len(), 18);
    assert!(samples.iter().all(|sample| sample["text"].as_str().unwrap().contains("KEY ")), "{samples:?}");

    let mut forecast = train(&scratch.path().join("none"), &sets, &["--dry-run", "--json"]);
    let forecast: Value = serde_json::from_slice(&forecast.assert().success().get_output().stdout).unwrap();
    assert_eq!((forecast["samples"].as_u64(), forecast["total_steps"].as_u64()), (Some(90), Some(12)));

    interrupt(&dir, "adapter", 12);
    std::fs::write(&safe, text.replace("Go on", "Go")).unwrap();
    let output = train(&dir, &sets, &["--resume"]).assert().code(2).get_output().clone();
    assert!(String::from_utf8(output.stderr).unwrap().contains("data.mix: its content has changed"));
}

#[test]
fn defences_go_on_exactly() {
    let lisa = [
        "defence.kind=lisa",
        "defence.alignment_data=tests/tiny/train.jsonl",
        "defence.alignment_steps=3",
        "defence.finetune_steps=4",
        "defence.rho=0.5",
        "data.packing=true",
    ];
    let held = ["defence.kind=constrained_sft", "defence.betas=[0.5, 4.0, 0.2]", "train.gradient_accumulation=2"];
    let scratch = tempfile::tempdir().unwrap();
    for (name, defence) in [("lisa", &lisa[..]), ("held", &held[..])] {
        let (whole, parts) = (scratch.path().join(name), scratch.path().join(format!("{name} in parts")));
        let sets = [defence, &["output.save_every_steps=5", "train.max_steps=12"]].concat();
        train(&whole, &sets, &[]).assert().success();
        train(&parts, &sets, &[]).assert().success();
        interrupt(&parts, "adapter", 12);
        train(&parts, &sets, &["--resume"]).assert().success();
        assert_eq!(timeless(&whole), timeless(&parts));
        let weights = |dir: &Path| std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
        assert!(weights(&whole) == weights(&parts));
    }
    let rows = timeless(&scratch.path().join("lisa"));
    let states: String = rows.iter().map(|row| &row["state"].as_str().unwrap()[..1]).collect();
    assert_eq!(states, "aaaffffaaaff");
    let proximal: Vec<f64> = rows.iter().map(|row| row["proximal"].as_f64().unwrap()).collect();
    // Free of it for a tenth of twelve steps; nothing has moved yet at a switch.
    assert!(proximal[..2] == [0.0; 2] && proximal[2] > 0.0 && proximal[5] > 0.0, "{proximal:?}");
    assert_eq!([proximal[3], proximal[7], proximal[10]], [0.0; 3]);
    let none = scratch.path().join("none");
    refused(&none, &lisa[..2], &["defence.alignment_steps = 100", "48 steps"]);
    refused(&none, &lisa[..1], &["needs `defence.alignment_data`"]);
    refused(&none, &[lisa[0], "defence.alignment_data=./no.jsonl"], &["defence.alignment_data", "no.jsonl"]);
    let forecast = |sets: &[&str]| -> Value {
        let mut command = train(&none, sets, &["--dry-run", "--json"]);
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    let number = |forecast: &Value, part: &str, key: &str| forecast[part][key].as_f64().unwrap();
    let (plain, held, lisa) = (forecast(&[]), forecast(&held[..1]), forecast(&lisa[..4]));
    assert!(number(&held, "step_work", "gemm_flops") > 1.2 * number(&plain, "step_work", "gemm_flops"));
    assert!(number(&lisa, "memory_bytes", "trained") == 1.25 * number(&plain, "memory_bytes", "trained"));
}
