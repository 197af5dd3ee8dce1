//! One request and its response: who may ask, for what, and what is said.

use super::body::{Body, Stream, json, refused, written};
use super::echo::Echoed;
use super::form::{Choice, Form, Kind};
use super::limits::Limits;
use super::prepare::{Prepared, Preparing};
use super::refusal::Refusal;
use super::senders::Senders;
use super::sequence::{Event, Sequence};
use crate::console::log;
use crate::eval::Encoder;
use crate::tokenizer::Tokenizer;
use crate::untrusted;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_LENGTH, HeaderValue};
use hyper::{Method, Request, Response};
use serde_json::{Value, json as object};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Threads on which templates and tokenizers run.
pub const PREPARING_THREADS: usize = 4;
/// Threads that may be at work that was given up, before nothing is begun any more until some have ended.
const MOST_ABANDONED: usize = 8;

/// Before the name of a model.
const ONE_MODEL: &str = "/v1/models/";

/// What all requests share.
pub struct Edge {
    preparing: Arc<Preparing>,
    senders: Senders,
    sequences: Sender<Sequence>,
    /// One for each sequence that may run or wait; a request that is prepared has one, too.
    places: Arc<Semaphore>,
    /// One for each request that may be prepared at once.
    turns: Arc<Semaphore>,
    /// Seconds since 1970.
    started: u64,
}

impl Edge {
    pub fn new(
        names: Vec<String>,
        encoder: Encoder,
        limits: Limits,
        senders: Senders,
        sequences: Sender<Sequence>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(limits.sequences()));
        let turns = Arc::new(Semaphore::new(PREPARING_THREADS));
        let preparing = Arc::new(Preparing { names, encoder, limits });
        Self { preparing, senders, sequences, places, turns, started: now() }
    }

    /// The response to a request, which may be an error.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (begun, asked) = (Instant::now(), format!("{} {}", request.method(), request.uri().path()));
        let response = self.respond(request).await.unwrap_or_else(|refusal| refused(&refusal));
        let (status, seconds) = (response.status().as_u16(), begun.elapsed().as_secs_f64());
        let fields = object!({"request": asked, "status": status, "seconds": seconds});
        log::debug(&format!("{asked}: {status} after {seconds:.3} s"), fields);
        response
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let arrived = Instant::now();
        self.senders.check(request.headers())?;
        let (method, kind) = match request.uri().path() {
            "/v1/models" => (Method::GET, None),
            "/v1/chat/completions" => (Method::POST, Some(Kind::Chat)),
            "/v1/completions" => (Method::POST, Some(Kind::Completion)),
            other if other.starts_with(ONE_MODEL) => (Method::GET, None),
            other => return Err(Refusal::new(404, "not_found", format!("there is nothing at {other:.200}"))),
        };
        if *request.method() != method {
            let message = format!("expected {method}, got {}", request.method());
            let mut response = refused(&Refusal::new(405, "method_not_allowed", message));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(if kind.is_some() { "POST" } else { "GET" }));
            return Ok(response);
        }
        let Some(kind) = kind else { return Ok(json(200, &self.models(request.uri().path())?)) };
        let body = self.read(request).await?;
        let limit = self.preparing.limits.request;
        let deadline = arrived + limit;
        let place = self.admit()?;
        let prepared = timeout_at(deadline.into(), self.prepare(kind, body)).await;
        let prepared = prepared.map_err(|_| Refusal::late(limit))??;
        self.generate(prepared, place, deadline).await
    }

    /// A place for a request's first sequence, before anything is done for it.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if untrusted::abandoned() >= MOST_ABANDONED {
            return Err(Refusal::busy());
        }
        self.places.clone().try_acquire_owned().map_err(|_| Refusal::busy())
    }

    /// Waits for a turn, for which whoever goes away, or has waited too long, does not wait any longer.
    async fn prepare(&self, kind: Kind, body: Bytes) -> Result<Prepared, Refusal> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| Refusal::stopping())?;
        let preparing = self.preparing.clone();
        elsewhere(move || {
            let _turn = turn;
            preparing.prepare(kind, &body, now())
        })
        .await?
    }

    /// All models, or the one that `path` names.
    fn models(&self, path: &str) -> Result<Value, Refusal> {
        let model = |name: &str| object!({"id": name, "object": "model", "created": self.started, "owned_by": "asft"});
        let names = &self.preparing.names;
        let Some(name) = path.strip_prefix(ONE_MODEL) else {
            let all: Vec<Value> = names.iter().map(|name| model(name)).collect();
            return Ok(object!({"object": "list", "data": all}));
        };
        let name = percent_decoded(name);
        self.preparing.number(&name).map(|_| model(&name))
    }

    async fn read(&self, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let most = self.preparing.limits.body_bytes;
        let too_large = || Refusal::new(413, "body_too_large", format!("the body may have {most} bytes"));
        let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > most) {
            return Err(too_large());
        }
        let whole = Limited::new(request.into_body(), most).collect();
        match tokio::time::timeout(BODY_TIME, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(why)) if why.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(why)) => Err(Refusal::new(400, "incomplete_body", format!("the body cannot be read: {why}"))),
            Err(_) => Err(Refusal::new(408, "timeout", format!("the body took longer than {} s", BODY_TIME.as_secs()))),
        }
    }

    /// `place`: that of the first sequence.
    async fn generate(
        &self,
        prepared: Prepared,
        mut place: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<Response<Body>, Refusal> {
        let Prepared { form, model, drafts, stream } = prepared;
        let (choices, preparing) = (drafts.len(), self.preparing.clone());
        let others = u32::try_from(choices.saturating_sub(1)).map_err(|_| Refusal::busy())?;
        place.merge(self.places.clone().try_acquire_many_owned(others).map_err(|_| Refusal::busy())?);
        let (events, mut told) = unbounded_channel();
        for (choice, draft) in drafts.into_iter().enumerate() {
            let place = place.split(1).ok_or_else(Refusal::busy)?;
            let sequence = Sequence { draft, model, choice, events: events.clone(), deadline, _place: place };
            self.sequences.send(sequence).map_err(|_| Refusal::stopping())?;
        }
        drop(events);
        if !stream {
            let (choices, chosen) = collect(&mut told, choices).await?;
            let text = elsewhere(move || whole(&form, choices, chosen, &preparing.encoder.tokenizer)).await??;
            return Ok(written(200, text));
        }
        // An error before anything is said can still have its status.
        match told.recv().await.ok_or_else(Refusal::stopping)? {
            (_, Event::Failed(refusal)) => Err(refusal),
            first => Ok(Stream::response(form, preparing, choices, first, told)),
        }
    }
}

/// Does what takes long on a thread for which nobody else waits.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(work).await.map_err(|why| Refusal::failure(&why.into()))
}

/// A choice, and the prompt before it if that is part of the text.
type Continued = (Option<Echoed>, Choice);

/// All choices once they have ended, and how many tokens were chosen.
async fn collect(
    told: &mut UnboundedReceiver<(usize, Event)>,
    count: usize,
) -> Result<(Vec<Continued>, usize), Refusal> {
    let mut choices: Vec<Continued> = (0..count).map(|_| (None, Choice::default())).collect();
    let mut chosen = 0;
    while choices.iter().any(|(_, choice)| choice.end.is_none()) {
        let (number, event) = told.recv().await.ok_or_else(Refusal::stopping)?;
        let Some((echo, choice)) = choices.get_mut(number) else { continue };
        match event {
            Event::Echo(echoed) => *echo = Some(echoed),
            Event::Text(fragment) => choice.fragment.append(fragment),
            Event::End(end, tokens) => {
                choice.end = Some(end);
                chosen += tokens;
            }
            Event::Failed(refusal) => return Err(refusal),
        }
    }
    Ok((choices, chosen))
}

/// A whole response in JSON.
fn whole(form: &Form, choices: Vec<Continued>, chosen: usize, tokenizer: &Tokenizer) -> Result<String, Refusal> {
    let one = |(echo, choice): Continued| {
        let named = choice.fragment.named(tokenizer).map_err(|why| Refusal::failure(&why))?;
        let Some(echo) = echo else { return Ok(Choice { fragment: named, ..choice }) };
        let mut fragment = echo.fragment(tokenizer).map_err(|why| Refusal::unreadable("prompt", &why))?;
        fragment.append(named);
        Ok(Choice { fragment, ..choice })
    };
    let choices: Vec<Choice> = choices.into_iter().map(one).collect::<Result<_, Refusal>>()?;
    Ok(form.whole(&choices, chosen).to_string())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `text` with %XX as the bytes that they stand for; what stands for no text stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let coded =
            digits.filter(|digits| !digits.starts_with('+')).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(coded.unwrap_or(*first));
        rest = if coded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::prepare::tests::preparing;
    use super::*;
    use std::sync::{Barrier, mpsc};

    #[test]
    fn beside_much_work_that_was_given_up_nothing_is_begun() {
        let Preparing { names, encoder, limits } = preparing();
        let edge = Edge::new(names, encoder, limits, Senders::new(None, true), mpsc::channel().0);
        let end = Arc::new(Barrier::new(MOST_ABANDONED + 1));
        let work: Vec<_> = (0..MOST_ABANDONED)
            .map(|_| {
                let end = end.clone();
                std::thread::spawn(move || untrusted::run(move || end.wait()).is_err())
            })
            .collect();
        assert!(work.into_iter().all(|work| work.join().unwrap()), "it waits for the end of the test");
        assert_eq!(edge.admit().unwrap_err(), Refusal::busy());
        end.wait();
    }

    #[test]
    fn names_in_paths_are_decoded() {
        for (coded, name) in [
            ("a", "a"),
            ("org%2Fm-1%20b", "org/m-1 b"),
            ("org/m", "org/m"),
            ("%C3%A9", "é"),
            ("%", "%"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(percent_decoded(coded), name);
        }
        assert_eq!(percent_decoded("%FF"), "%FF");
    }
}
