//! Malicious templates: each is refused as the user's mistake, in bounded time and memory.

use super::tests::try_render;
use serde_json::json;
use std::time::Instant;

/// The refusal of a template within 20 seconds, an hour on a busy machine's clock.
#[track_caller]
fn refusal(source: &str) -> String {
    let began = Instant::now();
    let result = try_render(source, json!([{"role": "user", "content": "hi"}]));
    let error = result.expect_err("must be refused");
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    error.to_string()
}

/// A list that holds one list twice, nested 60 times: 2⁶⁰ values that take no space.
fn shared(use_of_x: &str) -> String {
    format!("{{% set x = [1] %}}{}{{{{ {use_of_x} }}}}", "{% set x = [x, x] %}".repeat(60))
}

#[test]
fn values_larger_than_they_are_made_take_fuel() {
    for source in [
        "{{ [1] * 100000000 }}",
        "{{ ([1] * 100000000) | tojson }}",
        "{{ ([1] * 1000000) | tojson(separators=['x' * 1000000, ':']) }}",
        "{{ [[1] * 10000] * 10000 }}",
        "{% set a = ['a' * 50000000, 'b' * 50000000, 'c' * 50000000] %}",
        "{% set a = 'a' * 10000000 %}{% for i in range(99999) %}{% set x = a.isalpha() %}{% endfor %}",
        "{% set a = (['b'] * 10000) | list %}{% for i in range(99999) %}{% set x = a.count(1) %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set x %}{% for a in range(99999) %}{{ 'abcdefgh' * 10000 }}{% endfor %}{% endset %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        // More than an allocator gives: asking for it ends the process.
        "{{ '{:>100000000000000}'.format(1) }}",
        "{{ '{:.99999999999999f}'.format(1.5) }}",
        "{{ '{0:>99999999999999999999999}{0:>9}'.format(1) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{% set a = 'a' * 1000000 %}{{ a.replace('', a) }}",
        &shared("x"),
        &shared("x | tojson"),
        &shared("x ~ ''"),
        &shared("x | trim"),
        &shared("raise_exception(x)"),
    ] {
        let message = refusal(source);
        // On a busy machine time may run out before the fuel.
        let given_up = message.contains("out of fuel") || message.contains("it takes longer than");
        assert!(given_up, "{source:.80}: {message}");
    }
    assert!(refusal("{% for i in range(10 ** 9) %}{% endfor %}").contains("too many elements"));
    assert!(refusal("{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m([1]) }}").contains("recursion limit"));
    assert!(refusal("{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}").contains("recursion limit"));
}

#[test]
fn a_namespace_holds_nothing_deep_and_not_itself() {
    let with = |body: &str| format!("{{% set ns = namespace(x=[1]) %}}{{% for i in range(999) %}}{body}{{% endfor %}}");
    assert!(refusal(&with("{% set ns.x = [ns.x] %}")).contains("nested too deeply"));
    assert!(refusal(&with("{%- set ns.x = [ns.x, \"%}\", ns.x] -%}")).contains("too large"));
    assert!(refusal(&with("{% set ns.x = {'a': [ns.x] * 1} %}")).contains("nested too deeply"));
    assert!(refusal("{% set ns = namespace() %}{% set ns.x %}a{% endset %}").contains("only assign"));
    let itself = "{% set a = namespace() %}{% set a.x = a %}{% set b = namespace() %}{% set b.x = [b] %}\
                  {{ a == b }}{{ a | upper }}{{ [b] | join }}{{ {a: 1} }}";
    let _either = try_render(itself, json!([]));
}

#[test]
fn what_no_fuel_pays_for_is_given_up() {
    let twins = "{% set x = [1] %}{% set y = [1] %}".to_string()
        + &"{% set x = [x, x] %}{% set y = [y, y] %}".repeat(60)
        + "{{ x == y }}";
    assert!(refusal(&twins).contains("it takes longer than"));
}

#[test]
fn long_expressions_are_parsed_on_a_large_stack() {
    let n = 60_000;
    for (begin, middle, end) in
        [("", "not ", "1"), ("", "-", "1"), ("x", "|trim", ""), ("x", ".a", ""), ("1", "~1", "")]
    {
        let source = format!("{{{{ {begin}{}{end} }}}}", middle.repeat(n.min(120_000 / middle.len())));
        let _either = try_render(&source, json!([]));
    }
    let _either = try_render(&("{% set x = [1] %}".to_string() + &"{%set x=[x]%}".repeat(9_000)), json!([]));
    for nested in ["(", "[", "{% if 1 %}"] {
        assert!(refusal(&format!("{{{{ {} }}}}", nested.repeat(10_000))).contains("syntax error"));
    }
    assert!(refusal(&"a".repeat(200_000)).contains("200000 bytes"));
}
