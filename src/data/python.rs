//! What chat templates expect from Python: how values print, `json.dumps`, string methods, `strftime`.
//!
//! minijinja charges a template's fuel for what its own filters and operators visit and produce; work done here is
//! charged here ([`Writer`], [`charge`]), since one short expression gives a template a list of a hundred million
//! items.

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
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
        Value::String(text) => Jinja::from(text),
        Value::Array(list) => Jinja::from_iter(list.iter().map(to_jinja)),
        Value::Object(fields) => Jinja::from_pairs(fields.iter().map(|(key, value)| (key, to_jinja(value)))),
    }
}

/// Bytes that one unit of fuel pays for, as in minijinja.
const BYTES_PER_FUEL: usize = 64;

/// Takes the fuel for processing `bytes` bytes.
fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// A text that grows at the template's expense.
struct Writer<'a, 't, 'env> {
    state: &'a State<'t, 'env>,
    text: String,
    /// Bytes of the text already paid for.
    paid: usize,
}

impl<'a, 't, 'env> Writer<'a, 't, 'env> {
    fn new(state: &'a State<'t, 'env>) -> Self {
        Self { state, text: String::new(), paid: 0 }
    }

    /// Pays for one more item, and for what the text has grown by.
    fn pay(&mut self) -> Result<(), Error> {
        let fuel = 1 + (self.text.len() - self.paid) / BYTES_PER_FUEL;
        self.paid = self.text.len();
        self.state.consume_fuel(fuel as u64)
    }

    /// The items of a list, or the keys of a map.
    fn items(&self, value: &Jinja) -> Result<Vec<Jinja>, Error> {
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

fn number(value: &Jinja) -> String {
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

fn check_depth(depth: usize) -> Result<(), Error> {
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

/// `value | tojson(indent=None, ensure_ascii=False, separators=None, sort_keys=False)`: json.dumps.
pub fn to_json(state: &State, value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Jinja> = options.get("separators")?;
    let (item, key) = match separators.filter(|s| !s.is_none()) {
        Some(pair) => (to_str(state, &pair.get_item_by_index(0)?)?, to_str(state, &pair.get_item_by_index(1)?)?),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let style = Style {
        indent,
        item,
        key,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut writer = Writer::new(state);
    style.write(&mut writer, value, 0)?;
    Ok(Jinja::from(writer.text))
}

/// json.dumps' settings.
struct Style {
    /// Spaces per level; none = one line.
    indent: Option<usize>,
    /// Between items, and between key and value.
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Style {
    fn write(&self, out: &mut Writer, value: &Jinja, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        out.pay()?;
        match value.kind() {
            ValueKind::None => out.text.push_str("null"),
            ValueKind::Bool => out.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.text.push_str(&number(value)),
            ValueKind::String => self.string(&mut out.text, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = out.items(value)?.into_iter().map(|item| (None, item)).collect();
                self.items(out, items, ('[', ']'), depth)?;
            }
            ValueKind::Map => {
                let mut items = vec![];
                for key in out.items(value)? {
                    items.push((Some(to_str(out.state, &key)?), value.get_item(&key)?));
                }
                if self.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.items(out, items, ('{', '}'), depth)?;
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} value cannot be written as JSON")));
            }
        }
        Ok(())
    }

    fn items(
        &self,
        out: &mut Writer,
        items: Vec<(Option<String>, Jinja)>,
        brackets: (char, char),
        depth: usize,
    ) -> Result<(), Error> {
        let newline = |out: &mut Writer, depth: usize| {
            if let Some(indent) = self.indent {
                out.text.push('\n');
                out.text.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1000)));
            }
        };
        out.text.push(brackets.0);
        let empty = items.is_empty();
        for (index, (key, value)) in items.into_iter().enumerate() {
            if index > 0 {
                out.text.push_str(&self.item);
            }
            newline(out, depth + 1);
            if let Some(key) = key {
                self.string(&mut out.text, &key);
                out.text.push_str(&self.key);
            }
            self.write(out, &value, depth + 1)?;
        }
        if !empty {
            newline(out, depth);
        }
        out.text.push(brackets.1);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        let escaped = Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&escaped);
            return;
        }
        for c in escaped.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
}

/// Python's methods of strings, dicts and lists: minijinja's own set, and here those it lacks or does differently.
pub fn methods(state: &mut State, value: &Jinja, method: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    let texts = std::iter::once(value).chain(args).filter_map(Jinja::as_str);
    charge(state, texts.map(str::len).sum())?;
    if let Some(text) = value.as_str() {
        let affix = args.first().and_then(Jinja::as_str).filter(|_| args.len() == 1);
        match (method, affix) {
            ("strip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_matches(is_space))),
            ("lstrip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_start_matches(is_space))),
            ("rstrip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_end_matches(is_space))),
            ("title", None) if args.is_empty() => return Ok(Jinja::from(title(text))),
            ("removeprefix", Some(affix)) => return Ok(Jinja::from(text.strip_prefix(affix).unwrap_or(text))),
            ("removesuffix", Some(affix)) => return Ok(Jinja::from(text.strip_suffix(affix).unwrap_or(text))),
            ("format", _) => charge(state, asked_for(text))?,
            _ => {}
        }
    } else {
        // Each of these methods visits the items once.
        state.consume_fuel(value.len().unwrap_or(0) as u64)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Upper bound on the bytes that a format string's widths and precisions ask for: all numbers in its fields, field
/// numbers included.
fn asked_for(format: &str) -> usize {
    let (mut fields, mut sum, mut number) = (0usize, 0usize, 0usize);
    for c in format.chars() {
        match c.to_digit(10) {
            Some(digit) if fields > 0 => number = number.saturating_mul(10).saturating_add(digit as usize),
            _ => (sum, number) = (sum.saturating_add(number), 0),
        }
        match c {
            '{' => fields += 1,
            '}' => fields = fields.saturating_sub(1),
            _ => {}
        }
    }
    sum.saturating_add(number)
}

/// `value | trim(chars=None)`: str.strip.
pub fn trim(state: &State, value: &Jinja, chars: Option<&str>) -> Result<String, Error> {
    let text = to_str(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    })
}

/// str.isspace: Unicode white space and four separators that Rust does not include.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// str.title: a letter is a capital unless it follows another letter that has case.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        in_word = c.is_uppercase() || c.is_lowercase();
    }
    titled
}

/// `datetime.now().strftime(format)`: local time.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now cannot use this format"))?;
    Ok(text)
}
