//! `report.html`: a run on one page. It is self-contained: no scripts, no other files, charts as inline SVG that tell
//! their values on hover; it follows the reader's choice of light or dark, fits a telephone, and can be printed. Its
//! links are to the run's files beside it.

use super::bars;
use super::chart::{Chart, Series, escape};
use super::evaluated::{SuiteEnds, SuiteRow, Value as Reading};
use super::metrics::read_rows;
use super::run_record::UpdateNorm;
use super::shell::{figures, page};
use super::short;
use super::trend::LossEnds;
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

type Row = Map<String, Value>;

/// The files of a run that the page is made from.
pub struct RunFiles {
    /// `metrics.jsonl`, row by row.
    pub rows: Vec<Row>,
    /// `config.toml`.
    pub config: String,
    /// `run.json`, which an unfinished run does not have.
    pub record: Option<Value>,
    /// What else the run has left, of what the page links to.
    pub others: Vec<&'static str>,
}

impl RunFiles {
    pub const METRICS: &str = "metrics.jsonl";
    pub const CONFIG: &str = "config.toml";
    pub const RECORD: &str = "run.json";
    const OTHERS: [&str; 6] =
        ["modules.jsonl", "adapter/", "model/", "checkpoints/", "direction.safetensors", "tensorboard/"];

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
        let others = Self::OTHERS.into_iter().filter(|name| dir.join(name).exists()).collect();
        Ok(Self { rows: read_rows(&metrics)?, config: text(&config)?, record, others })
    }
}

/// The page under construction.
pub struct Page {
    files: RunFiles,
    settings: toml::Table,
    updates: Vec<UpdateNorm>,
    /// From the page to the run's folder: empty, or ending in a slash.
    to_run: String,
}

impl Page {
    pub fn of(files: RunFiles) -> Self {
        let settings = files.config.parse().unwrap_or_default();
        let norms = files.record.as_ref().map(|record| record["update_norms"].clone());
        let updates = norms.and_then(|norms| serde_json::from_value(norms).ok()).unwrap_or_default();
        Self { files, settings, updates, to_run: String::new() }
    }

    /// The same for a page that stands elsewhere than in its run's folder.
    pub fn outside(self, to_run: &Path) -> Self {
        let steps = to_run.components().map(|step| step.as_os_str().to_string_lossy().into_owned() + "/");
        Self { to_run: steps.collect(), ..self }
    }

    pub fn to_html(&self) -> String {
        let title = format!("asft run {}", self.setting("output", "dir"));
        let base = self.setting("model", "aligned");
        let started = self.record("started").map_or("unfinished".to_string(), |started| text_of(&started));
        let body = format!(
            "{0}{1}<h2>Training</h2>\n{2}{3}<h2>Settings</h2>\n<pre>{4}</pre>\n{5}",
            self.warning().to_string() + &self.figures(),
            self.evaluations(),
            self.curves(),
            self.update_section(),
            escape(self.files.config.trim_end()),
            self.provenance(),
        );
        page(&title, &format!("{base} · {started}"), &self.links(), &body)
    }

    /// The run's own files.
    fn links(&self) -> String {
        let record = self.files.record.as_ref().map(|_| RunFiles::RECORD);
        let names = [RunFiles::METRICS, RunFiles::CONFIG].into_iter().chain(record).chain(self.files.others.clone());
        let link = |name: &str| format!("<a href=\"{}{name}\">{name}</a>", escape(&self.to_run));
        format!("<p class=\"files\">{}</p>", names.map(link).collect::<Vec<_>>().join(" "))
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

    /// (step, epoch) of every step, from the beginning.
    fn epochs(&self) -> Vec<(f64, f64)> {
        let mut epochs: Vec<(f64, f64)> = self.points("epoch").collect();
        if !epochs.is_empty() {
            epochs.insert(0, (0.0, 0.0));
        }
        epochs
    }

    /// Where the run computed: what it recorded or, from before there was a record of it, the setting.
    fn device(&self) -> Option<String> {
        let set = Some(self.setting("model", "device")).filter(|device| !device.is_empty() && device != "auto");
        self.record("device").map(|device| text_of(&device)).or(set)
    }

    /// The losses at both ends, which runs of older versions have not recorded.
    fn loss_ends(&self) -> Option<LossEnds> {
        serde_json::from_value(self.record("loss")?).ok()
    }

    /// What should be known before any number is read.
    fn warning(&self) -> &'static str {
        match self.loss_ends() {
            Some(LossEnds { above_start: true, .. }) => {
                "<p class=\"warning\">The loss ended far above its start: this result is probably of no use. A lower \
                 train.learning_rate may help, or a lower asft.lambda if it is the penalty.</p>\n"
            }
            _ => "",
        }
    }

    /// The numbers that a reader looks for first.
    fn figures(&self) -> String {
        let number = |key: &str| self.record(key).and_then(|value| value.as_f64());
        let count = |key: &str| number(key).map(|count| HumanCount(count as u64).to_string());
        let samples = |set: &str| Some(HumanCount(self.record("samples")?[set].as_u64()?).to_string());
        let best = self.points("eval_loss").map(|(_, loss)| loss).reduce(f64::min);
        let skipped = number("skipped_steps").filter(|count| *count > 0.0);
        let steps = number("steps").or_else(|| self.last("step"));
        let elapsed = number("elapsed_seconds").or_else(|| self.last("elapsed_seconds"));
        let peak = number("peak_memory_bytes").or_else(|| self.last("peak_memory_bytes"));
        let (loss, mean_of) = match self.loss_ends() {
            Some(LossEnds { steps, first, last, .. }) => {
                let name = if steps == 1 {
                    "loss, first and last".to_string()
                } else {
                    format!("loss, means of {steps} steps")
                };
                (Some(format!("{} → {}", short(first), short(last))), name)
            }
            None => (self.last("loss").map(short), "loss".to_string()),
        };
        let all = [
            ("steps", steps.map(|steps| format!("{steps}"))),
            ("skipped steps", skipped.map(|steps| format!("{steps}"))),
            (mean_of.as_str(), loss),
            ("task loss", self.last("task_loss").map(short)),
            ("penalty", self.last("penalty").map(short)),
            ("validation loss", self.last("eval_loss").map(short)),
            ("lowest validation loss", best.filter(|best| Some(*best) != self.last("eval_loss")).map(short)),
            ("epochs", self.last("epoch").map(|epoch| format!("{epoch:.2}"))),
            ("training samples", samples("train")),
            ("validation samples", samples("validation")),
            ("tokens", count("tokens")),
            ("label tokens", count("label_tokens")),
            ("tokens per second", number("tokens_per_second").map(|rate| format!("{rate:.0}"))),
            ("time", elapsed.map(|s| FormattedDuration(Duration::from_secs_f64(s.max(0.0))).to_string())),
            ("device", self.device()),
            ("peak memory", peak.map(|bytes| HumanBytes(bytes as u64).to_string())),
        ];
        figures(all)
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
            let (title, epochs, may_log) = (title.to_string(), self.epochs(), title == GRADIENT);
            Chart { title, x_label: "step", epochs, series, from_zero, may_log }.to_html()
        });
        format!("<div class=\"charts\">\n{}</div>\n", charts.concat())
    }

    /// What the suite of `[eval]` found before and after.
    fn evaluations(&self) -> String {
        let ends = self.record("eval").and_then(|ends| serde_json::from_value::<SuiteEnds>(ends).ok());
        let Some(ends) = ends else { return String::new() };
        let changes = ends.changes();
        let after = ends.after.as_ref().map_or("not measured".to_string(), |row| format!("of step {}", row.step));
        let what = format!(
            "What {} finds before the first step and in the exported state, {after}. Lines on the bars are 95 % intervals.",
            escape(&ends.suite)
        );
        format!(
            "<h2>Evaluations</h2>\n<p>{what}</p>\n<div class=\"charts\">\n{}{}</div>\n{}",
            bars::figures(&changes),
            self.evaluation_curves(),
            bars::table(&changes)
        )
    }

    /// The main value of each evaluation by step, where it was measured in between.
    fn evaluation_curves(&self) -> String {
        let row = |row: &Row| serde_json::from_value::<SuiteRow>(Value::Object(row.clone())).ok();
        let rows: Vec<SuiteRow> = self.files.rows.iter().filter_map(row).collect();
        let [first, _, _, ..] = &rows[..] else { return String::new() };
        let mains = first.evaluations.iter().filter_map(|evaluation| evaluation.readings().into_iter().next());
        let curve = |(name, value): (String, Reading)| {
            let (what, factor) = if let Reading::Rate(_) = value { ("share, %", 100.0) } else { ("value", 1.0) };
            let point = |row: &SuiteRow| {
                let found = row.readings().into_iter().find(|(other, _)| *other == name)?;
                Some((row.step as f64, factor * found.1.number()))
            };
            let series = vec![Series::new(what, rows.iter().filter_map(point)).with_dots()];
            let title = if factor > 1.0 { format!("{name}, %") } else { name.clone() };
            Chart { title, x_label: "step", epochs: self.epochs(), series, from_zero: true, may_log: false }.to_html()
        };
        mains.map(curve).collect()
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
                 orthogonal to it, ‖(I − C)ΔW‖. With the released C, which is no projector, the squares of the two do \
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
        Chart { title: kind.to_string(), x_label: "layer", epochs: vec![], series, from_zero: true, may_log: true }
            .to_html()
    }

    fn update_table(&self, split: bool) -> String {
        let mut html = "<details><summary>numbers</summary><div class=\"wide\"><table><tr><th>module</th><th>‖ΔW‖</th>"
            .to_string();
        if split {
            html.push_str("<th>parallel</th><th>orthogonal</th>");
        }
        html.push_str("</tr>");
        for update in &self.updates {
            let _infallible =
                write!(html, "<tr><td>{}</td><td class=\"n\">{}</td>", escape(&update.module), short(update.norm));
            for part in [update.parallel, update.orthogonal].into_iter().filter(|_| split) {
                let _infallible = write!(html, "<td class=\"n\">{}</td>", part.map_or(String::new(), short));
            }
            html.push_str("</tr>");
        }
        html + "</table></div></details>\n"
    }

    /// Versions and inputs.
    fn provenance(&self) -> String {
        let Some(record) = &self.files.record else { return String::new() };
        let mut html = "<h2>Versions and inputs</h2>\n<table>".to_string();
        let keys = [
            "asft_version",
            "candle_version",
            "features",
            "platform",
            "device",
            "threads",
            "ranks",
            "started",
            "resumed_at",
        ];
        for key in keys {
            let value = record.get(key).map_or(String::new(), text_of);
            if !value.is_empty() {
                let _infallible =
                    write!(html, "<tr><th>{}</th><td>{}</td></tr>", key.replace('_', " "), escape(&value));
            }
        }
        html.push_str("</table>\n<table class=\"inputs\"><tr><th>input</th><th>source</th><th>BLAKE3</th></tr>");
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
mod tests;
