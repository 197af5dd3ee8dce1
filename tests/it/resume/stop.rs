//! Runs that are stopped by a signal and continue.

use super::*;

#[test]
fn a_stopped_run_goes_on_exactly() {
    for (method, weights) in WEIGHTS {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, parts) = (path(&scratch, "whole"), path(&scratch, "it's in parts"));
        let method = format!("train.method={method}");
        let sets = [
            &EVERYTHING[..],
            &[&method, "train.learning_rate=1e-3", "train.max_steps=200", "output.save_every_steps=90"],
        ]
        .concat();
        succeeds(train(&whole, &sets, &[]));

        for (steps, number, code, name) in [(20, Signal::SIGTERM, 143, "SIGTERM"), (60, Signal::SIGINT, 130, "SIGINT")]
        {
            let flags: &[&str] = if steps == 20 { &[] } else { &["--resume"] };
            let output = signalled_after(train(&parts, &sets, flags), &parts, steps, &[number]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{text}");
            let done = metrics(&parts).iter().filter(|row| row["loss"].is_number()).count();
            assert!(text.contains(&format!("stopped by {name} after step {done}")), "{text}");
            let first = if code == 130 { "press again to quit" } else { "a second signal quits" };
            // Beside other programs the signal may come in the middle of the validation after a seventh step.
            let what = if text.contains("after this validation") { "validation" } else { "step" };
            assert!(text.contains(&format!("stopping after this {what}; {first} without a checkpoint")), "{text}");
            assert!(what == "step" || done % 7 == 0, "{text}");
            assert!(parts.join(format!("checkpoints/step-{done}")).is_dir());
            assert!(!parts.join("run.json").exists() && done < 200, "{done}");
            let command = text.lines().find_map(|line| line.strip_prefix("go on with: ")).unwrap();
            let words = shlex::split(command).unwrap();
            assert!(words.contains(&format!("output.dir={}", parts.display())), "{command}");
            assert_eq!(words.last().map(String::as_str), Some("--resume"));
        }
        // Two at once: whether there is still a checkpoint or not, nothing is broken.
        let output =
            signalled_after(train(&parts, &sets, &["--resume"]), &parts, 90, &[Signal::SIGTERM, Signal::SIGTERM]);
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
        ends(train(&parts, &sets, &["--resume"]), 0, &["resuming after step"]);
        same_run(&whole, &parts, weights);
        is_tidy(&parts);
        let run = read_json(&parts.join("run.json"));
        // A run that left no checkpoint leaves no trace.
        assert!(run["steps"] == 200 && run["resumed_at"].as_array().unwrap().len() >= 2, "{run}");
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_step() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data) = (path(&scratch, "run"), path(&scratch, "train.jsonl"));
    let text = std::fs::read_to_string(tiny("train.jsonl")).unwrap();
    std::fs::write(&data, text.repeat(100)).unwrap();
    // One step of all samples, which takes seconds.
    let sets = [&format!("data.train={}", data.display()), "train.gradient_accumulation=1000000", "train.epochs=1"];
    let mut child = train(&dir, &sets, &["--quiet"]).stderr(Stdio::piped()).spawn().unwrap();
    while !dir.join("config.toml").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    signal(&child, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(child.try_wait().unwrap(), None, "the first signal did not wait");
    let began = Instant::now();
    signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1) && metrics_so_far(&dir).is_empty());
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    let lines = [
        "stopping after this step; press again to quit without a checkpoint",
        "quit without a checkpoint; there is none yet",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), lines);
}

/// Waits until the process listens for signals.
fn listening(child: &Child) {
    let is_listening = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok());
        names.into_iter().any(|name| name.trim() == "signals")
    };
    let began = Instant::now();
    while !is_listening() {
        assert!(began.elapsed() < Duration::from_secs(60), "no thread for signals");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_has_nothing_to_lose_stops_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data) = (path(&scratch, "run"), path(&scratch, "train.jsonl"));
    std::fs::write(&data, std::fs::read_to_string(tiny("train.jsonl")).unwrap().repeat(300)).unwrap();
    let data = format!("data.train={}", data.display());
    // While samples are read; and while a prompt is waited for.
    let loading = train(&dir, &[&data], &[]);
    let generating = asft(&["generate", "--model", "tests/tiny/aligned", "--prompt", "-"]);
    for (mut command, number, code) in [(loading, Signal::SIGINT, 130), (generating, Signal::SIGTERM, 143)] {
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
        let _open = child.stdin.take();
        listening(&child);
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.lines().last().unwrap().starts_with(&format!("stopped by {number}")), "{told}");
    }
    assert!(!dir.exists());
}
