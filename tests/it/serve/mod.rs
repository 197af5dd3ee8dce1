//! `asft serve` as its clients meet it: the real binary on the toy model, asked over HTTP.

mod answers;
mod ends;
mod load;
mod refusals;

use crate::support::command::{asft, json as printed, succeeds, text, train};
use crate::support::files::{copy_files, read_json, tiny};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

const MODEL: &str = "tests/tiny/aligned";

/// A running server; killed when dropped.
struct Server {
    child: Child,
    /// HOST:PORT
    address: String,
}

struct Reply {
    status: u16,
    /// Names in small letters.
    headers: Vec<(String, String)>,
    body: String,
}

impl Server {
    /// The toy model, on a free port.
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        Self::of(MODEL, arguments)
    }

    /// Another model.
    #[track_caller]
    fn of(model: &str, arguments: &[&str]) -> Self {
        let mut command = asft(&["serve", "--model", model, "--port", "0", "-q"]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|line| line.strip_suffix("/v1")).expect(&line);
        Self { address: address.to_string(), child }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "").expect("an answer")
    }

    /// Posts to a path after `/v1/`.
    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", &format!("/v1/{path}"), &[], &body.to_string()).expect("an answer")
    }

    /// As [`Server::post`], for what is answered.
    #[track_caller]
    fn answer(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        reply.json()
    }

    /// The events of a stream, which must end with `[DONE]`.
    #[track_caller]
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let reply = self.post(path, &body);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
        let mut events = events(&reply.body);
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", reply.body);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// Sends a request and reads the whole reply.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<Reply> {
        let mut stream = self.send(method, path, headers, body)?;
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes)?;
        Reply::parse(&String::from_utf8(bytes).unwrap())
            .ok_or_else(|| std::io::Error::other("the connection was closed without an answer"))
    }

    /// Sends a request.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.address)?;
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (host, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        Ok(stream)
    }

    /// Sends a request for a stream, and waits until it has begun.
    fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let mut stream = self.send("POST", &format!("/v1/{path}"), &[], &body.to_string()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    }

    fn signal(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// In bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Reply {
    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
            .collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = if chunked { unchunked(body) } else { body.to_string() };
        Some(Self { status, headers, body })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&rest[..length]);
        text = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

/// What follows `data: ` in the events of a stream.
fn events(body: &str) -> Vec<String> {
    body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_string).collect()
}

/// A chat with one message, which is answered greedily.
fn chat(model: &str, message: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": message}], "temperature": 0, "max_tokens": 24})
}

/// A prompt that is continued greedily.
fn completion(prompt: impl Into<Value>) -> Value {
    json!({"model": "aligned", "prompt": prompt.into(), "temperature": 0, "max_tokens": 24})
}

/// A copy of the toy model in `dir` that ends no answer by itself.
fn endless(dir: &Path) -> String {
    let model = dir.join("aligned");
    copy_files(&tiny("aligned"), &model);
    for (file, name, value) in
        [("tokenizer_config.json", "eos_token", Value::Null), ("generation_config.json", "eos_token_id", json!([447]))]
    {
        let mut settings = read_json(&model.join(file));
        settings[name] = value;
        fs::write(model.join(file), settings.to_string()).unwrap();
    }
    text(&model).to_string()
}

/// Asks for eight answers of 240 tokens each.
fn long() -> Value {
    let mut asked = completion("Say hello");
    let more = json!({"n": 8, "temperature": 2, "max_tokens": 240, "seed": 1});
    asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    asked
}

/// An adapter of the toy model, in the folder of a run.
fn tuned(dir: &Path) -> String {
    succeeds(train(&dir.join("run"), &["train.max_steps=20", "train.learning_rate=0.01"], &["-q"]));
    text(&dir.join("run")).to_string()
}
