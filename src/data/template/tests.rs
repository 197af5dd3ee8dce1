use super::*;
use serde_json::json;

pub fn try_render(source: &str, messages: Value) -> Result<String> {
    let tokens = [("eos_token".to_string(), "</s>".to_string())];
    Template::new(source, &tokens)?.render(messages.as_array().unwrap(), true, &Map::new())
}

fn render(source: &str) -> String {
    try_render(source, json!([{"role": "user", "content": "hi", "gone": null}])).unwrap()
}

#[test]
fn blocks_leave_no_white_space() {
    assert_eq!(
        render("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n"),
        "user\n"
    );
    assert_eq!(render("a\n  {% generation %}\n  b\n{% endgeneration %}\nc"), "a\n  b\nc");
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c"), "abc");
}

#[test]
fn variables_and_python() {
    assert_eq!(render("{{ eos_token }}{{ bos_token }}{{ tools is none }}{{ add_generation_prompt }}"), "</s>TrueTrue");
    assert_eq!(render("{{ 'gone' in messages[0] }} {{ none }} {{ ' x '.strip() }}"), "False None x");
    assert_eq!(
        render(r#"{{ {"b": [1, 2.0, 1e-5, none, true], "a": "<é\n"} | tojson }}"#),
        r#"{"b": [1, 2.0, 1e-05, null, true], "a": "<é\n"}"#
    );
    assert_eq!(
        render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
    );
    assert_eq!(
        render("{{ ['é', '🦀'] | tojson(ensure_ascii=true, separators=(',', ':')) }}"),
        r#"["\u00e9","\ud83e\udd80"]"#
    );
}

#[test]
fn strings_as_in_python() {
    assert_eq!(
        render("{{ \"it's BIG 3x\".title() }} {{ 'abc'.removeprefix('a').removesuffix('x') }}"),
        "It'S Big 3X bc"
    );
    assert_eq!(render("{{ '\u{1f} x\u{a0}' | trim }}{{ 'xay' | trim('xy') }}{{ '\u{1c}b'.lstrip() }}"), "xab");
    assert_eq!(render("{{ ['a', 1, none, (2,)] }} {{ {'k': 1.0} }}"), "['a', 1, None, (2,)] {'k': 1.0}");
}

#[test]
fn reasoning_goes_by_every_name() {
    let messages = json!([{"role": "assistant", "content": "x", "reasoning": "why"}]);
    assert_eq!(try_render("{{ messages[0].reasoning_content ~ messages[0].thinking }}", messages).unwrap(), "whywhy");
}

#[test]
fn failures_are_user_errors() {
    let error = |source: &str| {
        let error = try_render(source, json!([])).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        error.to_string()
    };
    assert!(
        error("{% macro m() %}{{ raise_exception('no ' ~ 1) }}{% endmacro %}{{ m() }}")
            .ends_with("refuses the conversation: no 1")
    );
    assert!(error("\n{% if %}").contains("line 2"));
    assert!(error("{{ missing.attribute }}").contains("undefined"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = 1 %}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("does not seem to end"));
    let huge = "{% set x = 'abcdefgh' * 1000000 %}{% for a in range(99) %}{{ x }}{% endfor %}";
    assert!(!error(huge).is_empty());
}
