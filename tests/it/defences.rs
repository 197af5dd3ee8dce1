//! Other defences in whole runs.

use crate::support::command::{asft, ends, json, refused_unwritten, succeeds, train};
use crate::support::files::read_json;
use crate::support::runs::{WEIGHTS, interrupt, same_run, timeless};
use crate::support::tensors::to_vec;
use candle_core::Device;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

const ALIGNMENT_DATA: &str = "defence.alignment_data=tests/tiny/train.jsonl";
const ANCHOR: [&str; 2] = ["defence.kind=anchor", "defence.prompts=tests/tiny/train.jsonl"];

#[test]
fn defences_go_on_exactly() {
    let lisa = [
        "defence.kind=lisa",
        ALIGNMENT_DATA,
        "defence.alignment_steps=3",
        "defence.finetune_steps=4",
        "defence.rho=0.5",
        "data.packing=true",
    ];
    let held = ["defence.kind=constrained_sft", "defence.betas=[0.5, 4.0, 0.2]", "train.gradient_accumulation=2"];
    let kl = ["defence.kind=kl", ALIGNMENT_DATA, "defence.batch_size=5", "train.gradient_accumulation=2"];
    let safe_grad = ["defence.kind=safe_grad", ALIGNMENT_DATA, "defence.rho=0.5", "data.packing=true"];
    let scratch = tempfile::tempdir().unwrap();
    let activations = [
        "defence.kind=activations",
        ANCHOR[1],
        "defence.weight=0.3",
        "defence.rank=6",
        "train.gradient_accumulation=2",
    ];
    let ema = ["defence.kind=ema", "defence.decay=0.7", "data.validation=0.2", "output.eval_every_steps=4"];
    let null_space =
        ["defence.kind=null_space", ANCHOR[1], "defence.energy=0.6", "defence.batch_size=5", "asft.penalize=all"];
    for (name, defence) in [
        ("lisa", &lisa[..]),
        ("ema", &ema),
        ("null_space", &null_space),
        ("held", &held[..]),
        ("kl", &kl),
        ("safe_grad", &safe_grad),
        ("activations", &activations),
    ] {
        let (whole, parts) = (scratch.path().join(name), scratch.path().join(format!("{name} in parts")));
        let sets = [defence, &["output.save_every_steps=5", "train.max_steps=12"]].concat();
        succeeds(train(&whole, &sets, &[]));
        succeeds(train(&parts, &sets, &[]));
        interrupt(&parts, "adapter", &[12]);
        succeeds(train(&parts, &sets, &["--resume"]));
        same_run(&whole, &parts, "adapter/adapter_model.safetensors");
    }
    let rows = timeless(&scratch.path().join("lisa"));
    let states: String = rows.iter().map(|row| &row["state"].as_str().unwrap()[..1]).collect();
    assert_eq!(states, "aaaffffaaaff");
    let proximal: Vec<f64> = rows.iter().map(|row| row["proximal"].as_f64().unwrap()).collect();
    // No proximal term for a tenth of twelve steps; nothing has moved yet at a switch.
    assert!(proximal[..2] == [0.0; 2] && proximal[2] > 0.0 && proximal[5] > 0.0, "{proximal:?}");
    assert_eq!([proximal[3], proximal[7], proximal[10]], [0.0; 3]);
    let none = scratch.path().join("none");
    let refused = |sets: &[&str], needles: &[&str]| refused_unwritten(train(&none, sets, &[]), &none, needles);
    refused(&lisa[..2], &["defence.alignment_steps = 100", "48 steps"]);
    refused(&lisa[..1], &["needs `defence.alignment_data`"]);
    refused(
        &["defence.kind=kl", ALIGNMENT_DATA, "train.method=full"],
        &["`defence.kind = \"kl\"` needs `train.method"],
    );
    refused(&[null_space[0], ANCHOR[1], "train.method=full"], &["`defence.kind = \"null_space\"` needs `train.method"]);
    refused(
        &[null_space[0], ANCHOR[1], "defence.energy=1.0"],
        &["take every direction of model.layers.0", "lower defence.energy = 1 or defence.rank"],
    );
    refused(&[ema[0], "defence.decay=1.0"], &["`defence.decay` must be above 0 and below 1, found 1.0"]);
    refused(&[lisa[0], "defence.alignment_data=./no.jsonl"], &["defence.alignment_data", "no.jsonl"]);
    let forecast = |sets: &[&str]| json(train(&none, sets, &["--dry-run", "--json"]));
    let number = |forecast: &Value, part: &str, key: &str| forecast[part][key].as_f64().unwrap();
    let (plain, held, lisa) = (forecast(&[]), forecast(&held[..1]), forecast(&lisa[..4]));
    assert!(number(&held, "step_work", "gemm_flops") > 1.2 * number(&plain, "step_work", "gemm_flops"));
    for copies in [&lisa, &forecast(&ema[..2])] {
        assert!(number(copies, "memory_bytes", "trained") == 1.25 * number(&plain, "memory_bytes", "trained"));
    }
    // A batch besides the step's, with a pass without the adapter; for SafeGrad its own gradients.
    let (kl, safe_grad) = (forecast(&kl[..2]), forecast(&safe_grad[..2]));
    assert!(number(&kl, "step_work", "gemm_flops") > 2.2 * number(&plain, "step_work", "gemm_flops"));
    assert_eq!(number(&kl, "memory_bytes", "trained"), number(&plain, "memory_bytes", "trained"));
    assert_eq!(number(&safe_grad, "memory_bytes", "trained"), 1.25 * number(&plain, "memory_bytes", "trained"));
}

/// The tensors of a file by name.
fn tensors(path: PathBuf) -> HashMap<String, Vec<f64>> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, to_vec(&tensor))).collect()
}

#[test]
fn the_average_is_what_is_measured_selected_and_exported() {
    let scratch = tempfile::tempdir().unwrap();
    let suite = scratch.path().join("suite.toml");
    std::fs::write(&suite, "[[eval]]\nname = 'task'\ndata = 'tests/tiny/train.jsonl'\nlimit = 9\n").unwrap();
    let (suite, scratch) = (format!("eval.suite={}", suite.display()), scratch.path());
    let common = ["defence.kind=ema", "defence.decay=0.7", &suite, "data.validation=0.2", "output.eval_every_steps=2"];
    // At the first rate the loss soon rises again, and the best state is not the last.
    let best = ["train.learning_rate=0.1", "train.schedule=constant", "output.save_best=true", "train.patience=2"];
    let full = ["train.method=full", "train.learning_rate=1e-3", "train.max_steps=6", "output.save_every_steps=6"];
    for (name, sets) in [("lora", &best), ("full", &full)] {
        let (dir, weights) = (scratch.join(name), WEIGHTS.iter().find(|of| of.0 == name).unwrap().1);
        succeeds(train(&dir, &[&common[..], sets].concat(), &[]));
        let after = &read_json(&dir.join("run.json"))["eval"]["after"];
        let rows = timeless(&dir);
        let evals = rows.iter().filter_map(|row| Some((row["eval_loss"].as_f64()?, row["step"].as_u64()?)));
        let evals: Vec<(f64, u64)> = evals.collect();
        let lowest = evals.iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
        let step = after["step"].as_u64().unwrap();
        assert!(step == lowest && (name == "full" || step < evals.last().unwrap().1), "{evals:?} {step}");
        let checkpoint = dir.join(format!("checkpoints/step-{step}"));
        let exported = tensors(dir.join(weights));
        let trained = tensors(checkpoint.join(weights.split('/').next_back().unwrap()));
        let averages = tensors(checkpoint.join("optimizer.safetensors"));
        let mut compared = 0;
        for (key, average) in averages {
            let Some(parameter) = key.strip_suffix(".ema") else { continue };
            let stored = [parameter.to_string(), format!("base_model.model.{parameter}")];
            let stored = stored.iter().find(|stored| exported.contains_key(*stored)).unwrap();
            assert!(exported[stored] == average && trained[stored] != average, "{name} {key}");
            compared += 1;
        }
        assert_eq!(compared, exported.len(), "{name}");
        if name == "lora" {
            let mut eval = asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--adapter"]);
            let found = json(eval.arg(&dir).args(["--suite", suite.split('=').next_back().unwrap()]));
            assert_eq!(after["evaluations"], found["models"][0]["evaluations"]);
        }
    }
}

#[test]
fn the_anchor_goes_on_exactly() {
    let scratch = tempfile::tempdir().unwrap();
    for (method, weights) in WEIGHTS {
        let (whole, parts) = (scratch.path().join(method), scratch.path().join(format!("{method} in parts")));
        let method = format!("train.method={method}");
        let sets = [&method, "defence.batch_size=5", "train.gradient_accumulation=2", "output.save_every_steps=3"];
        let sets = [&ANCHOR[..], &sets, &["train.max_steps=8", "train.learning_rate=1e-3"]].concat();
        succeeds(train(&whole, &sets, &[]));
        succeeds(train(&parts, &sets, &[]));
        // What it is held to is that of the aligned model, not of the checkpoint.
        interrupt(&parts, weights.split('/').next().unwrap(), &[6, 8]);
        succeeds(train(&parts, &sets, &["--resume"]));
        same_run(&whole, &parts, weights);
        let terms: Vec<f64> = timeless(&whole).iter().map(|row| row["proximal"].as_f64().unwrap()).collect();
        // Nothing has moved before the first step.
        assert!(terms[0] < 1e-9 && terms[1..].iter().all(|&term| term > 1e-6), "{method}: {terms:?}");
    }
}

#[test]
fn the_anchor_reads_prompts_without_answers() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, dir) = (scratch.path().join("prompts.jsonl"), scratch.path().join("run"));
    let sets = |text: &str| {
        std::fs::write(&file, text).unwrap();
        [ANCHOR[0].to_string(), format!("defence.prompts={}", file.display()), "train.max_steps=2".to_string()]
    };
    let run = |text: &str, more: &[&str]| {
        let sets = sets(text);
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
        train(&dir, &sets, &[])
    };
    let long = format!("{{\"prompt\": \"{}\"}}\n", "secret ".repeat(30));
    for (text, more, needles) in [
        ("", &[][..], &["defence.prompts", "prompts.jsonl"][..]),
        ("{\"output\": \"No.\"}\n", &[], &["defence.prompts", "prompts.jsonl:1", "instruction"]),
        (&long, &[], &["defence.prompts", "prompts.jsonl:1", "tokens, more than data.max_length = 128"]),
        ("{\"prompt\": \"Go.\"}\n", &["data.format=tokenized"], &["neither with which template"]),
    ] {
        refused_unwritten(run(text, more), &dir, needles);
    }
    refused_unwritten(
        train(&dir, &[ANCHOR[0], "defence.prompts=./no.jsonl"], &[]),
        &dir,
        &["defence.prompts", "no.jsonl"],
    );
    let text = "{\"prompt\": \"Go.\"}\n{\"instruction\": \"Count the letters.\"}\n";
    ends(run(text, &[]), 0, &["prompts: ", "2 samples"]);
}

#[test]
fn the_anchor_is_planned_for() {
    let scratch = tempfile::tempdir().unwrap();
    let none = scratch.path().join("none");
    let forecast = |sets: &[&str]| json(train(&none, sets, &["--dry-run", "--json"]));
    let number = |forecast: &Value, part: &str, key: &str| forecast[part][key].as_f64().unwrap();
    let (plain, anchored) = (forecast(&[]), forecast(&ANCHOR));
    let more = number(&anchored, "memory_bytes", "trained") - number(&plain, "memory_bytes", "trained");
    // A vector of 48 for each of 96 prompts.
    assert_eq!(more, 96.0 * 48.0 * 4.0);
    // Six columns for the 48 inputs of each of the targets.
    let weighed = forecast(&["defence.kind=activations", ANCHOR[1], "defence.rank=6"]);
    let more = number(&weighed, "memory_bytes", "trained") - number(&plain, "memory_bytes", "trained");
    assert!(more > 0.0 && more % (6.0 * 48.0 * 4.0) == 0.0, "{more}");
    // And the pass that they come from.
    assert!(number(&weighed, "memory_bytes", "before") > 0.0 && number(&plain, "memory_bytes", "before") == 0.0);
    assert_eq!(number(&weighed, "step_work", "gemm_flops"), number(&plain, "step_work", "gemm_flops"));
    // As many prompts as samples in a batch, but without their answers.
    let work = number(&anchored, "step_work", "gemm_flops") / number(&plain, "step_work", "gemm_flops");
    assert!(work > 1.3 && work < 2.0, "{work}");
}
