//! Which turns, and which parts of a turn, are trained on. Templates are written in words, each of which is a token.

use super::*;
use crate::data::TrainOn;

const WORDS: [&str; 22] = [
    "<unk>",
    "<s>",
    "</s>",
    "<end>",
    "<user>",
    "<assistant>",
    "<tool>",
    "<think>",
    "</think>",
    "[CALL]",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "because",
    "final",
    "x",
    "y",
    "<eor>",
    "<eot>",
];
const SPECIAL: [&str; 5] = ["<s>", "</s>", "<end>", "<eor>", "<eot>"];

/// The words that are labels.
fn labels(record: Value, template: &str, options: &DataOptions) -> Result<String> {
    let dir = tempfile::tempdir().unwrap();
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let added: Vec<Value> = WORDS
        .iter()
        .enumerate()
        .filter(|(_, word)| SPECIAL.contains(word))
        .map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "normalizer": null, "decoder": null, "post_processor": null, "truncation": null,
        "padding": null, "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}
    });
    write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "</s>", "chat_template": template});
    write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let data = dir.path().join("data.jsonl");
    write(&data, record.to_string()).unwrap();
    let options = DataOptions { format: Format::Chat, allow_empty_labels: true, ..options.clone() };
    let dataset = load(&data, &options, &Tokenizer::load(dir.path()).unwrap(), &ProgressBar::hidden())?;
    let labels = dataset.example(0).map_or(vec![], |example| example.labels);
    Ok(labels.iter().filter(|label| **label != IGNORE).map(|&id| WORDS[id as usize]).collect::<Vec<_>>().join(" "))
}

const PLAIN: &str = "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s>\n{% endfor %}\
                     {% if add_generation_prompt %}<assistant> {% endif %}";

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(fields: Value) -> Value {
    let mut message = json!({"role": "assistant", "content": ""});
    message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    message
}

fn chat(messages: &[Value]) -> Value {
    json!({ "messages": messages })
}

#[test]
fn turns_are_chosen_by_settings_and_by_their_own_keys() {
    let two = |first: Value| chat(&[user("a"), assistant(first), user("b"), assistant(json!({"content": "d"}))]);
    let plain = || two(json!({"content": "c"}));
    let with = |train_on| DataOptions { train_on, ..DataOptions::default() };
    let labelled = |record, train_on| labels(record, PLAIN, &with(train_on)).unwrap();
    assert_eq!(labelled(plain(), TrainOn::Responses), "c </s> d </s>");
    assert_eq!(labelled(plain(), TrainOn::LastResponse), "d </s>");
    assert_eq!(labelled(plain(), TrainOn::All), "<user> a </s> <assistant> c </s> <user> b </s> <assistant> d </s>");
    for key in ["weight", "train", "training", "loss"] {
        let excluded = two(json!({"content": "c", key: if key == "weight" { json!(0) } else { json!(false) }}));
        assert_eq!(labelled(excluded, TrainOn::Responses), "d </s>", "{key}");
    }
    let error = |first: Value| format!("{:#}", labels(two(first), PLAIN, &DataOptions::default()).unwrap_err());
    assert!(
        error(json!({"weight": 2, "content": "c"})).contains("data.jsonl:1: message 2: `weight` is 2, expected true")
    );
    assert!(error(json!({"train_detail": [], "content": "c"})).contains("`train_detail` is not supported"));
}

#[test]
fn generation_blocks_say_what_is_trained_on() {
    let marked = "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}{% generation %}{{ m.content }} \
                  <end> {% endgeneration %}</s> {% else %}{{ m.content }} {% endif %}{% endfor %}";
    let record = |weight: u8| {
        chat(&[
            user("a"),
            assistant(json!({"content": "b", "weight": weight})),
            user("c"),
            assistant(json!({"content": "d"})),
        ])
    };
    let options = DataOptions::default();
    assert_eq!(labels(record(1), marked, &options).unwrap(), "b <end> d <end>");
    assert_eq!(labels(record(0), marked, &options).unwrap(), "d <end>");
    let once = marked.replace("{% if m.role == 'assistant' %}", "{% if loop.last %}");
    assert_eq!(labels(record(1), &once, &options).unwrap(), "d <end>");
    let error = format!("{:#}", labels(record(0), &once, &options).unwrap_err());
    assert!(error.contains("has 1 generation blocks for 2 turns of the assistant"), "{error}");
    let thinking = chat(&[user("a"), assistant(json!({"content": "<think> because </think> b"}))]);
    let silent = DataOptions { train_on_reasoning: false, ..DataOptions::default() };
    assert_eq!(labels(thinking.clone(), marked, &options).unwrap(), "<think> because </think> b <end>");
    assert_eq!(labels(thinking, marked, &silent).unwrap(), "b <end>");
    let spoofed = chat(&[user("a \u{fdd0} b"), assistant(json!({"content": "c"}))]);
    assert!(format!("{:#}", labels(spoofed, marked, &options).unwrap_err()).contains("U+FDD0"));
}

/// A template that writes thoughts, empty where there are none, as many do; `PROMPT` is its generation prompt's end.
const THINKING: &str = "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}<think> \
                        {{ m.reasoning_content | default('') }} </think> {% endif %}{{ m.content }} </s>\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant> PROMPT{% endif %}";

#[test]
fn thoughts_are_trained_on_where_the_record_has_them() {
    let without = || chat(&[user("a"), assistant(json!({"content": "b"}))]);
    let with = || chat(&[user("a"), assistant(json!({"content": "b", "reasoning_content": "because"}))]);
    let own = || chat(&[user("a"), assistant(json!({"content": "<think> </think> b"}))]);
    let silent = DataOptions { train_on_reasoning: false, ..DataOptions::default() };
    // A prompt without thoughts, one that opens them, and one that has empty ones.
    for (prompt, expected) in [
        ("", "<think> because </think> b </s>"),
        ("<think> ", "because </think> b </s>"),
        ("<think>  </think> ", "because </think> b </s>"),
    ] {
        let template = THINKING.replace("PROMPT", prompt);
        let labelled = |record, options: &DataOptions| labels(record, &template, options).unwrap();
        assert_eq!(labelled(without(), &DataOptions::default()), "b </s>", "{prompt}");
        assert_eq!(labelled(with(), &DataOptions::default()), expected, "{prompt}");
        assert_eq!(labelled(with(), &silent), "b </s>", "{prompt}");
    }
    let labelled = |options: &DataOptions| labels(own(), PLAIN, options).unwrap();
    assert_eq!(labelled(&DataOptions::default()), "<think> </think> b </s>");
    assert_eq!(labelled(&silent), "b </s>");
}

#[test]
fn a_turn_is_trained_on_through_all_that_closes_it() {
    let closing = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% if m.role == 'assistant' %}<eor> {% endif %}<eot> {% \
                   endfor %}{% if add_generation_prompt %}<assistant> {% endif %}";
    let record = chat(&[user("a"), assistant(json!({"content": "b"})), user("c"), assistant(json!({"content": "d"}))]);
    let options = DataOptions::default();
    assert_eq!(labels(record.clone(), closing, &options).unwrap(), "b <eor> <eot> d <eor> <eot>");
    // Without a generation prompt, only an eos is known to be the turn's.
    let without = closing.split("{% if add_generation_prompt").next().unwrap();
    assert_eq!(labels(record.clone(), without, &options).unwrap(), "b <eor> d <eor>");
    assert_eq!(labels(record, &without.replace("<eot>", "</s>"), &options).unwrap(), "b <eor> </s> d <eor> </s>");
}

#[test]
fn what_stands_between_prompt_and_content_is_the_model_s_to_write() {
    // The last turn ends differently, so that no rendering of a part is a prefix of the whole.
    let channels = "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}final {% endif %}{{ m.content }} {{ '</s>' if \
                    loop.last and m.role == 'assistant' else '<end>' }} {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}";
    let record = chat(&[user("a"), assistant(json!({"content": "b"})), user("c"), assistant(json!({"content": "d"}))]);
    assert_eq!(labels(record, channels, &DataOptions::default()).unwrap(), "final b <end> final d </s>");
}

#[test]
fn a_call_is_trained_on_from_its_beginning() {
    let calls = "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}{% if 'content' in m and m.content %}\
                 {{ raise_exception('content and calls') }}{% endif %}[CALL] {{ m.tool_calls[0].function.name }} x </s> {% elif \
                 m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% elif \
                 m.role == 'assistant' %}{{ m.content }} </s> {% else %}<{{ m.role }}> {{ m.content }} {% endif %}{% endfor %}";
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]});
    let result = json!({"role": "tool", "content": "y"});
    let record = chat(&[user("a"), call, result, assistant(json!({"content": "b"}))]);
    assert_eq!(labels(record, calls, &DataOptions::default()).unwrap(), "[CALL] f x </s> b </s>");
}

#[test]
fn template_variables_reach_the_template() {
    let template = "{% for m in messages %}<{{ m.role }}> {{ mood }} {{ m.content }} </s>\n{% endfor %}";
    let variables = crate::data::TemplateVariables::parse(&["mood=because".to_string()]).unwrap();
    let options = DataOptions { template_variables: variables, train_on: TrainOn::All, ..DataOptions::default() };
    let record = chat(&[user("a"), assistant(json!({"content": "b"}))]);
    let expected = "<user> because a </s> <assistant> because b </s>";
    assert_eq!(labels(record, template, &options).unwrap(), expected);
}
