//! `asft compare` end to end, with the real binary on the toy model.

use crate::support::command::{asft, ends, json, refused, stderr, stdout, succeeds};
use crate::support::files::tiny;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn compare(config: &Path, arguments: &[&str]) -> Command {
    let mut command = asft(&["compare", "--config"]);
    command.arg(config).args(arguments);
    command
}

/// A comparison in `dir`, and its path.
fn write(dir: &Path, methods: &str) -> std::path::PathBuf {
    let suite = "[[eval]]\nname = 'task'\ndata = 'tests/tiny/train.jsonl'\nlimit = 8\n[[eval]]\nname = 'harm'\ndata = \
                 'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = 8\nmax_new_tokens = 4\n";
    fs::write(dir.join("suite.toml"), suite).unwrap();
    let config = dir.join("compare.toml");
    let text = format!(
        "config = 'configs/tiny.toml'\nsuite = {:?}\ndir = {:?}\nseeds = [1, 2]\nsweep = {{ train.max_steps = [4] }}\n{methods}",
        dir.join("suite.toml"),
        dir.join("out")
    );
    fs::write(&config, text).unwrap();
    config
}

const METHODS: &str = "[[method]]\nname = 'plain'\nset = { asft.penalize = 'none' }\n[[method]]\nname = 'asft'\nsweep = { \
                       asft.lambda = [0.1, 1000] }\n[[method]]\nname = 'safe'\nproject = { of = 'plain', threshold = [0.9] \
                       }\n[[method]]\nname = 'lox'\nset = { asft.penalize = 'none' }\nextrapolate = { rank = 2, alpha = \
                       0.5 }\n[figure]\nx = 'harm'\ny = 'harm'\n";

#[test]
fn a_comparison_that_stops_goes_on_to_the_same_results() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), METHODS);
    refused(compare(&config, &["--report"]), &["out has no results yet; `asft compare --config "]);
    assert!(!dir.path().join("out").exists());
    let output = compare(&config, &[]).output().unwrap();
    let (table, told) = (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output));
    assert!(output.status.success(), "{told}");
    // What is to do, and a line for each model of the pair and each run; the runs themselves log nothing.
    assert!(told.contains("10 runs, 0 done, 10 to go") && told.contains(" to go)"), "{told}");
    assert!(told.lines().count() == 1 + 2 + 10 && !told.contains("tokens/s"), "{told}");
    for name in [
        "aligned model",
        "unaligned model",
        "plain",
        "asft, lambda 0.1",
        "asft, lambda 1000",
        "safe, threshold 0.9",
        "lox",
    ] {
        assert!(table.lines().any(|line| line.trim_start().starts_with(name)), "{name}: {table}");
    }
    assert!(table.contains("(a..b)    least and greatest") && !table.contains('±'), "{table}");
    let listed = stdout(compare(&config, &["--list"]));
    assert!(listed.starts_with("10 runs, all done\n") && listed.contains("seeds 1, 2; done: 1, 2\n"), "{listed}");
    let out = dir.path().join("out");
    let figure = fs::read_to_string(out.join("figure.svg")).unwrap();
    assert!(figure.starts_with("<svg") && fs::read(out.join("figure.png")).unwrap().starts_with(b"\x89PNG"));
    // A sweep over one value varies nothing.
    assert!(!out.join("sweep.svg").exists());
    let results = out.join("results.jsonl");
    let whole = fs::read_to_string(&results).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    // A head, the pair, and five settings with two seeds.
    assert_eq!(lines.len(), 1 + 2 + 10, "{whole}");
    // As a kill leaves it: some rows, and half a line.
    fs::write(&results, lines[..6].join("\n") + "\n" + &lines[6][..20]).unwrap();
    let again = compare(&config, &["-q"]).output().unwrap();
    assert_eq!((again.status.code(), stderr(&again)), (Some(0), String::new()));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), table);
    assert_eq!(fs::read_to_string(&results).unwrap(), whole);
    let report = json(compare(&config, &["--report", "--json"]));
    let case =
        |name: &str| report["cases"].as_array().unwrap().iter().find(|case| case["method"] == name).unwrap().clone();
    let loss = |case: &Value| case["measured"][0]["mean"].as_f64().unwrap();
    assert_eq!((case("plain")["seeds"].clone(), case("aligned model")["seeds"].clone()), (json!(2), json!(1)));
    assert!(loss(&case("plain")) < loss(&case("aligned model")), "{report}");
    assert_ne!(loss(&case("safe")), loss(&case("plain")));
    // Results that are no longer planned are kept, but not shown.
    write(dir.path(), &METHODS.replace("[0.1, 1000]", "[0.1]"));
    let fewer = stdout(compare(&config, &["--report"]));
    assert!(!fewer.contains("lambda 1000") && fewer.contains("2 results in results.jsonl belong to no run"), "{fewer}");
    assert_eq!(fs::read_to_string(&results).unwrap(), whole);
    // Nor do results of other data belong to these.
    let (data, changed) = (dir.path().join("train.jsonl"), fs::read_to_string(tiny("train.jsonl")).unwrap());
    let first: Vec<&str> = changed.lines().take(20).collect();
    fs::write(&data, first.join("\n")).unwrap();
    let own =
        METHODS.replace("[figure]", &format!("[[method]]\nname = 'own'\nset = {{ data.train = {data:?} }}\n[figure]"));
    write(dir.path(), &own);
    succeeds(compare(&config, &["-q"]));
    fs::write(&data, first[1..].join("\n")).unwrap();
    ends(compare(&config, &[]), 2, &["made with other contents of", "train.jsonl;"]);
    // Another config would make results that do not belong together.
    let other =
        fs::read_to_string(&config).unwrap().replace("'configs/tiny.toml'", "'configs/models/smollm2-135m.toml'");
    fs::write(&config, other).unwrap();
    ends(compare(&config, &["--report"]), 2, &["belongs to another config or suite"]);
}

#[test]
fn every_run_s_settings_are_checked_before_the_first_trains() {
    let dir = tempfile::tempdir().unwrap();
    for (methods, words) in [
        ("[[method]]\nname = 'a'\n[[method]]\nname = 'b'\nset = { asft.lamda = 1 }", "did you mean `asft.lambda`"),
        ("[[method]]\nname = 'a'\nsweep = { asft.lambda = [1, 'x'] }", "asft.lambda"),
        ("[[method]]\nname = 'a'\n[figure]\nx = 'task'\ny = 'hram'", "figure.y is \"hram\""),
        ("", "missing key `method`"),
    ] {
        let config = write(dir.path(), methods);
        for arguments in [&[][..], &["--list"]] {
            ends(compare(&config, arguments), 2, &[words]);
        }
        assert!(!dir.path().join("out").exists());
    }
    ends(compare(Path::new("/nowhere.toml"), &[]), 2, &[]);
    let listed = stdout(compare(&write(dir.path(), METHODS), &["--list"]));
    assert!(
        listed.starts_with("10 runs, 0 done, 10 to go\n") && listed.lines().all(|line| line.len() <= 120),
        "{listed}"
    );
    assert!(
        listed.contains("asft, lambda 0.1, max_steps 4: seeds 1, 2\n    train.max_steps=4 asft.lambda=0.1\n"),
        "{listed}"
    );
    assert!(!dir.path().join("out").exists(), "a list writes nothing");
}

#[test]
fn a_run_that_fails_is_reported_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let methods = "[[method]]\nname = 'diverges'\nset = { train.learning_rate = 1e30, train.max_grad_norm = 0 }\n[[method]]\nname \
                   = 'fine'\n";
    let config = write(dir.path(), methods);
    let table = stdout(compare(&config, &[]));
    assert!(table.lines().any(|line| line.contains("diverges") && line.contains("2 failed")), "{table}");
    assert!(table.lines().any(|line| line.contains("fine") && !line.contains("failed")), "{table}");
    // Tried again, a failure still counts once.
    assert_eq!(stdout(compare(&config, &[])), table);
}

#[test]
fn what_is_varied_is_drawn_along_an_axis() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(
        dir.path(),
        "[[method]]\nname = 'one method'\n[figure]\nx = 'task'\ny = 'harm'\nalong = 'steps'\nlabels = ['two', 'three']\n",
    );
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("max_steps = [4]", "max_steps = [2, 3]").replace("[1, 2]", "[1]")).unwrap();
    succeeds(compare(&config, &[]));
    let picture = fs::read_to_string(dir.path().join("out/sweep.svg")).unwrap();
    let texts: Vec<&str> = picture.lines().map(str::trim).filter(|line| !line.starts_with('<')).collect();
    // The task is measured by its loss, which is no share.
    for text in ["steps", "two", "three", "harm, %", "task", "one method"] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    assert!(!texts.contains(&"task, %"), "{texts:?}");
}

#[test]
#[cfg(unix)]
fn a_signal_while_a_result_is_measured_stops_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), "[[method]]\nname = 'one'\n");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("seeds = [1, 2]", "seeds = [1, 2, 3, 4, 5, 6]")).unwrap();
    // Most of the time goes into answers.
    let suite = dir.path().join("suite.toml");
    let text = fs::read_to_string(&suite).unwrap();
    fs::write(&suite, text.replace("limit = 8\nmax_new_tokens = 4", "max_new_tokens = 48")).unwrap();
    let child = compare(&config, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let runs = dir.path().join("out/runs");
    let trained = || {
        let mut folders = fs::read_dir(&runs).into_iter().flatten().flatten();
        folders.any(|folder| folder.path().join("adapter/adapter_config.json").exists())
    };
    let began = Instant::now();
    while !trained() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    assert!(told.contains("stopped by SIGTERM; the same command goes on") && !told.contains("/6 one"), "{told}");
}

#[test]
fn differences_are_paired_by_seed_and_record() {
    let dir = tempfile::tempdir().unwrap();
    let methods = "[[method]]\nname = 'plain'\nset = { asft.penalize = 'none' }\n[[method]]\nname = 'asft'\nsweep = { asft.lambda \
                   = [0.1, 1000] }\n[paired]\nagainst = 'plain'\ncluster = 'output'\nmargin = 0.5\n";
    let config = write(dir.path(), methods);
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("[1, 2]", "[1, 2, 3]")).unwrap();
    let found = json(compare(&config, &["-q", "--json"]));
    let pairs = found["paired"].as_array().unwrap();
    assert_eq!(pairs.len(), 2, "{found}");
    let harm = |method: &str, settings: &Value| {
        let is = |case: &&Value| case["method"] == method && (method == "plain" || case["settings"] == *settings);
        let case = found["cases"].as_array().unwrap().iter().find(is).unwrap();
        let measured = case["measured"].as_array().unwrap();
        measured.iter().find(|measured| measured["name"] == "harm").unwrap()["mean"].as_f64().unwrap()
    };
    for pair in pairs {
        assert_eq!((&pair["against"], &pair["seeds"]), (&json!("plain"), &json!(3)));
        // The loss counts no records.
        let [difference] = &pair["differences"].as_array().unwrap()[..] else { panic!("{pair}") };
        assert_eq!(difference["evaluation"], "harm");
        let mean = harm("asft", &pair["settings"]) - harm("plain", &pair["settings"]);
        assert!((difference["mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{pair} {mean}");
        assert!(difference["interval"].is_array() && difference["verdict"].is_string(), "{pair}");
    }
    let table = stdout(compare(&config, &["--report"]));
    assert!(table.contains("difference, in points") && table.contains("clusters by \"output\""), "{table}");
    assert!(fs::read_to_string(dir.path().join("out/table.txt")).unwrap().contains("difference, in points"));
}

/// Attacks share a training run where they set nothing of it; the worst of them is reported, on a page, too.
#[test]
fn every_method_s_worst_attack_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let methods = "[[attack]]\nname = 'asked'\n[[attack]]\nname = 'begun'\nprefill = 'cold'\n[[attack]]\nname = 'long'\nset = { \
                   train.max_steps = 6 }\n[[method]]\nname = 'plain'\nset = { asft.penalize = 'none' }\n[[method]]\nname = \
                   '<asft>'\n[worst]\nharm = 'harm'\ntask = 'task'\n[figure]\nx = 'task'\ny = 'harm'\n";
    let config = write(dir.path(), methods);
    let (out, page) = (dir.path().join("out"), dir.path().join("page.html"));
    let told = stdout(compare(&config, &["-q", "--html", page.to_str().unwrap()]));
    // Three attacks on two methods with two seeds, but two trainings each.
    let trained = fs::read_dir(out.join("runs")).unwrap().count();
    assert_eq!((trained, told.matches("attack long").count() >= 2), (8, true), "{told}");
    let found = json(compare(&config, &["--report", "--json"]));
    let worst = found["worst"].as_array().unwrap();
    assert_eq!((worst.len(), &worst[0]["method"], &worst[0]["conditions"]), (2, &json!("plain"), &json!(3)), "{found}");
    assert_eq!((&worst[0]["planned_conditions"], &worst[0]["planned_runs"]), (&json!(3), &json!(6)), "{found}");
    let harms = |method: &str| -> Vec<f64> {
        let cases = found["cases"].as_array().unwrap().iter().filter(|case| case["method"] == method);
        let harm = |case: &Value| {
            let measured = case["measured"].as_array().unwrap();
            measured.iter().find(|measured| measured["name"] == "harm").unwrap()["mean"].as_f64().unwrap()
        };
        cases.map(harm).collect()
    };
    let most = harms("plain").into_iter().fold(0.0, f64::max);
    assert_eq!(worst[0]["harm"]["mean"].as_f64(), Some(most), "{found}");
    assert!(told.contains("worst case") && told.contains("least task"), "{told}");
    assert!(out.join("worst.svg").exists() && out.join("worst.png").exists());
    let html = fs::read_to_string(&page).unwrap();
    for part in
        ["<h2>Worst case</h2>", "<h2>harm against task</h2>", "&lt;asft&gt;", "attack begun", "prefers-color-scheme"]
    {
        assert!(html.contains(part), "{part}: {html}");
    }
    for foreign in ["<script", "<asft>", "src=", "<link", "url(", "NaN"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert_eq!(html.matches("<figure").count(), html.matches("</figure>").count());
    refused(compare(&config, &["--report", "--html", page.to_str().unwrap()]), &["page.html", "--overwrite"]);
    for (wrong, words) in [
        (methods.replace("'long'", "'begun'"), "two attacks are called \"begun\""),
        (
            methods.replace("harm = 'harm'", "harm = 'hram: told'"),
            "worst.harm is \"hram: told\", which is no evaluation",
        ),
        // Whether an evaluation has such a value is known with the first result.
        (
            methods.replace("harm = 'harm'", "harm = 'harm: tolled'"),
            "worst.harm is \"harm: tolled\", which no result has; there are: task, task: perplexity, harm",
        ),
        (methods.replace("prefill", "prefil"), "did you mean `prefill`?"),
    ] {
        ends(compare(&write(dir.path(), &wrong), &["--report"]), 2, &[words]);
    }
    // Nothing is trained for a measure that the models of the pair do not have.
    let other = tempfile::tempdir().unwrap();
    let config = write(other.path(), &methods.replace("harm = 'harm'", "harm = 'harm: tolled'"));
    ends(compare(&config, &["-q"]), 2, &["harm: tolled"]);
    assert!(!other.path().join("out/runs").exists());
}

/// Every part does less than the whole update; the more of V its columns hold, the more what lies in them does, and the less what is left.
#[test]
fn parts_of_another_method_s_updates_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let methods = "[[method]]\nname = 'plain'\nset = { asft.penalize = 'none' }\n[[method]]\nname = 'parts'\ncut = { of = 'plain', to = \
                   ['columns', 'without_columns', 'without_rows'], energy = 0.5 }\n[[method]]\nname = 'random parts'\ncut = { of = \
                   'plain', to = ['columns'], energy = 0.5, random = 1 }\n[[method]]\nname = 'larger parts'\ncut = { of = 'plain', to = ['columns', \
                   'without_columns'], energy = 0.99 }\n";
    let config = write(dir.path(), methods);
    let found = json(compare(&config, &["-q", "--json"]));
    assert_eq!(fs::read_dir(dir.path().join("out/runs")).unwrap().count(), 2, "parts are not trained");
    let loss = |method: &str, part: Value| -> f64 {
        let is = |case: &&Value| case["method"] == method && (part.is_null() || case["settings"][0][1] == part);
        let case = found["cases"].as_array().unwrap().iter().find(is).unwrap();
        assert_eq!(case["failed"], 0, "{case}");
        case["measured"][0]["mean"].as_f64().unwrap()
    };
    let (aligned, plain) = (loss("aligned model", Value::Null), loss("plain", Value::Null));
    let parts = ["columns", "without_columns", "without_rows"].map(|part| loss("parts", json!(part)));
    // Training has lowered the loss, and every part of it does less.
    for part in parts.into_iter().chain([loss("random parts", json!("columns"))]) {
        assert!(part > plain && part < aligned, "{part}: {plain} to {aligned}");
    }
    assert!(parts[0] != parts[1] && parts[1] != parts[2]);
    let more = ["columns", "without_columns"].map(|part| loss("larger parts", json!(part)));
    assert!(more[0] < parts[0] - 0.1 && more[1] > parts[1] + 0.01, "{more:?}, {parts:?}");
}
