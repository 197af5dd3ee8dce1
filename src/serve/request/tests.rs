use super::*;
use serde_json::json;

fn chat(more: Value) -> Result<Chat, Refusal> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Chat::parse(body.to_string().as_bytes())
}

fn completion(more: Value) -> Result<Completion, Refusal> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Completion::parse(body.to_string().as_bytes())
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_api() {
    let Chat { common, top, .. } = chat(json!({"max_tokens": null})).unwrap();
    assert_eq!((common.temperature, common.top_p, common.choices), (1.0, 1.0, 1));
    assert_eq!((common.max_tokens, common.seed, top, common.stream), (None, None, None, false));
    assert_eq!(chat(json!({"logprobs": true})).unwrap().top, Some(0));
    assert_eq!(chat(json!({"max_completion_tokens": 7})).unwrap().common.max_tokens, Some(7));
    assert_eq!(chat(json!({"seed": -1})).unwrap().common.seed, Some(u64::MAX));
    assert_eq!(chat(json!({"stop": "a"})).unwrap().common.stops, ["a"]);
}

#[test]
fn prompts_are_texts_or_ids_one_or_several() {
    let prompts = |value: Value| completion(json!({"prompt": value})).map(|completion| completion.prompts);
    let text = |text: &str| Prompt::Text(text.to_string());
    assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
    assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Ids(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 3]])).unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
    for wrong in [json!([]), json!([1, "a"]), json!([-1]), json!([1.5]), json!({}), json!([[1, "a"]]), json!(7)] {
        assert_eq!(prompts(wrong.clone()).unwrap_err().field.as_deref(), Some("prompt"), "{wrong}");
    }
}

#[test]
fn what_would_change_the_answer_is_never_ignored() {
    for (name, value) in [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("response_format", json!({"type": "json_object"})),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-1)),
        ("logit_bias", json!({"5": 1})),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("low")),
        ("modalities", json!(["text", "audio"])),
        ("temperature", json!(2.5)),
        ("temperature", json!(-0.001)),
        ("temperature", json!("0")),
        ("top_p", json!(0)),
        ("n", json!(9)),
        ("n", json!(0)),
        ("seed", json!(1.5)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("stop", json!("a".repeat(1025))),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!(7)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("messages", json!([{"role": "user"}])),
        ("messages", json!([{"role": "tool", "content": null}])),
        ("top_logprobs", json!(3)),
        ("top_k", json!(40)),
        ("messages", json!([])),
        ("messages", json!(["hi"])),
        ("messages", json!([{"role": "user", "content": 7}])),
        ("model", json!(7)),
    ] {
        let refusal = chat(json!({name: value})).unwrap_err();
        assert_eq!((refusal.status, refusal.field.as_deref()), (400, Some(name)), "{value}: {}", refusal.message);
        assert!(refusal.message.contains(name), "{}", refusal.message);
    }
    for (name, value) in [("suffix", json!("x")), ("best_of", json!(2)), ("logprobs", json!(true)), ("echo", json!(1))]
    {
        assert_eq!(completion(json!({name: value})).unwrap_err().field.as_deref(), Some(name));
    }
    // A list of the right kind is told by its length.
    for (refusal, got) in [
        (completion(json!({"prompt": []})).unwrap_err(), "got an empty list"),
        (chat(json!({"stop": vec!["a"; 17]})).unwrap_err(), "got a list of 17"),
        (chat(json!({"messages": {}})).unwrap_err(), "got an object"),
    ] {
        assert!(refusal.message.ends_with(got), "{}", refusal.message);
    }
    let misspelt = chat(json!({"temprature": 0})).unwrap_err();
    assert!(misspelt.message.contains("did you mean `temperature`?"), "{}", misspelt.message);
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let neutral = json!({
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "frequency_penalty": 0,
        "presence_penalty": 0.0, "logit_bias": {}, "modalities": ["text"], "user": "me", "parallel_tool_calls": true,
        "reasoning_effort": null, "store": false, "metadata": {"a": "b"}
    });
    chat(neutral).unwrap();
    chat(json!({"reasoning_effort": "none", "verbosity": "medium"})).unwrap();
    let said_nothing = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]);
    chat(json!({"messages": said_nothing})).unwrap();
    for stop in [json!(""), json!([""]), json!([])] {
        assert!(completion(json!({"stop": stop})).unwrap().common.stops.is_empty());
    }
    assert_eq!(completion(json!({"stop": ["", "a"]})).unwrap().common.stops, ["a"]);
    assert_eq!(completion(json!({"logprobs": false})).unwrap().top, None);
    for (options, counted) in [
        (json!({"include_usage": null}), false),
        (json!({"include_usage": true, "include_obfuscation": false}), true),
        (json!({"include_obfuscation": true}), false),
    ] {
        let asked = chat(json!({"stream": true, "stream_options": options})).unwrap();
        assert_eq!(asked.common.include_usage, counted);
    }
    completion(json!({"suffix": null, "best_of": 1, "max_tokens": 0})).unwrap();
    assert!(chat(json!({"max_tokens": 3, "max_completion_tokens": 4})).is_err());
}

#[test]
fn other_bodies_are_no_requests() {
    for body in ["", "{", "[]", "7", "{\"model\": \"m\"}"] {
        assert_eq!(Chat::parse(body.as_bytes()).unwrap_err().status, 400, "{body}");
    }
}
