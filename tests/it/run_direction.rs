//! The direction that a run computes or is given.

use crate::support::command::{asft, refused, refused_unwritten, succeeds, text, train};
use crate::support::files::{copy_files, header_metadata, read_json, tiny};
use asft::method::direction_file::Directions;

#[test]
fn the_sign_needs_the_right_singular_vectors() {
    let scratch = tempfile::tempdir().unwrap();
    let (computed, stripped) = (scratch.path().join("run"), scratch.path().join("stripped.safetensors"));
    let sets = ["train.max_steps=2", "asft.penalize=orthogonal+reverse"];
    succeeds(train(&computed, &sets, &[]));
    let bytes = std::fs::read(computed.join("direction.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let metadata = header_metadata(&computed.join("direction.safetensors"));
    let kept = file.tensors().into_iter().filter(|(name, _)| !name.ends_with("right_basis"));
    safetensors::serialize_to_file(kept, Some(metadata), &stripped).unwrap();
    let direction = format!("asft.direction={}", stripped.display());
    let needles = ["has no tensor `right_basis`", "stripped.safetensors"];
    let other = scratch.path().join("other");
    refused_unwritten(train(&other, &[&direction, sets[1]], &[]), &other, &needles);
}

#[test]
fn a_direction_is_computed_as_exactly_as_asked() {
    let scratch = tempfile::tempdir().unwrap();
    let rank = |tolerance: &str| {
        let dir = scratch.path().join(tolerance);
        succeeds(train(&dir, &["train.max_steps=1", &format!("asft.tolerance={tolerance}")], &[]));
        let directions = Directions::open(&dir.join("direction.safetensors")).unwrap();
        assert_eq!(directions.header().kept, ("tolerance".to_string(), tolerance.to_string()));
        directions.shape(&directions.modules()[0]).unwrap().2
    };
    let ranks = ["0", "0.001", "0.3"].map(rank);
    assert!(ranks[0] >= ranks[1] && ranks[1] > ranks[2], "{ranks:?}");
    let one = scratch.path().join("one");
    refused_unwritten(train(&one, &["asft.tolerance=1"], &[]), &one, &["asft.tolerance must be"]);
}

#[test]
fn a_penalty_that_needs_the_direction_needs_two_models() {
    let scratch = tempfile::tempdir().unwrap();
    let (copy, linked) = (scratch.path().join("copy"), scratch.path().join("linked"));
    copy_files(&tiny("aligned"), &copy);
    std::os::unix::fs::symlink(tiny("aligned"), &linked).unwrap();
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    let unaligned = |path: &str| format!("model.unaligned={path}");
    // The same name is seen in the settings, another name in the weights, before the aligned model is loaded.
    for (path, needle) in [("tests/tiny/aligned", "are the same"), (text(&copy), "all 6"), (text(&linked), "all 6")] {
        refused_unwritten(train(&one, &[&unaligned(path)], &[]), &one, &[needle, "V = 0", "penalize = \"all\""]);
    }
    // A file made where that was still possible.
    let flat = scratch.path().join("flat.safetensors");
    succeeds(train(
        &two,
        &[&unaligned(text(&copy)), "asft.penalize=all", "output.log_modules_every=1", "train.max_steps=1"],
        &[],
    ));
    std::fs::copy(two.join("direction.safetensors"), &flat).unwrap();
    let given = format!("asft.direction={}", flat.display());
    refused_unwritten(train(&one, &[&given], &[]), &one, &["flat.safetensors", "V = 0 in all 6", "asft direction"]);
    for free in ["asft.penalize=all", "asft.penalize=none", "asft.lambda=0"] {
        let sets = [&unaligned("tests/tiny/aligned"), free, "train.max_steps=1"];
        succeeds(train(&two, &sets, &["--overwrite"]));
    }
    let out = scratch.path().join("new.safetensors");
    let pair = ["direction", "--aligned", "tests/tiny/aligned", "--unaligned", text(&copy), "--out", text(&out)];
    refused(asft(&pair), &["equal to the aligned model", "V = 0"]);
    assert!(!out.exists());
}

#[test]
fn no_penalty_is_shown_as_zero() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for sets in [["asft.penalize=none", "train.max_steps=2"], ["asft.lambda=0", "train.max_steps=2"]] {
        let told = succeeds(train(&dir, &sets, &["--overwrite"]));
        let rows = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        assert!(rows.contains("\"penalty\":0.0,") && told.contains("penalty 0.0000"), "{told}{rows}");
        assert!(!rows.contains("-0.0") && !told.contains("-0.0"), "{told}{rows}");
    }
}

#[test]
fn the_data_can_be_looked_at_before_there_is_a_direction() {
    let scratch = tempfile::tempdir().unwrap();
    let (config, dir) = (scratch.path().join("run.toml"), scratch.path().join("run"));
    let shipped = std::fs::read_to_string("configs/tiny.toml").unwrap();
    let lines: Vec<&str> = shipped.lines().filter(|line| !line.starts_with("unaligned =")).collect();
    std::fs::write(&config, lines.join("\n")).unwrap();
    succeeds(asft(&["data", "--config", text(&config)]));
    let run = asft(&["train", "--config", text(&config), "--set", &format!("output.dir={}", dir.display())]);
    refused_unwritten(run, &dir, &["one of `model.unaligned` and `asft.direction` is required"]);
}

#[test]
fn a_run_says_which_device_it_took() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for (device, said) in [("auto", true), ("cpu", false)] {
        let told = succeeds(train(&dir, &["train.max_steps=1", &format!("model.device={device}")], &["--overwrite"]));
        let taken = read_json(&dir.join("run.json"))["device"].as_str().unwrap().to_string();
        assert_eq!(told.contains(&format!("device = \"auto\": computing on {taken}")), said, "{told}");
    }
}

#[test]
fn the_paper_s_equation_needs_all_of_the_direction() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let sets = ["asft.projector=equation", "asft.tolerance=0.3", "train.max_steps=2"];
    refused_unwritten(train(&dir, &sets, &[]), &dir, &["asft.projector = \"equation\"", "--tolerance 0"]);
}

#[test]
fn the_older_name_of_a_projector_is_read_with_a_warning() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let told = succeeds(train(&dir, &["asft.projector=paper", "train.max_steps=1"], &[]));
    assert!(told.contains("asft.projector = \"paper\" is called \"released\" now"), "{told}");
    let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
    assert!(config.contains("projector = \"released\""), "{config}");
    // A run of an older version goes on.
    std::fs::write(dir.join("config.toml"), config.replace("\"released\"", "\"paper\"")).unwrap();
    let mut inspected = asft(&["train", "--check", "--config"]);
    inspected.arg(dir.join("config.toml"));
    assert!(succeeds(inspected).contains("is called \"released\" now"));
}
