//! Jinja as Python has it: replays tests/fixtures/templates/jinja.json, made by tests/fixtures/make/jinja.py.

use super::*;
use crate::data::records::parse;

/// Parts of templates that are known to differ, and how.
const KNOWN: &[(&str, &str)] = &[
    ("\"a\" < 1", "ordered across types, where Python raises"),
    ("none < 1", "ordered across types, where Python raises"),
    ("< 2 < 3", "comparisons do not chain"),
    ("1 in \"1\"", "a number is looked for as text, where Python raises"),
    ("\"-\".join([1])", "joined as text, where Python raises"),
    ("7.0 ~ 1e16", "floats of 1e16 and more, or below 1e-4, joined by ~"),
    ("dictsort(true)", "refused: arguments by place"),
    ("groupby", "groups print as lists"),
    ("safe + \"<b>\"", "refused"),
    ("autoescape true", "refused"),
    ("wordwrap", "refused: no such filter"),
    ("filesizeformat", "refused: no such filter"),
    ("| urlencode", "a blank in a dict's value is %20, not +"),
    ("indent(width=\"> \")", "refused: an indent that is text"),
    ("| attr(", "finds items, not methods"),
    ("casefold", "of letters other than ß, as lower"),
    ("istitle", "refused: no such method"),
    ("isidentifier", "refused: no such method"),
    ("expandtabs", "refused: no such method"),
    ("encode(\"utf-8\")", "refused: no such method"),
    ("translate", "refused: no such method"),
    ("table.keys() }}", "views print as lists"),
    ("table.keys() ~", "views print as lists"),
    ("table.values()", "views print as lists"),
    ("table.items() }}", "views print as lists"),
    ("table.items() ~", "views print as lists"),
    ("range(3)", "ranges print as lists"),
    ("lipsum", "not defined"),
    ("self is defined", "not defined"),
    ("N{BULLET}", "characters by name stay as they are"),
    ("1, 2 }}", "refused: a tuple without brackets"),
    ("+number", "refused: a plus sign"),
    ("varargs", "refused: more arguments than a macro names"),
    ("c.reset()", "refused: no such method"),
    ("missing is callable", "an undefined value is not"),
];

#[test]
fn small_templates_are_what_jinja2_makes_of_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates/jinja.json");
    let golden = parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let variables = golden["variables"].as_object().unwrap();
    let mut differ = vec![];
    for case in golden["cases"].as_array().unwrap() {
        let source = case[0].as_str().unwrap();
        let rendered = Template::new(source, &[]).and_then(|template| template.render(&[], false, variables));
        if rendered.as_ref().ok().map(String::as_str) != case[1].as_str() {
            let rendered = rendered.map_err(|error| error.to_string());
            differ.push((source, format!("{rendered:?}, expected {}", case[1])));
        }
    }
    let is_known = |source: &str| KNOWN.iter().any(|(part, _)| source.contains(part));
    let new: Vec<String> =
        differ.iter().filter(|(source, _)| !is_known(source)).map(|(s, d)| format!("{s}\n    {d}")).collect();
    assert!(new.is_empty(), "{} differ:\n{}", new.len(), new.join("\n"));
    let gone: Vec<_> =
        KNOWN.iter().filter(|(known, _)| !differ.iter().any(|(source, _)| source.contains(known))).collect();
    assert!(gone.is_empty(), "no longer different: {gone:?}");
}
