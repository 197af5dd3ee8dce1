//! Whether a run fits the machine's memory, and what would make it fit; checked before its weights are loaded.

use super::estimate::{Estimate, Memory};
use super::inputs::Inputs;
use super::workload::Workload;
use crate::config::Settings;
use crate::invalid;
use crate::model::{Dtype, ModelSpec};
use crate::train::options::Tuning;
use anyhow::{Context, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A change is worth naming if it saves at least this share.
const WORTH_NAMING: f64 = 0.02;

/// The machine's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// What is available now without swapping.
    pub available: usize,
    /// What no process can exceed: memory and swap, or the limit of its control group.
    pub limit: usize,
}

/// Whether there is enough for a run: what to say about it, and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Room {
    Enough(String, Value),
    /// By the estimate, more is needed than is available now.
    Tight(String, Value),
}

/// Compares what the run will take with what is available.
///
/// # Errors
/// The weights and the trained parameters, without which nothing works, exceed the machine's limit.
pub fn check_memory(
    settings: &Settings,
    spec: &ModelSpec,
    targets: &[String],
    inputs: &Inputs,
    machine: MachineMemory,
) -> Result<Room> {
    let memory = peak(settings, spec, targets, inputs)?;
    let (needed, certain) = (memory.total(), memory.weights + memory.trained);
    let MachineMemory { available, limit } = machine;
    let fields = json!({"peak_memory_bytes": needed, "available_memory_bytes": available, "limit_memory_bytes": limit});
    let text = format!("the run needs about {} of memory", size(needed));
    if certain <= limit && needed <= available {
        return Ok(Room::Enough(format!("{text}, {} are available", size(available)), fields));
    }
    let parts = format!("{text} ({} of it for weights and what trains)", size(certain));
    let advice = advice(settings, needed, |changed| Ok(peak(changed, spec, targets, inputs)?.total()))?;
    if certain > limit {
        return Err(invalid!("{parts}, the machine has {} with its swap space; {advice}", size(limit)));
    }
    Ok(Room::Tight(format!("{parts}, {} are available; {advice}", size(available)), fields))
}

fn size(bytes: usize) -> HumanBytes {
    HumanBytes(bytes as u64)
}

fn peak(settings: &Settings, spec: &ModelSpec, targets: &[String], inputs: &Inputs) -> Result<Memory> {
    let workload = Workload::of(settings, inputs)?;
    Ok(Estimate::new(spec, settings, targets).context("lora")?.memory(&workload))
}

/// The settings that would lower the peak, each with the resulting peak.
fn advice(settings: &Settings, needed: usize, peak: impl Fn(&Settings) -> Result<usize>) -> Result<String> {
    type Change = fn(&mut Settings);
    let changes: [(&str, Change); 4] = [
        ("train.method = \"lora\"", |s| s.train.method = Tuning::Lora),
        ("model.dtype = \"bf16\"", |s| {
            s.model.dtype = if s.model.dtype == Dtype::F32 { Dtype::Bf16 } else { s.model.dtype }
        }),
        ("train.gradient_checkpointing = true", |s| s.train.gradient_checkpointing = true),
        ("train.batch_size = 1 (with more train.gradient_accumulation)", |s| s.train.batch_size = 1),
    ];
    let mut found = vec![];
    for (name, change) in changes {
        let mut changed = settings.clone();
        change(&mut changed);
        let less = peak(&changed)?;
        if (less as f64) < needed as f64 * (1.0 - WORTH_NAMING) {
            found.push(format!("{name}: {}", size(less)));
        }
    }
    Ok(match found.as_slice() {
        [] => "a smaller model or a lower data.max_length takes less".to_string(),
        found => format!("less would be needed with {}", found.join(", or with ")),
    })
}

impl MachineMemory {
    /// Each process's part if `processes` share it equally.
    pub fn shared_by(self, processes: usize) -> Self {
        Self { available: self.available / processes, limit: self.limit / processes }
    }

    /// Linux only; `None` elsewhere.
    pub fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let group = Group::read();
        Self::of(&text, group)
    }

    fn of(meminfo: &str, group: Option<Group>) -> Option<Self> {
        let bytes = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            Some(line.split_whitespace().next()?.parse::<usize>().ok()?.saturating_mul(1024))
        };
        let (available, swap) = (bytes("MemAvailable")?, bytes("SwapTotal").unwrap_or(0));
        let whole = Self { available, limit: bytes("MemTotal")?.saturating_add(swap) };
        let Some(group) = group else { return Some(whole) };
        Some(Self {
            available: whole.available.min(group.limit.saturating_sub(group.used)),
            limit: whole.limit.min(group.limit.saturating_add(swap)),
        })
    }
}

/// The tightest control group that this process is in.
#[derive(Clone, Copy, Debug)]
struct Group {
    limit: usize,
    /// Without what the kernel can reclaim.
    used: usize,
}

impl Group {
    fn read() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let root = Path::new("/sys/fs/cgroup");
        let mut folders: Vec<(PathBuf, [&str; 2])> = vec![];
        for line in own.lines() {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let (root, names) = match controllers {
                "" => (root.to_path_buf(), ["memory.max", "memory.current"]),
                "memory" => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
                _ => continue,
            };
            let inner = root.join(path.trim_start_matches('/'));
            // Limits of outer groups hold for inner ones too.
            folders.extend(inner.ancestors().take_while(|dir| dir.starts_with(&root)).map(|dir| (dir.into(), names)));
        }
        let limits = folders.iter().filter_map(|(dir, names)| Self::of(dir, names));
        limits.min_by_key(|group| group.limit.saturating_sub(group.used))
    }

    fn of(dir: &Path, [limit, used]: &[&str; 2]) -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        // "max" is no limit.
        let limit = read(limit)?.trim().parse().ok()?;
        let used: usize = read(used)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<usize>().ok());
        Some(Self { limit, used: used.saturating_sub(cached.unwrap_or(0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nSwapTotal:   500 kB\n";

    #[test]
    fn the_tighter_of_machine_and_group_counts() {
        let machine = |group| MachineMemory::of(MEMINFO, group).unwrap();
        assert_eq!(machine(None), MachineMemory { available: 600 << 10, limit: 1500 << 10 });
        let group = Group { limit: 300 << 10, used: 100 << 10 };
        assert_eq!(machine(Some(group)), MachineMemory { available: 200 << 10, limit: 800 << 10 });
        let wide = Group { limit: usize::MAX, used: 0 };
        assert_eq!(machine(Some(wide)), machine(None));
        assert!(MachineMemory::of("MemTotal: 5 kB\n", None).is_none());
    }

    #[test]
    fn advice_names_what_helps_and_by_how_much() {
        let mut settings = Settings::default();
        settings.train.method = Tuning::Full;
        let peak = |s: &Settings| {
            let half = if s.model.dtype == Dtype::F32 { 1 } else { 2 };
            Ok((if s.train.method == Tuning::Full { 4000 } else { 1000 } / half + 10 * s.train.batch_size) << 20)
        };
        let needed = peak(&settings).unwrap();
        let text = advice(&settings, needed, peak).unwrap();
        let expected = "less would be needed with train.method = \"lora\": 1.05 GiB, or with model.dtype = \"bf16\": \
                        2.03 GiB";
        assert_eq!(text, expected);
        (settings.train.method, settings.model.dtype, settings.train.batch_size) = (Tuning::Lora, Dtype::Bf16, 1);
        assert!(advice(&settings, 510 << 20, peak).unwrap().contains("data.max_length"));
    }
}
