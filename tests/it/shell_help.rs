//! What a shell and its user learn about the commands: completions and man pages.

use crate::support::command::{asft, refused, stdout, succeeds};

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
}
