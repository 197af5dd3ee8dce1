//! A config file with every key, its meaning, its choices and its default, all from the settings' schema.

use super::Settings;
use crate::toml_reader::Schema;
use anyhow::Result;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Write;
use toml::{Table, Value};

const WIDTH: usize = 100;

/// `settings` as TOML; keys that are not set are commented out. `notes` are added to a key's description.
pub fn config(settings: &Settings, notes: &BTreeMap<&str, String>) -> Result<String> {
    let schema = Schema::of::<Settings>();
    let (values, defaults) = (Table::try_from(settings)?, Table::try_from(Settings::default())?);
    let mut text = String::new();
    for section in schema.sections() {
        let path = vec![section.to_string()];
        let Some(found) = schema.get(&path) else { continue };
        text.push('\n');
        comment(&mut text, "", &description(found));
        let _infallible = writeln!(text, "[{section}]");
        for key in schema.properties(found).into_iter().flatten().map(|(key, _)| key) {
            let Some(found) = schema.get(&[section.to_string(), key.clone()]) else { continue };
            let value = |table: &Table| table.get(section).and_then(|section| section.get(key)).cloned();
            let entry = Entry { schema: &schema, found, value: value(&values), default: value(&defaults) };
            entry.write(key, notes.get(format!("{section}.{key}").as_str()), &mut text);
        }
    }
    Ok(text)
}

/// One key.
struct Entry<'a> {
    schema: &'a Schema,
    found: &'a Json,
    value: Option<Value>,
    default: Option<Value>,
}

impl Entry<'_> {
    fn write(&self, key: &str, note: Option<&String>, text: &mut String) {
        let mut about = description(self.found);
        if let Some(note) = note {
            let _infallible = write!(about, " {note}");
        }
        if let Some(default) =
            self.default.as_ref().filter(|default| self.value.as_ref() != Some(default) && !is_empty(default))
        {
            let _infallible = write!(about, " Default: {default}.");
        }
        comment(text, "", about.trim());
        for (choice, meaning) in self.schema.choices(self.found) {
            comment(text, "  ", format!("\"{choice}\": {meaning}").trim_end_matches([':', ' ']));
        }
        let _infallible = match &self.value {
            Some(value) => writeln!(text, "{key} = {value}"),
            None => writeln!(text, "# {key} =    ({})", self.schema.expected(self.found)),
        };
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty)
}

/// The doc comment, on one line.
fn description(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lines of `# text`, broken at words.
fn comment(out: &mut String, indent: &str, text: &str) {
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _infallible = writeln!(out, "# {indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _infallible = writeln!(out, "# {indent}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_and_what_is_set_reads_back() {
        let mut settings = Settings::default();
        settings.model.aligned = "a \"b\"".to_string();
        settings.model.unaligned = Some("base".to_string());
        settings.data.train = "train.jsonl".into();
        settings.output.save_every_steps = Some(7);
        let notes = BTreeMap::from([("output.save_every_steps", "Often.".to_string())]);
        let text = config(&settings, &notes).unwrap();
        assert_eq!(Settings::from_toml(&text, "init.toml", &[]).unwrap(), settings, "{text}");
        for key in Schema::of::<Settings>().keys() {
            let name = key.split('.').next_back().unwrap();
            let lines = text
                .lines()
                .filter(|line| line.starts_with(&format!("{name} = ")) || line.starts_with(&format!("# {name} = ")));
            assert!(lines.count() >= 1, "{key}\n{text}");
        }
        for part in [
            "# Rank r of the update B·A.\nrank = 8\n",
            "Often.\nsave_every_steps = 7\n",
            "#   \"orthogonal\": ‖(I − C) ΔW‖²: the released method.",
            "# max_steps =    (a whole number of 0 or more)\n",
        ] {
            assert!(text.contains(part), "{part}\nis not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH + 5), "{text}");
    }
}
