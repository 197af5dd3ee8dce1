//! Where the system refuses the addresses that huge pages want, the program does without.

#![cfg(target_os = "linux")]

use crate::support::command::ASFT;
use crate::support::files::root;
use std::process::Command;

/// A token of a tiny model, under a limit on addresses in KiB.
fn answer(limit: &str) -> Vec<u8> {
    let mut command = Command::new("sh");
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").env("RAYON_NUM_THREADS", "2");
    command.args(["-c", "ulimit -v \"$1\" && shift && exec \"$@\"", "sh", limit, ASFT]);
    command.args(["generate", "--model", "tests/tiny/aligned", "--prompt", "hi", "--max-new-tokens", "4"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{limit}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_limit_on_addresses_changes_no_answer() {
    assert_eq!(answer("2097152"), answer("unlimited"));
}
