//! What asft says of runs and of itself: reports, completions, man pages, the schema and configs to start from.

use super::*;

#[test]
fn a_run_ends_with_a_report() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    succeeds(train(&dir, &["train.max_steps=4", "data.validation=0.1"], &[]));
    let html = std::fs::read_to_string(dir.join("report.html")).unwrap();
    for part in ["<!doctype html>", "validation loss", "q_proj", "orthogonal", "max_steps = 4", "0.11.1"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && !html.contains("http"));
    // ‖(I − C)ΔW‖² over all modules is the penalty's last value over λ, one step on.
    let record = json_file(&dir.join("run.json"));
    let norms = record["update_norms"].as_array().unwrap();
    assert_eq!(norms.len(), 6);
    for norm in norms {
        let number = |key: &str| norm[key].as_f64().unwrap();
        let (whole, parallel, orthogonal) = (number("norm"), number("parallel"), number("orthogonal"));
        assert!(parallel > 0.0 && orthogonal > 0.0 && whole <= parallel + orthogonal + 1e-9, "{norm}");
    }
    // The same again from the folder, and elsewhere.
    let other = scratch.path().join("other.html");
    let mut command = asft(&["report"]);
    command.arg(&dir).arg("--out").arg(&other);
    succeeds(command);
    assert_eq!(std::fs::read_to_string(other).unwrap(), html);
    refused(asft(&["report", "tests"]), &["not a run's folder", "metrics.jsonl"]);
    // Plain shrinkage has no direction, and so no parts.
    let sets = ["train.max_steps=2", "asft.penalize=all"];
    succeeds(train(&dir, &sets, &["--overwrite"]));
    let norm = &json_file(&dir.join("run.json"))["update_norms"][0];
    assert!(norm["parallel"].is_null() && norm["norm"].as_f64() > Some(0.0), "{norm}");
    succeeds(train(&dir, &["train.max_steps=2", "train.method=full"], &["--overwrite"]));
    assert_eq!(json_file(&dir.join("run.json"))["update_norms"].as_array().unwrap().len(), 6);
}

#[test]
fn completions_and_man_pages_are_written() {
    for (shell, needle) in [("bash", "_asft()"), ("zsh", "#compdef asft"), ("fish", "complete -c asft")] {
        let output = asft(&["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains(needle) && script.contains("allow-change"), "{shell}");
    }
    refused(asft(&["completions", "csh"]), &["csh", "bash"]);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("man1");
    let mut command = asft(&["man"]);
    command.arg(&dir);
    succeeds(command);
    let page = std::fs::read_to_string(dir.join("asft-train.1")).unwrap();
    assert!(page.contains(".TH asft-train 1") && page.contains("allow\\-change"), "{page}");
    assert!(dir.join("asft.1").is_file());
}

fn schema() -> Value {
    serde_json::from_slice(&asft(&["schema"]).output().unwrap().stdout).unwrap()
}

/// Whether `value` meets `schema`, by the part of JSON Schema that the config's makes use of.
fn meets(root: &Value, schema: &Value, value: &Value) -> bool {
    let known =
        ["$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"];
    let known = [&known[..], &["format", "items", "maxItems", "minItems", "minimum", "oneOf", "properties"]].concat();
    schema.as_object().into_iter().flatten().for_each(|(key, _)| {
        assert!(known.contains(&key.as_str()) || ["title", "type", "maximum"].contains(&key.as_str()), "{key}");
    });
    let target = schema["$ref"].as_str().map(|pointer| root.pointer(&pointer[1..]).unwrap());
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let one_of = |key: &str, exactly: bool| {
        let Some(members) = schema[key].as_array() else { return true };
        let count = members.iter().filter(|member| meets(root, member, value)).count();
        if exactly { count == 1 } else { count > 0 }
    };
    let items = value.as_array().into_iter().flatten().all(|item| meets(root, &schema["items"], item));
    let length = value.as_array().map_or(0, Vec::len) as u64;
    let fields = value.as_object().into_iter().flatten().all(|(name, field)| match &schema["properties"][name] {
        Value::Null => match &schema["additionalProperties"] {
            Value::Bool(allowed) => *allowed,
            more => meets(root, more, field),
        },
        known => meets(root, known, field),
    });
    target.is_none_or(|target| meets(root, target, value))
        && (kinds.is_empty() || kinds.iter().any(is))
        && schema.get("const").is_none_or(|only| only == value)
        && schema["enum"].as_array().is_none_or(|words| words.contains(value))
        && value.as_f64().is_none_or(|number| schema["minimum"].as_f64().is_none_or(|least| number >= least))
        && (!value.is_array() || schema["minItems"].as_u64().is_none_or(|least| length >= least))
        && (!value.is_array() || schema["maxItems"].as_u64().is_none_or(|most| length <= most))
        && one_of("oneOf", true)
        && one_of("anyOf", false)
        && items
        && fields
}

#[test]
fn the_shipped_configs_meet_the_schema() {
    let schema = schema();
    let mut configs = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        // Evaluation suites and comparisons are no training configs.
        if ["-eval.toml", "-compare.toml"].iter().any(|end| path.to_string_lossy().ends_with(end)) {
            continue;
        }
        let config: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        assert!(meets(&schema, &schema, &serde_json::to_value(config).unwrap()), "{}", path.display());
        configs += 1;
    }
    assert!(configs >= 8);
    for wrong in [
        json!({"lora": {"rnak": 4}}),
        json!({"lora": {"rank": "4"}}),
        json!({"lora": {"layers_to_transform": [0, -1]}}),
        json!({"lora": {"rank_pattern": {"q_proj": "high"}}}),
        json!({"train": {"schedule": "cosin"}}),
        json!({"train": {"adam_betas": [0.9]}}),
        json!({"lorra": {}}),
    ] {
        assert!(!meets(&schema, &schema, &wrong), "{wrong}");
    }
}

#[test]
fn init_writes_a_config_that_trains_once_it_is_filled_in() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("tiny.toml");
    let init = |model: &str| {
        let mut command = asft(&["init", model, "--out"]);
        command.arg(&out);
        command
    };
    let stderr = succeeds(init("tests/tiny/aligned"));
    assert!(stderr.contains("before training, set data.train and model.unaligned"), "{stderr}");
    let text = std::fs::read_to_string(&out).unwrap();
    for part in [
        "aligned = \"tests/tiny/aligned\"",
        "# unaligned =    (a string)",
        "dtype = \"f16\"",
        "max_length = 256",
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in 3 layers.",
        "# Rank r of the update B·A.",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    refused(init("tests/tiny/aligned"), &["exists and is left as it is"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
    let filled = |sets: &[&str]| {
        let mut command = asft(&["train", "--config"]);
        command.arg(&out).args(["--set", "data.train=tests/tiny/train.jsonl", "--set", "train.max_steps=1", "--set"]);
        command.arg(format!("output.dir={}", scratch.path().join("run").display()));
        for set in sets {
            command.args(["--set", set]);
        }
        command
    };
    refused(filled(&[]), &["model.unaligned"]);
    succeeds(filled(&["model.unaligned=tests/tiny/unaligned"]));
    let mut printed = asft(&["init", "tests/tiny/aligned", "--out", "-"]);
    assert_eq!(String::from_utf8(printed.output().unwrap().stdout).unwrap(), text);
    // A model without a chat template gets a format that needs none; one that is not supported gets no config.
    let bare = fixture("qwen3").join("model").display().to_string();
    let printed = asft(&["init", &bare, "--out", "-"]).output().unwrap().stdout;
    assert!(String::from_utf8(printed).unwrap().contains("format = \"prompt_completion\""));
    refused(asft(&["init", "tests/tiny", "--out", "-"]), &["config.json"]);
}
