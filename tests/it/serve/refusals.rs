//! What is not answered, and how that is said.

use super::{MODEL, Reply, Server, asft, chat, completion, endless, long};
use crate::support::command::{refused, text};
use crate::support::files::{copy_files, tiny};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Asserts the form of OpenAI's errors; returns `code` and `param`.
#[track_caller]
fn error(reply: &Reply, status: u16) -> (String, Value) {
    assert_eq!(reply.status, status, "{}", reply.body);
    let error = &reply.json()["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
    assert_eq!(error["type"], kind);
    (error["code"].as_str().unwrap().to_string(), error["param"].clone())
}

#[test]
fn every_mistake_has_its_status_and_its_field() {
    let server = Server::start(&["--context", "64", "--max-body-bytes", "20000", "--batch-size", "2", "--queue", "4"]);
    let with = |mut body: Value, name: &str, value: Value| {
        body[name] = value;
        body
    };
    let long = "hot and cold ".repeat(60);
    for (path, body, status, code, field) in [
        ("chat/completions", chat("other", "hi"), 404, "model_not_found", json!("model")),
        ("completions", with(completion("hi"), "model", json!("tuned")), 404, "model_not_found", json!("model")),
        (
            "chat/completions",
            with(chat("aligned", "hi"), "tools", json!([{}])),
            400,
            "unsupported_parameter",
            json!("tools"),
        ),
        ("chat/completions", with(chat("aligned", "hi"), "top_k", json!(5)), 400, "unknown_parameter", json!("top_k")),
        ("chat/completions", with(chat("aligned", "hi"), "top_p", json!(2)), 400, "invalid_value", json!("top_p")),
        ("chat/completions", json!({"model": "aligned"}), 400, "missing_parameter", json!("messages")),
        ("completions", json!({"prompt": "hi"}), 400, "missing_parameter", json!("model")),
        ("chat/completions", chat("aligned", &long), 400, "context_length_exceeded", json!("messages")),
        ("completions", completion(long.as_str()), 400, "context_length_exceeded", json!("prompt")),
        (
            "completions",
            with(completion("hi"), "max_tokens", json!(64)),
            400,
            "context_length_exceeded",
            json!("prompt"),
        ),
        ("completions", completion(json!([1, 448])), 400, "invalid_value", json!("prompt")),
        ("completions", completion(json!([[]])), 400, "invalid_value", json!("prompt")),
        ("completions", completion(json!(["a", "b", "c", "d", "e", "f", "g"])), 400, "invalid_value", json!("prompt")),
        (
            "chat/completions",
            json!({"model": "aligned", "messages": [{"role": "asistant", "content": "hi"}]}),
            400,
            "invalid_value",
            json!("messages"),
        ),
        (
            "chat/completions",
            json!({"model": "aligned", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "invalid_value",
            json!("messages"),
        ),
    ] {
        assert_eq!(error(&server.post(path, &body), status), (code.to_string(), field), "{body}");
    }
    let raw = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        server.ask(method, path, headers, body).unwrap()
    };
    assert_eq!(error(&raw("POST", "/v1/completions", &[], "{\"prompt\": "), 400).0, "invalid_json");
    assert_eq!(error(&raw("POST", "/v1/completions", &[], "[1]"), 400).0, "invalid_json");
    for (method, path, allowed) in [("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET")] {
        let reply = raw(method, path, &[], "");
        assert_eq!((error(&reply, 405).0.as_str(), reply.header("allow")), ("method_not_allowed", Some(allowed)));
    }
    assert_eq!(error(&raw("GET", "/", &[], ""), 404).0, "not_found");
    assert_eq!(error(&raw("GET", "/v1/models", &[("origin", "https://example.com")], ""), 403).0, "origin_not_allowed");
    assert_eq!(error(&raw("GET", "/v1/models/other", &[], ""), 404).0, "model_not_found");
    let models = server.get("/v1/models").json();
    assert_eq!(server.get("/v1/models/%61ligned").json(), models["data"][0]);
    let large = completion("a".repeat(20000)).to_string();
    assert_eq!(error(&raw("POST", "/v1/completions", &[], &large), 413).0, "body_too_large");
    // Nothing of this has hurt it.
    server.answer("chat/completions", &chat("aligned", "hi"));
}

#[test]
fn without_the_key_nothing_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.txt");
    fs::write(&key, "s3cret\n").unwrap();
    let server = Server::start(&["--api-key-file", text(&key)]);
    let models = |headers: &[(&str, &str)]| server.ask("GET", "/v1/models", headers, "").unwrap();
    for wrong in ["Bearer s3cre", "Bearer s3cret2", "s3cret", "Basic s3cret", "Bearer "] {
        let reply = models(&[("authorization", wrong)]);
        assert_eq!(error(&reply, 401).0, "invalid_api_key");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    error(&models(&[]), 401);
    error(&server.post("chat/completions", &chat("aligned", "hi")), 401);
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(models(&[("Authorization", &format!("{scheme} s3cret"))]).status, 200);
    }
}

#[test]
fn without_a_key_the_server_has_no_other_names() {
    let server = Server::start(&[]);
    let port = server.address.rsplit_once(':').unwrap().1;
    for (host, status) in
        [("localhost".to_string(), 200), (format!("localhost:{port}"), 200), ("example.com".into(), 403)]
    {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        write!(stream, "GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert_eq!(Reply::parse(&reply).unwrap().status, status, "{host}: {reply}");
    }
}

#[test]
fn an_open_server_without_a_key_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.txt");
    fs::write(&key, "s3cret").unwrap();
    for (more, warned) in [(vec![], true), (vec!["--api-key-file", text(&key)], false)] {
        let mut command = asft(&["serve", "--model", MODEL, "--host", "0.0.0.0", "--port", "0", "-q"]);
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("http://0.0.0.0:"), "{line}");
        child.kill().unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("--api-key-file"), warned, "{said}");
    }
}

#[test]
fn beyond_the_queue_a_request_is_told_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&endless(dir.path()), &["--batch-size", "1", "--queue", "7"]);
    let running = server.begin("completions", &long());
    let reply = server.post("completions", &completion("hi"));
    assert_eq!(error(&reply, 503).0, "overloaded");
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(running);
}

#[test]
fn a_request_may_not_take_longer_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&endless(dir.path()), &["--batch-size", "1", "--timeout", "1"]);
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..32).map(|_| scope.spawn(|| server.post("completions", &long()))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let late: Vec<&Reply> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(!late.is_empty());
    late.iter().for_each(|reply| assert_eq!(error(reply, 504).0, "timeout"));
    server.answer("completions", &completion("hi"));
}

#[test]
fn what_is_prepared_too_long_is_late_and_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("slow.jinja");
    // 2^60 comparisons for one message, none for others.
    let twins = "{% set x = [x, x] %}{% set y = [y, y] %}".repeat(60);
    let slow = format!(
        "{{% if messages[0].content == 'slow' %}}{{% set x = [1] %}}{{% set y = [1] %}}{twins}{{{{ x == y }}}}{{% endif %}}\
         {{{{ messages[0].content }}}}"
    );
    fs::write(&template, slow).unwrap();
    let server = Server::start(&["--template", text(&template), "--timeout", "3"]);
    let begun = Instant::now();
    // One more than are prepared at once: it waits for its turn.
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..5).map(|_| scope.spawn(|| server.post("chat/completions", &chat("aligned", "slow")))).collect();
        for asked in asked {
            assert_eq!(error(&asked.join().unwrap(), 504).0, "timeout");
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(server.get("/v1/models").status, 200);
    // Once what takes too long is given up, others have their turn again.
    while server.post("chat/completions", &chat("aligned", "hi")).status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn a_failure_is_told_without_its_details_and_hurts_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("aligned");
    copy_files(&tiny("aligned"), &model);
    let weights = model.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    // The embedding of one token is damaged, and the output head is not: only prompts with that token fail.
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let (damaged, width) = (7, embedding.dim(1).unwrap());
    let row = Tensor::full(f32::NAN, (1, width), &Device::Cpu).unwrap().to_dtype(embedding.dtype()).unwrap();
    let rows = embedding.slice_assign(&[damaged..damaged + 1, 0..width], &row).unwrap();
    tensors.insert("model.embed_tokens.weight".to_string(), rows);
    tensors.insert("lm_head.weight".to_string(), embedding);
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let (server, whole) = (Server::of(text(&model), &[]), Server::start(&[]));
    let prompts = [json!([5, 6, 8]), json!([5, 7, 8]), json!([9, 10])];
    let replies = std::thread::scope(|scope| {
        let ask = |prompt: &Value| server.post("completions", &completion(prompt.clone()));
        let asked = prompts.each_ref().map(|prompt| scope.spawn(move || ask(prompt)));
        asked.map(|asked| asked.join().unwrap())
    });
    assert_eq!(error(&replies[1], 500).0, "internal_error");
    assert!(!replies[1].body.contains("embed_tokens") && !replies[1].body.contains("finite"), "{}", replies[1].body);
    for number in [0, 2] {
        let expected = whole.answer("completions", &completion(prompts[number].clone()));
        assert_eq!(replies[number].json()["choices"], expected["choices"]);
    }
}

#[test]
fn a_server_that_cannot_be_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("empty"), "\n").unwrap();
    fs::write(place("spaced"), "a key\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, words) in [
        (vec!["--port", &port], vec!["cannot listen on 127.0.0.1", &port]),
        (vec!["--host", "no.such.host.invalid"], vec!["cannot listen on no.such.host.invalid"]),
        (vec!["--api-key-file", text(&place("empty"))], vec!["--api-key-file", "one key"]),
        (vec!["--api-key-file", text(&place("spaced"))], vec!["--api-key-file", "one key"]),
        (vec!["--api-key-file", "/nowhere"], vec!["--api-key-file", "/nowhere"]),
        (vec!["--context", "257"], vec!["--context", "from 2 to 256", "257"]),
        (vec!["--context", "1"], vec!["--context"]),
        (vec!["--batch-size", "0"], vec!["--batch-size"]),
        (vec!["--timeout", "0"], vec!["--timeout"]),
        (vec!["--timeout", "18446744073709551615"], vec!["--timeout", "from 1 to 604800"]),
        (vec!["--grace", "18446744073709551615"], vec!["--grace", "from 0 to 604800"]),
        (vec!["--queue", "9223372036854775808"], vec!["--queue", "from 0 to 16384"]),
        (vec!["--batch-size", "1099511627776"], vec!["--batch-size", "from 1 to 16384"]),
        (vec!["--adapter", "a=/nowhere"], vec!["/nowhere"]),
        (vec!["--template", "/nowhere.jinja"], vec!["/nowhere.jinja"]),
    ] {
        let port: &[&str] = if arguments.contains(&"--port") { &[] } else { &["--port", "0"] };
        refused(asft(&["serve", "--model", MODEL]).args(port).args(arguments), &words);
    }
}
