//! What chat templates expect of Python: how values print, `json.dumps`, string methods, `strftime`.

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

/// `{{ value }}`: str() of it.
pub fn print(output: &mut Output, _: &mut State, value: &Jinja) -> Result<(), Error> {
    let result = match value.as_str() {
        Some(text) => output.write_str(text),
        None => output.write_str(&to_str(value)?),
    };
    result.map_err(Error::from)
}

/// str() of a value that is not a string; undefined is empty.
fn to_str(value: &Jinja) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number => number(value),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => repr(value, 0)?,
        _ => value.to_string(),
    })
}

fn number(value: &Jinja) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// Python's repr of a float: shortest digits that read back; an exponent of at least two digits below 1e-4 and from 1e16.
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

fn repr(value: &Jinja, depth: usize) -> Result<String, Error> {
    check_depth(depth)?;
    Ok(match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let mut parts = vec![];
            for key in value.try_iter()? {
                parts.push(format!("{}: {}", repr(&key, depth + 1)?, repr(&value.get_item(&key)?, depth + 1)?));
            }
            format!("{{{}}}", parts.join(", "))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let parts = value.try_iter()?.map(|item| repr(&item, depth + 1)).collect::<Result<Vec<_>, _>>()?;
            match (value.is_tuple(), parts.len()) {
                (true, 1) => format!("({},)", parts[0]),
                (true, _) => format!("({})", parts.join(", ")),
                (false, _) => format!("[{}]", parts.join(", ")),
            }
        }
        _ => to_str(value)?,
    })
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
pub fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Jinja> = options.get("separators")?;
    let (item, key) = match separators.filter(|s| !s.is_none()) {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
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
    let mut text = String::new();
    style.write(&mut text, value, 0)?;
    Ok(Jinja::from(text))
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
    fn write(&self, out: &mut String, value: &Jinja, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.items(out, items, ('[', ']'), depth)?;
            }
            ValueKind::Map => {
                let mut items = vec![];
                for key in value.try_iter()? {
                    items.push((Some(key.to_string()), value.get_item(&key)?));
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
        out: &mut String,
        items: Vec<(Option<String>, Jinja)>,
        brackets: (char, char),
        depth: usize,
    ) -> Result<(), Error> {
        let newline = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1000)));
            }
        };
        out.push(brackets.0);
        let empty = items.is_empty();
        for (index, (key, value)) in items.into_iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            newline(out, depth + 1);
            if let Some(key) = key {
                self.string(out, &key);
                out.push_str(&self.key);
            }
            self.write(out, &value, depth + 1)?;
        }
        if !empty {
            newline(out, depth);
        }
        out.push(brackets.1);
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

/// Python's methods of strings, dicts and lists: minijinja's own set, and here those it lacks or does otherwise.
pub fn methods(state: &mut State, value: &Jinja, method: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    if let Some(text) = value.as_str() {
        let affix = args.first().and_then(Jinja::as_str).filter(|_| args.len() == 1);
        match (method, affix) {
            ("strip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_matches(is_space))),
            ("lstrip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_start_matches(is_space))),
            ("rstrip", None) if args.is_empty() => return Ok(Jinja::from(text.trim_end_matches(is_space))),
            ("title", None) if args.is_empty() => return Ok(Jinja::from(title(text))),
            ("removeprefix", Some(affix)) => return Ok(Jinja::from(text.strip_prefix(affix).unwrap_or(text))),
            ("removesuffix", Some(affix)) => return Ok(Jinja::from(text.strip_suffix(affix).unwrap_or(text))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `value | trim(chars=None)`: str.strip.
pub fn trim(value: &Jinja, chars: Option<String>) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    }
}

/// str.isspace: Unicode white space and four separators that Rust does not count.
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
#[cfg(unix)]
pub fn strftime_now(format: String) -> Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, "strftime_now cannot use this format");
    let format = std::ffi::CString::new(format).map_err(|_| bad())?;
    if format.is_empty() {
        return Ok(String::new());
    }
    let mut text = vec![0u8; 1024];
    // SAFETY: `tm` is filled by localtime_r before use; strftime writes at most text.len() bytes.
    let written = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        let now = libc::time(std::ptr::null_mut());
        if libc::localtime_r(&now, &mut tm).is_null() {
            return Err(bad());
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &tm)
    };
    text.truncate(written);
    String::from_utf8(text).map_err(|_| bad())
}
