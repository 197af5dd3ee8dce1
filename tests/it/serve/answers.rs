//! What is answered: as the other commands say it, and the same in every form.

use super::{MODEL, Server, asft, chat, completion, endless, printed, text, tuned};
use crate::support::command::stdout;
use crate::support::files::write_json_lines;
use asft::tokenizer::Tokenizer;
use serde_json::{Value, json};

const QUESTION: &str = "How many letters does the word have?\nmusic";

fn generated(more: &[&str]) -> String {
    let text = stdout(asft(&["generate", "--model", MODEL, "--max-new-tokens", "24"]).args(more));
    text.strip_suffix('\n').unwrap().to_string()
}

fn said(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap()
}

#[test]
fn greedy_answers_are_those_of_generate() {
    let dir = tempfile::tempdir().unwrap();
    let run = tuned(dir.path());
    let server = Server::start(&["--adapter", &format!("tuned={run}")]);
    let names = server.get("/v1/models").json();
    let names: Vec<&str> =
        names["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["aligned", "tuned"]);
    let base = server.answer("chat/completions", &chat("aligned", QUESTION));
    assert_eq!(said(&base), generated(&["--prompt", QUESTION]));
    let adapted = server.answer("chat/completions", &chat("tuned", QUESTION));
    assert_eq!(said(&adapted), generated(&["--prompt", QUESTION, "--adapter", &run]));
    assert_ne!(said(&adapted), said(&base), "the adapter changes nothing");
    assert_eq!((&adapted["model"], &adapted["object"]), (&json!("tuned"), &json!("chat.completion")));
    let raw = server.answer("completions", &completion("The opposite of hot is"));
    assert_eq!(said(&raw), generated(&["--prompt", "The opposite of hot is", "--raw"]));
    // The base is still itself.
    assert_eq!(said(&server.answer("chat/completions", &chat("aligned", QUESTION))), said(&base));
}

#[test]
fn a_quantised_model_in_half_precision_answers_as_generate() {
    let how = ["--dtype", "bf16", "--quantize", "nf4"];
    let server = Server::start(&how);
    let answer = server.answer("chat/completions", &chat("aligned", QUESTION));
    assert_eq!(said(&answer), generated(&[&["--prompt", QUESTION], &how[..]].concat()));
}

#[test]
fn ends_and_counts_are_told() {
    let server = Server::start(&[]);
    let tokenizer = Tokenizer::load(MODEL.as_ref()).unwrap();
    let answer = server.answer("chat/completions", &chat("aligned", QUESTION));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let template = format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n");
    let prompt = tokenizer.encode(&template, false).unwrap().len();
    // The token that ended it was chosen, too.
    let chosen = tokenizer.encode(said(&answer), false).unwrap().len() + 1;
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": chosen, "total_tokens": prompt + chosen});
    assert_eq!(answer["usage"], usage);
    let mut short = chat("aligned", QUESTION);
    short["max_tokens"] = json!(3);
    let cut = server.answer("chat/completions", &short);
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
    assert!(said(&answer).starts_with(said(&cut)));
    // Without a number, an answer may fill the context.
    short.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(said(&server.answer("chat/completions", &short)), said(&answer));
}

/// Text, finish reason and logprobs of each choice, from a whole answer or a stream's chunks.
fn choices(chunks: &[Value]) -> Vec<(String, Value, Value)> {
    let mut found: Vec<(String, Value, Value)> = vec![];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        found.resize(found.len().max(index + 1), Default::default());
        let (text, end, told) = &mut found[index];
        let content = ["message", "delta"].iter().find_map(|name| choice[*name]["content"].as_str());
        text.push_str(content.or(choice["text"].as_str()).unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            *end = choice["finish_reason"].clone();
        }
        for (name, list) in choice["logprobs"].as_object().into_iter().flatten() {
            if let Some(list) = list.as_array() {
                let mut all = told[name].as_array().cloned().unwrap_or_default();
                all.extend(list.clone());
                told[name] = all.into();
            }
        }
    }
    found
}

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    // One by one, scores are the same to the last bit.
    let server = Server::start(&["--batch-size", "1"]);
    let sampled = json!({"temperature": 1.0, "top_p": 0.9, "seed": 5, "n": 3, "stop": ["e ", "zz"], "max_tokens": 40});
    let told_chat = json!({"logprobs": true, "top_logprobs": 2});
    let told_text = json!({"logprobs": 2, "echo": true});
    for (path, body, more) in [
        ("chat/completions", chat("aligned", QUESTION), vec![]),
        ("chat/completions", chat("aligned", QUESTION), vec![&sampled, &told_chat]),
        ("completions", completion("The opposite"), vec![]),
        ("completions", completion(json!(["The opposite", "Say hello"])), vec![&sampled, &told_text]),
    ] {
        let mut body = body;
        more.iter().for_each(|more| body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone()));
        let whole = server.answer(path, &body);
        body["stream_options"] = json!({"include_usage": true});
        body["stream"] = json!(true);
        let mut chunks = server.stream(path, &body);
        let usage = chunks.pop().unwrap();
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == chunks[0]["id"]));
        assert_eq!(choices(&chunks), choices(std::slice::from_ref(&whole)), "{whole}");
    }
}

#[test]
fn stop_texts_end_answers_before_them() {
    let server = Server::start(&[]);
    let mut asked = chat("aligned", QUESTION);
    let whole = said(&server.answer("chat/completions", &asked)).to_string();
    for stop in [&whole[7..9], &whole[..1], &whole[whole.len() - 1..]] {
        asked["stop"] = json!([stop, "never said"]);
        let answer = server.answer("chat/completions", &asked);
        assert_eq!(said(&answer), &whole[..whole.find(stop).unwrap()]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn a_stop_may_be_a_special_token() {
    let dir = tempfile::tempdir().unwrap();
    // Here the token that ends turns ends nothing by itself; its text is not told.
    let server = Server::of(&endless(dir.path()), &[]);
    let mut asked = completion(format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"));
    asked["max_tokens"] = json!(60);
    let whole = server.answer("completions", &asked);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    asked["stop"] = json!("<|im_end|>");
    let answer = server.answer("completions", &asked);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(said(&whole).starts_with(said(&answer)) && !said(&answer).is_empty(), "{whole} {answer}");
}

#[test]
fn a_seed_repeats_an_answer_whoever_else_asks() {
    let server = Server::start(&["--batch-size", "5"]);
    let asked = |seed: u64| {
        let mut asked = completion("Say hello to");
        asked.as_object_mut().unwrap().extend([("temperature".into(), json!(1.2)), ("seed".into(), json!(seed))]);
        asked
    };
    let alone: Vec<String> = (0..8).map(|seed| said(&server.answer("completions", &asked(seed))).to_string()).collect();
    assert!(alone.iter().any(|text| *text != alone[0]), "{alone:?}");
    std::thread::scope(|scope| {
        for (seed, text) in (0..8).zip(&alone) {
            let server = &server;
            scope.spawn(move || assert_eq!(said(&server.answer("completions", &asked(seed))), text));
        }
    });
    // Of several choices, each has the next seed.
    let mut three = asked(2);
    three["n"] = json!(3);
    let three = server.answer("completions", &three);
    for (choice, text) in three["choices"].as_array().unwrap().iter().zip(&alone[2..]) {
        assert_eq!(choice["text"], json!(text));
    }
    let mut free = asked(0);
    free.as_object_mut().unwrap().remove("seed");
    let texts: Vec<Value> = (0..4).map(|_| server.answer("completions", &free)["choices"][0]["text"].clone()).collect();
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
}

/// The mean loss that `asft eval` finds.
fn loss(records: &[Value], format: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    write_json_lines(&data, records);
    let found = printed(asft(&["eval", "--model", MODEL, "--json", "--format", format, "--data", text(&data)]));
    found["models"][0]["evaluations"][0]["loss"].as_f64().unwrap()
}

fn echoed(server: &Server, prompt: impl Into<Value>, max_tokens: usize) -> Value {
    let mut asked = completion(prompt);
    asked.as_object_mut().unwrap().extend([
        ("echo".into(), json!(true)),
        ("logprobs".into(), json!(1)),
        ("max_tokens".into(), json!(max_tokens)),
    ]);
    server.answer("completions", &asked)
}

fn floats(list: &Value) -> Vec<Option<f64>> {
    list.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[test]
fn scores_of_an_echo_are_the_loss_of_eval() {
    let server = Server::start(&[]);
    let tokenizer = Tokenizer::load(MODEL.as_ref()).unwrap();
    let text = "The opposite of hot is cold, naïvely; 你好!";
    let ids = tokenizer.encode(text, true).unwrap();
    let mean = |told: &Value| {
        let scores = floats(&told["token_logprobs"]);
        assert_eq!((scores[0], scores.len()), (None, ids.len()));
        -scores[1..].iter().map(|score| score.unwrap()).sum::<f64>() / (scores.len() - 1) as f64
    };
    let expected = loss(&[json!({"input_ids": ids, "labels": ids})], "tokenized");
    // As a text, as ids, and as one of several.
    let answers = [echoed(&server, text, 0), echoed(&server, json!(ids), 0), echoed(&server, json!([ids, [5, 6]]), 0)];
    for answer in &answers {
        let choice = &answer["choices"][0];
        assert!((mean(&choice["logprobs"]) - expected).abs() < 1e-4, "{choice}: {expected}");
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
    // `asft eval` ends a text with the token that ends texts.
    let ended = format!("{text}{}", tokenizer.eos_token().unwrap());
    let scores = floats(&echoed(&server, ended, 0)["choices"][0]["logprobs"]["token_logprobs"]);
    let mean = -scores[1..].iter().map(|score| score.unwrap()).sum::<f64>() / (scores.len() - 1) as f64;
    assert!((mean - loss(&[json!({"text": text})], "text")).abs() < 1e-4);
}

#[test]
fn an_echo_of_a_prompt_tells_where_its_tokens_are() {
    let server = Server::start(&[]);
    let tokenizer = Tokenizer::load(MODEL.as_ref()).unwrap();
    let text = "naïvely, the opposite of hot";
    let count = tokenizer.encode(text, true).unwrap().len();
    for max_tokens in [0, 1, 5] {
        let answer = echoed(&server, text, max_tokens);
        let (choice, told) = (&answer["choices"][0], &answer["choices"][0]["logprobs"]);
        let whole: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let list = |name: &str| told[name].as_array().unwrap().clone();
        let tokens = list("tokens");
        assert_eq!(tokens.len(), count + answer["usage"]["completion_tokens"].as_u64().unwrap() as usize);
        assert_eq!((list("text_offset").len(), list("top_logprobs").len()), (tokens.len(), tokens.len()));
        for (token, offset) in tokens.iter().zip(list("text_offset")) {
            let token: Vec<char> = token.as_str().unwrap().chars().collect();
            let offset = offset.as_u64().unwrap() as usize;
            // Tokens that begin or end texts are not in the text.
            assert!(whole[offset..].starts_with(&token) || token.starts_with(&['<']), "{token:?} at {offset}");
        }
        // A client can tell whether a token was the likeliest: then it has the greatest number.
        for (score, top) in floats(&told["token_logprobs"]).iter().zip(list("top_logprobs")).skip(1) {
            let greatest =
                top.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert!(score.unwrap() <= greatest);
        }
        // What is chosen greedily is.
        for (score, top) in floats(&told["token_logprobs"]).iter().zip(list("top_logprobs")).skip(count) {
            assert_eq!(top.as_object().unwrap().values().next().unwrap().as_f64(), *score);
        }
    }
}
