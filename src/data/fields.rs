//! A record as its format sees it: fields by the format's names, found where `data.columns` says.

use super::records::{Place, Record, is_text, kind, parse};
use super::source::options::{Columns, Format};
use crate::error::listing;
use crate::invalid;
use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// One record, read through the columns of its dataset.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    record: &'a Record,
    columns: &'a Columns,
}

impl<'a> Fields<'a> {
    pub fn new(record: &'a Record, columns: &'a Columns) -> Self {
        Self { record, columns }
    }

    pub fn place(&self) -> Place {
        self.record.place
    }

    /// Whether the record holds field `name`, or `data.columns` says it does.
    pub fn has(&self, name: &str) -> bool {
        self.columns.get(name).is_some() || self.record.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// The string in field `name`.
    ///
    /// # Errors
    /// The field is missing (the fields found are named) or not a string.
    pub fn text(&self, name: &str) -> Result<&'a str> {
        self.optional_text(name)?.ok_or_else(|| self.missing(name, "a string"))
    }

    /// The string in field `name`; `None` if the field is missing or null.
    ///
    /// # Errors
    /// The field holds something else; it is missing although `data.columns` says where it is.
    pub fn optional_text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name)? {
            None | Some(Value::Null) => Ok(None),
            Some(value @ Value::String(text)) if is_text(value) => Ok(Some(text)),
            Some(other) => Err(invalid!("{} is {}, expected a string", self.called(name), kind(other))),
        }
    }

    /// The list in field `name`; a string that holds a JSON list counts too, since that is how tables store lists.
    ///
    /// # Errors
    /// The field is missing (the fields found are named) or not a list.
    pub fn list(&self, name: &str) -> Result<Cow<'a, [Value]>> {
        match self.value(name)? {
            None | Some(Value::Null) => Err(self.missing(name, "a list")),
            Some(Value::Array(list)) => Ok(Cow::Borrowed(list)),
            Some(Value::String(text)) => match parse(text) {
                Ok(Value::Array(list)) => Ok(Cow::Owned(list)),
                Ok(other) => Err(invalid!(
                    "{} is a string, expected a list or its JSON, not {}",
                    self.called(name),
                    kind(&other)
                )),
                Err(e) => Err(invalid!("{} is a string, expected a list or its JSON ({e})", self.called(name))),
            },
            Some(other) => Err(invalid!("{} is {}, expected a list", self.called(name), kind(other))),
        }
    }

    /// Those of the fields `names` that the record has.
    ///
    /// # Errors
    /// One is missing although `data.columns` says where it is.
    pub fn pick(&self, names: &[&str]) -> Result<Map<String, Value>> {
        let mut picked = Map::new();
        for name in names {
            if let Some(value) = self.value(name)?.filter(|value| !value.is_null()) {
                picked.insert(name.to_string(), value.clone());
            }
        }
        Ok(picked)
    }

    fn value(&self, name: &str) -> Result<Option<&'a Value>> {
        match self.columns.get(name) {
            None => Ok(self.record.fields.get(name)),
            Some(column) => match self.record.fields.get(column) {
                Some(value) => Ok(Some(value)),
                None => Err(invalid!(
                    "column `{column}`, which `data.columns` gives for field `{name}`, is missing; columns found: {}",
                    self.found()
                )),
            },
        }
    }

    fn called(&self, name: &str) -> String {
        match self.columns.get(name) {
            Some(column) => format!("field `{name}` (column `{column}`)"),
            None => format!("field `{name}`"),
        }
    }

    fn found(&self) -> String {
        let found: Vec<&String> = self.record.fields.keys().collect();
        if found.is_empty() { "none".to_string() } else { listing(&found, 12) }
    }

    fn missing(&self, name: &str, expected: &str) -> anyhow::Error {
        let column = self.columns.get(name).unwrap_or(name);
        let state = if self.record.fields.contains_key(column) { "null" } else { "missing" };
        let advice = self.fitting_format().map_or(
            "check `data.format`, which says what a record holds, and `data.columns`, which says where".to_string(),
            |format| format!("these are the fields of `data.format = \"{format}\"`"),
        );
        invalid!("{} is {state}, expected {expected}; fields found: {}; {advice}", self.called(name), self.found())
    }

    /// The format that has what the record holds, for a record that was read as another one.
    fn fitting_format(&self) -> Option<String> {
        let held = |name: &&str| self.record.fields.get(*name).is_some_and(|value| !value.is_null());
        let fits = |format: &&Format| format.required_fields().iter().all(held);
        let format = Format::value_variants().iter().find(fits)?.to_possible_value()?;
        self.columns.is_empty().then(|| format.get_name().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(value: Value) -> Record {
        Record { fields: value.as_object().unwrap().clone(), place: Place::Line(1) }
    }

    fn columns(pairs: &[&str]) -> Result<Columns> {
        let pairs: Vec<String> = pairs.iter().map(|pair| pair.to_string()).collect();
        Columns::parse(&pairs, &["instruction", "input", "output"])
    }

    #[test]
    fn fields_are_named() {
        let (record, columns) = (record(json!({"prompt": 3, "answer": null})), Columns::default());
        let fields = Fields::new(&record, &columns);
        let error = |name| fields.text(name).unwrap_err().to_string();
        assert!(error("output").contains("`output` is missing, expected a string; fields found: prompt, answer"));
        assert!(error("prompt").contains("`prompt` is a number, expected a string"));
        assert!(error("answer").contains("`answer` is null"));
        assert!(fields.list("prompt").unwrap_err().to_string().contains("expected a list"));
        assert!(!fields.has("answer") && fields.has("prompt"));
    }

    #[test]
    fn columns_stand_in_for_fields() {
        let record = record(json!({"question": "q", "output": "i", "instruction": "o", "n": 1}));
        // Names may be swapped.
        let swapped = columns(&["instruction=output", "output=instruction"]).unwrap();
        let fields = Fields::new(&record, &swapped);
        assert_eq!((fields.text("instruction").unwrap(), fields.text("output").unwrap()), ("i", "o"));
        let mapped = columns(&["instruction = question", "input=context", "output=n"]).unwrap();
        let fields = Fields::new(&record, &mapped);
        assert_eq!(fields.text("instruction").unwrap(), "q");
        let error = fields.optional_text("input").unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        for part in ["`context`", "`input`", "columns found: question, output, instruction, n"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = fields.text("output").unwrap_err().to_string();
        assert!(error.contains("field `output` (column `n`) is a number"), "{error}");
    }

    #[test]
    fn a_list_may_be_json_text() {
        let (record, columns) = (record(json!({"a": "[1, {}]", "b": "no list", "c": "{}"})), Columns::default());
        let fields = Fields::new(&record, &columns);
        assert_eq!(*fields.list("a").unwrap(), [json!(1), json!({})]);
        for name in ["b", "c"] {
            assert!(fields.list(name).unwrap_err().to_string().contains("is a string, expected a list or its JSON"));
        }
    }
}
