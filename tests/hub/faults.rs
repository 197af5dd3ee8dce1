//! What goes wrong with models: each is named, has the right exit code and leaves nothing wrong in the cache.

use super::server::{Fault, Hub, Repository, sha256};
use super::support::files;
use super::{assert_cache_is_right, eval, fails, file_requests, loss, names};
use std::time::Duration;

const WEIGHTS: &str = "model.safetensors";

fn tiny() -> Repository {
    Repository::of(&files::tiny("aligned"))
}

#[test]
fn what_the_user_can_put_right_is_told() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    let mut no_weights = tiny();
    no_weights.files.remove(WEIGHTS);
    no_weights.add("pytorch_model.bin", b"pickle");
    hub.put("models", "org/pickled", no_weights);
    let mut adapter = tiny();
    adapter.files.remove("config.json");
    hub.put("models", "org/adapter", adapter);
    fails(eval(&hub, home.path(), "org/adapter"), 2, &["no config.json", WEIGHTS]);
    let private = ["org/nothing", "not on http://127.0.0.1", "private", "HF_TOKEN"];
    fails(eval(&hub, home.path(), "org/nothing"), 2, &private);
    fails(eval(&hub, home.path(), "org/tiny@v9"), 2, &["org/tiny", "v9", "not this revision"]);
    let missing = format!("org/tiny@{}", "0".repeat(40));
    fails(eval(&hub, home.path(), &missing), 2, &["not this revision"]);
    fails(eval(&hub, home.path(), "org/tiny@../x"), 2, &["cannot be a revision"]);
    fails(eval(&hub, home.path(), "org/pickled"), 2, &["no model.safetensors", "pytorch_model.bin"]);
    let mut command = eval(&hub, home.path(), "org/nothing");
    command.env("HF_TOKEN", "hf_some");
    fails(command, 2, &["no access"]);
    assert_eq!(names(&home), [""; 0]);
    for (variable, value) in [("HF_ENDPOINT", "nonsense"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")] {
        let mut command = eval(&hub, home.path(), "org/tiny");
        command.env(variable, value);
        fails(command, 2, &[variable]);
    }
}

#[test]
fn gated_models_ask_for_a_token() {
    let home = tempfile::tempdir().unwrap();
    let mut repository = tiny();
    repository.gated = Some("hf_good".into());
    let hub = Hub::with("models", "org/tiny", repository);
    let page = format!("{}/org/tiny", hub.endpoint);
    fails(eval(&hub, home.path(), "org/tiny"), 2, &["HTTP 401", "accept the conditions", &page, "HF_TOKEN"]);
    let mut command = eval(&hub, home.path(), "org/tiny");
    command.env("HF_TOKEN", "hf_other");
    fails(command, 2, &["HTTP 403", "no access", &page]);
    assert_eq!(names(&home), [""; 0]);
}

#[test]
fn a_listing_that_leads_out_of_the_repository_is_refused() {
    for path in ["../../../outside.json", "/etc/outside.json", "a/../../../b.json", "..\\outside.json"] {
        let outer = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir_in(outer.path()).unwrap();
        let mut repository = tiny();
        repository.add(path, b"{}");
        let hub = Hub::with("models", "org/tiny", repository);
        fails(
            eval(&hub, home.path(), "org/tiny"),
            2,
            &["leads out of it", "outside.json"]
                .map(|n| if n == "outside.json" && path.ends_with("b.json") { "b.json" } else { n }),
        );
        assert!(file_requests(&hub.log()).is_empty());
        assert_eq!(super::contents(outer.path()).len(), 0, "{path}");
    }
}

#[test]
fn names_from_the_server_do_not_become_paths() {
    let outer = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir_in(outer.path()).unwrap();
    let mut repository = tiny();
    repository.file("config.json").etag = Some("../../../../outside".into());
    let hub = Hub::with("models", "org/tiny", repository);
    fails(eval(&hub, home.path(), "org/tiny"), 1, &["etag", "outside"]);
    hub.change(|repository| repository.commit = "../../../outside".into());
    fails(eval(&hub, home.path(), "org/tiny"), 2, &["commit", "outside"]);
    assert!(!super::contents(outer.path()).keys().any(|name| name.contains("outside")));
}

/// One file of the model is faulty; the next run, without the fault, is right.
#[track_caller]
fn recovers_from(fault: Fault, path: &str, needles: &[&str]) -> Vec<super::Request> {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    hub.change(|repository| repository.file(path).fault = Some(fault));
    let mut command = eval(&hub, home.path(), "org/tiny");
    if matches!(fault, Fault::StallsAt(_) | Fault::StallsAtHead) {
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    }
    fails(command, 1, &[&["org/tiny", path], needles].concat());
    assert_cache_is_right(&home, &tiny().files);
    // An incomplete snapshot is not what the branch points to.
    assert!(!home.path().join("hub/models--org--tiny/refs/main").exists());
    hub.change(|repository| repository.file(path).fault = None);
    hub.log();
    loss(eval(&hub, home.path(), "org/tiny"));
    assert_cache_is_right(&home, &tiny().files);
    assert!(!names(&home).iter().any(|name| name.ends_with(".incomplete")));
    hub.log().into_iter().filter(|request| request.method == "GET" && request.target.contains(path)).collect()
}

#[test]
fn wrong_content_never_gets_a_name() {
    recovers_from(Fault::OtherBytes, WEIGHTS, &["not what the hub says", "SHA-256"]);
    recovers_from(Fault::Short, WEIGHTS, &["wrong size"]);
    recovers_from(Fault::Long, WEIGHTS, &["wrong size"]);
    recovers_from(Fault::Long, "config.json", &["wrong size"]);
    recovers_from(Fault::WrongHead, WEIGHTS, &["wrong size"]);
    recovers_from(Fault::GetStatus(404), WEIGHTS, &["storage host", "404"]);
    recovers_from(Fault::GetStatus(403), WEIGHTS, &["storage host", "403"]);
}

#[test]
fn server_errors_are_failures() {
    recovers_from(Fault::GetStatus(500), "config.json", &["HTTP 500"]);
}

#[test]
fn a_broken_download_is_resumed() {
    let size = tiny().file(WEIGHTS).bytes.len();
    let half = size / 2;
    let needles = ["broke off", &format!("after {half} of {size} bytes"), "goes on from there"];
    for fault in [Fault::EndsAt(half), Fault::EndsQuietlyAt(half), Fault::StallsAt(half)] {
        // To the hub and, behind its redirect, to the storage host.
        for request in recovers_from(fault, WEIGHTS, &needles) {
            assert_eq!(request.range, Some(format!("bytes={half}-")), "{request:?}");
        }
    }
}

#[test]
fn a_server_without_ranges_is_begun_anew() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    hub.change(|repository| repository.file(WEIGHTS).fault = Some(Fault::EndsAt(5000)));
    fails(eval(&hub, home.path(), "org/tiny"), 1, &["after 5000 of"]);
    hub.change(|repository| repository.file(WEIGHTS).fault = Some(Fault::IgnoresRange));
    loss(eval(&hub, home.path(), "org/tiny"));
    assert_cache_is_right(&home, &tiny().files);
}

#[test]
fn silence_has_an_end() {
    recovers_from(Fault::StallsAtHead, "config.json", &["no answer for 1 s", "HF_HUB_DOWNLOAD_TIMEOUT"]);
    recovers_from(Fault::StallsAt(0), WEIGHTS, &["no data for 1 s"]);
}

#[test]
fn slowness_is_no_fault_and_two_runs_share_one_download() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    // Longer in total than the longest silence allowed.
    hub.change(|repository| repository.file(WEIGHTS).fault = Some(Fault::Slow(Duration::from_millis(700))));
    let run = || {
        let mut command = eval(&hub, home.path(), "org/tiny");
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
        loss(command)
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(run);
        }
    });
    assert_cache_is_right(&home, &tiny().files);
    let got = file_requests(&hub.log()).into_iter().filter(|request| request == "GET model.safetensors").count();
    assert_eq!(got, 1);
}

#[test]
fn a_file_that_changed_meanwhile_is_begun_anew() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    hub.change(|repository| repository.file(WEIGHTS).fault = Some(Fault::EndsAt(5000)));
    fails(eval(&hub, home.path(), "org/tiny"), 1, &["broke off"]);
    let mut other = Repository::of(&files::tiny("unaligned"));
    other.commit = "d".repeat(40);
    hub.put("models", "org/tiny", other.clone());
    hub.log();
    loss(eval(&hub, home.path(), "org/tiny"));
    let gets: Vec<_> = hub.log().into_iter().filter(|r| r.method == "GET" && r.target.contains(WEIGHTS)).collect();
    assert!(!gets.is_empty() && gets.iter().all(|request| request.range.is_none()), "{gets:?}");
    let fetched = std::fs::read(home.path().join("hub/models--org--tiny/snapshots").join(&other.commit).join(WEIGHTS));
    assert_eq!(sha256(&fetched.unwrap()), sha256(&other.file(WEIGHTS).bytes));
}

#[test]
fn a_part_that_is_not_of_this_file_is_found_out() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::with("models", "org/tiny", tiny());
    hub.change(|repository| repository.file(WEIGHTS).fault = Some(Fault::EndsAt(5000)));
    fails(eval(&hub, home.path(), "org/tiny"), 1, &["broke off"]);
    let blobs = home.path().join("hub/models--org--tiny/blobs");
    let part = blobs.join(sha256(&tiny().file(WEIGHTS).bytes) + ".incomplete");
    assert_eq!(std::fs::metadata(&part).unwrap().len(), 5000);
    std::fs::write(&part, [1; 5000]).unwrap();
    hub.change(|repository| repository.file(WEIGHTS).fault = None);
    fails(eval(&hub, home.path(), "org/tiny"), 1, &["not what the hub says"]);
    assert_cache_is_right(&home, &tiny().files);
    loss(eval(&hub, home.path(), "org/tiny"));
}

#[test]
fn no_hub_is_a_failure() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start();
    let mut command = eval(&hub, home.path(), "org/tiny");
    // The discard port: nothing listens there.
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    fails(command, 1, &["org/tiny", "http://127.0.0.1:9 could not be reached", "HF_HUB_OFFLINE=1"]);
    assert_eq!(names(&home), [""; 0]);
}
