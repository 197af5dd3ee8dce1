//! Bodies of responses: JSON, or server-sent events as they come.

use super::refusal::Refusal;
use super::sequence::Event;
use super::shape::{Shape, Usage};
use http_body_util::{Either, Full};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc::UnboundedReceiver;

pub type Body = Either<Full<Bytes>, Stream>;

/// A response in JSON.
pub fn json(status: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(value.to_string()))));
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
    shape: Shape,
    events: UnboundedReceiver<(usize, Event)>,
    /// Chunks to be sent.
    ready: VecDeque<Bytes>,
    /// Choices that have not ended.
    open: usize,
    usage: Usage,
    include_usage: bool,
}

impl Stream {
    /// The stream of `choices` choices, whose first event is `first`. `prompt_tokens`: for the counts at the end, if those are
    /// to be told.
    pub fn response(
        shape: Shape,
        choices: usize,
        first: (usize, Event),
        events: UnboundedReceiver<(usize, Event)>,
        (prompt_tokens, include_usage): (usize, bool),
    ) -> Response<Body> {
        let usage = Usage { prompt: prompt_tokens, chosen: 0 };
        let mut stream = Self { shape, events, ready: VecDeque::new(), open: choices, usage, include_usage };
        for choice in 0..choices {
            let chunk = stream.shape.first(choice, include_usage);
            chunk.into_iter().for_each(|chunk| stream.send(&chunk));
        }
        stream.take(first);
        let mut response = Response::new(Either::Right(stream));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    fn send(&mut self, chunk: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {chunk}\n\n")));
    }

    fn take(&mut self, (choice, event): (usize, Event)) {
        match event {
            Event::Part(part) => self.send(&self.shape.part(choice, &part, self.include_usage)),
            Event::End(end, chosen) => {
                self.usage.chosen += chosen;
                self.open = self.open.saturating_sub(1);
                self.send(&self.shape.end(choice, end, self.include_usage));
                if self.open == 0 {
                    if self.include_usage {
                        self.send(&self.shape.usage(self.usage));
                    }
                    self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                }
            }
            Event::Failed(refusal) => {
                self.open = 0;
                self.send(&refusal.body());
            }
        }
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
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
