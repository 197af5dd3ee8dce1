//! Checkpoints that are damaged.

use super::*;

#[test]
fn damaged_checkpoints_are_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = path(&scratch, "whole");
    succeeds(train(&whole, &[&EVERYTHING[..], &["train.max_steps=12", "output.keep_last=3"]].concat(), &[]));
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    let cut = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(PathBuf), &'a str);
    let damages: [Damage; 6] = [
        ("optimizer.safetensors", &flip, "optimizer.safetensors is damaged"),
        ("adapter_model.safetensors", &cut, "adapter_model.safetensors is damaged"),
        ("state.json", &flip, "state.json is damaged"),
        ("checksums.json", &flip, "is not usable"),
        ("checksums.json", &|path| std::fs::remove_file(path).unwrap(), "incomplete"),
        ("adapter_model.safetensors", &|path| std::fs::remove_file(path).unwrap(), "adapter_model.safetensors"),
    ];
    for (i, (file, damage, needle)) in damages.into_iter().enumerate() {
        let dir = path(&scratch, &i.to_string());
        let sets = interrupted(&dir, &[]);
        damage(dir.join("checkpoints/step-10").join(file));
        ends(train(&dir, &borrowed(&sets), &["--resume"]), 0, &["warning: ", "step-10", needle, "after step 5"]);
        same_run(&whole, &dir, "adapter/adapter_model.safetensors");
        assert_eq!(checkpoints(&dir), ["step-10", "step-10.damaged", "step-12", "step-5"]);
    }
    let dir = path(&scratch, "all");
    let sets = interrupted(&dir, &[]);
    for step in ["step-5", "step-10"] {
        flip(dir.join("checkpoints").join(step).join("state.json"));
    }
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    ends(train(&dir, &borrowed(&sets), &["--resume"]), 2, &["none of the checkpoints", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
}
