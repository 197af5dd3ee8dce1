//! Many clients at once, some of whom go away.

use super::{Server, chat, completion, tuned};
use serde_json::{Value, json};

const CLIENTS: usize = 64;
const REQUESTS: usize = 3;
/// What the process may grow by after it has seen as much before.
const GROWTH_BYTES: u64 = 64 << 20;

/// The request of a client: of several lengths, to both models, in all forms.
fn request(number: usize) -> (&'static str, Value) {
    let message = "hot and cold ".repeat(1 + number % 7);
    let model = if number.is_multiple_of(3) { "tuned" } else { "aligned" };
    let (path, mut body) = match number % 4 {
        0 => ("completions", completion(message)),
        _ => ("chat/completions", chat(model, &message)),
    };
    body["max_tokens"] = json!(1 + number * 7 % 40);
    body["temperature"] = json!((number % 2) as f64);
    body["stream"] = json!(number.is_multiple_of(5));
    (path, body)
}

/// Whether the client waited for its answer, and got one.
fn ask(server: &Server, number: usize) -> bool {
    let (path, body) = request(number);
    if number % 8 == 7 {
        drop(server.send("POST", &format!("/v1/{path}"), &[], &body.to_string()).unwrap());
        return false;
    }
    let reply = server.post(path, &body);
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    if body["stream"] == true {
        assert!(reply.body.ends_with("data: [DONE]\n\n"), "{}", reply.body);
    } else {
        let (answer, most) = (reply.json(), body["max_tokens"].as_u64().unwrap());
        let chosen = answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(chosen >= 1 && chosen <= most && !answer["choices"][0]["finish_reason"].is_null(), "{answer}");
    }
    true
}

/// All clients at once, each with one request after another; returns how many were answered.
fn rush(server: &Server) -> usize {
    std::thread::scope(|scope| {
        let client = |client: usize| (0..REQUESTS).filter(|turn| ask(server, client + turn * 5)).count();
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    })
}

#[test]
fn nothing_is_lost_and_memory_does_not_grow() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&["--adapter", &format!("tuned={}", tuned(dir.path()))]);
    let answered = rush(&server);
    let before = server.resident();
    assert_eq!((rush(&server), rush(&server)), (answered, answered));
    assert_eq!(answered, CLIENTS * REQUESTS * 7 / 8);
    let after = server.resident();
    assert!(after < before + GROWTH_BYTES, "{before} and then {after} bytes");
}
