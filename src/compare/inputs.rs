//! The files that a result depends on besides models and config, by content: a change to one makes results stale.

use crate::config::Settings;
use crate::data::Template;
use crate::hub::{self, Split};
use crate::report::hash_files;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file's name in config or suite, and the beginning of its content's BLAKE3, in hex.
pub type Contents = BTreeMap<String, String>;

const DIGITS: usize = 16;

/// The local files that a run trains on: samples, its template and its direction. Those `known` are not read again; the others become known. Missing files are
/// left for the run to report.
///
/// # Errors
/// A file that cannot be read.
pub fn of_run(settings: &Settings, known: &mut Contents) -> Result<Contents> {
    let data = &settings.data;
    let (sources, own) = (data.sources(), settings.defence.files());
    let sources = sources.iter().map(|listed| &listed.source.path);
    let named = sources.chain(data.validation_file()).chain(own);
    // Nothing is fetched for what is on this machine.
    let local = named.filter(|name| hub::is_local(name));
    let samples =
        local.filter_map(|name| Some((name.as_str(), hub::resolve_dataset(name, Split::Train, true).ok()?.paths)));
    let others = Template::file(&data.template).into_iter().chain(settings.asft.direction.as_deref());
    let found = samples.chain(others.map(|name| (name, vec![PathBuf::from(name)])));
    of_files(found.filter(|(_, paths)| paths.iter().all(|path| path.is_file())), known)
}

/// Files, or several of one dataset, by its name.
///
/// # Errors
/// A file that cannot be read.
pub fn of_files<'a>(files: impl Iterator<Item = (&'a str, Vec<PathBuf>)>, known: &mut Contents) -> Result<Contents> {
    let mut found = Contents::new();
    for (name, paths) in files {
        let hash = match known.get(name) {
            Some(hash) => hash.clone(),
            None => hash_files(&paths)?.chars().take(DIGITS).collect(),
        };
        known.insert(name.to_string(), hash.clone());
        found.insert(name.to_string(), hash);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_a_run_reads_is_known_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let names = ["train.jsonl", "validation.jsonl", "safety.jsonl", "prompts.jsonl", "chat.jinja", "v.safetensors"];
        let [train, validation, safety, prompts, template, direction] = names.map(file);
        let words = [
            format!("data.train={train:?}"),
            format!("data.validation={validation:?}"),
            format!("defence.alignment_data={safety:?}"),
            format!("defence.prompts={prompts:?}"),
            format!("data.template={template:?}"),
            format!("asft.direction={direction:?}"),
        ];
        let text = format!("model.aligned = 'a'\n{}\noutput.dir = 'd'", words.join("\n"));
        let settings: Settings = toml::from_str(&text).unwrap();
        let now = || of_run(&settings, &mut Contents::new()).unwrap();
        assert_eq!(now(), Contents::new());
        for name in names {
            std::fs::write(file(name), "one").unwrap();
        }
        let before = now();
        assert_eq!(before.len(), names.len(), "{before:?}");
        for name in names {
            std::fs::write(file(name), "other").unwrap();
            assert_ne!(now()[&file(name)], before[&file(name)], "{name}");
        }
        // A built-in template is no file.
        assert_eq!((Template::file("asft-sst2"), Template::file("tokenizer")), (None, None));
    }
}
