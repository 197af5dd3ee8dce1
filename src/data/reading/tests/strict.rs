//! Records that would be trained on wrongly without a word.

use super::*;

#[test]
fn an_empty_response_is_refused_unless_allowed() {
    let say = |from: &str, value: &str| json!({"from": from, "value": value});
    let turn = |role: &str, content: Value| json!({"role": role, "content": content});
    let turns = |answer: Value| json!({"messages": [turn("user", json!("a")), turn("assistant", answer)]});
    let parts = json!([{"type": "text", "text": ""}]);
    for (record, format, expected) in [
        (json!({"instruction": "a", "output": " \n"}), Format::Alpaca, "field `output` is empty"),
        (turns(json!("")), Format::Chat, "message 2: the assistant's `content` is empty"),
        (turns(parts), Format::Chat, "message 2: the assistant's `content` is empty"),
        (json!({"conversations": [say("human", "a"), say("gpt", "")]}), Format::Sharegpt, "message 2: the assistant's"),
        (json!({"prompt": "a", "completion": ""}), Format::PromptCompletion, "field `completion` is empty"),
        (json!({"text": ""}), Format::Text, "field `text` is empty"),
    ] {
        let message = error(&record.to_string(), &options(format));
        assert!(message.contains(&format!("data.jsonl:1: {expected}")), "{message}");
        let allowed = DataOptions { allow_empty_labels: true, ..options(format) };
        assert!(load_text(&record.to_string(), &allowed).unwrap().counts.label_tokens > 0);
    }
    let allowed = DataOptions { allow_empty_labels: true, ..options(Format::PromptCompletion) };
    let dataset = load_text(r#"{"prompt": "a", "completion": ""}"#, &allowed).unwrap();
    assert_eq!(dataset.example(0).unwrap().labels, [-100, -100, 2]);
}

#[test]
fn a_role_is_known_or_the_template_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let turns = "{% for m in messages %}{{ '<t> ' + m.role + ' ' + m.content + ' </s>' }}{% endfor %}";
    write(&template, format!("{{% set known = ['ipython', \"model\"] %}}{turns}")).unwrap();
    let naming = DataOptions { template: template.display().to_string(), ..options(Format::Chat) };
    let record = |role: &str| {
        let turn = |role: &str| json!({"role": role, "content": "a"});
        json!({"messages": [turn("user"), turn(role), turn("assistant")]}).to_string()
    };
    for (role, near) in [
        ("human", "did you mean \"user\"?"),
        ("asistant", "did you mean \"assistant\"?"),
        ("Assistant", "did you mean \"assistant\"?"),
        ("gpt", "did you mean \"assistant\"?"),
        ("ipython", "expected one of system, user, assistant, tool, developer, or one that the chat template names"),
        ("", "message 2: `role` is \"\", expected one of"),
    ] {
        let message = error(&record(role), &options(Format::Chat));
        assert!(message.contains(near) && message.contains("data.jsonl:1: message 2"), "{message}");
    }
    for role in ["system", "tool", "developer", "ipython"] {
        load_text(&record(role), &naming).unwrap();
    }
    // The assistant by the template's own name for it would get no labels.
    assert!(error(&record("model"), &naming).contains("did you mean \"assistant\"?"));
}

#[test]
fn text_in_parts_is_joined_unless_the_template_reads_parts() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let turns = "{% for m in messages %}{{ '<t> ' + m.role }}{% if m.content is string %}{{ ' ' + m.content }}\
                 {% else %}{% for p in m.content %}{{ ' i ' + p.text }}{% endfor %}{% endif %}{{ ' </s>' }}{% endfor %}";
    write(&template, turns).unwrap();
    let reading = DataOptions { template: template.display().to_string(), ..options(Format::Chat) };
    let record = |part: Value| {
        let text = |text: &str| json!({"type": "text", "text": text});
        let user = json!({"role": "user", "content": [text("a "), part]});
        json!({"messages": [user, {"role": "assistant", "content": [text("b"), text(" c")]}]}).to_string()
    };
    let text = record(json!({"type": "text", "text": "d"}));
    assert_eq!(load_text(&text, &options(Format::Chat)).unwrap().example(0).unwrap().labels[6..], [-100, 7, 8, 2]);
    assert_eq!(load_text(&text, &reading).unwrap().example(0).unwrap().input_ids.len(), 14);
    // Where nothing but parts can be read, a turn is found by other parts.
    write(&template, turns.replace("m.content is string", "m.content is string and raise_exception('text')")).unwrap();
    assert_eq!(
        load_text(&text, &reading).unwrap().example(0).unwrap().labels.iter().filter(|l| **l != -100).count(),
        4
    );
    let message = error(&record(json!({"type": "image_url"})), &options(Format::Chat));
    assert!(
        message.contains("message 1: part 2 of `content` is of type \"image_url\", expected \"text\""),
        "{message}"
    );
    assert!(error(&record(json!(3)), &options(Format::Chat)).contains("part 2 of `content` is a number"));
}

#[test]
fn all_bad_records_are_told() {
    let lines: Vec<String> = (0..60)
        .map(|i| match i % 3 {
            0 => r#"{"instruction": "a", "output": "b"}"#.to_string(),
            1 => r#"{"instruction": "a"}"#.to_string(),
            _ => format!(r#"{{"instruction": {i}, "output": "b"}}"#),
        })
        .collect();
    let message = error(&lines.join("\n"), &options(Format::Alpaca));
    for part in [
        "data.jsonl: 40 of 60 records cannot be used:\n",
        "data.jsonl:2: field `output` is missing",
        "the same in lines 5, 8, 11, 14, 17, 20, 23, 26, 29",
        "data.jsonl:3: field `instruction` is a number, expected a string; the same in lines 6, 9",
        "\n  and 20 more",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn special_tokens_in_content_are_a_choice() {
    let record = json!({"instruction": "a </s> <t> b", "output": "c <e>"}).to_string();
    let choose = |special_tokens_in_content| DataOptions { special_tokens_in_content, ..options(Format::Alpaca) };
    assert_eq!(
        load_text(&record, &choose(SpecialTokens::Allow)).unwrap().example(0).unwrap().input_ids[2..5],
        [6, 2, 3]
    );
    let text = format!("{record}\n{{\"instruction\": \"a\", \"output\": \"b\"}}\n{record}");
    let message = error(&text, &choose(SpecialTokens::Refuse));
    for part in ["2 of 3 records", "data.jsonl:1: the text holds the special tokens </s>, <t>", "the same in line 3"] {
        assert!(message.contains(part), "{message}");
    }
    // Words are whole in this vocabulary, and these are among them.
    let message = error(&text, &choose(SpecialTokens::Text));
    assert!(
        message.contains("this tokenizer cannot read special tokens as text (its vocabulary makes </s>"),
        "{message}"
    );
    let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a </"},
                       {"type": "text", "text": "s>"}]}, {"role": "assistant", "content": "b"}]});
    let refusing = DataOptions { format: Format::Chat, ..choose(SpecialTokens::Refuse) };
    assert!(error(&parts.to_string(), &refusing).contains("the special tokens </s>"));
}

#[test]
fn a_record_that_changed_is_named_when_it_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let (path, tokenizer, options) = (dir.path().join("data.jsonl"), tokenizer(dir.path()), options(Format::Alpaca));
    let (good, reading) = ("\n{\"instruction\": \"a\", \"output\": \"b\"}", reading(&options, Some(&tokenizer)));
    write(&path, good).unwrap();
    let files = Files::new(ResolvedData { paths: vec![path.clone()], source: "data".to_string() });
    let dataset = reading.load(&files, &ProgressBar::hidden()).unwrap();
    let (_, origin) = dataset.place(0).unwrap();
    assert_eq!(reading.explain(&files, origin).unwrap().len(), 2);
    for (text, expected) in [
        ("\n{\"instruction\": ", "malformed JSON"),
        ("\n{\"instruction\": \"a\"}", "field `output` is missing"),
        ("{}", "is not there any more"),
    ] {
        write(&path, text).unwrap();
        let error = format!("{:#}", reading.explain(&files, origin).unwrap_err());
        assert!(error.contains("data.jsonl:2") && error.contains(expected), "{error}");
    }
}
