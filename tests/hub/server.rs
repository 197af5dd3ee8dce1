//! A model hub on the loopback interface, as far as its clients ask: repository information, listings, HEAD and GET
//! with Range, large files behind a redirect to a storage host. It can be told to misbehave, and records every request.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The connection closes when this many bytes of the file have been sent, counting from its beginning.
    EndsAt(usize),
    /// The same, but no length was announced: to the client it looks like the end.
    EndsQuietlyAt(usize),
    /// The whole file comes, whatever range was asked for.
    IgnoresRange,
    /// Nothing comes after this many bytes, and the connection stays open.
    StallsAt(usize),
    /// Other bytes, as many.
    OtherBytes,
    /// The storage host announces and sends one byte less.
    Short,
    /// One byte more than listed, without announcing a length.
    Long,
    /// HEAD says another size than the listing.
    WrongHead,
    /// GET fails with this status and a page of text, HEAD does not.
    GetStatus(u16),
    /// HEAD does not answer.
    StallsAtHead,
    /// It comes in four parts, this far apart.
    Slow(Duration),
}

#[derive(Clone)]
pub struct RepoFile {
    pub bytes: Vec<u8>,
    /// Large files have their SHA-256 as etag and come from the storage host.
    pub large: bool,
    pub fault: Option<Fault>,
    pub etag: Option<String>,
}

#[derive(Clone)]
pub struct Repository {
    pub commit: String,
    pub revisions: Vec<String>,
    pub files: BTreeMap<String, RepoFile>,
    /// Only for this token.
    pub gated: Option<String>,
    /// Its new id, to which every request is redirected.
    pub moved: Option<String>,
}

impl Repository {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let file =
            |bytes: &[u8]| RepoFile { bytes: bytes.to_vec(), large: bytes.len() > 4096, fault: None, etag: None };
        let files: BTreeMap<_, _> = files.iter().map(|(path, bytes)| (path.to_string(), file(bytes))).collect();
        Self { commit: "c0ffee".repeat(6) + "0123", revisions: vec!["main".into()], files, gated: None, moved: None }
    }

    /// The files of a folder.
    pub fn of(dir: &std::path::Path) -> Self {
        let mut repository = Self::new(&[]);
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            repository.add(path.file_name().unwrap().to_str().unwrap(), &std::fs::read(&path).unwrap());
        }
        repository
    }

    pub fn add(&mut self, path: &str, bytes: &[u8]) {
        self.files.extend(Self::new(&[(path, bytes)]).files);
    }

    pub fn file(&mut self, path: &str) -> &mut RepoFile {
        self.files.get_mut(path).unwrap()
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub target: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Whether it came to the storage host.
    pub storage: bool,
}

#[derive(Default)]
struct State {
    /// `models/org/name` or `datasets/org/name`
    repositories: BTreeMap<String, Repository>,
    log: Vec<Request>,
}

pub struct Hub {
    state: Arc<Mutex<State>>,
    pub endpoint: String,
}

impl Hub {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (front, storage) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, storage_address) = (address(&front), address(&storage));
        for (listener, is_storage) in [(front, false), (storage, true)] {
            let (state, storage_address) = (state.clone(), storage_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, storage_address) = (state.clone(), storage_address.clone());
                    std::thread::spawn(move || serve(stream.unwrap(), &state, &storage_address, is_storage));
                }
            });
        }
        Self { state, endpoint }
    }

    pub fn with(kind: &str, id: &str, repository: Repository) -> Self {
        let hub = Self::start();
        hub.put(kind, id, repository);
        hub
    }

    pub fn put(&self, kind: &str, id: &str, repository: Repository) {
        self.state.lock().unwrap().repositories.insert(format!("{kind}/{id}"), repository);
    }

    /// Changes the repository that was put last.
    pub fn change(&self, change: impl FnOnce(&mut Repository)) {
        change(self.state.lock().unwrap().repositories.values_mut().next_back().unwrap());
    }

    /// The requests since the last call.
    pub fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

/// Entries of a page of a listing.
const PAGE: usize = 4;

/// Status, headers, body.
type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

fn serve(stream: TcpStream, state: &Mutex<State>, storage_address: &str, storage: bool) {
    let mut reader = BufReader::new(stream);
    let Some((request, body_length)) = read_head(&mut reader, storage) else { return };
    let _body = reader.by_ref().take(body_length).read_to_end(&mut vec![]);
    let mut stream = reader.into_inner();
    let path = request.target.split('?').next().unwrap().to_string();
    let repositories = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        state.repositories.clone()
    };
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (is_api, segments) = match segments.as_slice() {
        ["api", rest @ ..] => (true, rest.to_vec()),
        ["datasets", ..] => (false, segments),
        _ => (false, [&["models"], segments.as_slice()].concat()),
    };
    let key = segments.iter().take(3).copied().collect::<Vec<_>>().join("/");
    let rest = segments.get(3..).unwrap_or_default();
    let Some(repository) = repositories.get(&key) else {
        return write_answer(&mut stream, &request, error(401, "RepoNotFound", "Repository Not Found"));
    };
    if let Some(id) = &repository.moved {
        let location = request.target.replace(key.split_once('/').unwrap().1, id);
        return write_answer(&mut stream, &request, (307, vec![("Location", location)], vec![]));
    }
    let answer = match (is_api, rest) {
        (true, []) => information(&key, repository),
        (true, ["revision", revision]) => match known(repository, revision) {
            true => information(&key, repository),
            false => error(404, "RevisionNotFound", "Invalid rev id"),
        },
        (true, ["tree", ..]) => tree(repository, &request.target),
        (false, ["resolve", revision, file @ ..]) if known(repository, revision) => {
            return serve_file(&mut stream, &request, repository, &file.join("/"), storage_address);
        }
        _ => error(404, "EntryNotFound", "Entry not found"),
    };
    write_answer(&mut stream, &request, answer);
}

fn read_head(reader: &mut BufReader<TcpStream>, storage: bool) -> Option<(Request, u64)> {
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let header = |name: &str| {
        let value = |line: &String| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_string()));
        lines.iter().skip(1).filter_map(value).find(|(n, _)| n == name).map(|(_, value)| value)
    };
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_string(), first.next()?.to_string());
    let body_length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let (range, authorization) = (header("range"), header("authorization"));
    Some((Request { method, target, range, authorization, storage }, body_length))
}

fn known(repository: &Repository, revision: &str) -> bool {
    let revision = revision.replace("%2F", "/");
    revision == repository.commit || repository.revisions.contains(&revision)
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    (status, vec![("X-Error-Code", code.into()), ("X-Error-Message", message.into())], vec![])
}

fn information(key: &str, repository: &Repository) -> Answer {
    let siblings: Vec<_> = repository.files.keys().map(|path| serde_json::json!({ "rfilename": path })).collect();
    let id = key.split_once('/').unwrap().1;
    let body = serde_json::json!({ "id": id, "sha": repository.commit, "siblings": siblings, "private": false });
    (200, vec![("Content-Type", "application/json".into())], body.to_string().into_bytes())
}

/// A page of the listing, with the address of the next if there is one.
fn tree(repository: &Repository, target: &str) -> Answer {
    let entry = |(path, file): (&String, &RepoFile)| {
        let mut entry = serde_json::json!({
            "type": "file", "oid": "0".repeat(40), "size": file.bytes.len(), "path": path,
        });
        if file.large {
            entry["lfs"] = serde_json::json!({ "oid": etag(file), "size": file.bytes.len(), "pointerSize": 134 });
        }
        entry
    };
    let (page, start) =
        target.split_once("cursor=").map_or((target, 0), |(page, start)| (page, start.parse().unwrap()));
    let mut entries: Vec<_> = repository.files.iter().skip(start).take(PAGE).map(entry).collect();
    if start == 0 {
        entries.push(serde_json::json!({ "type": "directory", "oid": "0".repeat(40), "size": 0, "path": "folder" }));
    }
    let mut headers = vec![("Content-Type", "application/json".to_string())];
    if start + PAGE < repository.files.len() {
        let separator = if page.ends_with(['?', '&']) || !page.contains('?') { "" } else { "&" };
        let question = if page.contains('?') { "" } else { "?" };
        headers.push(("Link", format!("<{page}{question}{separator}cursor={}>; rel=\"next\"", start + PAGE)));
    }
    (200, headers, serde_json::to_vec(&entries).unwrap())
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn etag(file: &RepoFile) -> String {
    let digits = if file.large { 64 } else { 40 };
    file.etag.clone().unwrap_or_else(|| sha256(&file.bytes)[..digits].to_string())
}

fn serve_file(stream: &mut TcpStream, request: &Request, repository: &Repository, path: &str, storage: &str) {
    let Some(file) = repository.files.get(path) else {
        return write_answer(stream, request, error(404, "EntryNotFound", "Entry not found"));
    };
    if !request.storage && repository.gated.is_some() {
        let wanted = repository.gated.as_ref().map(|token| format!("Bearer {token}"));
        match &request.authorization {
            None => return write_answer(stream, request, error(401, "GatedRepo", "Access to model is restricted")),
            Some(_) if request.authorization != wanted => {
                return write_answer(stream, request, error(403, "GatedRepo", "not in the authorized list"));
            }
            Some(_) => {}
        }
    }
    let size = file.bytes.len() + usize::from(file.fault == Some(Fault::WrongHead));
    let mut headers = vec![("X-Repo-Commit", repository.commit.clone()), ("Accept-Ranges", "bytes".into())];
    if request.method == "HEAD" && file.fault == Some(Fault::StallsAtHead) {
        return std::thread::sleep(Duration::from_secs(20));
    }
    if file.large && !request.storage {
        headers.push(("X-Linked-Etag", format!("\"{}\"", etag(file))));
        headers.push(("X-Linked-Size", size.to_string()));
        headers.push(("Location", format!("{storage}{}?signature=s3cret", request.target)));
        return write_answer(stream, request, (302, headers, vec![]));
    }
    // A storage host has etags of its own.
    headers.push(("ETag", if file.large { "\"other\"".into() } else { format!("\"{}\"", etag(file)) }));
    if request.method == "HEAD" {
        headers.push(("Content-Length", size.to_string()));
        return write_answer(stream, request, (200, headers, vec![]));
    }
    if let Some(Fault::GetStatus(status)) = file.fault {
        return write_answer(stream, request, (status, vec![], b"<html>this is not the file</html>".to_vec()));
    }
    send_bytes(stream, request, file, headers);
}

/// The bytes that are asked for, with the file's faults.
fn send_bytes(stream: &mut TcpStream, request: &Request, file: &RepoFile, mut headers: Vec<(&str, String)>) {
    let mut bytes = file.bytes.clone();
    match file.fault {
        Some(Fault::OtherBytes) => bytes.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Short) => drop(bytes.pop()),
        Some(Fault::Long) => bytes.push(0),
        _ => {}
    }
    let start = request
        .range
        .as_ref()
        .map(|range| range.trim_start_matches("bytes=").split('-').next().unwrap().parse::<usize>().unwrap());
    let (status, start) = match start {
        Some(start) if file.fault != Some(Fault::IgnoresRange) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
            (206, start)
        }
        _ => (200, 0),
    };
    if !matches!(file.fault, Some(Fault::Long | Fault::EndsQuietlyAt(_))) {
        headers.push(("Content-Length", (bytes.len() - start).to_string()));
    }
    let end = match file.fault {
        Some(Fault::EndsAt(end) | Fault::EndsQuietlyAt(end) | Fault::StallsAt(end)) => end.max(start),
        _ => bytes.len(),
    };
    let _ = stream.write_all(head(status, &headers).as_bytes());
    let parts = if matches!(file.fault, Some(Fault::Slow(_))) { 4 } else { 1 };
    for part in bytes[start..end].chunks((end - start).div_ceil(parts).max(1)) {
        let _ = stream.write_all(part);
        if let Some(Fault::Slow(pause)) = file.fault {
            std::thread::sleep(pause);
        }
    }
    if matches!(file.fault, Some(Fault::StallsAt(_))) {
        std::thread::sleep(Duration::from_secs(20));
    }
}

fn head(status: u16, headers: &[(&str, String)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}\r\n")
}

fn write_answer(stream: &mut TcpStream, request: &Request, (status, mut headers, body): Answer) {
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        headers.push(("Content-Length", body.len().to_string()));
    }
    let _ = stream.write_all(head(status, &headers).as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&body);
    }
}
