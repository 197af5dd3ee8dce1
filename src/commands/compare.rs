//! `asft compare`

use super::print;
use crate::checkpoint::write_atomic;
use crate::cli::CompareArgs;
use crate::compare::{CompareOptions, Comparison, Figure, Finished, Mean, Summary, runs, summarise, table};
use crate::plot::{Point, Series, trade_off};
use crate::report::log;
use anyhow::Result;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: CompareArgs) -> Result<ExitCode> {
    let options = CompareOptions::load(&args.config)?;
    let all = runs(&options);
    if args.list {
        for run in &all {
            print(&format!("{}, seed {}: {}\n", run.case.title(), run.seed, run.overrides.join(" ")))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut comparison = Comparison::new(&options, all)?;
    if !args.report
        && let Finished::Stopped(signal) = comparison.run()?
    {
        let text = format!("stopped by {}; the same command goes on", signal.name());
        log::notice(&text, json!({"signal": signal.name()}));
        return Ok(ExitCode::from(signal.exit_code()));
    }
    let summaries = summarise(&options, comparison.results().rows());
    let text = table(&summaries);
    let dir = Path::new(&options.dir);
    let write = |name: &str, bytes: &[u8]| write_atomic(&dir.join(name), |file| Ok(file.write_all(bytes)?));
    write("table.txt", text.as_bytes())?;
    if let Some(figure) = &options.figure {
        let picture = trade_off(&title(&options), (&figure.x, &figure.y), &series(&summaries, figure))?;
        write("figure.svg", picture.svg.as_bytes())?;
        write("figure.png", &picture.png)?;
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&json!({"cases": summaries}))?))?;
    } else {
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn title(options: &CompareOptions) -> String {
    let name = Path::new(&options.config).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let seeds = options.seeds.len();
    format!("{name}: {seeds} seed{}", if seeds == 1 { "" } else { "s, bars: 95 % of the mean" })
}

/// A series for each method, in each combination of the sweep.
fn series(summaries: &[Summary], figure: &Figure) -> Vec<Series> {
    let mut all: Vec<Series> = vec![];
    for summary in summaries {
        let (Some(x), Some(y)) = (summary.get(&figure.x), summary.get(&figure.y)) else { continue };
        let scaled = |mean: &Mean| {
            let factor = if mean.share { 100.0 } else { 1.0 };
            (mean.mean * factor, mean.half.map(|half| half * factor))
        };
        let sweep = summary.case.sweep_title();
        let method = &summary.case.method;
        let name = if sweep.is_empty() { method.clone() } else { format!("{method} ({sweep})") };
        let point = Point { x: scaled(x), y: scaled(y), selected: summary.selected };
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => all.push(Series { name, points: vec![point] }),
        }
    }
    all
}
