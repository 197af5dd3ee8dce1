//! From a request to the sequences that answer it: model, token ids, limits.

use super::answer::Answer;
use super::echo::Echo;
use super::form::{Form, Kind};
use super::limits::Limits;
use super::refusal::Refusal;
use super::request::{Chat, Common, Completion, Prompt};
use super::sequence::Draft;
use crate::error::listing;
use crate::eval::Encoder;
use crate::model::{GenerateOptions, Scored};
use crate::tokenizer::{self, Pieces};
use serde_json::Map;
use std::sync::Arc;

/// As in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;
/// Tokens and alternatives that one response may tell of: some 30 MB of JSON.
const MOST_TOLD: usize = 1 << 18;

/// A request that can be answered.
pub struct Prepared {
    pub form: Form,
    /// The decoder's number.
    pub model: usize,
    /// A sequence for each choice.
    pub drafts: Vec<Draft>,
    pub stream: bool,
}

/// What requests are prepared with.
pub struct Preparing {
    /// The models' names, by number.
    pub names: Vec<String>,
    pub encoder: Encoder,
    pub limits: Limits,
}

/// A prompt's ids and how its answer becomes text.
struct Encoded {
    ids: Vec<u32>,
    /// Tokens that may follow.
    room: usize,
    pieces: Pieces,
    echo: Option<Arc<Echo>>,
}

impl Preparing {
    /// # Errors
    /// What is wrong with the request. May take long: a template and a tokenizer run.
    pub fn prepare(&self, kind: Kind, body: &[u8], created: u64) -> Result<Prepared, Refusal> {
        match kind {
            Kind::Chat => self.chat(Chat::parse(body)?, created),
            Kind::Completion => self.completion(Completion::parse(body)?, created),
        }
    }

    fn chat(&self, chat: Chat, created: u64) -> Result<Prepared, Refusal> {
        let Chat { common, messages, top } = chat;
        let model = self.number(&common.model)?;
        self.check_count("messages", common.choices)?;
        let encoder = &self.encoder;
        if encoder.template.is_none() {
            let message =
                "the tokenizer has no chat template: only /v1/completions is served, unless --template is given";
            return Err(Refusal::new(400, "no_chat_template", message));
        }
        let (text, special) =
            encoder.text(&messages, &Map::new()).map_err(|why| Refusal::unreadable("messages", &why))?;
        let ids = encoder.tokenizer.encode(&text, special).map_err(|why| Refusal::unreadable("messages", &why))?;
        let room = self.room("messages", &ids, common.max_tokens)?;
        let prompt = Encoded { ids, room, pieces: Pieces::new(&encoder.tokenizer, true), echo: None };
        let scored = top.map(|top| Scored { prompt: false, top });
        let form = Form::new(Kind::Chat, &common.model, created, top);
        self.prepared(form, model, &common, vec![prompt], scored)
    }

    fn completion(&self, completion: Completion, created: u64) -> Result<Prepared, Refusal> {
        let Completion { common, prompts, echo, top } = completion;
        let model = self.number(&common.model)?;
        self.check_count("prompt", prompts.len().saturating_mul(common.choices))?;
        let most = common.max_tokens.unwrap_or(COMPLETION_TOKENS);
        let encoded = prompts.into_iter().map(|prompt| self.encode(prompt, echo, most)).collect::<Result<_, _>>()?;
        let scored = top.map(|top| Scored { prompt: echo, top });
        let form = Form::new(Kind::Completion, &common.model, created, top);
        self.prepared(form, model, &common, encoded, scored)
    }

    /// Before anything is encoded.
    fn check_count(&self, field: &str, sequences: usize) -> Result<(), Refusal> {
        let most = self.limits.sequences();
        let message = || format!("the request asks for {sequences} answers; the server takes {most} at once");
        if sequences > most { Err(Refusal::field(field, message())) } else { Ok(()) }
    }

    /// The number of a model.
    ///
    /// # Errors
    /// A name that no model has.
    pub fn number(&self, name: &str) -> Result<usize, Refusal> {
        self.names.iter().position(|known| known == name).ok_or_else(|| {
            let message = format!("there is no model `{name:.100}` here, only {}", listing(&self.names, 12));
            Refusal { status: 404, code: "model_not_found", ..Refusal::field("model", message) }
        })
    }

    /// A prompt to be continued as it stands, by up to `max_tokens`.
    fn encode(&self, prompt: Prompt, echo: bool, max_tokens: usize) -> Result<Encoded, Refusal> {
        let tokenizer = &self.encoder.tokenizer;
        let unreadable = |why: anyhow::Error| Refusal::unreadable("prompt", &why);
        let (ids, known) = match prompt {
            Prompt::Text(text) => {
                let encoded = tokenizer.encode_with_offsets(&text, true).map_err(unreadable)?;
                let offsets = character_offsets(&text, &encoded);
                (encoded.ids, Some((text, offsets)))
            }
            Prompt::Ids(ids) => (ids, None),
        };
        // Before anything is decoded, which takes its time for each id.
        let room = self.room("prompt", &ids, Some(max_tokens))?;
        let pieces = Pieces::after(tokenizer, &ids, true).map_err(unreadable)?;
        if !echo {
            return Ok(Encoded { ids, room, pieces, echo: None });
        }
        let (text, offsets) = match known {
            Some(known) => known,
            None => {
                let pieces = tokenizer.pieces(&ids).map_err(unreadable)?;
                let lengths = pieces.iter().map(|piece| piece.chars().count());
                let offsets = lengths.scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
                (pieces.concat(), offsets)
            }
        };
        let echo = Arc::new(Echo { text, ids: ids.clone(), offsets });
        Ok(Encoded { ids, room, pieces, echo: Some(echo) })
    }

    fn prepared(
        &self,
        mut form: Form,
        model: usize,
        common: &Common,
        prompts: Vec<Encoded>,
        scored: Option<Scored>,
    ) -> Result<Prepared, Refusal> {
        check_told(&prompts, common.choices, scored)?;
        let tokenizer = &self.encoder.tokenizer;
        let seed = common.seed.unwrap_or_else(rand::random);
        // The texts of special tokens are left out of answers, so that such a text is never found in one.
        let special = common.stops.iter().filter_map(|stop| tokenizer.token_to_id(stop));
        let special = special.filter(|id| tokenizer.is_special(*id));
        let stop_ids: Vec<u32> = tokenizer.eos_ids().iter().copied().chain(special).collect();
        let stops: Arc<[String]> = common.stops.clone().into();
        form.prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        form.include_usage = common.include_usage;
        let mut drafts = vec![];
        for Encoded { ids, room, pieces, echo } in prompts {
            let before = echo.as_ref().map_or(0, |echo| echo.text.chars().count());
            for choice in 0..common.choices {
                let options = GenerateOptions {
                    max_new_tokens: room,
                    temperature: common.temperature,
                    top_p: common.top_p,
                    seed: seed.wrapping_add(choice as u64),
                    stop_ids: stop_ids.clone(),
                };
                let answer = Answer::new(tokenizer, pieces.clone(), before, stops.clone());
                drafts.push(Draft { prompt: ids.clone(), options, scored, answer, echo: echo.clone() });
            }
        }
        Ok(Prepared { form, model, drafts, stream: common.stream })
    }

    /// How many tokens may follow the prompt.
    fn room(&self, field: &str, ids: &[u32], max_tokens: Option<usize>) -> Result<usize, Refusal> {
        let (count, context) = (ids.len(), self.limits.context);
        let wanted = max_tokens.unwrap_or_else(|| context.saturating_sub(count).max(1));
        if count.saturating_add(wanted) <= context {
            return self.encoder.check(ids).map(|()| wanted).map_err(|why| Refusal::unreadable(field, &why));
        }
        let message = format!(
            "the prompt has {count} tokens and the answer may have {wanted}, more than the {context} that both may have \
             together"
        );
        Err(Refusal { code: "context_length_exceeded", ..Refusal::field(field, message) })
    }
}

/// Where each token begins in the text, in characters.
fn character_offsets(text: &str, encoded: &tokenizer::Encoded) -> Vec<usize> {
    let mut characters = text.char_indices().map(|(byte, _)| byte).enumerate().peekable();
    let mut offset = 0;
    let offsets = encoded.offsets.iter().zip(&encoded.added).map(|((start, _), added)| {
        while let Some((place, _)) = characters.next_if(|(_, byte)| !added && byte <= start) {
            offset = place;
        }
        offset
    });
    offsets.collect()
}

/// # Errors
/// A response that would tell of too many tokens.
fn check_told(prompts: &[Encoded], choices: usize, scored: Option<Scored>) -> Result<(), Refusal> {
    let Some(Scored { prompt, top }) = scored else { return Ok(()) };
    let of_one = |encoded: &Encoded| encoded.room + if prompt { encoded.ids.len() } else { 0 };
    let told = prompts.iter().map(of_one).sum::<usize>().saturating_mul(choices * (top + 1));
    if told <= MOST_TOLD {
        return Ok(());
    }
    let message = format!(
        "`logprobs` may tell of {told} tokens, which are those of all prompts and answers with their alternatives; a \
         response may have {MOST_TOLD}: ask for less at a time, or set a smaller `max_tokens`"
    );
    Err(Refusal::field("logprobs", message))
}

#[cfg(test)]
pub mod tests;
