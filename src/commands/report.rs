//! `asft report`

use crate::checkpoint::{check_writable_file, write_atomic};
use crate::cli::ReportArgs;
use crate::console::log;
use crate::outputs::Outputs;
use crate::report::{Page, REPORT, RunFiles};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

pub fn run(args: ReportArgs) -> Result<()> {
    let own = args.run.join(REPORT);
    let out = args.out.unwrap_or_else(|| own.clone());
    // A run's own page is made of its other files, as often as is asked for.
    if out == own {
        check_writable_file(&out)?;
    } else {
        Outputs::new(args.overwrite).reads("RUN_DIR", [&args.run]).file("--out", [&out]).check()?;
    }
    let files = RunFiles::read(&args.run)?;
    let mut page = Page::of(files);
    if let Some(to_run) = way(out.parent().unwrap_or(Path::new("")), &args.run)? {
        page = page.outside(&to_run);
    }
    let html = page.to_html();
    write_atomic(&out, |file| Ok(file.write_all(html.as_bytes())?))?;
    log::info(&format!("wrote {}", out.display()), json!({"report": out}));
    Ok(())
}

/// The relative path from one folder to another; `None` if they are the same.
fn way(from: &Path, to: &Path) -> Result<Option<PathBuf>> {
    let here = Path::new(".");
    let whole = |dir: &Path| {
        let dir = if dir.as_os_str().is_empty() { here } else { dir };
        dir.canonicalize().with_context(|| dir.display().to_string())
    };
    let (from, to) = (whole(from)?, whole(to)?);
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| "..".as_ref());
    let down = to.components().skip(shared).map(|step| step.as_os_str());
    Ok(Some(up.chain(down).collect::<PathBuf>()).filter(|way| !way.as_os_str().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_find_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::create_dir(at("c")).unwrap();
        assert_eq!(way(&at("a/b"), &at("a/b")).unwrap(), None);
        assert_eq!(way(dir.path(), &at("a/b")).unwrap(), Some("a/b".into()));
        assert_eq!(way(&at("c"), &at("a/b")).unwrap(), Some("../a/b".into()));
        assert_eq!(way(&at("a/b"), dir.path()).unwrap(), Some("../..".into()));
    }
}
