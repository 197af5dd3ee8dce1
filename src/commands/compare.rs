//! `asft compare`

use super::print;
use crate::checkpoint::write_atomic;
use crate::cli::CompareArgs;
use crate::compare::{CompareOptions, Comparison, Files, Findings, Finished, TABLE, html, pictures, runs};
use crate::console::{Table, log};
use crate::ensure_valid;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: CompareArgs) -> Result<ExitCode> {
    let options = CompareOptions::load(&args.config)?;
    let files = Files { config: &args.config, html: args.html.as_deref(), overwrite: args.overwrite };
    let mut comparison = Comparison::new(&options, runs(&options), &files)?;
    if args.list {
        print(&comparison.list())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.report
        && let Finished::Stopped(signal) = comparison.run()?
    {
        let text = format!("stopped by {}; the same command goes on", signal.name());
        log::notice(&text, json!({"signal": signal.name()}));
        return Ok(ExitCode::from(signal.exit_code()));
    }
    let dir = Path::new(&options.dir);
    let reported = comparison.reported();
    ensure_valid!(
        !reported.rows.is_empty(),
        "{} has no results yet; `asft compare --config {}` obtains them",
        dir.display(),
        args.config.display()
    );
    let findings = Findings::new(&options, &reported, comparison.clusters());
    let write = |name: &str, bytes: &[u8]| write_atomic(&dir.join(name), |file| Ok(file.write_all(bytes)?));
    let text = |shown: fn(&Table) -> String| {
        let sections = findings.sections(&options).map(|section| section.text(shown));
        sections.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    };
    write(TABLE, text(ToString::to_string).as_bytes())?;
    let pictures = pictures(&options, &findings.summaries, &findings.worst)?;
    for (name, picture) in &pictures {
        write(&format!("{name}.svg"), picture.svg.as_bytes())?;
        write(&format!("{name}.png"), &picture.png)?;
    }
    if let Some(out) = &args.html {
        let html = html(&options, &args.config, &findings, &pictures)?;
        write_atomic(out, |file| Ok(file.write_all(html.as_bytes())?)).context("--html")?;
        log::info(&format!("wrote {}", out.display()), json!({"html": out}));
    }
    if args.json {
        let Findings { summaries, pairs, worst, left_out, .. } = &findings;
        let report = json!({"cases": summaries, "paired": pairs, "worst": worst, "left_out": left_out});
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        print(&text(Table::on_screen))?;
    }
    Ok(ExitCode::SUCCESS)
}
