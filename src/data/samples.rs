//! The samples of one source, as words of 32 bits: in memory, or in a file, of which only an index is in memory.
//!
//! A sample is the number of its file, the kind and the number of its place there, its number of tokens n, its number of
//! label runs r, r pairs of positions (begin, end) between which each label is the token itself, and n ids. Labels that are
//! anything else, which only tokenized records have, follow the ids as they are; then r is [`AS_THEY_ARE`].

use super::batch::predicted_labels;
use super::records::Place;
use super::{Example, IGNORE};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// In place of the number of label runs: the labels follow the ids.
const AS_THEY_ARE: u32 = u32::MAX;
/// Bytes of a word in a file.
pub const WORD_BYTES: u64 = 4;

/// Where a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its file among those of its dataset.
    pub file: usize,
    /// Its place there.
    pub place: Place,
}

/// What is known of a sample without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its first word.
    pub at: u64,
    pub tokens: u32,
    /// Those that the loss counts.
    pub label_tokens: u32,
}

/// The samples of one source, in their order.
#[derive(Debug)]
pub struct Samples {
    index: Vec<Entry>,
    words: Words,
    /// Words of all.
    end: u64,
}

#[derive(Debug)]
enum Words {
    Memory(Vec<u32>),
    /// From byte `start` on.
    File {
        file: File,
        start: u64,
        path: PathBuf,
    },
}

impl Default for Samples {
    fn default() -> Self {
        Self { index: vec![], words: Words::Memory(vec![]), end: 0 }
    }
}

impl Samples {
    /// Samples whose words begin at byte `start` of a file.
    pub fn in_file(file: File, path: PathBuf, start: u64, index: Vec<Entry>, end: u64) -> Self {
        Self { index, words: Words::File { file, start, path }, end }
    }

    /// Adds a sample to those in memory.
    pub fn push(&mut self, example: &Example, origin: Origin) {
        let Words::Memory(words) = &mut self.words else { return };
        self.index.push(entry(self.end, example));
        write(example, origin, words);
        self.end = words.len() as u64;
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn entry(&self, sample: usize) -> Option<Entry> {
        self.index.get(sample).copied()
    }

    /// Bytes in memory.
    pub fn resident_bytes(&self) -> usize {
        let words = match &self.words {
            Words::Memory(words) => words.len(),
            Words::File { .. } => 0,
        };
        words * WORD_BYTES as usize + self.index.len() * size_of::<Entry>()
    }

    /// A sample, and where it comes from.
    ///
    /// # Errors
    /// There is no such sample; the file cannot be read, or holds something else.
    pub fn read(&self, sample: usize) -> Result<(Example, Origin)> {
        let range = self.range(sample).with_context(|| format!("there is no sample {sample}"))?;
        match &self.words {
            Words::Memory(words) => words.get(range.start as usize..range.end as usize).and_then(read),
            Words::File { file, start, path } => {
                let mut bytes = vec![0; ((range.end - range.start) * WORD_BYTES) as usize];
                let at = start + range.start * WORD_BYTES;
                file.read_exact_at(&mut bytes, at).with_context(|| format!("reading {}", path.display()))?;
                let words: Vec<u32> = words_of(&bytes).collect();
                read(&words)
            }
        }
        .with_context(|| format!("sample {sample} of the tokenised samples is damaged"))
    }

    fn range(&self, sample: usize) -> Option<Range<u64>> {
        let start = self.index.get(sample)?.at;
        Some(start..self.index.get(sample + 1).map_or(self.end, |next| next.at).max(start))
    }
}

/// The words that bytes stand for, little end first.
pub fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The entry of a sample whose first word is at `at`.
pub fn entry(at: u64, example: &Example) -> Entry {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Entry { at, tokens: count(example.input_ids.len()), label_tokens: count(predicted_labels(&example.labels)) }
}

/// Adds the words of a sample.
pub fn write(example: &Example, origin: Origin, words: &mut Vec<u32>) {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let kind = match origin.place {
        Place::Line(_) => 0,
        Place::Item(_) => 1,
        Place::Row(_) => 2,
    };
    words.extend([number(origin.file), kind, number(origin.place.number()), number(example.input_ids.len())]);
    let runs = runs(example);
    match &runs {
        Some(runs) => {
            words.push(number(runs.len()));
            words.extend(runs.iter().flat_map(|run| [number(run.start), number(run.end)]));
        }
        None => words.push(AS_THEY_ARE),
    }
    words.extend(&example.input_ids);
    if runs.is_none() {
        // An id, or -100: both fit into 32 bits.
        words.extend(example.labels.iter().map(|&label| label as i32 as u32));
    }
}

/// The stretches of labels, if each is the token itself.
fn runs(example: &Example) -> Option<Vec<Range<usize>>> {
    let mut runs: Vec<Range<usize>> = vec![];
    for (i, (&label, &id)) in example.labels.iter().zip(&example.input_ids).enumerate() {
        match runs.last_mut() {
            _ if label == IGNORE => {}
            _ if label != i64::from(id) => return None,
            Some(run) if run.end == i => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    Some(runs)
}

fn read(words: &[u32]) -> Option<(Example, Origin)> {
    let (&[file, kind, number, tokens, count], rest) = words.split_first_chunk()?;
    let number = number as usize;
    let place = match kind {
        0 => Place::Line(number),
        1 => Place::Item(number),
        2 => Place::Row(number),
        _ => return None,
    };
    let runs = if count == AS_THEY_ARE { 0 } else { 2 * count as usize };
    let (runs, rest) = rest.split_at_checked(runs)?;
    let (ids, rest) = rest.split_at_checked(tokens as usize)?;
    let labels = if count == AS_THEY_ARE {
        rest.iter().map(|&label| i64::from(label as i32)).collect()
    } else {
        let mut labels = vec![IGNORE; ids.len()];
        for run in runs.as_chunks::<2>().0 {
            let run = run[0] as usize..run[1] as usize;
            for (label, &id) in labels.get_mut(run.clone())?.iter_mut().zip(ids.get(run)?) {
                *label = i64::from(id);
            }
        }
        labels
    };
    let example = Example { input_ids: ids.to_vec(), labels };
    (example.labels.len() == ids.len()).then_some((example, Origin { file: file as usize, place }))
}

/// Writes samples to a file one after another, block by block, each block with its checksum.
pub struct Writer<'a> {
    pub file: &'a File,
    /// Bytes before the first sample.
    head: usize,
    /// What is not written yet.
    block: Vec<u8>,
    words: Vec<u32>,
    pub index: Vec<Entry>,
    /// Words so far.
    pub end: u64,
    /// The CRC-32C of each whole block that was written.
    checksums: Vec<u32>,
}

/// Bytes of which each has a checksum, but for the last.
pub const BLOCK_BYTES: usize = 4 << 20;

impl<'a> Writer<'a> {
    /// `head`: what the file, which is empty, begins with.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn after(head: &[u8], file: &'a File) -> Result<Self> {
        let empty = Self { file, head: 0, block: vec![], words: vec![], index: vec![], end: 0, checksums: vec![] };
        let mut writer = Self { head: head.len(), ..empty };
        writer.add(head)?;
        Ok(writer)
    }

    /// # Errors
    /// The file cannot be written; [`Writer::recover`] gives the samples so far, this one included.
    pub fn push(&mut self, example: &Example, origin: Origin) -> Result<()> {
        self.index.push(entry(self.end, example));
        self.words.clear();
        write(example, origin, &mut self.words);
        self.end += self.words.len() as u64;
        self.block.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        self.write_blocks()
    }

    /// Adds bytes that are no samples.
    ///
    /// # Errors
    /// As [`Writer::push`].
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.block.extend(bytes);
        self.write_blocks()
    }

    fn write_blocks(&mut self) -> Result<()> {
        while let Some((block, rest)) = self.block.split_at_checked(BLOCK_BYTES) {
            self.file.write_all(block)?;
            self.checksums.push(crc32c::crc32c(block));
            self.block = rest.to_vec();
        }
        Ok(())
    }

    /// Writes what is left, and returns the checksums.
    ///
    /// # Errors
    /// As [`Writer::push`].
    pub fn finish(&mut self) -> Result<Vec<u32>> {
        ensure!(self.block.len() < BLOCK_BYTES, "blocks are written when they are full");
        self.file.write_all(&self.block)?;
        let mut checksums = self.checksums.clone();
        checksums.push(crc32c::crc32c(&self.block));
        Ok(checksums)
    }

    /// The samples so far, in memory, though the last of them could not be written.
    ///
    /// # Errors
    /// What was written is not there.
    pub fn recover(&self) -> Result<Samples> {
        let (mut words, mut skip) = (Vec::with_capacity(self.end as usize), self.head);
        let mut add = |block: &[u8]| words.extend(words_of(block.get(std::mem::take(&mut skip)..).unwrap_or_default()));
        let mut block = vec![0; BLOCK_BYTES];
        for (i, checksum) in self.checksums.iter().enumerate() {
            self.file.read_exact_at(&mut block, (i * BLOCK_BYTES) as u64)?;
            ensure!(crc32c::crc32c(&block) == *checksum, "the samples that were written are not there any more");
            add(&block);
        }
        add(&self.block);
        words.truncate(self.end as usize);
        ensure!(words.len() as u64 == self.end, "of the samples that were written some are not there any more");
        Ok(Samples { index: self.index.clone(), words: Words::Memory(words), end: self.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<(Example, Origin)> {
        let sample = |ids: &[u32], labels: &[i64], place| {
            (Example { input_ids: ids.to_vec(), labels: labels.to_vec() }, Origin { file: 3, place })
        };
        vec![
            sample(&[1, 2, 3, 4, 5], &[-100, 2, 3, -100, 5], Place::Line(7)),
            sample(&[9], &[9], Place::Item(1)),
            sample(&[4_000_000_000, 2], &[-100, 8], Place::Row(2)),
            sample(&[5, 6], &[-100, -100], Place::Row(3)),
        ]
    }

    #[test]
    fn samples_come_back_from_memory_and_from_a_file() {
        let mut memory = Samples::default();
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::after(b"head", &file).unwrap();
        for (example, origin) in samples() {
            memory.push(&example, origin);
            writer.push(&example, origin).unwrap();
        }
        let (index, end) = (writer.index.clone(), writer.end);
        assert_eq!(writer.finish().unwrap().len(), 1);
        let stored = Samples::in_file(file, "f".into(), 4, index, end);
        for (i, sample) in samples().into_iter().enumerate() {
            assert_eq!(memory.read(i).unwrap(), sample);
            assert_eq!(stored.read(i).unwrap(), sample);
            assert_eq!(memory.entry(i), stored.entry(i));
        }
        assert_eq!(memory.entry(0), Some(Entry { at: 0, tokens: 5, label_tokens: 3 }));
        assert!(memory.read(4).is_err() && stored.resident_bytes() < memory.resident_bytes());
    }

    #[test]
    fn what_was_written_before_a_disk_is_full_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (file, unwritable) = (File::create(&path).unwrap(), File::open(&path).unwrap());
        let mut writer = Writer::after(b"head", &file).unwrap();
        let all: Vec<_> = std::iter::repeat_n(samples(), 60_000).flatten().collect();
        let mut failures = 0;
        for (i, (example, origin)) in all.iter().enumerate() {
            if i == all.len() / 2 {
                writer.file = &unwritable;
            }
            failures += usize::from(writer.push(example, *origin).is_err());
            if failures > 0 {
                let recovered = writer.recover().unwrap();
                assert!(i > all.len() / 2 && recovered.len() == i + 1, "{i}");
                for (k, sample) in all.iter().enumerate().take(i + 1) {
                    assert_eq!(recovered.read(k).unwrap(), *sample);
                }
                break;
            }
        }
        assert_eq!(failures, 1);
        assert!(writer.checksums.len() == 1 && writer.finish().is_err());
        // What a failing disk lost is not taken for samples.
        std::fs::write(&path, vec![0; BLOCK_BYTES]).unwrap();
        assert!(writer.recover().unwrap_err().to_string().contains("not there any more"));
    }
}
