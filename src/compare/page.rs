//! A comparison as one HTML page: the worst cases, the trade-off, the table, the differences, and what was compared.

use super::figures::{title, trade_offs};
use super::options::CompareOptions;
use super::results::PICTURES;
use super::sections::{Findings, Section};
use super::worst::least_harmful;
use crate::console::Table;
use crate::plot::Picture;
use crate::report::{escape, figures, page};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

/// The page. `config`: the comparison's file.
///
/// # Errors
/// A file that cannot be read.
pub fn html(
    options: &CompareOptions,
    config: &Path,
    findings: &Findings,
    pictures: &[(&'static str, Picture)],
) -> Result<String> {
    let [main, worst, differences] = findings.sections(options);
    let [_, chosen, swept, worst_picture] = PICTURES;
    let named = |name: &str| pictures.iter().find(|(other, _)| *other == name).map(|(_, picture)| picture);
    let mut body = numbers(options, findings);
    if worst.table.is_some() {
        body += "<h2>Worst case</h2>\n";
        body += &named(worst_picture).map_or(String::new(), |picture| figure("worst case of each setting", picture));
        body += &section(&worst);
    }
    if let Some(axes) = &options.figure {
        let heading = format!("{} against {}", axes.y, axes.x);
        let _infallible = writeln!(body, "<h2>{}</h2>\n<div class=\"pictures\">", escape(&heading));
        for (title, picture) in trade_offs(&findings.summaries, axes)? {
            body += &figure(&title, &picture);
        }
        for picture in [chosen, swept].into_iter().filter_map(named) {
            body += &figure("selected settings, and both measures along the sweep", picture);
        }
        body += "</div>\n";
    }
    body += "<h2>All settings</h2>\n";
    body += &section(&main);
    if differences.table.is_some() || !differences.notes.is_empty() {
        body += "<h2>Differences, paired by seed and record</h2>\n";
        body += &section(&differences);
    }
    let text = std::fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let _infallible = writeln!(body, "<h2>Comparison</h2>\n<pre>{}</pre>", escape(text.trim_end()));
    let name = config.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let about = format!("{} · {} · measured by {}", title(options), options.config, options.suite);
    Ok(page(&format!("Defences compared: {name}"), &about, "", &body))
}

/// What a reader looks for first.
fn numbers(options: &CompareOptions, findings: &Findings) -> String {
    let trained = || findings.summaries.iter().filter(|summary| summary.trained);
    let failed: usize = trained().map(|summary| summary.failed).sum();
    let runs: usize = trained().map(|summary| summary.seeds).sum();
    figures([
        ("results", Some(runs.to_string())),
        ("without a result", Some(failed).filter(|failed| *failed > 0).map(|failed| failed.to_string())),
        ("methods", Some(options.method.len().to_string())),
        ("seeds", Some(options.seeds.len().to_string())),
        ("attacks", Some(options.attack.len()).filter(|attacks| *attacks > 0).map(|attacks| attacks.to_string())),
        ("least harm at worst", least_harmful(&findings.worst, findings.settings)),
    ])
}

/// A picture at its own size; a page that is narrower scrolls it.
fn figure(title: &str, picture: &Picture) -> String {
    format!(
        "<figure class=\"picture\" role=\"img\" aria-label=\"{}\"><div class=\"wide\">{}</div></figure>\n",
        escape(title),
        picture.svg
    )
}

fn section(section: &Section) -> String {
    let table = section.table.as_ref().map_or(String::new(), table);
    let notes = section.notes.trim_end();
    if notes.is_empty() { table } else { format!("{table}<pre class=\"notes\">{}</pre>\n", escape(notes)) }
}

/// A table whose first column may mark a row as selected, with "*" before its text.
fn table(table: &Table) -> String {
    let Some((head, rows)) = table.rows().split_first() else { return String::new() };
    let mut html = "<div class=\"wide\"><table class=\"compared\"><tr>".to_string();
    for name in head {
        let _infallible = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("</tr>");
    for row in rows {
        let selected = row.first().is_some_and(|first| first.starts_with("* "));
        html.push_str(if selected { "<tr class=\"selected\">" } else { "<tr>" });
        for cell in row {
            let _infallible = write!(html, "<td>{}</td>", escape(cell.trim()));
        }
        html.push_str("</tr>");
    }
    html + "</table></div>\n"
}
