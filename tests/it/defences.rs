//! Other defences in whole runs: Lisa and constrained SFT.

use crate::support::command::{json, refused_unwritten, succeeds, train};
use crate::support::runs::{interrupt, same_run, timeless};
use serde_json::Value;

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
    refused(&[lisa[0], "defence.alignment_data=./no.jsonl"], &["defence.alignment_data", "no.jsonl"]);
    let forecast = |sets: &[&str]| json(train(&none, sets, &["--dry-run", "--json"]));
    let number = |forecast: &Value, part: &str, key: &str| forecast[part][key].as_f64().unwrap();
    let (plain, held, lisa) = (forecast(&[]), forecast(&held[..1]), forecast(&lisa[..4]));
    assert!(number(&held, "step_work", "gemm_flops") > 1.2 * number(&plain, "step_work", "gemm_flops"));
    assert!(number(&lisa, "memory_bytes", "trained") == 1.25 * number(&plain, "memory_bytes", "trained"));
}
