//! A file of samples.
//!
//! It holds, after [`MAGIC`], the words of the samples (samples.rs), 16 bytes for each of them (its place, its tokens, its
//! labels), and as JSON what it was made of, what was counted, and a checksum of every block before; then the length of
//! that JSON, its checksum, and [`END`].

use crate::data::dataset::Counts;
use crate::data::samples::{BLOCK_BYTES, Entry, Samples, WORD_BYTES, Writer, words_of};
use crate::error::listing;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

const MAGIC: &[u8; 16] = b"asft samples v1\n";
const END: &[u8; 8] = b"samples.";
/// After the JSON: its length, its checksum, and the end mark.
const TAIL_BYTES: u64 = 8 + 4 + 8;
const ENTRY_BYTES: usize = 16;
/// Most JSON that is read: a checksum for each block, of 4 TB.
const JSON_LIMIT: u64 = 32 << 20;

/// What reading data files told, besides their samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub counts: Counts,
    pub warnings: Vec<Warning>,
}

/// A warning about one of the files, or all. The files may have other names when it is given again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    pub file: Option<usize>,
    pub text: String,
    pub fields: Value,
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

/// Begins an empty file, to which samples are then added.
///
/// # Errors
/// It cannot be written.
pub fn begin(file: &File) -> Result<Writer<'_>> {
    Writer::after(MAGIC, file)
}

/// Writes what comes after the last sample.
///
/// # Errors
/// As [`begin`].
pub fn finish(writer: &mut Writer, made_of: &Value, told: &Told) -> Result<()> {
    for i in 0..writer.index.len() {
        let Some(&Entry { at, tokens, label_tokens }) = writer.index.get(i) else { break };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&tokens.to_le_bytes());
        bytes[12..].copy_from_slice(&label_tokens.to_le_bytes());
        writer.add(&bytes)?;
    }
    let checksums = writer.finish()?;
    let (made_of, told, samples, words) = (made_of.clone(), told.clone(), writer.index.len(), writer.end);
    let about = serde_json::to_vec(&About { made_of, told, samples, words, checksums })?;
    let mut file = writer.file;
    file.write_all(&about)?;
    file.write_all(&(about.len() as u64).to_le_bytes())?;
    file.write_all(&crc32c::crc32c(&about).to_le_bytes())?;
    Ok(file.write_all(END)?)
}

/// The samples that were written to the file at `path`, whose index is taken from the writer.
///
/// # Errors
/// It cannot be opened.
pub fn written(path: &Path, writer: &mut Writer) -> Result<Samples> {
    let (file, start) = (File::open(path)?, MAGIC.len() as u64);
    Ok(Samples::in_file(file, path.to_path_buf(), start, std::mem::take(&mut writer.index), writer.end))
}

/// The samples in a file; `None` if there is none.
///
/// # Errors
/// The file is damaged, cut short, or made of something else.
pub fn open(path: &Path, made_of: &Value, progress: &ProgressBar) -> Result<Option<(Samples, Told)>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let cut = "it is cut short or no file of samples";
    let (about, length) = about(&file)?.context(cut)?;
    let About { told, samples, words, checksums, .. } = &about;
    let differing = differing(&about.made_of, made_of);
    anyhow::ensure!(differing.is_empty(), "it was made with other settings or data: {}", listing(&differing, 8));
    check_blocks(&file, length, checksums, progress)?;
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
    // By this it is known how long ago it was used; another user's file keeps its time.
    let _unless_it_is_ours = file.set_modified(SystemTime::now());
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
fn check_blocks(file: &File, length: u64, checksums: &[u32], progress: &ProgressBar) -> Result<()> {
    let block = BLOCK_BYTES as u64;
    // The last one is shorter, perhaps empty.
    anyhow::ensure!(checksums.len() as u64 == length / block + 1, "it has {} checksums", checksums.len());
    let before = progress.prefix();
    progress.set_prefix("checking");
    progress.inc_length(length);
    let checked = checksums.par_iter().enumerate().try_for_each(|(i, expected)| {
        let at = i as u64 * block;
        let mut bytes = vec![0; block.min(length - at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        anyhow::ensure!(crc32c::crc32c(&bytes) == *expected, "it is damaged in the {block} bytes from byte {at} on");
        progress.inc(bytes.len() as u64);
        Ok(())
    });
    progress.set_prefix(before);
    checked
}

/// The keys by which two lists of what samples were made of differ.
fn differing(one: &Value, other: &Value) -> Vec<String> {
    let keys = |value: &Value| value.as_object().map_or(vec![], |fields| fields.keys().cloned().collect::<Vec<_>>());
    let mut names = keys(one);
    names.extend(keys(other).into_iter().filter(|name| one.get(name).is_none()));
    names.retain(|name| one.get(name) != other.get(name));
    names
}
