//! Methods of `str` that minijinja lacks or does otherwise. Positions count characters.

use super::space::is_space;
use super::value::charge;
use minijinja::value::{Tuple, Value as Jinja, from_args};
use minijinja::{Error, ErrorKind, State};

/// `text.method(*args)`, or `None` for a method that is minijinja's.
///
/// # Errors
/// What Python raises: arguments of another kind; `index` of what is not there.
pub fn string_method(state: &State, text: &str, method: &str, args: &[Jinja]) -> Result<Option<Jinja>, Error> {
    let found = match method {
        "strip" | "lstrip" | "rstrip" => stripped(text, method, from_args(args)?),
        "title" => none(args, || title(text))?,
        "swapcase" => none(args, || text.chars().flat_map(swapped).collect::<String>())?,
        "casefold" => none(args, || text.to_lowercase().replace('ß', "ss"))?,
        "removeprefix" => {
            let (affix,): (&str,) = from_args(args)?;
            Jinja::from(text.strip_prefix(affix).unwrap_or(text))
        }
        "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            Jinja::from(text.strip_suffix(affix).unwrap_or(text))
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            split(text, separator, usize::try_from(most.unwrap_or(-1)).ok(), method == "rsplit")?
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            lines(text, keep.unwrap_or(false)).into_iter().collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            parted(text, separator, method == "rpartition")?
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| failed("substring not found"))?;
            Jinja::from(text.get(..at).unwrap_or_default().chars().count())
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            let width = usize::try_from(width).unwrap_or(0);
            charge(state, width)?;
            padded(text, method, width, fill)?
        }
        "startswith" | "endswith" => {
            let (affix, start, end): (&Jinja, Option<i64>, Option<i64>) = from_args(args)?;
            let part = sliced(text, start, end);
            let fits =
                |affix: &str| if method == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) };
            Jinja::from(any_text(affix, fits)?)
        }
        "isdecimal" => none(args, || !text.is_empty() && text.chars().all(is_decimal))?,
        "isdigit" => none(args, || !text.is_empty() && text.chars().all(is_digit))?,
        "isspace" => none(args, || !text.is_empty() && text.chars().all(is_space))?,
        "format" => {
            charge(state, asked_for(text))?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn failed(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// The result of a method without arguments.
fn none<T: Into<Jinja>>(args: &[Jinja], result: impl FnOnce() -> T) -> Result<Jinja, Error> {
    let () = from_args(args)?;
    Ok(result().into())
}

/// text[start:end]
fn sliced(text: &str, start: Option<i64>, end: Option<i64>) -> String {
    let length = text.chars().count();
    let place = |at: i64| if at < 0 { length.saturating_sub(at.unsigned_abs() as usize) } else { at as usize };
    let (start, end) = (start.map_or(0, place), end.map_or(length, place));
    text.chars().take(end).skip(start).collect()
}

/// Whether a text, or one of several in a tuple, does.
fn any_text(texts: &Jinja, fits: impl Fn(&str) -> bool) -> Result<bool, Error> {
    match texts.as_str() {
        Some(text) => Ok(fits(text)),
        None if texts.is_tuple() => Ok(texts.try_iter()?.any(|text| text.as_str().is_some_and(&fits))),
        None => Err(failed("expected a text or a tuple of them")),
    }
}

fn stripped(text: &str, method: &str, (chars,): (Option<&str>,)) -> Jinja {
    let is_cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    Jinja::from(match method {
        "lstrip" => text.trim_start_matches(is_cut),
        "rstrip" => text.trim_end_matches(is_cut),
        _ => text.trim_matches(is_cut),
    })
}

/// str.split and str.rsplit: at a separator or, without one, at runs of white space, at most `most` times.
fn split(text: &str, separator: Option<&str>, most: Option<usize>, from_right: bool) -> Result<Jinja, Error> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match (separator, from_right) {
        (Some(""), _) => return Err(failed("empty separator")),
        (Some(separator), false) => text.splitn(most.saturating_add(1), separator).collect(),
        (Some(separator), true) => text.rsplitn(most.saturating_add(1), separator).collect(),
        (None, false) => words(text, most, |rest| rest.split_once(is_space), |rest| rest.trim_start_matches(is_space)),
        (None, true) => words(
            text,
            most,
            |rest| rest.rsplit_once(is_space).map(|(rest, word)| (word, rest)),
            |rest| rest.trim_end_matches(is_space),
        ),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Jinja::from).collect())
}

/// Words from one end; after `most`, the rest is one. `cut`: (word, rest); `trim`: without the white space at that end.
fn words<'a>(
    text: &'a str,
    most: usize,
    cut: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
    trim: impl Fn(&'a str) -> &'a str,
) -> Vec<&'a str> {
    let (mut words, mut rest) = (vec![], trim(text));
    while !rest.is_empty() {
        match cut(rest).filter(|_| words.len() < most) {
            Some((word, others)) => {
                words.push(word);
                rest = trim(others);
            }
            None => {
                words.push(rest.trim_matches(is_space));
                break;
            }
        }
    }
    words
}

/// str.splitlines, at each of Python's line boundaries.
fn lines(text: &str, keep: bool) -> Vec<Jinja> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (vec![], text);
    while !rest.is_empty() {
        let Some(at) = rest.find(ENDS) else {
            lines.push(Jinja::from(rest));
            break;
        };
        let (line, tail) = rest.split_at(at);
        let end = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(0, char::len_utf8) };
        let (mark, after) = tail.split_at(end);
        lines.push(if keep { Jinja::from(format!("{line}{mark}")) } else { Jinja::from(line) });
        rest = after;
    }
    lines
}

fn parted(text: &str, separator: &str, from_right: bool) -> Result<Jinja, Error> {
    if separator.is_empty() {
        return Err(failed("empty separator"));
    }
    let found = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Jinja::from(Tuple::from(parts.map(Jinja::from).to_vec())))
}

fn padded(text: &str, method: &str, width: usize, fill: Option<&str>) -> Result<Jinja, Error> {
    let missing = width.saturating_sub(text.chars().count());
    let mut fill = fill.unwrap_or(if method == "zfill" { "0" } else { " " }).chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(failed("the fill character must be exactly one character long"));
    };
    let fills = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(Jinja::from(match method {
        "ljust" => format!("{text}{}", fills(missing)),
        "rjust" => format!("{}{text}", fills(missing)),
        // As CPython does it: the odd one goes left if the width is odd.
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fills(left), fills(missing - left))
        }
        _ => {
            let signed = text.strip_prefix(['+', '-']);
            let (sign, digits) = text.split_at(signed.map_or(0, |_| 1));
            format!("{sign}{}{digits}", fills(missing))
        }
    }))
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// A digit of a decimal system (Unicode's category Nd), as far as it occurs in practice.
fn is_decimal(c: char) -> bool {
    c.is_numeric() && !c.is_alphabetic() && !is_digit_only(c) && !is_fraction(c)
}

fn is_digit(c: char) -> bool {
    is_decimal(c) || is_digit_only(c)
}

/// Superscripts, subscripts and circled digits are digits, but not decimal.
fn is_digit_only(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨')
}

/// Other numbers that are no digits.
fn is_fraction(c: char) -> bool {
    matches!(c, '¼'..='¾' | '\u{2150}'..='\u{218b}' | '⑩'..='⑳' | '\u{3007}' | '\u{3021}'..='\u{3029}')
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
