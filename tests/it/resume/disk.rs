//! Disks that fill up, folders that cannot be written, inputs that vanish.

use super::*;
use crate::support::files::root;
use std::io::Write;

#[test]
fn a_full_disk_leaves_what_was_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, dir) = (path(&scratch, "whole"), path(&scratch, "run"));
    let sets = ["train.max_steps=120", "output.save_every_steps=10", "lora.rank=4"];
    succeeds(train(&whole, &sets, &[]));
    // The process's files may grow to this many blocks of 512 bytes: enough for a checkpoint, but not for all metrics.
    let limited = |command: Command, blocks: usize| {
        let mut shell = Command::new("sh");
        shell.current_dir(root()).arg("-c");
        shell.arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"")).arg("sh");
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    // Without a first checkpoint.
    ends(limited(train(&dir, &[&sets[..], &["asft.penalize=none"]].concat(), &[]), 8), 1, &["error", "too large"]);
    is_tidy(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let stopped = signalled_after(train(&dir, &sets, &[]), &dir, 12, &[Signal::SIGTERM]);
    assert_eq!(stopped.status.code(), Some(143));
    let before = checkpoints(&dir);
    ends(limited(train(&dir, &sets, &["--resume"]), 8), 1, &["error", "too large"]);
    is_tidy(&dir);
    assert_eq!(checkpoints(&dir), before);
    succeeds(train(&dir, &sets, &["--resume"]));
    same_run(&whole, &dir, "adapter/adapter_model.safetensors");
}

/// A small file system of its own in `dir`, gone with this value.
struct Disk(PathBuf);

impl Disk {
    /// `None`, with a note on standard error, if this process may not mount one.
    fn mount(dir: PathBuf, bytes: usize) -> Option<Self> {
        std::fs::create_dir(&dir).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: no small disk can be mounted here (it takes root)");
        None
    }

    /// Fills all space except `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0u8; 4096]).is_ok() {}
        let taken = file.metadata().unwrap().len();
        file.set_len(taken.saturating_sub(left)).unwrap();
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn a_disk_that_fills_up_costs_no_more_than_the_last_steps() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(path(&scratch, "disk"), 90 << 20) else { return };
    for (method, weights) in WEIGHTS {
        let (whole, dir) = (path(&scratch, &format!("whole-{method}")), disk.0.join(method));
        let method = format!("train.method={method}");
        let sets = [&method, "train.learning_rate=1e-3", "train.max_steps=150", "output.save_every_steps=10"];
        succeeds(train(&whole, &sets, &[]));
        // A few pages are left: for some checkpoint files and not for others.
        for pages in [0, 3, 40, 200] {
            let finished = || -> Vec<String> {
                let names = if dir.join("checkpoints").exists() { checkpoints(&dir) } else { vec![] };
                names.into_iter().filter(|name| name.starts_with("step-")).collect()
            };
            let first = finished();
            let mut child = train(&dir, &sets, &["--resume"]).stderr(Stdio::piped()).spawn().unwrap();
            let began = Instant::now();
            while finished() == first && child.try_wait().unwrap().is_none() {
                assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint");
                std::thread::sleep(Duration::from_millis(1));
            }
            let ballast = disk.fill(pages * 4096);
            let output = child.wait_with_output().unwrap();
            let text = stderr(&output);
            if output.status.code() == Some(0) {
                // It had already finished, or had all the space it needed.
                std::fs::remove_file(ballast).unwrap();
                break;
            }
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("error: ") && text.contains("No space left on device"), "{text}");
            is_tidy(&dir);
            assert!(!checkpoints(&dir).is_empty(), "{text}");
            // With the disk still full, it says so again and changes nothing.
            let before = checkpoints(&dir);
            let again = train(&dir, &sets, &["--resume"]).output().unwrap();
            assert!(matches!(again.status.code(), Some(1 | 2)), "{}", stderr(&again));
            assert_eq!(checkpoints(&dir), before);
            std::fs::remove_file(ballast).unwrap();
        }
        succeeds(train(&dir, &sets, &["--resume"]));
        same_run(&whole, &dir, weights);
        is_tidy(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_and_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(path(&scratch, "disk"), 60 << 20) else { return };
    let dir = disk.0.join("run");
    let sets = interrupted(&dir, &[]);
    let before = (checkpoints(&dir), std::fs::read(dir.join("metrics.jsonl")).unwrap());
    let remount = |mode: &str| {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{mode}")]).arg(&disk.0);
        assert!(command.output().unwrap().status.success());
    };
    remount("ro");
    ends(train(&dir, &borrowed(&sets), &["--resume"]), 2, &["output.dir", "Read-only file system"]);
    ends(train(&disk.0.join("new"), &["train.max_steps=1"], &[]), 2, &["output.dir", "Read-only file system"]);
    remount("rw");
    assert_eq!((checkpoints(&dir), std::fs::read(dir.join("metrics.jsonl")).unwrap()), before);
    ends(train(&dir, &borrowed(&sets), &["--resume"]), 0, &["resuming after step 10"]);
}

#[test]
fn inputs_that_vanish_or_shrink_leave_the_run_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data, model) = (path(&scratch, "run"), path(&scratch, "train.jsonl"), path(&scratch, "model"));
    std::fs::copy(tiny("train.jsonl"), &data).unwrap();
    copy_files(&tiny("aligned"), &model);
    let more = [&*format!("data.train={}", data.display()), &*format!("model.aligned={}", model.display())];
    let sets = interrupted(&dir, &more);
    let before = (checkpoints(&dir), timeless(&dir));
    let resume = || train(&dir, &borrowed(&sets), &["--resume"]);
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    ends(resume(), 2, &["model.safetensors", "truncated"]);
    std::fs::remove_file(&weights).unwrap();
    ends(resume(), 2, &["no weights in"]);
    std::fs::remove_file(&data).unwrap();
    std::fs::write(&weights, &bytes).unwrap();
    ends(resume(), 2, &["data.train", "train.jsonl does not exist"]);
    assert_eq!((checkpoints(&dir), timeless(&dir)), before);
    std::fs::copy(tiny("train.jsonl"), &data).unwrap();
    ends(resume(), 0, &["resuming after step 10"]);
}
