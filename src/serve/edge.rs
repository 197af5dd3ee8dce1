//! One request and its response: who may ask, for what, and what is said.

use super::body::{Body, Stream, json, refused};
use super::limits::Limits;
use super::prepare::{Prepared, Preparing};
use super::refusal::Refusal;
use super::sequence::{Event, Sequence};
use super::shape::{Choice, Kind, Usage};
use crate::console::log;
use crate::eval::Encoder;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response};
use serde_json::{Value, json as object};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How long a request's body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What all requests share.
pub struct Edge {
    preparing: Arc<Preparing>,
    /// A hash of the key that requests must bear.
    key: Option<blake3::Hash>,
    sequences: Sender<Sequence>,
    /// One for each sequence that may run or wait.
    places: Arc<Semaphore>,
    /// Seconds since 1970.
    started: u64,
}

impl Edge {
    pub fn new(
        names: Vec<String>,
        encoder: Encoder,
        limits: Limits,
        key: Option<&str>,
        sequences: Sender<Sequence>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(limits.batch_size + limits.queue));
        let key = key.map(|key| blake3::hash(key.as_bytes()));
        Self { preparing: Arc::new(Preparing { names, encoder, limits }), key, sequences, places, started: now() }
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
        self.check_sender(request.headers())?;
        let (method, kind) = match request.uri().path() {
            "/v1/models" => (Method::GET, None),
            "/v1/chat/completions" => (Method::POST, Some(Kind::Chat)),
            "/v1/completions" => (Method::POST, Some(Kind::Completion)),
            other => return Err(Refusal::new(404, "not_found", format!("there is nothing at {other:.200}"))),
        };
        if *request.method() != method {
            let message = format!("expected {method}, got {}", request.method());
            let mut response = refused(&Refusal::new(405, "method_not_allowed", message));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(if kind.is_some() { "POST" } else { "GET" }));
            return Ok(response);
        }
        let Some(kind) = kind else { return Ok(json(200, &self.models())) };
        let body = self.read(request).await?;
        let preparing = self.preparing.clone();
        let prepared = tokio::task::spawn_blocking(move || preparing.prepare(kind, &body, now())).await;
        let prepared = prepared.map_err(|why| Refusal::failure(&why.into()))??;
        self.generate(prepared, arrived).await
    }

    /// # Errors
    /// A request without the key, or from a web page: whoever visits one has not asked for it.
    fn check_sender(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if headers.contains_key(ORIGIN) {
            let message = "requests of web pages, which have the header Origin, are not answered";
            return Err(Refusal::new(403, "origin_not_allowed", message));
        }
        let Some(key) = self.key else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // Hashes are compared in constant time.
        if given.is_some_and(|given| blake3::hash(given) == key) {
            return Ok(());
        }
        let problem = if given.is_some() { "the API key is not the server's" } else { "an API key is needed" };
        let message = format!("{problem}; send it in the header Authorization: Bearer KEY");
        Err(Refusal::new(401, "invalid_api_key", message))
    }

    fn models(&self) -> Value {
        let model =
            |name: &String| object!({"id": name, "object": "model", "created": self.started, "owned_by": "asft"});
        object!({"object": "list", "data": self.preparing.names.iter().map(model).collect::<Vec<_>>()})
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

    async fn generate(&self, prepared: Prepared, arrived: Instant) -> Result<Response<Body>, Refusal> {
        let Prepared { shape, model, drafts, prompt_tokens, stream, include_usage } = prepared;
        let choices = drafts.len();
        let count = u32::try_from(choices).map_err(|_| Refusal::busy())?;
        let mut places = self.places.clone().try_acquire_many_owned(count).map_err(|_| Refusal::busy())?;
        let deadline = arrived + self.preparing.limits.request;
        let (events, mut told) = unbounded_channel();
        for (choice, draft) in drafts.into_iter().enumerate() {
            let place = places.split(1).ok_or_else(Refusal::busy)?;
            let sequence = Sequence { draft, model, choice, events: events.clone(), deadline, _place: place };
            self.sequences.send(sequence).map_err(|_| Refusal::stopping())?;
        }
        drop(events);
        if !stream {
            let (choices, chosen) = collect(&mut told, choices).await?;
            return Ok(json(200, &shape.whole(&choices, Usage { prompt: prompt_tokens, chosen })));
        }
        // An error before anything is said can still have its status.
        match told.recv().await.ok_or_else(Refusal::stopping)? {
            (_, Event::Failed(refusal)) => Err(refusal),
            first => Ok(Stream::response(shape, choices, first, told, (prompt_tokens, include_usage))),
        }
    }
}

/// All choices once they have ended, and how many tokens were chosen.
async fn collect(told: &mut UnboundedReceiver<(usize, Event)>, count: usize) -> Result<(Vec<Choice>, usize), Refusal> {
    let (mut choices, mut chosen) = (vec![Choice::default(); count], 0);
    while choices.iter().any(|choice| choice.end.is_none()) {
        let (number, event) = told.recv().await.ok_or_else(Refusal::stopping)?;
        let Some(choice) = choices.get_mut(number) else { continue };
        match event {
            Event::Part(part) => {
                choice.part.text.push_str(&part.text);
                choice.part.tokens.extend(part.tokens);
            }
            Event::End(end, tokens) => {
                choice.end = Some(end);
                chosen += tokens;
            }
            Event::Failed(refusal) => return Err(refusal),
        }
    }
    Ok((choices, chosen))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
