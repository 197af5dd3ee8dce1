//! The program's own allocator, which no test has.

#![cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]

use crate::support::command::{asft, stderr};

/// jemalloc says what it was told: by the program, and then by the environment.
#[test]
fn the_program_asks_for_huge_pages_and_the_environment_overrules_it() {
    let mut command = asft(&["--version"]);
    let output = command.env("_RJEM_MALLOC_CONF", "confirm_conf:true,thp:never").output().unwrap();
    let said = stderr(&output);
    let told: Vec<&str> =
        said.lines().filter_map(|line| line.split_once("Set conf value: ")).map(|(_, told)| told).collect();
    let places = ["thp:always", "dirty_decay_ms:-1", "muzzy_decay_ms:-1", "thp:never"]
        .map(|value| told.iter().position(|told| *told == value));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{said}");
}
