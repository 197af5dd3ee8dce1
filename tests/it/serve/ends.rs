//! How a server ends, and an answer that nobody reads.

use super::{Reply, Server, endless, events, long};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// The rest of a stream that has begun.
fn rest(mut stream: TcpStream) -> Vec<String> {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).unwrap();
    let reply = Reply::parse(&format!("HTTP/1.1 200{}", String::from_utf8(bytes).unwrap())).unwrap();
    events(&reply.body)
}

#[test]
fn an_idle_server_ends_at_once() {
    let mut server = Server::start(&[]);
    // Who has said nothing, or not all of it, is not waited for.
    let _silent = TcpStream::connect(&server.address).unwrap();
    let mut unfinished = TcpStream::connect(&server.address).unwrap();
    unfinished.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: asft\r\ncontent-length: 9\r\n\r\n{").unwrap();
    server.signal();
    assert_eq!(server.wait().code(), Some(0));
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn what_runs_at_a_signal_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::of(&endless(dir.path()), &["--batch-size", "8", "--grace", "60"]);
    let running = server.begin("completions", &long());
    server.signal();
    let events = rest(running);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_is_not_finished_in_time_is_cut_and_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::of(&endless(dir.path()), &["--batch-size", "1", "--grace", "0"]);
    let running = server.begin("completions", &long());
    server.signal();
    let events = rest(running);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "stopping", "{events:?}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_answer_that_nobody_reads_is_not_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&endless(dir.path()), &["--batch-size", "1"]);
    let one = {
        let mut one = long();
        one["n"] = json!(1);
        one
    };
    let begun = Instant::now();
    (0..4).for_each(|_| drop(server.answer("completions", &one)));
    let four = begun.elapsed();
    // Thirty-two times that, of which nobody waits for the end.
    let mut left: Vec<TcpStream> = vec![server.begin("completions", &long())];
    left.extend((0..15).map(|_| server.send("POST", "/v1/completions", &[], &long().to_string()).unwrap()));
    drop(left);
    let begun = Instant::now();
    server.answer("completions", &one);
    assert!(begun.elapsed() < 8 * four, "{:?} and {four:?}", begun.elapsed());
}
