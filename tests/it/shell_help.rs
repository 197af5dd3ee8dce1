//! What a shell and its user learn about the commands: completions and man pages.

use crate::support::command::{asft, refused, stdout, succeeds, train};
use clap::CommandFactory;
use std::path::Path;

#[test]
fn completions_and_man_pages_are_written() {
    for (shell, needle) in [("bash", "_asft()"), ("zsh", "#compdef asft"), ("fish", "complete -c asft")] {
        let script = stdout(asft(&["completions", shell]));
        assert!(script.contains(needle) && script.contains("allow-change"), "{shell}");
    }
    refused(asft(&["completions", "csh"]), &["csh", "bash"]);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("man1");
    succeeds(asft(&["man"]).arg(&dir));
    let page = std::fs::read_to_string(dir.join("asft-train.1")).unwrap();
    assert!(page.contains(".TH asft-train 1") && page.contains("allow\\-change"), "{page}");
    assert!(dir.join("asft.1").is_file());
    let printed = stdout(asft(&["man", "-"]));
    assert!(printed.contains(".TH asft 1") && printed.contains(".TH asft-train 1") && printed.contains(&page));
}

/// What stands below "Examples:", as it can be pasted: a line that goes on ends with a backslash.
#[test]
fn examples_survive_pasting() {
    let mut count = 0;
    for command in asft::cli::Cli::command().get_subcommands() {
        let help = stdout(asft(&[command.get_name(), "--help"]));
        let Some((_, examples)) = help.split_once("\nExample") else { continue };
        let mut goes_on = false;
        for line in examples.lines().skip(1) {
            assert!(goes_on || line.starts_with("  asft "), "{}: {line}", command.get_name());
            assert!(line.chars().count() < 80, "{line}");
            goes_on = line.ends_with(" \\");
            count += 1;
        }
        assert!(!goes_on, "{examples}");
    }
    assert!(count > 20, "{count}");
}

#[test]
fn an_adapter_is_found_in_its_run() {
    let scratch = tempfile::tempdir().unwrap();
    let run = scratch.path().join("run");
    succeeds(train(&run, &["train.max_steps=1"], &[]));
    let answer = |adapter: &Path| {
        let mut command =
            asft(&["generate", "--model", "tests/tiny/aligned", "--prompt", "hi", "--max-new-tokens", "4"]);
        stdout(command.arg("--adapter").arg(adapter))
    };
    assert_eq!(answer(&run), answer(&run.join("adapter")));
}
