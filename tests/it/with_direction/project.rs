//! `asft project`: Safe LoRA on a finished adapter.

use super::*;
use crate::support::command::ends;
use crate::support::tensors::{relative_error, to_vec};
use asft::adapter;
use candle_core::Device;

#[test]
fn projecting_every_module_gives_what_safe_lora_gives() {
    let ((scratch, direction), golden) = (golden_direction(), golden());
    let (source, out) = (fixture("llama_gqa").join("adapter"), scratch.path().join("out"));
    let paths = ["--adapter", text(&source), "--direction", text(&direction), "--out", text(&out)];
    let report = json(asft(&["project", "--json", "--threshold", "1"]).args(paths));
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
    // The folder is complete, for the same base.
    let read = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read(&out, "adapter_config.json"), read(&source, "adapter_config.json"));
    assert!(read(&out, "README.md").contains("base_model: \"fixtures/llama_gqa\""));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2, "something was left behind");
    ends(asft(&["project"]).args(paths), 2, &[]);
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
    assert_eq!(chosen(&json(asft(&adapter).args([text(&by_number), "--layers", "3"]))), first(3));
    let between = ((cosines[4].0 + cosines[5].0) / 2.0).to_string();
    let by_threshold = scratch.path().join("by_threshold");
    assert_eq!(chosen(&json(asft(&adapter).args([text(&by_threshold), "--threshold", &between]))), first(5));
    // The others are unchanged, bit for bit.
    let load = |dir: &Path| adapter::load(dir, &Device::Cpu).unwrap();
    let (before, after) = (load(&source), load(&by_number));
    for (name, module) in &before.modules {
        let same = to_vec(&module.b) == to_vec(&after.modules[name].b);
        assert_eq!(same, !first(3).contains(name), "{name}");
    }
}
