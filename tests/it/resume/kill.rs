//! Runs that are killed at any moment.

use super::*;

/// Kills of the crash test; ASFT_TEST_KILLS sets another number.
const KILLS: usize = 12;

/// Whether there is the beginning of a checkpoint.
fn is_staging(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir.join("checkpoints")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".asft"))
}

#[test]
fn a_run_killed_again_and_again_ends_the_same() {
    let kills = std::env::var("ASFT_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let (whole, parts) = (path(&scratch, "whole"), path(&scratch, "parts"));
    let sets = [&EVERYTHING[..], &["output.save_every_steps=2", "output.save_best=true"]].concat();
    succeeds(train(&whole, &sets, &[]));
    let took = metrics(&whole).last().map_or(0.1, |row| row["elapsed_seconds"].as_f64().unwrap_or(0.1));
    let (mut killed, mut torn, mut random) = (0, 0, 1u64);
    while killed < kills {
        let mut child = train(&parts, &sets, &["--resume", "--quiet"]).stderr(Stdio::null()).spawn().unwrap();
        // A linear congruential generator is random enough here, and repeats itself.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_secs_f64((0.15 + took) * (random >> 40) as f64 / (1u64 << 24) as f64));
        // Every third kill waits until the next checkpoint is being written.
        while killed % 3 == 0 && !is_staging(&parts) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        child.kill().unwrap();
        if child.wait().unwrap().code() == Some(0) {
            same_run(&whole, &parts, "adapter/adapter_model.safetensors");
            is_tidy(&parts);
            std::fs::remove_dir_all(&parts).unwrap();
        } else {
            killed += 1;
            torn += usize::from(is_staging(&parts));
        }
    }
    println!("{killed} kills, {torn} of them in the middle of a checkpoint");
    assert!(torn > 0);
    succeeds(train(&parts, &sets, &["--resume"]));
    same_run(&whole, &parts, "adapter/adapter_model.safetensors");
    is_tidy(&parts);
}
