//! `report.html`: a run on one page. It is self-contained: no scripts, no other files, charts as inline SVG; it follows
//! the reader's choice of light or dark, and can be printed.

use super::chart::{Chart, Series, escape};
use super::metrics::read_rows;
use super::run_record::UpdateNorm;
use super::short;
use crate::ensure_valid;
use crate::names::{layer_number, short_name};
use anyhow::{Context, Result};
use indicatif::{FormattedDuration, HumanBytes, HumanCount};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// The page's name in a run's folder.
pub const REPORT: &str = "report.html";
const GRADIENT: &str = "gradient norm before clipping";
const STYLE: &str = include_str!("report.css");

type Row = Map<String, Value>;

/// The files of a run that the page is made from.
pub struct RunFiles {
    /// `metrics.jsonl`, row by row.
    pub rows: Vec<Row>,
    /// `config.toml`.
    pub config: String,
    /// `run.json`, which an unfinished run does not have.
    pub record: Option<Value>,
}

impl RunFiles {
    pub const METRICS: &str = "metrics.jsonl";
    pub const CONFIG: &str = "config.toml";
    pub const RECORD: &str = "run.json";

    /// Reads them from a run's folder.
    ///
    /// # Errors
    /// A folder that is not a run's.
    pub fn read(dir: &Path) -> Result<Self> {
        let (metrics, config, record) = (dir.join(Self::METRICS), dir.join(Self::CONFIG), dir.join(Self::RECORD));
        ensure_valid!(
            metrics.is_file() && config.is_file(),
            "{} is not a run's folder: it has no {} and {}",
            dir.display(),
            Self::METRICS,
            Self::CONFIG
        );
        let text = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        let record = match record.is_file() {
            true => Some(serde_json::from_str(&text(&record)?).with_context(|| record.display().to_string())?),
            false => None,
        };
        Ok(Self { rows: read_rows(&metrics)?, config: text(&config)?, record })
    }
}

/// The page under construction.
pub struct Page {
    files: RunFiles,
    settings: toml::Table,
    updates: Vec<UpdateNorm>,
}

impl Page {
    pub fn of(files: RunFiles) -> Self {
        let settings = files.config.parse().unwrap_or_default();
        let norms = files.record.as_ref().map(|record| record["update_norms"].clone());
        let updates = norms.and_then(|norms| serde_json::from_value(norms).ok()).unwrap_or_default();
        Self { files, settings, updates }
    }

    pub fn to_html(&self) -> String {
        let title = format!("asft run {}", self.setting("output", "dir"));
        let base = self.setting("model", "aligned");
        let started = self.record("started").map_or("unfinished".to_string(), |started| text_of(&started));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light \
             dark\">\n<title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>{0}</h1><p>{1} · \
             {2}</p></header>\n{3}<h2>Training</h2>\n{4}{5}<h2>Settings</h2>\n<pre>{6}</pre>\n{7}</body>\n</html>\n",
            escape(&title),
            escape(&base),
            escape(&started),
            self.figures(),
            self.curves(),
            self.update_section(),
            escape(self.files.config.trim_end()),
            self.provenance(),
        )
    }

    fn setting(&self, section: &str, key: &str) -> String {
        let value = self.settings.get(section).and_then(|section| section.get(key));
        value.map_or(String::new(), |value| value.as_str().map_or_else(|| value.to_string(), String::from))
    }

    fn record(&self, key: &str) -> Option<Value> {
        self.files.record.as_ref()?.get(key).cloned().filter(|value| !value.is_null())
    }

    /// (step, value) of the rows that have the key.
    fn points<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
        let point = move |row: &Row| Some((row.get("step")?.as_f64()?, row.get(key)?.as_f64()?));
        self.files.rows.iter().filter_map(point)
    }

    fn last(&self, key: &str) -> Option<f64> {
        self.points(key).last().map(|(_, value)| value)
    }

    /// The numbers that a reader looks for first.
    fn figures(&self) -> String {
        let number = |key: &str| self.record(key).and_then(|value| value.as_f64());
        let best = self.points("eval_loss").map(|(_, loss)| loss).reduce(f64::min);
        let skipped = number("skipped_steps").filter(|count| *count > 0.0);
        let steps = number("steps").or_else(|| self.last("step"));
        let elapsed = number("elapsed_seconds").or_else(|| self.last("elapsed_seconds"));
        let peak = number("peak_memory_bytes").or_else(|| self.last("peak_memory_bytes"));
        let all = [
            ("steps", steps.map(|steps| format!("{steps}"))),
            ("skipped steps", skipped.map(|steps| format!("{steps}"))),
            ("loss", self.last("loss").map(short)),
            ("task loss", self.last("task_loss").map(short)),
            ("penalty", self.last("penalty").map(short)),
            ("validation loss", self.last("eval_loss").map(short)),
            ("lowest validation loss", best.filter(|best| Some(*best) != self.last("eval_loss")).map(short)),
            ("tokens", number("tokens").map(|tokens| HumanCount(tokens as u64).to_string())),
            ("tokens per second", number("tokens_per_second").map(|rate| format!("{rate:.0}"))),
            ("time", elapsed.map(|s| FormattedDuration(Duration::from_secs_f64(s.max(0.0))).to_string())),
            ("peak memory", peak.map(|bytes| HumanBytes(bytes as u64).to_string())),
        ];
        let mut html = "<dl class=\"figures\">".to_string();
        for (name, value) in all {
            let Some(value) = value else { continue };
            let _infallible = write!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
        }
        html + "</dl>\n"
    }

    fn curves(&self) -> String {
        let series = |name, key| Series::new(name, self.points(key));
        let validation = series("validation loss", "eval_loss").with_dots();
        let charts = [
            ("loss", vec![series("loss", "loss"), series("task loss", "task_loss"), validation], false),
            ("penalty, λ included", vec![series("penalty", "penalty")], true),
            (GRADIENT, vec![series("gradient norm", "grad_norm")], true),
            ("learning rate", vec![series("learning rate", "learning_rate")], true),
        ];
        let charts = charts.map(|(title, series, from_zero)| {
            Chart { title: title.to_string(), x_label: "step", series, from_zero, may_log: title == GRADIENT }.to_html()
        });
        format!("<div class=\"charts\">\n{}</div>\n", charts.concat())
    }

    /// ΔW by layer, a chart for each kind of module, and the numbers.
    fn update_section(&self) -> String {
        if self.updates.is_empty() {
            return String::new();
        }
        let mut kinds: Vec<&str> = vec![];
        for update in &self.updates {
            let kind = short_name(&update.module);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let split = self.updates.iter().any(|update| update.orthogonal.is_some());
        let scale = match self.setting("asft", "scaled").as_str() {
            "true" => "alpha/rank included",
            _ => "without alpha/rank, as the penalty has it",
        };
        let what = if split {
            format!(
                "‖ΔW‖<sub>F</sub> at the end ({scale}), and its parts: parallel to the alignment direction, ‖CΔW‖, and \
                 orthogonal to it, ‖(I − C)ΔW‖. With the published C, which is no projector, the squares of the two do \
                 not add up to that of the whole."
            )
        } else {
            format!("‖ΔW‖<sub>F</sub> at the end ({scale}). The run used no direction, so there are no parts.")
        };
        let charts: String = kinds.iter().map(|kind| self.update_chart(kind, split)).collect();
        format!(
            "<h2>Updates by layer</h2>\n<p>{what}</p>\n<div class=\"charts\">\n{charts}</div>\n{}",
            self.update_table(split)
        )
    }

    fn update_chart(&self, kind: &str, split: bool) -> String {
        let of_kind = || self.updates.iter().filter(|update| short_name(&update.module) == kind);
        let series = |name, value: &dyn Fn(&UpdateNorm) -> Option<f64>| {
            let points = of_kind().filter_map(|u| Some((layer_number(&u.module)? as f64, value(u)?)));
            Series::new(name, points.collect::<Vec<_>>()).with_dots()
        };
        let series = match split {
            true => vec![series("orthogonal", &|u| u.orthogonal), series("parallel", &|u| u.parallel)],
            false => vec![series("‖ΔW‖", &|u| Some(u.norm))],
        };
        Chart { title: kind.to_string(), x_label: "layer", series, from_zero: true, may_log: true }.to_html()
    }

    fn update_table(&self, split: bool) -> String {
        let mut html = "<details><summary>numbers</summary><table><tr><th>module</th><th>‖ΔW‖</th>".to_string();
        if split {
            html.push_str("<th>parallel</th><th>orthogonal</th>");
        }
        html.push_str("</tr>");
        for update in &self.updates {
            let _infallible = write!(html, "<tr><td>{}</td><td>{}</td>", escape(&update.module), short(update.norm));
            for part in [update.parallel, update.orthogonal].into_iter().filter(|_| split) {
                let _infallible = write!(html, "<td>{}</td>", part.map_or(String::new(), short));
            }
            html.push_str("</tr>");
        }
        html + "</table></details>\n"
    }

    /// Versions and inputs.
    fn provenance(&self) -> String {
        let Some(record) = &self.files.record else { return String::new() };
        let mut html = "<h2>Versions and inputs</h2>\n<table>".to_string();
        let keys =
            ["asft_version", "candle_version", "features", "platform", "threads", "ranks", "started", "resumed_at"];
        for key in keys {
            let value = record.get(key).map_or(String::new(), text_of);
            if !value.is_empty() {
                let _infallible =
                    write!(html, "<tr><th>{}</th><td>{}</td></tr>", key.replace('_', " "), escape(&value));
            }
        }
        html.push_str("</table>\n<table><tr><th>input</th><th>source</th><th>BLAKE3</th></tr>");
        for (name, input) in record["inputs"].as_object().into_iter().flatten() {
            let (source, hash) = (text_of(&input["source"]), text_of(&input["hash"]));
            let _infallible = write!(
                html,
                "<tr><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
                escape(&name.replace('_', " ")),
                escape(&source),
                escape(&hash)
            );
        }
        html + "</table>\n"
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files() -> RunFiles {
        let rows = [
            json!({"step": 1, "loss": 2.5, "task_loss": 2.0, "penalty": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4}),
            json!({"step": 2, "skipped": "the loss is NaN", "samples": ["a.jsonl:3"]}),
            json!({"step": 3, "loss": 2.0, "task_loss": 1.5, "penalty": 0.5, "grad_norm": null, "learning_rate": 5e-5}),
            json!({"step": 3, "eval_loss": 1.75, "eval_tokens": 9}),
        ];
        let norm = |layer: usize| {
            json!({
                "module": format!("model.layers.{layer}.self_attn.q_proj"),
                "norm": 1.0, "parallel": 0.25, "orthogonal": 0.75,
            })
        };
        RunFiles {
            rows: rows.iter().map(|row| row.as_object().unwrap().clone()).collect(),
            config: "[model]\naligned = \"<script>\"\n[output]\ndir = \"runs/a\"\n".to_string(),
            record: Some(json!({
                "asft_version": "0.1.0", "steps": 2, "skipped_steps": 1, "elapsed_seconds": 3.0,
                "inputs": {"train": {"source": "a.jsonl", "hash": "ab12"}},
                "update_norms": [norm(0), norm(1)],
            })),
        }
    }

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let html = Page::of(files()).to_html();
        for part in [
            "asft run runs/a",
            "2.0000",
            "validation loss",
            "skipped steps",
            "q_proj",
            "orthogonal",
            "ab12",
            "prefers-color-scheme: dark",
            "@media print",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<svg").count(), 5);
        for foreign in ["<script", "http:", "https:", "src=", "<link", "url(", "NaN"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        assert_eq!(html.matches("<figure>").count(), html.matches("</figure>").count());
    }

    #[test]
    fn an_unfinished_or_empty_run_has_a_page_too() {
        let html = Page::of(RunFiles { record: None, ..files() }).to_html();
        assert!(html.contains("unfinished") && !html.contains("Updates by layer"));
        let html = Page::of(RunFiles { rows: vec![], config: String::new(), record: None }).to_html();
        assert!(!html.contains("<svg"));
    }
}
