//! Tokenised samples kept in files: data larger than memory are trained on from there, and the next run with the same
//! data and settings need not tokenise again.
//!
//! A file holds, after [`MAGIC`], the words of the samples (samples.rs), 16 bytes for each of them (its place, its tokens,
//! its labels), and as JSON what it was made of, what was counted, and a checksum of every block before; then the length of
//! that JSON, its checksum, and [`END`]. Its name is a hash of what it was made of. It appears under that name when it is
//! complete; when it is opened, all of it is checked.

use super::dataset::Counts;
use super::samples::{BLOCK_BYTES, Entry, Origin, Samples, WORD_BYTES, Writer, words_of};
use super::{Cache, Example};
use crate::checkpoint::write_atomic;
use crate::console::log;
use crate::error::listing;
use anyhow::{Context, Result, anyhow};
use indicatif::DecimalBytes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"asft samples v1\n";
const END: &[u8; 8] = b"samples.";
/// After the JSON: its length, its checksum, and the end mark.
const TAIL_BYTES: u64 = 8 + 4 + 8;
const ENTRY_BYTES: usize = 16;
/// Most JSON that is read: a checksum for each block, of 4 TB.
const JSON_LIMIT: u64 = 32 << 20;
/// Data files of fewer bytes are tokenised again each time, unless a folder is named: that takes seconds.
const WORTH_KEEPING: u64 = 64 << 20;
/// The folder beside a run's.
const FOLDER: &str = "asft-cache";

/// Where tokenised samples are kept.
pub struct CacheFolder {
    folder: PathBuf,
    /// Bytes that data files must have.
    from_bytes: u64,
}

impl CacheFolder {
    /// `run`: the output folder.
    pub fn new(cache: &Cache, run: &Path) -> Option<Self> {
        match cache {
            Cache::Use(false) => None,
            Cache::Use(true) => {
                let beside = run.parent().unwrap_or(Path::new(""));
                Some(Self { folder: beside.join(FOLDER), from_bytes: WORTH_KEEPING })
            }
            Cache::Folder(folder) => Some(Self { folder: folder.into(), from_bytes: 0 }),
        }
    }

    /// Whether samples of data files of so many bytes are kept.
    pub fn is_for(&self, bytes: u64) -> bool {
        bytes >= self.from_bytes
    }

    /// The file for samples that `made_of` determines.
    pub fn file(&self, made_of: &Value) -> PathBuf {
        let name = blake3::hash(made_of.to_string().as_bytes()).to_hex();
        self.folder.join(format!("{:.32}.samples", name.as_str()))
    }
}

/// What reading data files told, besides their samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub counts: Counts,
    /// Each with its fields.
    pub warnings: Vec<(String, Value)>,
}

/// The JSON of a file.
#[derive(Serialize, Deserialize)]
struct About {
    made_of: Value,
    told: Told,
    samples: usize,
    words: u64,
    /// Of every block up to here.
    checksums: Vec<u32>,
}

/// Takes in one sample after another.
pub type Sink<'a> = dyn FnMut(&Example, Origin) -> Result<()> + 'a;

/// The samples in the file at `path`, which `make` makes first unless they are there and sound. `made_of`: all that
/// determines them.
///
/// # Errors
/// As `make`; the file cannot be written.
pub fn open_or_make(
    path: &Path,
    made_of: &Value,
    make: impl FnOnce(&mut Sink) -> Result<Told>,
) -> Result<(Samples, Told)> {
    // Another process, or a rank of this run, may be making the same.
    let _lock = match open(path, made_of) {
        Ok(Some(found)) => return Ok(told_of(found, path)),
        Ok(None) => Lock::wait(path),
        Err(error) => {
            let text = format!("{} cannot be used, and is made again: {error:#}", path.display());
            log::warn(&text, json!({"cache": path}));
            Lock::wait(path)
        }
    };
    if let Ok(Some(found)) = open(path, made_of) {
        return Ok(told_of(found, path));
    }
    // What is wrong with the data has nothing to do with the file.
    let mut failed = None;
    let written = write_atomic(path, |file| {
        let make = |sink: &mut Sink| {
            make(sink).map_err(|error| {
                failed = Some(error);
                anyhow!("there are no samples")
            })
        };
        write(file, made_of, make)
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written.context("data.cache")?;
    let (samples, told) = open(path, made_of)?.with_context(|| format!("{} is gone", path.display()))?;
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let text = format!(
        "the tokenised samples are kept in {} ({}): runs with the same data and settings read them from there",
        path.display(),
        DecimalBytes(bytes)
    );
    log::info(&text, json!({"cache": path, "bytes": bytes}));
    Ok((samples, told))
}

fn told_of(found: (Samples, Told), path: &Path) -> (Samples, Told) {
    let text = format!("samples tokenised earlier are read from {}", path.display());
    log::info(&text, json!({"cache": path}));
    found
}

/// Held while a file is made; others wait for it, where the file system has locks.
struct Lock {
    path: PathBuf,
    _file: Option<File>,
}

impl Lock {
    fn wait(samples: &Path) -> Self {
        let path = samples.with_extension("lock");
        // What is wrong with the folder is told when the samples are written.
        let _made = samples.parent().map(std::fs::create_dir_all);
        let file = File::create(&path).ok();
        if let Some(Err(TryLockError::WouldBlock)) = file.as_ref().map(File::try_lock) {
            let text = format!("another process makes {}: waiting for it", samples.display());
            log::info(&text, json!({"cache": samples}));
            let _without_locks = file.as_ref().map(File::lock);
        }
        Self { path, _file: file }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _it_is_gone = std::fs::remove_file(&self.path);
    }
}

fn write(file: &mut File, made_of: &Value, make: impl FnOnce(&mut Sink) -> Result<Told>) -> Result<()> {
    let mut writer = Writer::new(file);
    writer.add(MAGIC)?;
    let told = make(&mut |example, origin| writer.push(example, origin))?;
    let (words, index) = (writer.end, std::mem::take(&mut writer.index));
    for entry in &index {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&entry.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.tokens.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.label_tokens.to_le_bytes());
        writer.add(&bytes)?;
    }
    let (made_of, samples, checksums) = (made_of.clone(), index.len(), writer.finish()?);
    let about = serde_json::to_vec(&About { made_of, told, samples, words, checksums })?;
    file.write_all(&about)?;
    file.write_all(&(about.len() as u64).to_le_bytes())?;
    file.write_all(&crc32c::crc32c(&about).to_le_bytes())?;
    Ok(file.write_all(END)?)
}

/// The samples in a file; `None` if there is none.
///
/// # Errors
/// The file is damaged, cut short, or made of something else.
fn open(path: &Path, made_of: &Value) -> Result<Option<(Samples, Told)>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let cut = "it is cut short or no file of samples";
    let (about, length) = about(&file)?.context(cut)?;
    let About { told, samples, words, checksums, .. } = &about;
    let differing = differing(&about.made_of, made_of);
    anyhow::ensure!(differing.is_empty(), "it was made with other settings or data: {}", listing(&differing, 8));
    check_blocks(&file, length, checksums)?;
    let index_at = MAGIC.len() as u64 + words.checked_mul(WORD_BYTES).context(cut)?;
    let index_bytes = samples.checked_mul(ENTRY_BYTES).context(cut)?;
    anyhow::ensure!(index_at.checked_add(index_bytes as u64) == Some(length), "{cut}");
    let mut bytes = vec![0; index_bytes];
    file.read_exact_at(&mut bytes, index_at)?;
    let words_of_index: Vec<u32> = words_of(&bytes).collect();
    let entry = |&[low, high, tokens, label_tokens]: &[u32; 4]| Entry {
        at: u64::from(low) | u64::from(high) << 32,
        tokens,
        label_tokens,
    };
    let index = words_of_index.as_chunks().0.iter().map(entry).collect();
    let samples = Samples::in_file(file, path.to_path_buf(), MAGIC.len() as u64, index, *words);
    Ok(Some((samples, told.clone())))
}

/// The JSON at a file's end, and where it begins; `None` if that is not what is there.
fn about(file: &File) -> Result<Option<(About, u64)>> {
    let length = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    let Some(tail_at) = length.checked_sub(TAIL_BYTES).filter(|at| *at > MAGIC.len() as u64) else { return Ok(None) };
    file.read_exact_at(&mut magic, 0)?;
    let mut tail = [0; TAIL_BYTES as usize];
    file.read_exact_at(&mut tail, tail_at)?;
    let (size, rest) = tail.split_at(8);
    let (checksum, end) = rest.split_at(4);
    let size = size.iter().rev().fold(0, |size, &byte| size << 8 | u64::from(byte));
    let start = tail_at.checked_sub(size).filter(|_| size <= JSON_LIMIT);
    let Some(start) = start.filter(|_| magic == *MAGIC && end == END) else { return Ok(None) };
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, start)?;
    if crc32c::crc32c(&bytes).to_le_bytes() != *checksum {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&bytes).ok().map(|about| (about, start)))
}

/// Compares all blocks before byte `length` with their checksums.
fn check_blocks(file: &File, length: u64, checksums: &[u32]) -> Result<()> {
    let block = BLOCK_BYTES as u64;
    // The last one is shorter, perhaps empty.
    anyhow::ensure!(checksums.len() as u64 == length / block + 1, "it has {} checksums", checksums.len());
    checksums.par_iter().enumerate().try_for_each(|(i, expected)| {
        let at = i as u64 * block;
        let mut bytes = vec![0; block.min(length - at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        anyhow::ensure!(crc32c::crc32c(&bytes) == *expected, "it is damaged in the {block} bytes from byte {at} on");
        Ok(())
    })
}

/// The keys by which two lists of what samples were made of differ.
fn differing(one: &Value, other: &Value) -> Vec<String> {
    let keys = |value: &Value| value.as_object().map_or(vec![], |fields| fields.keys().cloned().collect::<Vec<_>>());
    let mut names = keys(one);
    names.extend(keys(other).into_iter().filter(|name| one.get(name).is_none()));
    names.retain(|name| one.get(name) != other.get(name));
    names
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;

    fn make(sink: &mut Sink) -> Result<Told> {
        for i in 0..3000_u32 {
            let ids: Vec<u32> = (0..500).map(|k| i * 7 + k).collect();
            let labels = ids.iter().map(|&id| i64::from(id)).collect();
            sink(&Example { input_ids: ids, labels }, Origin { file: 0, place: Place::Line(i as usize) })?;
        }
        Ok(Told { warnings: vec![("odd".to_string(), json!({"n": 1}))], ..Told::default() })
    }

    fn never(_: &mut Sink) -> Result<Told> {
        anyhow::bail!("it is made again")
    }

    #[test]
    fn what_was_made_is_read_again_unless_it_is_damaged_or_other() {
        let dir = tempfile::tempdir().unwrap();
        let place = CacheFolder { folder: dir.path().join("deep"), from_bytes: 0 };
        let made_of = json!({"files": ["abc"], "max_length": 9});
        let path = place.file(&made_of);
        let (samples, told) = open_or_make(&path, &made_of, make).unwrap();
        let (again, told_again) = open_or_make(&path, &made_of, never).unwrap();
        assert_eq!((samples.len(), again.len(), &told), (3000, 3000, &told_again));
        for i in [0, 1, 2999] {
            assert_eq!(samples.read(i).unwrap(), again.read(i).unwrap());
        }
        let other = json!({"files": ["abc"], "max_length": 8});
        assert!(place.file(&other) != path);
        let error = open(&path, &other).unwrap_err().to_string();
        assert!(error.contains("other settings or data: max_length"), "{error}");
        let whole = std::fs::read(&path).unwrap();
        assert!(whole.len() > BLOCK_BYTES, "more than one block");
        for at in [3, 1000, BLOCK_BYTES + 7, whole.len() - 40, whole.len() - 3] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(open(&path, &made_of).is_err(), "a flipped bit in byte {at}");
        }
        for length in [0, 10, 100, BLOCK_BYTES, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = open(&path, &made_of).unwrap_err().to_string();
            assert!(error.contains("cut short"), "{length}: {error}");
        }
        assert!(format!("{:#}", open_or_make(&path, &made_of, never).unwrap_err()).contains("it is made again"));
        open_or_make(&path, &made_of, make).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn of_several_that_need_the_same_one_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, made_of) = (dir.path().join("a.samples"), json!({"files": 1}));
        let made = std::sync::atomic::AtomicUsize::new(0);
        let one = || {
            let slowly = |sink: &mut Sink| {
                made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(300));
                make(sink)
            };
            open_or_make(&path, &made_of, slowly).unwrap().0.len()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 3000));
        });
        assert_eq!(made.into_inner(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn small_data_are_kept_where_a_folder_is_named() {
        let run = Path::new("runs/x");
        let place = |cache: &Cache| CacheFolder::new(cache, run);
        assert!(place(&Cache::Use(false)).is_none());
        let beside = place(&Cache::Use(true)).unwrap();
        assert!(beside.is_for(WORTH_KEEPING) && !beside.is_for(1000));
        assert!(beside.file(&json!({})).starts_with("runs/asft-cache"));
        assert!(place(&Cache::Folder("a".into())).unwrap().is_for(1));
    }
}
