//! `asft doctor`: on the CPU everything holds, and it says so in words and in JSON.

use crate::support::command::{asft, ends, json, refused, stdout};
use crate::support::files::root;
use crate::support::goldens::Golden;
use asft::train::TOY_STEPS;

#[test]
fn the_cpu_computes_rightly_with_kernels_and_without() {
    for (dtype, ops) in [("bf16", ""), ("f32", "generic"), ("f16", "generic")] {
        let mut command = asft(&["doctor", "--device", "cpu", "--dtype", dtype]);
        let text = stdout(command.env("ASFT_OPS", ops));
        let lines: Vec<&str> = text.lines().collect();
        let (head, verdict) = (lines[0], lines[lines.len() - 1]);
        assert!(head.starts_with("check") && head.contains("worst error"), "{text}");
        assert!(verdict.starts_with(&format!("cpu in {dtype}: all ")) && verdict.ends_with(" checks hold"), "{text}");
        assert!(text.contains("copies at ") && text.contains(" TFLOP/s"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("training ") && line.ends_with("ok")), "{text}");
    }
}

#[test]
fn json_has_every_check_and_every_rate() {
    let report = json(asft(&["doctor", "--device", "cpu", "--json"]));
    assert_eq!((&report["device"], &report["dtype"], &report["ok"]), (&"cpu".into(), &"f32".into(), &true.into()));
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 15, "{}", checks.len());
    for check in checks {
        let (error, allowed) = (&check["error_epsilons"], &check["allowed_epsilons"]);
        assert!(error.as_f64().unwrap() <= allowed.as_f64().unwrap(), "{check}");
        assert!(["name", "what", "at"].iter().all(|key| check[key].as_str().is_some_and(|text| !text.is_empty())));
    }
    let rates = &report["rates"];
    for rate in ["copy_bytes_per_second", "gemm_flops_per_second"] {
        assert!(rates[rate].as_f64().unwrap() > 1e8, "{rates}");
    }
    assert!(report["seconds"].as_f64().unwrap() < 60.0);
}

#[test]
fn what_is_not_there_is_refused() {
    if cfg!(not(feature = "cuda")) {
        refused(asft(&["doctor", "--device", "cuda"]), &["device \"cuda\"", "--features"]);
    }
    ends(asft(&["doctor", "--dtype", "f8"]), 2, &["f8", "bf16"]);
    ends(asft(&["diagnose"]), 2, &["doctor"]);
}

/// The numbers in the program are those of the fixture.
#[test]
fn the_toy_of_the_doctor_is_the_golden_one() {
    let golden = Golden::expected("llama_gqa");
    for (column, name) in ["task_loss", "penalty", "grad_norm"].iter().enumerate() {
        let expected = golden.values(&format!("curve.{name}"));
        for (step, row) in TOY_STEPS.iter().enumerate() {
            assert_eq!(row[column] as f32, expected[step] as f32, "{name} of step {}", step + 1);
        }
    }
}

/// `scripts/gpu_check.sh` says "every golden on the device": a module that computes on the goldens' device is in its list.
#[test]
fn every_golden_that_a_device_computes_is_in_the_check_of_a_gpu() {
    let script = std::fs::read_to_string(root().join("scripts/gpu_check.sh")).unwrap();
    let (_, list) = script.split_once("modules=(").unwrap();
    let listed: Vec<&str> = list.split(')').next().unwrap().split_whitespace().collect();
    let mut computing = vec![];
    for entry in std::fs::read_dir(root().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if text.lines().any(|line| line.starts_with("use crate::support::goldens::*")) {
            computing.push(path.file_stem().unwrap().to_str().unwrap().to_string());
        }
    }
    let missing: Vec<&String> = computing.iter().filter(|module| !listed.contains(&module.as_str())).collect();
    assert!(computing.len() > 5 && missing.is_empty(), "not in scripts/gpu_check.sh: {missing:?}");
}
