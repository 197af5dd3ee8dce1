//! The token that begins a text (BOS): a model that was trained with one expects it, and expects it once.

use super::template::Template;
use crate::tokenizer::{Encoded, Tokenizer};
use serde_json::{Map, Value, json};

/// A warning, with its fields, if the tokenizer begins plain text with its beginning of text, and a conversation of the
/// template does not.
pub fn missing(tokenizer: &Tokenizer, template: &Template) -> Option<(String, Value)> {
    let bos = tokenizer.bos_token()?;
    let id = tokenizer.token_to_id(bos)?;
    let begins = |text: &str, add_special_tokens| {
        tokenizer.encode(text, add_special_tokens).is_ok_and(|ids| ids.first() == Some(&id))
    };
    let text = template.render(&[json!({"role": "user", "content": "a"})], true, &Map::new()).ok()?;
    (begins("a", true) && !begins(&text, false)).then(|| {
        let text = format!(
            "conversations do not begin with {bos}, which the tokenizer puts before plain text: the chat template leaves it \
             out, as transformers then does too; models such as Gemma, Llama and Mistral need it, and a template can write \
             {{{{ bos_token }}}}"
        );
        (text, json!({"bos_token": bos}))
    })
}

/// Leaves out the beginning of text that the tokenizer puts before a text that has its own: `<s>[INST] ...` as a prompt,
/// say, that a template rendered earlier.
pub fn once(encoded: &mut Encoded, tokenizer: &Tokenizer) {
    let bos = tokenizer.bos_token().and_then(|bos| tokenizer.token_to_id(bos));
    let (Some(bos), [first, second, ..], [true, false, ..]) = (bos, &encoded.ids[..], &encoded.added[..]) else {
        return;
    };
    if *first == bos && *second == bos {
        encoded.ids.remove(0);
        encoded.offsets.remove(0);
        encoded.added.remove(0);
    }
}
