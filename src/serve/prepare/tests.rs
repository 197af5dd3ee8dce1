use super::*;
use crate::data::{Template, TemplateVariables};
use crate::model::ModelSpec;
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// On the toy model, with its context of 256 tokens.
pub fn preparing() -> Preparing {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned");
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let template = Template::load("tokenizer", &TemplateVariables::default(), &tokenizer).unwrap();
    let spec = ModelSpec::load(&dir).unwrap();
    let time = Duration::from_secs(60);
    let limits = Limits { body_bytes: 1 << 22, context: 256, batch_size: 8, queue: 56, request: time, grace: time };
    let encoder = Encoder { tokenizer, template: Some(template), spec, prefill: String::new() };
    Preparing { names: vec!["m".to_string()], encoder, limits }
}

fn completion(preparing: &Preparing, more: Value) -> Result<Prepared, Refusal> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    preparing.prepare(Kind::Completion, body.to_string().as_bytes(), 0)
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_decoded() {
    let preparing = preparing();
    // Half a character, again and again: decoding it would take minutes.
    let half = preparing.encoder.tokenizer.encode("🦀", false).unwrap()[0];
    let echoed = json!({"prompt": vec![half; 300_000], "echo": true, "logprobs": 20, "max_tokens": 0});
    assert_eq!(completion(&preparing, echoed).err().unwrap().code, "context_length_exceeded");
    let echoed = json!({"prompt": vec![half; 256], "echo": true, "logprobs": 20, "max_tokens": 0});
    let prepared = completion(&preparing, echoed).unwrap();
    assert_eq!(prepared.drafts[0].echo.as_ref().unwrap().offsets.len(), 256);
    let unknown = json!({"prompt": [1, 448], "echo": true});
    assert_eq!(completion(&preparing, unknown).err().unwrap().status, 400);
    // Sixty-four answers are taken at once; the text would not fit either.
    let many = json!({"prompt": vec!["hot and cold ".repeat(1000); 9], "n": 8});
    assert_eq!(completion(&preparing, many).err().unwrap().code, "invalid_value");
}

#[test]
fn a_prompt_that_fills_the_context_can_be_scored() {
    let preparing = preparing();
    let scored = |count: usize, max_tokens: usize| {
        completion(&preparing, json!({"prompt": vec![5; count], "max_tokens": max_tokens, "echo": true, "logprobs": 1}))
    };
    assert_eq!(scored(256, 0).unwrap().drafts[0].options.max_new_tokens, 0);
    for (count, max_tokens) in [(256, 1), (257, 0)] {
        assert_eq!(scored(count, max_tokens).err().unwrap().code, "context_length_exceeded");
    }
}

#[test]
fn a_response_may_tell_of_so_many_tokens() {
    let preparing = preparing();
    let told = |prompts: usize, top: usize| {
        let more =
            json!({"prompt": vec![vec![5; 128]; prompts], "max_tokens": 128, "echo": true, "logprobs": top, "n": 8});
        completion(&preparing, more)
    };
    assert_eq!(told(8, 15).unwrap().drafts.len(), 64);
    assert_eq!(told(8, 16).err().unwrap().field.as_deref(), Some("logprobs"));
}

#[test]
fn a_stop_that_is_a_special_token_ends_answers_by_its_id() {
    let preparing = preparing();
    let tokenizer = &preparing.encoder.tokenizer;
    let start = tokenizer.token_to_id("<|im_start|>").unwrap();
    assert!(tokenizer.is_special(start) && !tokenizer.eos_ids().contains(&start));
    let stops = |stop: Value| completion(&preparing, json!({"stop": stop})).unwrap().drafts[0].options.stop_ids.clone();
    assert_eq!(stops(json!("hot")), tokenizer.eos_ids());
    assert_eq!(stops(json!(["hot", "<|im_start|>"])), [tokenizer.eos_ids(), &[start]].concat());
}

#[test]
fn messages_that_cannot_be_read_are_named() {
    let preparing = preparing();
    let refused = |message: Value| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}, message]}).to_string();
        preparing.prepare(Kind::Chat, body.as_bytes(), 0).err().unwrap().message
    };
    let image = refused(json!({"role": "user", "content": [{"type": "image_url"}]}));
    assert!(image.contains("message 2: part 1") && !image.contains("trained"), "{image}");
    let nothing = refused(json!({"role": "user"}));
    assert!(nothing.contains("message 2 has no `content`"), "{nothing}");
}
