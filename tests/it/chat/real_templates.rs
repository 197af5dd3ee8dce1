//! Chat templates of real models against transformers, by the hashes that tests/fixtures/make/real_templates.py made. The
//! templates are not part of the repository:
//!
//!     scripts/get_templates.sh target/templates
//!     ASFT_TEMPLATES=target/templates cargo test --release --test it real_templates
//!
//! Without the variable the test is skipped, and says so.

use crate::support::files::{fixture, read_json, root};
use asft::data::Template;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Digits of a hash that the golden has.
const DIGITS: usize = 16;

fn hash(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn real_templates_render_as_in_python() {
    let Some(dir) = std::env::var_os("ASFT_TEMPLATES") else {
        println!("skipped: ASFT_TEMPLATES names no folder made by scripts/get_templates.sh");
        return;
    };
    let golden = read_json(&fixture("templates").join("real.json"));
    let tokens = golden["special_tokens"].as_object().unwrap();
    let tokens: Vec<(String, String)> =
        tokens.iter().map(|(name, token)| (name.clone(), token.as_str().unwrap().to_string())).collect();
    let conversations = golden["conversations"].as_object().unwrap();
    let (mut compared, mut wrong) = (0, vec![]);
    for (name, case) in golden["templates"].as_object().unwrap() {
        let source = std::fs::read(root().join(&dir).join(format!("{name}.jinja"))).unwrap();
        assert_eq!(case["sha256"], json!(hash(&source)), "{name} is another template");
        let template = Template::new(std::str::from_utf8(&source).unwrap(), &tokens);
        let inputs = conversations.iter().flat_map(|conversation| [(conversation, false), (conversation, true)]);
        for (((conversation, given), prompt), expected) in inputs.zip(case["renderings"].as_array().unwrap()) {
            if expected == "date" {
                continue;
            }
            let tools = given.get("tools").map(|tools| ("tools".to_string(), tools.clone()));
            let (messages, variables) = (given["messages"].as_array().unwrap(), Map::from_iter(tools));
            let got = template
                .as_ref()
                .map_err(|e| format!("{e:#}"))
                .and_then(|template| template.render(messages, prompt, &variables).map_err(|e| format!("{e:#}")));
            compared += 1;
            let is_same = match (&got, expected) {
                (Ok(text), Value::String(hashed)) => hash(text.as_bytes())[..DIGITS] == *hashed,
                (Err(_), Value::Null) => true,
                _ => false,
            };
            if !is_same {
                wrong.push(format!("{name}, {conversation}, prompt {prompt}: got {got:.600?}, expected {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{compared} renderings are equal, or refused by both");
    assert!(compared >= 60 * 16, "{compared}");
}
