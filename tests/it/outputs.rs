//! No command loses what it did not make: outputs onto inputs, and onto what exists.

use crate::support::command::{asft, refused, stdout, succeeds, text, train};
use crate::support::files::{copy_files, root, tiny};
use asft::cli::Cli;
use clap::{Arg, Command, CommandFactory};
use std::any::TypeId;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

/// What a command does with a path that it is given.
#[derive(Clone, Copy)]
enum Use {
    Reads,
    /// Writes it, in this command line, where `IN` is a folder with the inputs that [`scratch`] makes.
    Writes(&'static str),
    /// Writes what the file names: `output.dir`, `dir`.
    WritesNamed,
}

use Use::{Reads, Writes, WritesNamed};

const DIRECTION: &str = "--aligned IN/aligned --unaligned IN/unaligned --out";
const EVAL: &str = "--model IN/aligned --data IN/data.jsonl --metric refusal --max-new-tokens 2 --limit 2 --samples";
const GENERATE: &str = "--model IN/aligned --prompt hi --max-new-tokens 1 --logits";
const EXPORTED: &str =
    "--model IN/aligned --data IN/data.jsonl --metric refusal --max-new-tokens 2 --limit 2 --alpaca-eval";
const ANSWERS: &str = "--model IN/aligned --data IN/data.jsonl --max-new-tokens 1 --alpaca-eval";
const COMPARE: &str = "--config IN/compare.toml --html";
const MERGE: &str = "--model IN/aligned --adapter IN/adapter --out";
const EXPORT: &str = "--model IN/aligned --adapter IN/adapter --format gguf --out";
const PROJECT: &str = "--adapter IN/adapter --direction IN/d.safetensors --out";
const INSPECT: &str = "--adapter IN/adapter --direction IN/d.safetensors --svg";
const LANDSCAPE: &str = "--model IN/aligned --direction IN/d.safetensors --data IN/data.jsonl --limit 1 --points 3 --grid 0 \
                         --repeats 1 --out";

/// Every argument that names a path, by command.
const PATHS: [(&str, &[(&str, Use)]); 15] = [
    ("direction", &[("aligned", Reads), ("unaligned", Reads), ("out", Writes(DIRECTION))]),
    ("data", &[("config", Reads)]),
    ("train", &[("config", WritesNamed)]),
    (
        "eval",
        &[
            ("model", Reads),
            ("tokenizer", Reads),
            ("adapter", Reads),
            ("suite", Reads),
            ("data", Reads),
            ("template", Reads),
            ("phrases", Reads),
            ("judge", Reads),
            ("samples", Writes(EVAL)),
            ("alpaca_eval", Writes(EXPORTED)),
        ],
    ),
    (
        "generate",
        &[
            ("model", Reads),
            ("tokenizer", Reads),
            ("adapter", Reads),
            ("data", Reads),
            ("template", Reads),
            ("logits", Writes(GENERATE)),
            ("alpaca_eval", Writes(ANSWERS)),
        ],
    ),
    ("serve", &[("model", Reads), ("tokenizer", Reads), ("api_key_file", Reads), ("template", Reads)]),
    ("merge", &[("model", Reads), ("tokenizer", Reads), ("adapter", Reads), ("out", Writes(MERGE))]),
    ("export", &[("model", Reads), ("tokenizer", Reads), ("adapter", Reads), ("out", Writes(EXPORT))]),
    ("compare", &[("config", WritesNamed), ("html", Writes(COMPARE))]),
    ("project", &[("adapter", Reads), ("direction", Reads), ("out", Writes(PROJECT))]),
    (
        "inspect",
        &[("adapter", Reads), ("model", Reads), ("base", Reads), ("direction", Reads), ("svg", Writes(INSPECT))],
    ),
    (
        "landscape",
        &[
            ("model", Reads),
            ("tokenizer", Reads),
            ("adapter", Reads),
            ("direction", Reads),
            ("harm", Reads),
            ("suite", Reads),
            ("data", Reads),
            ("out", Writes(LANDSCAPE)),
        ],
    ),
    ("report", &[("run", Reads), ("out", Writes("IN/run --out"))]),
    (
        "init",
        &[
            ("model", Reads),
            ("tokenizer", Reads),
            ("unaligned", Reads),
            ("direction", Reads),
            ("data", Reads),
            ("out", Writes("IN/aligned --out")),
            ("sandbox", Writes("--sandbox")),
        ],
    ),
    ("man", &[("dir", Writes(""))]),
];

/// Names of values that are no paths.
const NO_PATHS: [&str; 12] = [
    "KEY=VALUE",
    "NAME=VALUE",
    "KEY",
    "NAMES",
    "TEXT",
    "FIELD=COLUMN",
    "FIELD",
    "LIST",
    "PATTERN",
    "NAME",
    "CARD",
    "ADDRESS",
];

/// Whether the value may be a path: its type is one, or it is a text that is not known to be something else.
fn may_be_path(argument: &Arg) -> bool {
    let kind = argument.get_value_parser().type_id();
    let named = argument.get_value_names().unwrap_or_default();
    let is_text = kind == TypeId::of::<String>() && !named.iter().any(|name| NO_PATHS.contains(&name.as_str()));
    argument.get_action().takes_values() && (kind == TypeId::of::<PathBuf>() || is_text)
}

fn subcommands() -> impl Iterator<Item = Command> {
    let mut all = Cli::command();
    all.build();
    all.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect::<Vec<_>>().into_iter()
}

fn outputs() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    PATHS.into_iter().flat_map(|(command, arguments)| {
        arguments.iter().filter_map(move |(argument, used)| match used {
            Writes(line) => Some((command, *argument, *line)),
            _ => None,
        })
    })
}

#[test]
fn every_path_is_known_as_input_or_output() {
    let listed: BTreeMap<&str, &[(&str, Use)]> = PATHS.into();
    for command in subcommands() {
        let name = command.get_name();
        let mut found: Vec<&str> =
            command.get_arguments().filter(|argument| may_be_path(argument)).map(|a| a.get_id().as_str()).collect();
        let known = listed.get(name).copied().unwrap_or_default();
        let mut expected: Vec<&str> = known.iter().map(|(argument, _)| *argument).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(
            found, expected,
            "asft {name}: say in PATHS whether each argument is read or written, or in NO_PATHS that it is no path; what \
             is written is checked with `Outputs`"
        );
        let writes = known.iter().any(|(_, used)| !matches!(used, Reads));
        let can_overwrite = command.get_arguments().any(|argument| argument.get_id() == "overwrite");
        assert_eq!(writes, can_overwrite, "asft {name}: --overwrite and outputs belong together");
    }
}

/// `aligned`, `unaligned`, `data.jsonl`, `d.safetensors`, `run` and its `adapter`, `suite.toml`, `compare.toml`.
fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    for model in ["aligned", "unaligned"] {
        copy_files(&tiny(model), &place(model));
    }
    fs::copy(tiny("train.jsonl"), place("data.jsonl")).unwrap();
    succeeds(train(&place("run"), &["train.max_steps=1"], &["-q"]));
    symlink(place("run/adapter"), place("adapter")).unwrap();
    fs::copy(place("run/direction.safetensors"), place("d.safetensors")).unwrap();
    fs::write(place("suite.toml"), "[[eval]]\nname = 'a'\ndata = 'tests/tiny/train.jsonl'\nlimit = 2\n").unwrap();
    let comparison = format!(
        "config = 'configs/tiny.toml'\nsuite = {:?}\ndir = {:?}\n[[method]]\nname = 'm'\nset = {{ train.max_steps = 1 }}\n",
        place("suite.toml"),
        place("compared")
    );
    fs::write(place("compare.toml"), comparison).unwrap();
    dir
}

/// `asft COMMAND` with the line's arguments, the output and more.
fn run(scratch: &Path, command: &str, line: &str, output: &Path, more: &[&str]) -> process::Command {
    let line = line.replace("IN", text(scratch));
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut run = asft(&[command]);
    run.args(words).arg(output).args(more);
    run
}

/// Every file below a folder with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn nothing_that_exists_is_replaced_without_overwrite() {
    let scratch = scratch();
    for (command, argument, line) in outputs() {
        let name = format!("{command}-{argument}.out");
        let out = scratch.path().join(&name);
        succeeds(run(scratch.path(), command, line, &out, &["-q"]));
        let before = contents(scratch.path());
        refused(run(scratch.path(), command, line, &out, &[]), &["--overwrite", &name]);
        assert!(contents(scratch.path()) == before, "asft {command} --{argument} changed something");
        succeeds(run(scratch.path(), command, line, &out, &["-q", "--overwrite"]));
        let made = contents(scratch.path());
        assert!(made.keys().eq(before.keys()), "asft {command} --{argument} --overwrite left or lost files");
    }
}

#[test]
fn no_output_goes_onto_an_input_or_into_its_folder() {
    let scratch = scratch();
    let place = |name: &str| scratch.path().join(name);
    symlink(place("aligned"), place("way")).unwrap();
    symlink(place("run"), place("way2")).unwrap();
    let before = contents(scratch.path());
    for (command, argument, line) in outputs().filter(|(.., line)| line.contains("IN")) {
        let folders: &[&str] = match (line.contains("aligned"), line.contains("IN/run")) {
            (true, _) => &["aligned/new", "aligned/config.json", "way/new", "aligned/new/deep"],
            _ if line == COMPARE => &["compare.toml", "suite.toml"],
            (_, true) => &["run/new", "run/metrics.jsonl", "way2/new", "run/config.toml"],
            _ => &["adapter/new", "run/adapter/new", "adapter/adapter_config.json"],
        };
        for output in folders {
            for more in [&[][..], &["--overwrite"]] {
                refused(run(scratch.path(), command, line, &place(output), more), &["input", "give a"]);
            }
        }
        assert!(contents(scratch.path()) == before, "asft {command} --{argument} changed something");
    }
}

#[test]
fn the_inputs_themselves_are_never_replaced() {
    let scratch = scratch();
    let place = |name: &str| scratch.path().join(name);
    fs::write(place("other.safetensors"), "").unwrap();
    for (of, to) in [("soft", "data.jsonl"), ("weights", "aligned/model.safetensors"), ("drawn", "d.safetensors")] {
        symlink(place(to), place(&format!("{of}.link"))).unwrap();
        fs::hard_link(place(to), place(&format!("{of}.twin"))).unwrap();
    }
    let before = contents(scratch.path());
    for (command, line, output) in [
        ("direction", DIRECTION, "aligned/model.safetensors"),
        ("direction", DIRECTION, "weights.link"),
        ("direction", DIRECTION, "weights.twin"),
        ("eval", EVAL, "data.jsonl"),
        ("eval", EVAL, "soft.link"),
        ("eval", EVAL, "soft.twin"),
        ("inspect", INSPECT, "d.safetensors"),
        ("inspect", INSPECT, "drawn.link"),
        ("inspect", INSPECT, "drawn.twin"),
        ("generate", GENERATE, "aligned/model.safetensors"),
        ("generate", GENERATE, "weights.twin"),
        ("merge", MERGE, "aligned"),
        ("merge", MERGE, "run/adapter"),
        ("project", PROJECT, "adapter"),
    ] {
        for more in [&[][..], &["--overwrite"]] {
            refused(run(scratch.path(), command, line, &place(output), more), &["input", "give a"]);
        }
    }
    refused(run(scratch.path(), "generate", GENERATE, &place("other.safetensors"), &[]), &["exists", "--overwrite"]);
    assert!(contents(scratch.path()) == before);
}

#[test]
fn what_a_suite_names_is_an_input() {
    let scratch = scratch();
    let (data, suite) = (scratch.path().join("data.jsonl"), scratch.path().join("suite.toml"));
    fs::write(&suite, format!("[[eval]]\nname = 'a'\ndata = {data:?}\nlimit = 2\n")).unwrap();
    for output in [&data, &suite] {
        let mut command = asft(&["eval", "--model", "tests/tiny/aligned", "--suite", text(&suite), "--overwrite"]);
        refused(command.arg("--samples").arg(output), &["--samples", "is an input"]);
    }
}

#[test]
fn a_run_is_not_written_into_its_inputs_nor_over_them() {
    let scratch = scratch();
    let place = |name: &str| scratch.path().join(name);
    let aligned = format!("model.aligned={}", place("aligned").display());
    let before = contents(scratch.path());
    refused(train(&place("aligned/run"), &[&aligned], &[]), &["output.dir", "input folder", "model.aligned"]);
    refused(train(&place("aligned/run"), &[&aligned], &["--resume"]), &["output.dir", "input folder"]);
    let init = format!("lora.init_adapter={}", place("run/adapter").display());
    refused(train(&place("run"), &[&init], &["--overwrite"]), &["is an input", "lora.init_adapter"]);
    assert!(contents(scratch.path()) == before);
    // A run's own direction stays where it is.
    let own = format!("asft.direction={}", place("run/direction.safetensors").display());
    succeeds(train(&place("run"), &["train.max_steps=1", &own], &["-q", "--overwrite"]));
}

#[test]
fn a_comparison_keeps_what_it_did_not_make() {
    let scratch = scratch();
    let place = |name: &str| scratch.path().join(name);
    let (suite, config, out) = (place("suite.toml"), place("compare.toml"), place("out"));
    fs::write(&suite, "[[eval]]\nname = 'a'\ndata = 'tests/tiny/train.jsonl'\nlimit = 2\n").unwrap();
    let write = |dir: &Path| {
        let options = format!(
            "config = 'configs/tiny.toml'\nsuite = {suite:?}\ndir = {dir:?}\nsweep = {{ train.max_steps = [1] }}\n[[method]]\nname = \
             'm'\n"
        );
        fs::write(&config, options).unwrap();
        asft(&["compare", "--config", text(&config), "--report"])
    };
    fs::create_dir(&out).unwrap();
    fs::write(out.join("table.txt"), "mine").unwrap();
    refused(write(&out), &["dir", "table.txt", "--overwrite"]);
    assert_eq!(contents(&out).len(), 1);
    let inside = root().join("tests/tiny/aligned/compared");
    refused(write(&inside), &["dir", "input folder", "model.aligned"]);
    assert!(!inside.exists());
    write(&out);
    succeeds(asft(&["compare", "--config", text(&config), "--overwrite", "-q"]));
    assert_ne!(fs::read_to_string(out.join("table.txt")).unwrap(), "mine");
}

/// Neither before the comparison has run nor after it: its results, its runs and what is made of them stay.
#[test]
fn a_comparison_s_page_takes_the_place_of_none_of_its_files() {
    let scratch = scratch();
    let (config, out) = (scratch.path().join("compare.toml"), scratch.path().join("compared"));
    let page = |name: &str| {
        let mut command = asft(&["compare", "--config", text(&config), "--report", "--overwrite", "--html"]);
        command.arg(out.join(name));
        command
    };
    let own = ["results.jsonl", "table.txt", "figure.svg"];
    for name in own {
        refused(page(name), &["--html", "written twice"]);
    }
    succeeds(asft(&["compare", "--config", text(&config), "-q"]));
    let before = contents(&out);
    assert!(before.contains_key(&out.join("results.jsonl")));
    for name in own {
        refused(page(name), &["--html", "written twice"]);
    }
    for name in ["runs", "runs/page.html"] {
        refused(page(name), &["--html", "input"]);
    }
    assert!(contents(&out) == before);
    succeeds(page("page.html"));
}

#[test]
fn an_evaluation_s_two_outputs_are_two_files() {
    let scratch = scratch();
    let out = scratch.path().join("a.json");
    for more in [&[][..], &["--overwrite"]] {
        let mut command = run(scratch.path(), "eval", EVAL, &out, more);
        refused(command.arg("--alpaca-eval").arg(&out), &["written twice", "a.json"]);
    }
    assert!(!out.exists());
}

#[test]
fn streams_are_written_to() {
    let scratch = scratch();
    let answers = stdout(run(scratch.path(), "eval", EVAL, Path::new("/dev/stdout"), &["--json"]));
    let lines: Vec<&str> = answers.lines().collect();
    assert!(lines.len() > 2 && lines[0].contains("\"evaluation\""), "{answers}");
    for (command, _, line) in outputs().filter(|(command, ..)| ["direction", "inspect", "generate"].contains(command)) {
        succeeds(run(scratch.path(), command, line, Path::new("/dev/null"), &["-q"]));
    }
    // Into a file, what comes first stays first.
    let (file, link) = (scratch.path().join("all.txt"), scratch.path().join("link"));
    symlink("/dev/stdout", &link).unwrap();
    let mut command = run(scratch.path(), "inspect", INSPECT, &link, &["--json"]);
    assert!(command.stdout(fs::File::create(&file).unwrap()).status().unwrap().success());
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("<svg") && text.trim_end().ends_with('}'), "{text}");
    assert!(link.is_symlink());
}
