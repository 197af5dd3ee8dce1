//! From a request to the sequences that answer it: model, token ids, limits.

use super::answer::{Answer, Echo};
use super::limits::Limits;
use super::refusal::Refusal;
use super::request::{Chat, Common, Completion, Prompt};
use super::sequence::Draft;
use super::shape::{Kind, Shape};
use crate::error::listing;
use crate::eval::Encoder;
use crate::model::{GenerateOptions, Scored};
use crate::tokenizer::Pieces;
use serde_json::Map;

/// As in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;

/// A request that can be answered.
pub struct Prepared {
    pub shape: Shape,
    /// The decoder's number.
    pub model: usize,
    /// A sequence for each choice.
    pub drafts: Vec<Draft>,
    /// Of all prompts, each counted once.
    pub prompt_tokens: usize,
    pub stream: bool,
    pub include_usage: bool,
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
    pieces: Pieces,
    echo: Option<Echo>,
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
        let encoder = &self.encoder;
        if encoder.template.is_none() {
            let message =
                "the tokenizer has no chat template: only /v1/completions is served, unless --template is given";
            return Err(Refusal::new(400, "no_chat_template", message));
        }
        let (text, special) =
            encoder.text(&messages, &Map::new()).map_err(|why| Refusal::unreadable("messages", &why))?;
        let ids = encoder.tokenizer.encode(&text, special).map_err(|why| Refusal::unreadable("messages", &why))?;
        let prompt = Encoded { ids, pieces: Pieces::new(&encoder.tokenizer, true), echo: None };
        let scored = top.map(|top| Scored { prompt: false, top });
        let shape = Shape::new(Kind::Chat, &common.model, created, top);
        self.prepared(shape, model, &common, ("messages", vec![prompt]), scored)
    }

    fn completion(&self, completion: Completion, created: u64) -> Result<Prepared, Refusal> {
        let Completion { common, prompts, echo, top } = completion;
        let model = self.number(&common.model)?;
        let encoded: Result<Vec<Encoded>, anyhow::Error> =
            prompts.into_iter().map(|prompt| self.encode(prompt, echo)).collect();
        let encoded = encoded.map_err(|why| Refusal::unreadable("prompt", &why))?;
        let scored = top.map(|top| Scored { prompt: echo, top });
        let shape = Shape::new(Kind::Completion, &common.model, created, top);
        let common = Common { max_tokens: Some(common.max_tokens.unwrap_or(COMPLETION_TOKENS)), ..common };
        self.prepared(shape, model, &common, ("prompt", encoded), scored)
    }

    fn number(&self, name: &str) -> Result<usize, Refusal> {
        self.names.iter().position(|known| known == name).ok_or_else(|| {
            let message = format!("there is no model `{name:.100}` here, only {}", listing(&self.names, 12));
            Refusal { status: 404, code: "model_not_found", ..Refusal::field("model", message) }
        })
    }

    /// A prompt to be continued as it stands.
    fn encode(&self, prompt: Prompt, echo: bool) -> anyhow::Result<Encoded> {
        let tokenizer = &self.encoder.tokenizer;
        let (ids, echoed) = match prompt {
            Prompt::Text(text) => {
                let encoded = tokenizer.encode_with_offsets(&text, true)?;
                let mut characters = text.char_indices().map(|(byte, _)| byte).enumerate().peekable();
                let mut offset = 0;
                let offsets = encoded.offsets.iter().zip(&encoded.added).map(|((start, _), added)| {
                    while let Some((place, _)) = characters.next_if(|(_, byte)| !added && byte <= start) {
                        offset = place;
                    }
                    offset
                });
                let offsets = offsets.collect();
                (encoded.ids, Echo { text, offsets })
            }
            Prompt::Ids(ids) => {
                let pieces = if echo { tokenizer.pieces(&ids)? } else { vec![] };
                let lengths = pieces.iter().map(|piece| piece.chars().count());
                let offsets = lengths.scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
                (ids, Echo { text: pieces.concat(), offsets })
            }
        };
        let pieces = Pieces::after(tokenizer, &ids, true)?;
        Ok(Encoded { ids, pieces, echo: echo.then_some(echoed) })
    }

    fn prepared(
        &self,
        shape: Shape,
        model: usize,
        common: &Common,
        (field, prompts): (&str, Vec<Encoded>),
        scored: Option<Scored>,
    ) -> Result<Prepared, Refusal> {
        let (sequences, most) = (prompts.len() * common.choices, self.limits.batch_size + self.limits.queue);
        if sequences > most {
            let message = format!("the request asks for {sequences} answers; the server takes {most} at once");
            return Err(Refusal::field(field, message));
        }
        let seed = common.seed.unwrap_or_else(rand::random);
        let (mut drafts, mut prompt_tokens) = (Vec::with_capacity(sequences), 0);
        for Encoded { ids, pieces, echo } in prompts {
            let max_new_tokens = self.room(field, &ids, common.max_tokens)?;
            prompt_tokens += ids.len();
            for choice in 0..common.choices {
                let options = GenerateOptions {
                    max_new_tokens,
                    temperature: common.temperature,
                    top_p: common.top_p,
                    seed: seed.wrapping_add(choice as u64),
                    stop_ids: self.encoder.tokenizer.eos_ids().to_vec(),
                };
                let answer = Answer::new(&self.encoder.tokenizer, pieces.clone(), echo.clone(), common.stops.clone());
                drafts.push(Draft { prompt: ids.clone(), options, scored, answer });
            }
        }
        let Common { stream, include_usage, .. } = *common;
        Ok(Prepared { shape, model, drafts, prompt_tokens, stream, include_usage })
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
