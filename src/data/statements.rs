//! Rewrites statements of chat templates that minijinja lacks, or has in another form, into ones that it has.

use super::namespace::SET;
use regex::{Captures, Regex};
use std::sync::LazyLock;

/// The template with these statements rewritten.
pub fn rewritten(source: &str) -> String {
    loops_as_filtered(&sets_as_calls(&generation_as_filter(&formats_as_filter(source))))
}

/// What a template uses that would render otherwise than in Jinja2, if anything.
pub fn unsupported(source: &str) -> Option<&'static str> {
    static ADDED: LazyLock<Regex> = LazyLock::new(|| pattern(r"\|\s*safe\s*\)*\s*\+|\+\s*[\w.]+\s*\|\s*safe\b"));
    static AUTOESCAPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\{%[-+]?\s*autoescape\s+(?:true|True)\s*[-+]?%\}"));
    if ADDED.is_match(source) {
        return Some("adds to a text that is marked `safe`, upon which Jinja2 escapes what is added");
    }
    AUTOESCAPE.is_match(source).then_some("turns autoescape on")
}

/// `"..." % VALUES` as `"..." | format(VALUES)`.
fn formats_as_filter(source: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)\{\{.*?\}\}|\{%.*?%\}"));
    // Every text is gone through, so that what is between two of them is not taken for one.
    static TEXT: LazyLock<Regex> = LazyLock::new(|| {
        let text = r#""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"#;
        let values = format!(r"\(([^()]*)\)|({text}|[\w.]+(?:\[[^\[\]]*\])*(?:\([^()]*\))?)");
        pattern(&format!(r"(?s)({text})(?:\s*%\s*(?:{values}))?"))
    });
    let formatted = |text: &Captures| match (text.get(2), text.get(3)) {
        (None, None) => text[0].to_string(),
        (values, value) => {
            format!("({} | format({}))", &text[1], values.or(value).map_or("", |values| values.as_str()))
        }
    };
    let tag = |tag: &Captures| TEXT.replace_all(&tag[0], formatted).into_owned();
    TAG.replace_all(source, tag).into_owned()
}

/// The filter that a loop's values go through.
pub const ITERATED: &str = "iterated";

/// `{% for x in VALUES if ... %}` with `VALUES | iterated`, as minijinja goes through None, and takes the last character of
/// a text for one that others follow.
fn loops_as_filtered(source: &str) -> String {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\{%[-+]?\s*for\s+[\w\s,()]+?\s+in\s+"));
    let (mut text, mut copied) = (String::with_capacity(source.len()), 0);
    for begin in BEGIN.find_iter(source) {
        let Some(length) = source.get(begin.end()..).and_then(values_end) else { continue };
        let end = begin.end() + length;
        let (Some(before), Some(values)) = (source.get(copied..begin.end()), source.get(begin.end()..end)) else {
            continue;
        };
        let (values, space) = values.split_at(values.trim_end().len());
        text.push_str(&format!("{before}({values}) | {ITERATED}{space}"));
        copied = end;
    }
    text + source.get(copied..).unwrap_or_default()
}

/// Where the values of a loop end: at its condition, at `recursive` or with the tag, outside of brackets and strings.
fn values_end(rest: &str) -> Option<usize> {
    static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r#"(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[-+]?%\}|[\[({]|[\])}]|\bif\b|\brecursive\s*[-+]?%\}"#)
    });
    let mut depth = 0usize;
    for token in TOKEN.find_iter(rest) {
        match token.as_str() {
            "[" | "(" | "{" => depth += 1,
            "]" | ")" | "}" => depth = depth.checked_sub(1)?,
            text if text.starts_with(['"', '\'']) => {}
            _ if depth == 0 => return Some(token.start()),
            _ => {}
        }
    }
    None
}

/// `{% generation %}` becomes a block of the filter `generation`: same body, same rules for the white space around it.
fn generation_as_filter(source: &str) -> String {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\{%([-+]?)\s*generation\s*([-+]?)%\}"));
    static END: LazyLock<Regex> = LazyLock::new(|| pattern(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}"));
    let source = BEGIN.replace_all(source, "{%$1 filter generation $2%}");
    END.replace_all(&source, "{%$1 endfilter $2%}").into_owned()
}

/// The template with `{% set NAME.ATTRIBUTE = VALUE %}` as calls.
fn sets_as_calls(source: &str) -> String {
    static SET_ATTRIBUTE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r#"(?s)\{%([-+]?\s*)set(\s+)(\w+)\s*\.\s*(\w+)\s*=((?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^"'])*?)([-+]?)%\}"#,
        )
    });
    let call = format!("{{%${{1}}do${{2}}${{3}}.{SET}('${{4}}', (${{5}}))${{6}}%}}");
    SET_ATTRIBUTE.replace_all(source, call.as_str()).into_owned()
}

/// Compiled once: compiling takes longer than reading a template.
fn pattern(constant: &str) -> Regex {
    Regex::new(constant).expect("the pattern is a constant")
}
