//! Filters, tests and functions of Jinja2 that minijinja lacks or has otherwise.

use super::space::is_space;
use super::strings::string_method;
use super::value::{charge, to_str};
use minijinja::value::{ArgType, Kwargs, Rest, Value as Jinja, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// `value | trim(chars=None)`: str.strip.
pub fn trim(state: &State, value: &Jinja, chars: Option<&str>) -> Result<String, Error> {
    let text = to_str(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    })
}

/// Whether iter() of it works: also of a string, and of what is undefined, but not of None.
pub fn is_iterable(value: &Jinja) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// Whether it has a length and items, as dicts and strings have too.
pub fn is_sequence(value: &Jinja) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    // Ranges are of the kind Iterable here, and have a length.
    matches!(value.kind(), Map | Seq | String | Undefined) || value.kind() == Iterable && value.len().is_some()
}

/// `datetime.now().strftime(format)`: local time.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now cannot use this format"))?;
    Ok(text)
}

/// The day by the clock that templates see: 2026-01-31.
pub fn today() -> String {
    chrono::Local::now().date_naive().to_string()
}

/// `value | int(default=0, base=10)`
pub fn int(value: &Jinja, default: Option<Jinja>, base: Option<u32>, named: Kwargs) -> Result<Jinja, Error> {
    let (default, base) = (or_named(default, &named, "default")?, or_named(base, &named, "base")?);
    named.assert_all_used()?;
    let default = default.unwrap_or_else(|| Jinja::from(0));
    if let Some(text) = value.as_str() {
        let whole = parsed(text, base.unwrap_or(10)).map(Jinja::from);
        return Ok(whole.or_else(|| truncated(parsed_float(text)?)).unwrap_or(default));
    }
    Ok(match value.kind() {
        ValueKind::Bool => Jinja::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(truncated).unwrap_or(default),
        _ => default,
    })
}

/// `value | float(default=0.0)`
pub fn float(value: &Jinja, default: Option<Jinja>, named: Kwargs) -> Result<Jinja, Error> {
    let default = or_named(default, &named, "default")?.unwrap_or_else(|| Jinja::from(0.0));
    named.assert_all_used()?;
    let found = match value.kind() {
        ValueKind::String => value.as_str().and_then(parsed_float),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    Ok(found.map_or(default, Jinja::from))
}

/// An argument given by place or by name.
fn or_named<'a, T: ArgType<'a, Output = T>>(
    given: Option<T>,
    named: &'a Kwargs,
    name: &'a str,
) -> Result<Option<T>, Error> {
    let by_name: Option<T> = named.get(name)?;
    Ok(given.or(by_name))
}

/// int(text, base): white space around, a sign, a prefix of the base, and single underscores between digits.
fn parsed(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)];
    let own = prefixed.iter().find_map(|(prefix, of)| Some((lower.strip_prefix(prefix)?, *of)));
    let (digits, base) = match own {
        Some((digits, of)) if base == of || base == 0 => (digits.strip_prefix('_').unwrap_or(digits), of),
        _ => (lower.as_str(), if base == 0 { 10 } else { base }),
    };
    let spaced = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if spaced || digits.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// float(text)
fn parsed_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let spaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!spaced).then(|| text.replace('_', "").parse().ok())?
}

fn truncated(float: f64) -> Option<Jinja> {
    let fits = float.is_finite() && float.abs() < 2f64.powi(126);
    fits.then(|| Jinja::from(float.trunc() as i128))
}

/// `dict(mapping or pairs, **named)`
pub fn dict(from: Option<Jinja>, named: Kwargs) -> Result<Jinja, Error> {
    let mut items: Vec<(Jinja, Jinja)> = vec![];
    if let Some(from) = &from {
        for item in from.try_iter()? {
            if from.kind() == ValueKind::Map {
                let value = from.get_item(&item)?;
                items.push((item, value));
                continue;
            }
            let pair: Vec<Jinja> = item.try_iter()?.take(3).collect();
            let [key, value] = <[Jinja; 2]>::try_from(pair)
                .map_err(|_| Error::new(ErrorKind::InvalidOperation, "dict() takes pairs of a key and a value"))?;
            items.push((key, value));
        }
    }
    for name in named.args() {
        items.push((Jinja::from(name), named.get(name)?));
    }
    Ok(Jinja::from_pairs(items))
}

/// `text | center(width=80)`: str.center.
pub fn center(state: &State, value: &Jinja, width: Option<usize>) -> Result<Jinja, Error> {
    let (text, width) = (to_str(state, value)?, Jinja::from(width.unwrap_or(80)));
    string_method(state, &text, "center", &[width]).map(Option::unwrap_or_default)
}

/// `text | wordcount`: runs of letters, digits and underscores.
pub fn wordcount(state: &State, value: &Jinja) -> Result<usize, Error> {
    let text = to_str(state, value)?;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    Ok(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count())
}

/// `text | truncate(length=255, killwords=False, end='...', leeway=5)`
pub fn truncate(state: &State, value: &Jinja, args: Rest<Jinja>, named: Kwargs) -> Result<String, Error> {
    let arg = Arguments { given: &args.0, named: &named };
    let (length, leeway) = (arg.at::<usize>(0, "length")?.unwrap_or(255), arg.at::<usize>(3, "leeway")?.unwrap_or(5));
    let (kill, end) = (arg.at::<bool>(1, "killwords")?.unwrap_or(false), arg.at::<String>(2, "end")?);
    named.assert_all_used()?;
    let (text, end) = (to_str(state, value)?, end.unwrap_or_else(|| "...".to_string()));
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept = length.checked_sub(end.chars().count());
    let kept =
        kept.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "truncate: the end is longer than the text"))?;
    let head: String = text.chars().take(kept).collect();
    let head = if kill { head.as_str() } else { head.rsplit_once(' ').map_or(head.as_str(), |(words, _)| words) };
    Ok(format!("{head}{end}"))
}

/// `value | default(default='', boolean=False)`
pub fn default(value: &Jinja, args: Rest<Jinja>, named: Kwargs) -> Result<Jinja, Error> {
    let arg = Arguments { given: &args.0, named: &named };
    let (other, boolean) = (arg.at::<Jinja>(0, "default_value")?, arg.at::<bool>(1, "boolean")?);
    named.assert_all_used()?;
    let missing = value.is_undefined() || boolean.unwrap_or(false) && !value.is_true();
    Ok(if missing { other.unwrap_or_else(|| Jinja::from("")) } else { value.clone() })
}

/// `text | escape`: as markupsafe does it. `forceescape` escapes what is safe already, too.
pub fn escape(state: &State, value: &Jinja, name: &str) -> Result<Jinja, Error> {
    if value.is_safe() && name != "forceescape" {
        return Ok(value.clone());
    }
    let mut escaped = String::new();
    for c in to_str(state, value)?.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    Ok(Jinja::from_safe_string(escaped))
}

/// What `for` goes through: Python refuses None, and a text is its characters.
pub fn iterated(state: &State, value: &Jinja) -> Result<Jinja, Error> {
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "None is not iterable"));
    }
    let Some(text) = value.as_str() else { return Ok(value.clone()) };
    charge(state, 16 * text.len())?;
    Ok(text.chars().map(Jinja::from).collect())
}

/// Arguments given by place or by name.
struct Arguments<'a> {
    given: &'a [Jinja],
    named: &'a Kwargs,
}

impl<'a> Arguments<'a> {
    fn at<T: for<'v> ArgType<'v, Output = T>>(&self, place: usize, name: &'a str) -> Result<Option<T>, Error> {
        match self.given.get(place) {
            Some(value) => Ok(Some(from_args::<(T,)>(std::slice::from_ref(value))?.0)),
            None => self.named.get(name),
        }
    }
}
