//! `json.dumps`.

use super::value::{Writer, check_depth, number, to_str};
use minijinja::value::{Kwargs, Rest, Value as Jinja, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value;

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: json.dumps.
pub fn to_json(state: &State, value: &Jinja, given: Rest<Jinja>, options: Kwargs) -> Result<Jinja, Error> {
    let option = |place: usize, name: &'static str| match given.0.get(place) {
        Some(value) => Ok(Some(value.clone())),
        None => options.get::<Option<Jinja>>(name),
    };
    let is_true = |value: Option<Jinja>| value.is_some_and(|value| value.is_true());
    let indent =
        option(1, "indent")?.filter(|indent| !indent.is_none()).map(|indent| indent_of(&indent)).transpose()?;
    let separators = option(2, "separators")?;
    let (item, key) = match separators.filter(|s| !s.is_none()) {
        Some(pair) => (to_str(state, &pair.get_item_by_index(0)?)?, to_str(state, &pair.get_item_by_index(1)?)?),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let style = Style {
        indent,
        item,
        key,
        ensure_ascii: is_true(option(0, "ensure_ascii")?),
        sort_keys: is_true(option(3, "sort_keys")?),
    };
    options.assert_all_used()?;
    let mut writer = Writer::new(state);
    style.write(&mut writer, value, 0)?;
    Ok(Jinja::from(writer.text))
}

/// A number of spaces, or the text itself.
fn indent_of(indent: &Jinja) -> Result<String, Error> {
    let width = || usize::try_from(indent.clone()).map(|width| " ".repeat(width.min(MOST_INDENT)));
    indent.as_str().map_or_else(width, |text| Ok(text.chars().take(MOST_INDENT).collect()))
}

/// A key as JSON has it.
fn key_of(state: &State, key: &Jinja) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::None => "null".to_string(),
        ValueKind::Bool => key.is_true().to_string(),
        _ => to_str(state, key)?,
    })
}

/// Most characters that a level is indented by.
const MOST_INDENT: usize = 100;

/// json.dumps' settings.
struct Style {
    /// What a level is indented by; none = one line.
    indent: Option<String>,
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
                    items.push((Some(key_of(out.state, &key)?), value.get_item(&key)?));
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
            if let Some(indent) = &self.indent {
                out.text.push('\n');
                (0..depth).for_each(|_| out.text.push_str(indent));
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
