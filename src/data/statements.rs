//! Rewrites statements of chat templates that minijinja lacks, or has in another form, into ones that it has.

use super::namespace::SET;
use regex::Regex;
use std::sync::LazyLock;

/// The template with these statements rewritten.
pub fn rewritten(source: &str) -> String {
    sets_as_calls(&generation_as_filter(source))
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
