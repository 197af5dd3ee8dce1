//! Connections over HTTP/1.1, all on one thread.

use super::edge::{Edge, PREPARING_THREADS};
use anyhow::{Context, Result};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{self, Poll};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Sleep;

/// Connections at once.
const MOST_CONNECTIONS: usize = 512;
/// Threads on which responses are written.
const WRITING_THREADS: usize = 4;
/// How long a connection may say nothing, before a request and between two.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// How long a client may not read what is sent to it.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long what has been decoded may take to be read in the end.
const LAST_TIME: Duration = Duration::from_secs(2);
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The thread of the connections.
pub struct Connections {
    thread: JoinHandle<()>,
    closing: Option<oneshot::Sender<()>>,
    ending: oneshot::Sender<()>,
}

impl Connections {
    /// Answers whoever connects. `behind`: how long a client may take to read what is already there for it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn open(listener: StdListener, edge: Arc<Edge>, behind: Duration) -> Result<Self> {
        listener.set_nonblocking(true).context("listening")?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(PREPARING_THREADS + WRITING_THREADS)
            .build()
            .context("starting the server")?;
        let listener = runtime.block_on(async { TcpListener::from_std(listener) }).context("listening")?;
        let ((closing, closed), (ending, ended)) = (oneshot::channel(), oneshot::channel());
        let work = move || {
            runtime.block_on(serve(listener, behind, edge, closed, ended));
            // A template that does not end must not keep the process.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("http".to_string()).spawn(work).context("starting the server")?;
        Ok(Self { thread, closing: Some(closing), ending })
    }

    /// Accepts no more, and lets those end that wait for nothing.
    pub fn close(&mut self) {
        // Its other end is gone only if the thread has ended.
        self.closing.take().map(|closing| closing.send(()));
    }

    /// Waits until all are closed, but not long: nothing is decoded any more.
    pub fn join(mut self) {
        self.close();
        let _ended = self.ending.send(());
        let _panicked = self.thread.join();
    }
}

async fn serve(
    listener: TcpListener,
    behind: Duration,
    edge: Arc<Edge>,
    closed: oneshot::Receiver<()>,
    ended: oneshot::Receiver<()>,
) {
    let (graceful, connections) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    let mut closed = pin!(closed);
    let mut next = async || {
        let next = |cx: &mut task::Context| match closed.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(cx).map(Some),
        };
        poll_fn(next).await
    };
    while let Some(accepted) = next().await {
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, say: some will be free again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = connections.clone().try_acquire_owned() else {
            let _unread = stream.try_write(TOO_MANY);
            continue;
        };
        // Small chunks should not wait for one another.
        let _slower = stream.set_nodelay(true);
        let edge = edge.clone();
        let service = service_fn(move |request| {
            let edge = edge.clone();
            async move { Ok::<_, Infallible>(edge.answer(request).await) }
        });
        let connection = graceful.watch(http.serve_connection(Patient::new(stream, WRITE_TIME, behind), service));
        tokio::spawn(async move {
            let _broken = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let mut all = pin!(graceful.shutdown());
    let mut late = pin!(async {
        let _decoded = ended.await;
        tokio::time::sleep(LAST_TIME).await;
    });
    let first = |cx: &mut task::Context| match all.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => late.as_mut().poll(cx),
    };
    poll_fn(first).await;
}

/// A connection that fails if its client reads nothing for too long, or if it has been too long since it had read everything.
struct Patient {
    stream: TokioIo<TcpStream>,
    /// How long it may read nothing.
    limit: Duration,
    /// How long it may not have read everything.
    behind: Duration,
    /// Ends the connection, while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Ends it, from the first write that waited on until everything is written.
    late: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, limit: Duration, behind: Duration) -> Self {
        Self { stream: TokioIo::new(stream), limit, behind, stalled: None, late: None }
    }

    fn watched<T>(&mut self, cx: &mut task::Context, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let mut is_over = |timer: &mut Option<Pin<Box<Sleep>>>, limit: Duration| {
            timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx).is_ready()
        };
        let (stalled, late) = (is_over(&mut self.stalled, self.limit), is_over(&mut self.late, self.behind));
        if stalled || late { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }
}

impl Read for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut task::Context, buffer: ReadBufCursor) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut task::Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // HTTP flushes once nothing is left to be written.
        if flushed.is_ready() {
            self.late = None;
        }
        self.watched(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_is_left() {
        // A client that reads nothing, and one that reads a little all the time.
        assert_eq!(written_to(Duration::from_millis(50), Duration::from_secs(60), false), io::ErrorKind::TimedOut);
        assert_eq!(written_to(Duration::from_secs(60), Duration::from_millis(200), true), io::ErrorKind::TimedOut);
    }

    /// How writing ends to a client that does not read, or not enough.
    fn written_to(limit: Duration, behind: Duration, reads: bool) -> io::ErrorKind {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut patient = Patient::new(stream, limit, behind);
            let (mut often, mut bytes) = (tokio::time::interval(Duration::from_millis(5)), [0; 1 << 12]);
            let reader = tokio::spawn(async move {
                loop {
                    often.tick().await;
                    let _read = client.try_read(if reads { &mut bytes } else { &mut [] });
                }
            });
            let written = loop {
                match poll_fn(|cx| Pin::new(&mut patient).poll_write(cx, &[0; 1 << 16])).await {
                    Ok(_) => {}
                    Err(why) => break why.kind(),
                }
            };
            reader.abort();
            written
        })
    }
}
