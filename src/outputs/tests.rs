use super::*;
use crate::error::exit_code;
use std::os::unix::fs::symlink;

/// A folder with `in/model.safetensors`, `data.jsonl`, and other names of both.
fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    std::fs::create_dir(place("in")).unwrap();
    std::fs::write(place("in/model.safetensors"), "weights").unwrap();
    std::fs::write(place("data.jsonl"), "{}").unwrap();
    symlink(place("in"), place("link")).unwrap();
    symlink(place("data.jsonl"), place("soft.jsonl")).unwrap();
    std::fs::hard_link(place("data.jsonl"), place("hard.jsonl")).unwrap();
    std::fs::hard_link(place("in/model.safetensors"), place("hard.safetensors")).unwrap();
    symlink(place("nowhere"), place("dangling")).unwrap();
    dir
}

fn outputs(dir: &Path, overwrite: bool) -> Outputs {
    Outputs::new(overwrite)
        .reads("--model", [dir.join("in")])
        .reads("--data", Some(dir.join("data.jsonl")))
        .reads("--other", ["org/name"])
}

#[track_caller]
fn refused(outputs: &Outputs, needle: &str) {
    let error = outputs.check().unwrap_err();
    let text = format!("{error:#}");
    assert_eq!(exit_code(&error), 2, "{text}");
    assert!(text.starts_with("--out: ") && text.contains(needle), "no `{needle}` in {text}");
}

#[test]
fn inputs_are_refused_whatever_name_leads_to_them() {
    let scratch = scratch();
    let dir = scratch.path();
    for (name, needle) in [
        ("data.jsonl", "is an input, --data "),
        ("soft.jsonl", "is an input, --data "),
        ("hard.jsonl", "is an input, --data "),
        ("in/../data.jsonl", "is an input, --data "),
        ("new/../data.jsonl", "is an input, --data "),
        ("in/model.safetensors", "lies in an input folder, --model "),
        ("in/new", "lies in an input folder, --model "),
        ("in/new/deep/file", "lies in an input folder, --model "),
        ("link/new", "lies in an input folder, --model "),
        ("new/../in/file", "lies in an input folder, --model "),
        ("hard.safetensors", "is the same file as the input "),
    ] {
        for overwrite in [false, true] {
            refused(&outputs(dir, overwrite).file("--out", [dir.join(name)]), needle);
        }
    }
    for name in ["in", "link", "in/new"] {
        refused(&outputs(dir, true).folder("--out", &dir.join(name), "mark"), "an input");
        refused(&outputs(dir, true).kept("--out", &dir.join(name)), "an input");
    }
    refused(&outputs(dir, true).folder("--out", dir, "data.jsonl"), "holds an input");
    let matched = Outputs::new(true).reads("--data", [dir.join("da*.jsonl")]).file("--out", [dir.join("hard.jsonl")]);
    refused(&matched, "is an input, --data ");
    refused(&outputs(dir, true).removed("--out", [dir]), "holds an input");
    outputs(dir, true).kept("--out", dir).check().unwrap();
}

#[test]
fn what_exists_is_replaced_only_on_request() {
    let scratch = scratch();
    let dir = scratch.path();
    std::fs::write(dir.join("old"), "old").unwrap();
    for name in ["old", "dangling", "new/../old"] {
        refused(&outputs(dir, false).file("--out", [dir.join(name)]), "--overwrite");
        outputs(dir, true).file("--out", [dir.join(name)]).check().unwrap();
    }
    outputs(dir, false).file("--out", [dir.join("new"), dir.join("newer/file")]).check().unwrap();
    refused(&outputs(dir, true).file("--out", [dir.join("old/file")]), "is not a folder");
    let both = outputs(dir, false).file("--out", [dir.join("old"), dir.join("data.jsonl")]);
    let text = format!("{:#}", both.check().unwrap_err());
    assert!(text.contains("2 problems") && text.contains("--overwrite") && text.contains("is an input"), "{text}");
}

#[test]
fn folders_are_replaced_only_by_their_kind() {
    let scratch = scratch();
    let (dir, out) = (scratch.path(), scratch.path().join("out"));
    let folder = |overwrite| outputs(dir, overwrite).folder("--out", &out, "mark.json");
    folder(false).check().unwrap();
    std::fs::create_dir(&out).unwrap();
    folder(false).check().unwrap();
    std::fs::write(out.join("thesis.txt"), "").unwrap();
    refused(&folder(false), "--overwrite");
    refused(&folder(true), "only if it is an earlier output: with mark.json");
    std::fs::write(out.join("mark.json"), "").unwrap();
    refused(&folder(false), "--overwrite");
    folder(true).check().unwrap();
    std::fs::create_dir(out.join("more")).unwrap();
    refused(&folder(true), "without folders in it");
    refused(&outputs(dir, true).folder("--out", &dir.join("hard.jsonl"), "mark.json"), "is an input");
}

#[test]
fn streams_are_written_to_as_they_are() {
    let scratch = scratch();
    let link = scratch.path().join("out");
    symlink("/dev/stdout", &link).unwrap();
    let streams = [Path::new("/dev/null"), Path::new("/dev/stdout"), Path::new("/dev/fd/1"), &link];
    Outputs::new(false).reads("--phrases", ["/dev/null"]).file("--out", streams).check().unwrap();
    refused(&Outputs::new(true).folder("--out", Path::new("/dev/null"), "mark"), "is not a folder");
}

#[test]
fn no_two_outputs_are_one_file() {
    let scratch = scratch();
    let dir = scratch.path();
    symlink(dir, dir.join("here")).unwrap();
    for overwrite in [false, true] {
        for twice in ["a.json", "new/../a.json", "here/a.json"] {
            let both = outputs(dir, overwrite).file("--samples", [dir.join("a.json")]).file("--out", [dir.join(twice)]);
            refused(&both, "is written twice, also as --samples ");
        }
        let own = outputs(dir, overwrite).kept("dir", &dir.join("table.txt")).file("--out", [dir.join("table.txt")]);
        refused(&own, "is written twice, also as dir ");
        outputs(dir, overwrite)
            .file("--samples", [dir.join("a.json")])
            .file("--out", [dir.join("b.json")])
            .check()
            .unwrap();
    }
    outputs(dir, false).file("--samples", ["/dev/stdout"]).file("--out", ["/dev/stdout"]).check().unwrap();
}
