//! The resident memory of this process, as the system counts it.

use nix::sys::resource::{UsageWho, getrusage};

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
}
