//! Bodies of responses: JSON, or server-sent events as they come.

use super::answer::Fragment;
use super::form::Form;
use super::prepare::Preparing;
use super::refusal::Refusal;
use super::sequence::Event;
use crate::tokenizer::Tokenizer;
use http_body_util::{Either, Full};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinHandle, spawn_blocking};

pub type Body = Either<Full<Bytes>, Stream>;

/// A response in JSON.
pub fn json(status: u16, value: &Value) -> Response<Body> {
    written(status, value.to_string())
}

/// A response in JSON that is written down already.
pub fn written(status: u16, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text))));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response that is an error.
pub fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = json(refusal.status, &refusal.body());
    if refusal.passes() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.status == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Events as the chunks of a stream. Dropping it ends the sequences.
pub struct Stream {
    form: Form,
    preparing: Arc<Preparing>,
    events: UnboundedReceiver<(usize, Event)>,
    /// Chunks to be sent.
    ready: VecDeque<Bytes>,
    /// A chunk that another thread writes, before what follows.
    writing: Option<JoinHandle<Result<Bytes, Refusal>>>,
    /// Choices that have not ended.
    open: usize,
    /// Tokens of the answers.
    chosen: usize,
}

impl Stream {
    /// The stream of `choices` choices, whose first event is `first`.
    pub fn response(
        form: Form,
        preparing: Arc<Preparing>,
        choices: usize,
        first: (usize, Event),
        events: UnboundedReceiver<(usize, Event)>,
    ) -> Response<Body> {
        let mut stream =
            Self { form, preparing, events, ready: VecDeque::new(), writing: None, open: choices, chosen: 0 };
        for choice in 0..choices {
            let chunk = stream.form.first(choice);
            chunk.into_iter().for_each(|chunk| stream.send(&chunk));
        }
        stream.take(first);
        let mut response = Response::new(Either::Right(stream));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    fn send(&mut self, chunk: &Value) {
        self.ready.push_back(event(chunk));
    }

    fn take(&mut self, (choice, event): (usize, Event)) {
        match event {
            Event::Echo(echoed) => self.write(choice, |tokenizer| {
                echoed.fragment(tokenizer).map_err(|why| Refusal::unreadable("prompt", &why))
            }),
            Event::Text(fragment) if fragment.is_named() => self.send(&self.form.fragment(choice, &fragment)),
            Event::Text(fragment) => {
                self.write(choice, |tokenizer| fragment.named(tokenizer).map_err(|why| Refusal::failure(&why)));
            }
            Event::End(end, chosen) => {
                self.chosen += chosen;
                self.open = self.open.saturating_sub(1);
                self.send(&self.form.end(choice, end));
                if self.open == 0 {
                    if self.form.include_usage {
                        self.send(&self.form.usage(self.chosen));
                    }
                    self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                }
            }
            Event::Failed(refusal) => self.fail(&refusal),
        }
    }

    /// Lets another thread tell a fragment, which takes long.
    fn write(
        &mut self,
        choice: usize,
        fragment: impl FnOnce(&Tokenizer) -> Result<Fragment, Refusal> + Send + 'static,
    ) {
        let (form, preparing) = (self.form.clone(), self.preparing.clone());
        self.writing = Some(spawn_blocking(move || {
            let fragment = fragment(&preparing.encoder.tokenizer)?;
            Ok(event(&form.fragment(choice, &fragment)))
        }));
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.open = 0;
        self.send(&refusal.body());
    }
}

fn event(chunk: &Value) -> Bytes {
    Bytes::from(format!("data: {chunk}\n\n"))
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if let Some(writing) = &mut self.writing {
                let written = ready!(Pin::new(writing).poll(cx));
                self.writing = None;
                match written.map_err(|why| Refusal::failure(&why.into())).flatten() {
                    Ok(chunk) => self.ready.push_back(chunk),
                    Err(refusal) => self.fail(&refusal),
                }
                continue;
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            // A scheduler that is gone has stopped.
            let gone = || (0, Event::Failed(Refusal::stopping()));
            let event = ready!(self.events.poll_recv(cx)).unwrap_or_else(gone);
            self.take(event);
        }
    }
}
