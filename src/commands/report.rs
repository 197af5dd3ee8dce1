//! `asft report`

use crate::checkpoint::{check_writable_file, write_atomic};
use crate::cli::ReportArgs;
use crate::console::log;
use crate::report::{Page, REPORT, RunFiles};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;

pub fn run(args: ReportArgs) -> Result<()> {
    let out = args.out.unwrap_or_else(|| args.run.join(REPORT));
    let files = RunFiles::read(&args.run)?;
    check_writable_file(&out).context("--out")?;
    let html = Page::of(files).to_html();
    write_atomic(&out, |file| Ok(file.write_all(html.as_bytes())?))?;
    log::info(&format!("wrote {}", out.display()), json!({"report": out}));
    Ok(())
}
