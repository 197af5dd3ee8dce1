//! The resident memory of this process, as the system counts it, and the memory of the machine.

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is resident now, in bytes; 0 if the system does not say.
pub fn resident_bytes() -> u64 {
    from_proc("VmRSS:").unwrap_or(0)
}

/// The most that has been resident, in bytes; 0 if the system does not say.
pub fn peak_bytes() -> u64 {
    from_proc("VmHWM:").unwrap_or_else(peak_from_usage)
}

/// A value from /proc/self/status; `None` if there is no /proc (macOS) or it lacks the line (some containers).
fn from_proc(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn peak_from_usage() -> u64 {
    // macOS counts bytes, the others kilobytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0) * unit)
}

/// The memory of a machine or a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// What is available now without swapping.
    #[serde(rename = "available_bytes")]
    pub available: usize,
    /// What no process can exceed: memory and swap, or the limit of its control group; all of a GPU's.
    #[serde(rename = "limit_bytes")]
    pub limit: usize,
}

impl Capacity {
    /// Each process's part if `processes` share it equally.
    pub fn shared_by(self, processes: usize) -> Self {
        Self { available: self.available / processes, limit: self.limit / processes }
    }

    /// The machine's. Linux only; `None` elsewhere.
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

    #[test]
    fn the_peak_is_believable_and_both_sources_agree() {
        let ballast = vec![1u8; 64 << 20];
        assert!(ballast.iter().map(|byte| u64::from(*byte)).sum::<u64>() > 0);
        let (peak, other) = (peak_bytes(), peak_from_usage());
        assert!(peak > 64 << 20 && peak < 1 << 40, "{peak}");
        assert!(peak.abs_diff(other) < 64 << 20, "{peak} and {other}");
    }

    const MEMINFO: &str =
        "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nSwapTotal:   500 kB\n";

    #[test]
    fn the_tighter_of_machine_and_group_counts() {
        let machine = |group| Capacity::of(MEMINFO, group).unwrap();
        assert_eq!(machine(None), Capacity { available: 600 << 10, limit: 1500 << 10 });
        let group = Group { limit: 300 << 10, used: 100 << 10 };
        assert_eq!(machine(Some(group)), Capacity { available: 200 << 10, limit: 800 << 10 });
        let wide = Group { limit: usize::MAX, used: 0 };
        assert_eq!(machine(Some(wide)), machine(None));
        assert!(Capacity::of("MemTotal: 5 kB\n", None).is_none());
    }
}
