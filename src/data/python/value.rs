//! Values as Python prints them, at the template's expense.

use crate::data::records::integer;
use minijinja::value::{Value as Jinja, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};
use serde_json::Value;

/// A JSON value as a template sees it.
pub fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(flag) => Jinja::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Jinja::from(int),
            (_, Some(int)) => Jinja::from(int),
            _ => Jinja::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => integer(text).map_or_else(|| Jinja::from(text), Jinja::from),
        Value::Array(list) => Jinja::from_iter(list.iter().map(to_jinja)),
        Value::Object(fields) => Jinja::from_pairs(fields.iter().map(|(key, value)| (key, to_jinja(value)))),
    }
}

/// Bytes that one unit of fuel pays for, as in minijinja.
const BYTES_PER_FUEL: usize = 64;

/// Takes the fuel for processing `bytes` bytes.
pub fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// A text that grows at the template's expense.
pub struct Writer<'a, 't, 'env> {
    pub state: &'a State<'t, 'env>,
    pub text: String,
    /// Bytes of the text already paid for.
    paid: usize,
}

impl<'a, 't, 'env> Writer<'a, 't, 'env> {
    pub fn new(state: &'a State<'t, 'env>) -> Self {
        Self { state, text: String::new(), paid: 0 }
    }

    /// Pays for one more item, and for what the text has grown by.
    pub fn pay(&mut self) -> Result<(), Error> {
        let fuel = 1 + (self.text.len() - self.paid) / BYTES_PER_FUEL;
        self.paid = self.text.len();
        self.state.consume_fuel(fuel as u64)
    }

    /// The items of a list, or the keys of a map.
    pub fn items(&self, value: &Jinja) -> Result<Vec<Jinja>, Error> {
        let mut items = vec![];
        for item in value.try_iter()? {
            self.state.consume_fuel(1)?;
            items.push(item);
        }
        Ok(items)
    }
}

/// `{{ value }}`: str() of it.
pub fn print(output: &mut Output, state: &mut State, value: &Jinja) -> Result<(), Error> {
    let result = match value.as_str() {
        Some(text) => output.write_str(text),
        None => output.write_str(&to_str(state, value)?),
    };
    result.map_err(Error::from)
}

/// str() of a value; undefined is empty.
pub fn to_str(state: &State, value: &Jinja) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => {
            let mut writer = Writer::new(state);
            repr(&mut writer, value, 0)?;
            writer.text
        }
    })
}

pub fn number(value: &Jinja) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// Python's repr of a float: the shortest digits that round-trip; below 1e-4 and from 1e16 on, with an exponent of at
/// least two digits.
fn float_repr(float: f64) -> String {
    let size = float.abs();
    if !float.is_finite() || size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{float:?}").to_lowercase();
    }
    let text = format!("{float:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// How deep a printed value may be nested.
const DEPTH: usize = 100;

pub fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply to print"));
    }
    Ok(())
}

/// repr() of a value.
fn repr(out: &mut Writer, value: &Jinja, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    out.pay()?;
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.text.push_str("None"),
        ValueKind::Bool => out.text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.text.push_str(&number(value)),
        ValueKind::String => out.text.push_str(&quote(value.as_str().unwrap_or_default())),
        ValueKind::Map => {
            out.text.push('{');
            for (index, key) in out.items(value)?.iter().enumerate() {
                out.text.push_str(if index > 0 { ", " } else { "" });
                repr(out, key, depth + 1)?;
                out.text.push_str(": ");
                repr(out, &value.get_item(key)?, depth + 1)?;
            }
            out.text.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.text.push(open);
            let items = out.items(value)?;
            for (index, item) in items.iter().enumerate() {
                out.text.push_str(if index > 0 { ", " } else { "" });
                repr(out, item, depth + 1)?;
            }
            out.text.push_str(if value.is_tuple() && items.len() == 1 { "," } else { "" });
            out.text.push(close);
        }
        _ => out.text.push_str(&value.to_string()),
    }
    Ok(())
}

/// Python's repr of a string, for the characters that occur in practice.
fn quote(text: &str) -> String {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(mark);
    for c in text.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\\' => quoted.push_str("\\\\"),
            c if c == mark => quoted.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) => {
                quoted.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => quoted.push(c),
        }
    }
    quoted.push(mark);
    quoted
}
