//! What a command shows while it works: lines and bars on stderr. Also tables, the form in which results go to stdout.

pub mod log;
mod progress;
mod table;

pub use progress::{bytes_bar, download_bar, progress_bar, resumed_bar};
pub use table::{Table, wrapped};

use chrono::{SecondsFormat, Utc};

/// Now, as `2026-01-31T23:59:59Z`.
pub fn utc_now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDateTime;

    #[test]
    fn the_time_is_utc_in_whole_seconds() {
        let (now, then) = (utc_now(), Utc::now().naive_utc());
        let told = NaiveDateTime::parse_from_str(&now, "%Y-%m-%dT%H:%M:%SZ").unwrap();
        assert!(now.len() == 20 && (then - told).num_seconds() < 60, "{now}");
    }
}
