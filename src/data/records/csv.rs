//! Tables as text: a header, then one record per row. Quoted as in RFC 4180: a field in double quotes may hold the
//! delimiter and line ends, and `""` is a quote in it. Every value is a string; empty lines are skipped.

use super::record::{Place, Record};
use super::text::{LIMIT, Text, too_large};
use crate::{ensure_valid, invalid};
use anyhow::{Error, Result};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The rows of a table, read as they are asked for.
pub struct Rows {
    path: PathBuf,
    delimiter: u8,
    reader: Reader<Feed>,
    window: Rc<RefCell<Window>>,
    header: StringRecord,
    row: StringRecord,
    is_over: bool,
}

impl Rows {
    /// `path` names the file in messages.
    ///
    /// # Errors
    /// As [`Text`]; a column name that occurs twice.
    pub fn new(path: &Path, text: Text, delimiter: u8) -> Result<Self> {
        let window = Rc::new(RefCell::new(Window { bytes: vec![], start: 0, line: 1, failed: None }));
        let feed = Feed { text, window: Rc::clone(&window), given: 0 };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(feed);
        let header = reader.headers().cloned();
        let header = header.map_err(|e| match is_too_large(&e) {
            true => too_large(path, 1),
            false => window.borrow_mut().failed.take().unwrap_or_else(|| invalid!("{}:1: {e}", path.display())),
        })?;
        for (index, name) in header.iter().enumerate() {
            ensure_valid!(
                !header.iter().take(index).any(|earlier| earlier == name),
                "{}:1: two columns are named {name:?}; rename one",
                path.display()
            );
        }
        let (path, row) = (path.to_path_buf(), StringRecord::new());
        Ok(Self { path, delimiter, reader, window, header, row, is_over: false })
    }

    /// # Errors
    /// As [`Text`]; a row with more or fewer fields than the header; a quote that is never closed.
    fn following(&mut self) -> Result<Option<Record>> {
        match self.reader.read_record(&mut self.row) {
            Ok(true) => {
                let begin = self.row.position().map(|position| position.byte());
                let line = self.window.borrow_mut().line_at(begin);
                let fields = self.header.iter().zip(&self.row);
                let fields: Map<String, Value> =
                    fields.map(|(name, value)| (name.to_string(), Value::from(value))).collect();
                Ok(Some(Record { fields, place: Place::Line(line) }))
            }
            Ok(false) => {
                let window = self.window.borrow();
                ensure_valid!(
                    !ends_in_quotes(&window.bytes, self.delimiter),
                    "{}:{}: a quote that opens in the row that begins here is never closed",
                    self.path.display(),
                    window.line
                );
                Ok(None)
            }
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &csv::Error) -> Error {
        let mut window = self.window.borrow_mut();
        match error.kind() {
            ErrorKind::UnequalLengths { pos, len, .. } => {
                let line = window.line_at(pos.as_ref().map(|pos| pos.byte()));
                let columns: Vec<&str> = self.header.iter().collect();
                invalid!(
                    "{}:{line}: the row that begins here has {len} fields, the header has {} ({}); quote a field that \
                     holds the delimiter, a quote or a line end",
                    self.path.display(),
                    self.header.len(),
                    crate::error::listing(&columns, 12)
                )
            }
            _ if is_too_large(error) => {
                let before = first_row(&window.bytes, self.delimiter).iter().filter(|&&byte| byte == b'\n').count();
                too_large(&self.path, window.line + before)
            }
            _ => window.failed.take().unwrap_or_else(|| invalid!("{}: {error}", self.path.display())),
        }
    }
}

/// Whether a row was given up for its length.
fn is_too_large(error: &csv::Error) -> bool {
    matches!(error.kind(), ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::FileTooLarge)
}

impl Iterator for Rows {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.is_over {
            return None;
        }
        let next = self.following().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// What has been read from the beginning of the last row on.
struct Window {
    bytes: Vec<u8>,
    /// Where that is in the text, in bytes, and in which line.
    start: u64,
    line: usize,
    /// Why no more could be read.
    failed: Option<Error>,
}

impl Window {
    /// The line of the row that was read from byte `begin` on, which becomes the beginning of the window.
    fn line_at(&mut self, begin: Option<u64>) -> usize {
        let begin = begin.map_or(0, |begin| begin.saturating_sub(self.start) as usize).min(self.bytes.len());
        // The reader's position is before the line ends that it skips.
        let skipped = self.bytes.iter().skip(begin).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let passed = self.bytes.drain(..begin + skipped);
        self.line += passed.filter(|&byte| byte == b'\n').count();
        self.start += (begin + skipped) as u64;
        self.line
    }
}

/// A text for the library to read: line by line, each kept in the window.
struct Feed {
    text: Text,
    window: Rc<RefCell<Window>>,
    /// Bytes given out.
    given: u64,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut window = self.window.borrow_mut();
        let at = |window: &Window, given: u64| given.saturating_sub(window.start) as usize;
        if at(&window, self.given) >= window.bytes.len() {
            // A row that ends nowhere: said where it begins.
            if window.bytes.len() >= LIMIT {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            match self.text.line() {
                Ok(Some(line)) => {
                    window.bytes.extend(line.text.as_bytes());
                    window.bytes.push(b'\n');
                }
                Ok(None) => return Ok(0),
                Err(error) => {
                    window.failed = Some(error);
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            }
        }
        let rest = window.bytes.get(at(&window, self.given)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.given += count as u64;
        Ok(count)
    }
}

/// Where in a row a byte is.
#[derive(Clone, Copy, PartialEq)]
enum At {
    FieldStart,
    Field,
    Quoted,
    QuoteInQuoted,
}

impl At {
    /// After one more byte.
    fn then(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteInQuoted,
            (Self::Quoted, _) | (Self::FieldStart | Self::QuoteInQuoted, b'"') => Self::Quoted,
            (_, byte) if byte == delimiter || matches!(byte, b'\r' | b'\n') => Self::FieldStart,
            _ => Self::Field,
        }
    }
}

/// Whether a quote that opens in `rest`, the text from the last row on, is never closed. The reader does not report it:
/// such a field swallows all that follows.
fn ends_in_quotes(rest: &[u8], delimiter: u8) -> bool {
    rest.iter().fold(At::FieldStart, |at, &byte| at.then(byte, delimiter)) == At::Quoted
}

/// The row that `text` begins with, with its line end.
fn first_row(text: &[u8], delimiter: u8) -> &[u8] {
    let mut at = At::FieldStart;
    let end = text.iter().position(|&byte| {
        at = at.then(byte, delimiter);
        byte == b'\n' && at != At::Quoted
    });
    end.and_then(|end| text.get(..=end)).unwrap_or_default()
}
