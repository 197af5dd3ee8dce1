use super::*;
use crate::data::{Columns, Counts, IGNORE, SpecialTokens};
use serde_json::{Value, json};
use std::fs::write;

mod strict;
mod turns;

const VOCAB: [&str; 17] =
    ["<unk>", "<s>", "</s>", "<t>", "user", "assistant", "a", "b", "c", "d", "e", "f", "g", "h", "i", "system", "<e>"];

/// Words a to i; a turn is "<t> role words </s>". The tokenizer adds <s> on request.
fn tokenizer(dir: &Path) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        VOCAB.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": VOCAB[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut added = special(16);
    added["special"] = json!(false);
    let tokenizer = json!({
        "version": "1.0", "normalizer": null, "decoder": null, "truncation": null, "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "padding": null, "added_tokens": [special(1), special(2), special(3), added],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}
    });
    let template = "{% for m in messages %}{{ '<t> ' + m.role + ' ' + m.content + ' </s>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<t> assistant ' }}{% endif %}";
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

fn load_text(text: &str, options: &DataOptions) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    write(&path, text).unwrap();
    load(&path, options, &tokenizer(dir.path()), &ProgressBar::hidden())
}

fn reading<'a>(options: &'a DataOptions, tokenizer: Option<&'a Tokenizer>) -> Reading<'a> {
    Reading { options, before: Before::default(), tokenizer, vocab_size: VOCAB.len(), cache: None }
}

fn options(format: Format) -> DataOptions {
    DataOptions { format, ..DataOptions::default() }
}

fn one(record: Value, format: Format) -> (String, String) {
    let dataset = load_text(&record.to_string(), &options(format)).unwrap();
    let example = &dataset.example(0).unwrap();
    let words = |ids: Vec<usize>| ids.iter().map(|&id| VOCAB[id]).collect::<Vec<_>>().join(" ");
    let labels = example.labels.iter().filter(|label| **label != IGNORE).map(|&label| label as usize).collect();
    (words(example.input_ids.iter().map(|&id| id as usize).collect()), words(labels))
}

fn error(text: &str, options: &DataOptions) -> String {
    let error = load_text(text, options).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    format!("{error:#}")
}

#[test]
fn every_format() {
    let (ids, labels) = one(json!({"instruction": "a", "input": "b", "output": "c d"}), Format::Alpaca);
    assert_eq!((&*ids, &*labels), ("<t> user a b </s> <t> assistant c d </s>", "c d </s>"));
    let (ids, _) = one(json!({"instruction": "a", "input": "", "output": "c"}), Format::Alpaca);
    assert_eq!(ids, "<t> user a </s> <t> assistant c </s>");
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = json!([turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]);
    assert_eq!(one(json!({ "messages": messages }), Format::Chat).1, "b </s> d </s>");
    let (ids, labels) = one(json!({"prompt": "a b", "completion": " c"}), Format::PromptCompletion);
    assert_eq!((&*ids, &*labels), ("<s> a b c </s>", "c </s>"));
    assert_eq!(one(json!({"prompt": "", "completion": "a"}), Format::PromptCompletion).1, "a </s>");
    let (ids, labels) = one(json!({"text": "a b"}), Format::Text);
    assert_eq!((&*ids, &*labels), ("<s> a b </s>", "<s> a b </s>"));
    assert_eq!(one(json!({"text": "a </s>"}), Format::Text).0, "<s> a </s>");
    assert_eq!(one(json!({"input_ids": [6, 7], "labels": [-100, 7]}), Format::Tokenized).1, "b");
}

#[test]
fn there_is_one_beginning_of_text() {
    let (ids, labels) = one(json!({"prompt": "<s> a", "completion": " c"}), Format::PromptCompletion);
    assert_eq!((&*ids, &*labels), ("<s> a c </s>", "c </s>"));
    assert_eq!(one(json!({"text": "<s> a"}), Format::Text).0, "<s> a </s>");
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path());
    let told = |source: &str| {
        let template = Template::new(source, tokenizer.special_tokens()).unwrap();
        crate::data::beginning::missing(&tokenizer, &template).map(|(text, _)| text)
    };
    assert!(told("{{ messages[0].content }}").unwrap().contains("do not begin with <s>"));
    assert_eq!(told("{{ bos_token + ' ' + messages[0].content }}"), None);
}

#[test]
fn sharegpt_turns_are_messages() {
    let say = |from: &str, value: &str| json!({"from": from, "value": value});
    let turns = json!([say("human", "a"), say("gpt", "b"), say("observation", "c"), say("chatgpt", "d")]);
    let (ids, labels) = one(json!({"conversations": turns, "system": "e"}), Format::Sharegpt);
    let expected = "<t> system e </s> <t> user a </s> <t> assistant b </s> <t> <unk> c </s> <t> assistant d </s>";
    assert_eq!((&*ids, &*labels), (expected, "b </s> d </s>"));
    // A table stores the turns as text.
    assert_eq!(one(json!({"conversations": turns.to_string(), "system": ""}), Format::Sharegpt).1, "b </s> d </s>");
    for (turn, expected) in [
        (
            say("humam", "a"),
            "turn 1: `from` is \"humam\", which nobody known goes by; expected one of human, user, gpt",
        ),
        (say("humam", "a"), "did you mean \"human\"?"),
        (json!({"from": "gpt", "text": "a"}), "turn 1: `value` is missing or not a string; fields found: from, text"),
        (json!({"role": "user", "content": "a"}), "`data.format = \"chat\"`, with `data.columns`"),
        (json!(3), "turn 1: expected an object with `from` and `value`, got a number"),
        (say("function_call", "f(x)"), "should be JSON with `name` and `arguments`"),
        (say("function_call", "{}"), "`name` is missing"),
    ] {
        let message = error(&json!({"conversations": [turn]}).to_string(), &options(Format::Sharegpt));
        assert!(message.contains(expected) && message.contains("data.jsonl:1"), "{message}");
    }
}

#[test]
fn calls_reach_the_template_as_tool_calls() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let calls =
        "{% for c in m.tool_calls or [] %}{{ ' ' + c.function.name + ' ' + c.function.arguments.x }}{% endfor %}";
    let turns = "{% for m in messages %}{{ '<t> ' + m.role + ' ' + m.content }}CALLS{{ ' </s>' }}{% endfor %}";
    write(&template, format!("{{{{ tools[0] }}}}{}", turns.replace("CALLS", calls))).unwrap();
    let options = DataOptions { template: template.display().to_string(), ..options(Format::Sharegpt) };
    let call = json!({"name": "f", "arguments": {"x": "g"}});
    let turns = json!([{"from": "user", "value": "a"}, {"from": "function_call", "value": call.to_string()},
                       {"from": "tool", "value": "h"}, {"from": "gpt", "value": "i"}]);
    for tools in [json!(["system"]), json!("[\"system\"]")] {
        let text = json!({"conversations": turns, "tools": tools}).to_string();
        let ids = &load_text(&text, &options).unwrap().example(0).unwrap().input_ids;
        let words: Vec<&str> = ids.iter().map(|&id| VOCAB[id as usize]).collect();
        let expected = "system <t> user a </s> <t> assistant f g </s> <t> <unk> h </s> <t> assistant i </s>";
        assert_eq!(words.join(" "), expected);
    }
}

#[test]
fn calls_are_labels_however_they_are_rendered() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    // The last turn is rendered differently, so no rendering of a part is a prefix of the whole.
    let turns = "{% for m in messages %}{{ '<t> ' + m.role + (' g' if loop.last and m.role == 'assistant' else '') + (' ' + m.content if m.content \
                 else '') }}{% for c in m.tool_calls or [] %}{{ ' i ' + c.function.name + ' <e> ' + c.function.arguments.x }}\
                 {% endfor %}{{ ' </s>' }}{% endfor %}";
    let call = |name: &str, x: &str| json!({"function": {"name": name, "arguments": {"x": x}}});
    let messages = |content: Value| {
        json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": content, "tool_calls": [call("b", "c"), call("d", "e")]},
            {"role": "user", "content": "f"}, {"role": "assistant", "content": "h"}]})
    };
    for prompt in ["", "{{ '<t> assistant' if add_generation_prompt }}"] {
        write(&template, format!("{turns}{prompt}")).unwrap();
        let options = DataOptions { template: template.display().to_string(), ..options(Format::Chat) };
        for (content, said) in [(json!(""), ""), (json!(null), ""), (json!("g"), "g ")] {
            let dataset = load_text(&messages(content).to_string(), &options).unwrap();
            let example = dataset.example(0).unwrap();
            let labels = example.labels.iter().filter(|label| **label != IGNORE);
            let words: Vec<&str> = labels.map(|&label| VOCAB[label as usize]).collect();
            let last = if prompt.is_empty() { "h </s>" } else { "g h </s>" };
            assert_eq!(words.join(" "), format!("{said}i b <e> c i d <e> e </s> {last}"), "{prompt}");
        }
    }
    // Content beside calls is left out, and there is no header to search for.
    write(
        &template,
        "{% for m in messages %}{% if m.tool_calls %}{{ '<t> ' + m.tool_calls[0].name + ' e </s>' }}{% else %}\
                      {{ m.content + ' <e> ' }}{% endif %}{% endfor %}",
    )
    .unwrap();
    let options = DataOptions { template: template.display().to_string(), ..options(Format::Chat) };
    let turns = json!([{"role": "user", "content": "a"},
                       {"role": "assistant", "content": "b", "tool_calls": [{"name": "c"}]},
                       {"role": "user", "content": "d"},
                       {"role": "assistant", "content": "f", "tool_calls": []}]);
    let dataset = load_text(&json!({"messages": turns}).to_string(), &options).unwrap();
    assert_eq!(dataset.example(0).unwrap().labels, [-100, -100, 3, 8, 10, 2, -100, -100, 11, 16]);
    write(&template, "{% for m in messages %}{{ m.role + ' ' + (m.content or '') + ' </s>' }}{% endfor %}").unwrap();
    let message = error(&messages(json!(null)).to_string(), &options);
    assert!(message.contains("the tool calls of message 2 cannot be found"), "{message}");
}

#[test]
fn columns_say_where_fields_are() {
    let columns = |pairs: &[&str], format: Format| {
        let pairs: Vec<String> = pairs.iter().map(|pair| pair.to_string()).collect();
        DataOptions { columns: Columns::parse(&pairs, format.fields()).unwrap(), ..options(format) }
    };
    let alpaca = columns(&["instruction=q", "output=a"], Format::Alpaca);
    let dataset = load_text("{\"q\": \"a\", \"a\": \"b\", \"instruction\": \"c\"}", &alpaca).unwrap();
    assert_eq!(dataset.example(0).unwrap().input_ids, [3, 4, 6, 2, 3, 5, 7, 2]);
    let message = error("{\"q\": \"a\", \"a\": \"b\"}\n{\"q\": \"a\"}", &alpaca);
    assert!(message.contains("data.jsonl:2: column `a`, which `data.columns` gives for field `output`"), "{message}");
    let tokenized = columns(&["input_ids=x", "labels=y"], Format::Tokenized);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.csv");
    write(&path, "x,y\n\"[6, 7]\",\"[-100, 7]\"\n").unwrap();
    let dataset = reading(&tokenized, None).load_file(&path, &ProgressBar::hidden()).unwrap();
    assert_eq!(dataset.example(0).unwrap().labels, [-100, 7]);
    assert!(dataset.origin(0).ends_with("data.csv:2"));
}

#[test]
fn an_end_of_turn_need_not_be_flagged_special() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        write(&path, text).unwrap();
        path
    };
    let turns = "{% for m in messages %}{{ m.role + ' ' + m.content + ' <e>\n' }}{% endfor %}";
    let prompted = format!("{turns}{{% if add_generation_prompt %}}{{{{ 'assistant ' }}}}{{% endif %}}");
    let record = json!({"instruction": "a", "output": "b"}).to_string();
    for template in [turns, &prompted] {
        let template = file("t.jinja", template).display().to_string();
        let options = DataOptions { template, ..options(Format::Alpaca) };
        let data = file("data.jsonl", &record);
        let dataset = load(&data, &options, &tokenizer(dir.path()), &ProgressBar::hidden()).unwrap();
        assert_eq!(dataset.example(0).unwrap().labels, [-100, -100, -100, -100, 7, 16]);
    }
}

#[test]
fn bad_records_name_field_and_line() {
    let alpaca = options(Format::Alpaca);
    let good = r#"{"instruction": "a", "output": "b"}"#;
    let text = format!("{good}\n\n{{\"instruction\": \"a\", \"response\": \"b\"}}\n{{}}");
    let message = error(&text, &alpaca);
    assert!(message.contains("data.jsonl:3: field `output` is missing") && message.contains("instruction, response"));
    let chat = options(Format::Chat);
    for (record, expected) in [
        (json!({"messages": "a"}), "`messages` is a string, expected a list"),
        (json!({"messages": []}), "`messages` is empty"),
        (json!({"messages": ["a"]}), "message 1: expected an object"),
        (json!({"messages": [{"role": "user", "content": null}]}), "message 1: `content` is null"),
        (json!({"messages": [{"role": "user"}]}), "message 1: `content` is missing"),
        (json!({"messages": [{"content": "a"}]}), "message 1: `role` is missing"),
        (json!({"messages": [{"role": "user", "content": "a"}]}), "no token of this sample is a label (an empty"),
    ] {
        let message = error(&record.to_string(), &chat);
        assert!(message.contains(expected) && message.contains("data.jsonl:1"), "{message}");
    }
    for (ids, labels, expected) in [
        (json!([6, 99]), json!([6, 7]), "input_ids[1] is 99, expected a token id below the vocabulary's 17"),
        (json!([6, -1]), json!([6, 7]), "input_ids[1] is -1"),
        (json!([6, 7]), json!([6, -5]), "labels[1] is -5"),
        (json!([6, 7]), json!([7]), "holds 2 values and labels 1"),
        (json!([6, 1.5]), json!([7, 7]), "input_ids[1] is 1.5"),
        (json!([]), json!([]), "input_ids is empty"),
    ] {
        let message = error(&json!({"input_ids": ids, "labels": labels}).to_string(), &options(Format::Tokenized));
        assert!(message.contains(expected), "{message}");
    }
    let message = error(good, &DataOptions { template: "no.jinja".to_string(), ..alpaca });
    assert!(message.contains("no.jinja does not exist"));
}

#[test]
fn long_samples_are_cut_or_dropped_and_counted() {
    let text = "{\"text\": \"a b c d e\"}\n{\"text\": \"a\"}";
    let cut = DataOptions { max_length: 4, ..options(Format::Text) };
    let dataset = load_text(text, &cut).unwrap();
    assert_eq!(dataset.example(0).unwrap().input_ids, [1, 6, 7, 8]);
    assert_eq!(dataset.counts, Counts { records: 2, truncated: 1, tokens: 7, label_tokens: 5, ..Counts::default() });
    assert!(dataset.origin(1).ends_with("data.jsonl:2"));
    let drop = DataOptions { overlong: Overlong::Drop, ..cut.clone() };
    let dataset = load_text(text, &drop).unwrap();
    assert_eq!((dataset.len(), dataset.counts.dropped_overlong), (1, 1));
    assert!(dataset.counts.to_string().starts_with("2 records: 1 samples, 3 tokens (2 labels); 0 truncated, 1"));
    let nothing = DataOptions { max_length: 2, ..drop };
    assert!(error(text, &nothing).contains("no sample is left"));
}

#[test]
fn samples_without_labels_are_refused_unless_allowed() {
    let text = "{\"prompt\": \"a b c\", \"completion\": \" d\"}\n{\"prompt\": \"a\", \"completion\": \" d\"}";
    let cut = DataOptions { max_length: 4, ..options(Format::PromptCompletion) };
    let message = error(text, &cut);
    assert!(message.contains("data.jsonl:1: no token") && message.contains("max_length = 4"), "{message}");
    let dataset = load_text(text, &DataOptions { allow_empty_labels: true, ..cut }).unwrap();
    assert_eq!((dataset.counts.dropped_without_labels, dataset.counts.truncated), (1, 0));
    assert!(dataset.len() == 1 && dataset.origin(0).ends_with("data.jsonl:2"));
    // A label at position 0 is never predicted.
    let first_only = r#"{"input_ids": [6, 7], "labels": [6, -100]}"#;
    assert!(error(first_only, &options(Format::Tokenized)).contains("no token of this sample is a label"));
}

#[test]
fn a_prefix_goes_before_the_users_first_words() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path());
    let load = |format, text: &str, prefix: &str| {
        let path = dir.path().join("data.jsonl");
        write(&path, text).unwrap();
        let options = &options(format);
        let before = Before { prefix, system: "" };
        let reading = Reading { before, ..reading(options, Some(&tokenizer)) };
        reading.load_file(&path, &ProgressBar::hidden()).map(|data| data.examples().unwrap())
    };
    let alpaca = |words: &str| json!({"instruction": words, "input": "d", "output": "e"}).to_string();
    let chat = |words: &str| {
        let turn = |role, content| json!({"role": role, "content": content});
        json!({"messages": [turn("system", "a"), turn("user", words), turn("assistant", "e"), turn("user", "f"),
               turn("assistant", "g")]})
        .to_string()
    };
    let pair = |words: &str| json!({"prompt": words, "completion": " e"}).to_string();
    for (format, record) in
        [(Format::Alpaca, &alpaca as &dyn Fn(&str) -> String), (Format::Chat, &chat), (Format::PromptCompletion, &pair)]
    {
        let whole = load(format, &record("b c"), "").unwrap();
        assert_eq!(load(format, &record("c"), "b ").unwrap(), whole, "{format:?}");
        assert!(load(format, &record("c"), "").unwrap() != whole);
    }
    let error = |format, text| format!("{:#}", load(format, text, "b ").unwrap_err());
    assert!(error(Format::Text, r#"{"text": "a"}"#).contains("data.jsonl:1: plain text has no user message"));
    let without = r#"{"messages": [{"role": "assistant", "content": "e"}]}"#;
    assert!(error(Format::Chat, without).contains("no user message"));
}

#[test]
fn a_system_message_is_put_before_a_conversation_or_in_place_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path());
    let load = |format, text: &str, system: &str| {
        let path = dir.path().join("data.jsonl");
        write(&path, text).unwrap();
        let options = &options(format);
        let reading = Reading { before: Before { system, prefix: "" }, ..reading(options, Some(&tokenizer)) };
        reading.load_file(&path, &ProgressBar::hidden()).map(|data| data.examples().unwrap())
    };
    let chat = |systems: &[&str]| {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let systems = systems.iter().map(|text| turn("system", text));
        let turns: Vec<Value> = systems.chain([turn("user", "c"), turn("assistant", "e")]).collect();
        json!({ "messages": turns }).to_string()
    };
    let whole = load(Format::Chat, &chat(&["a b"]), "").unwrap();
    assert_eq!(load(Format::Chat, &chat(&[]), "a b").unwrap(), whole);
    assert_eq!(load(Format::Chat, &chat(&["d"]), "a b").unwrap(), whole);
    assert_eq!(load(Format::Alpaca, r#"{"instruction": "c", "output": "e"}"#, "a b").unwrap(), whole);
    assert!(load(Format::Chat, &chat(&[]), "").unwrap() != whole);
    // A template that leaves it out would train on something else than was meant.
    let template = dir.path().join("deaf.jinja");
    write(
        &template,
        "{% for m in messages if m.role != 'system' %}{{ '<t> ' + m.role + ' ' + m.content + ' </s>' }}{% endfor %}",
    )
    .unwrap();
    let path = dir.path().join("data.jsonl");
    write(&path, chat(&[])).unwrap();
    let options = DataOptions { template: template.display().to_string(), ..options(Format::Chat) };
    let reading = Reading { before: Before { system: "a b", prefix: "" }, ..reading(&options, Some(&tokenizer)) };
    let error = format!("{:#}", reading.load_file(&path, &ProgressBar::hidden()).unwrap_err());
    assert!(error.contains("leaves the source's `system` message out"), "{error}");
}
