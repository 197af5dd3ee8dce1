//! A file's text, read piece by piece: its lines, or the elements of the JSON array that it holds.

use super::compressed::Content;
use crate::invalid;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that a line, an element or a row may have, so that one whose end is missing does not fill the memory; less in tests.
pub const LIMIT: usize = if cfg!(test) { 4 << 20 } else { 256 << 20 };

/// A text without its byte order mark, of which the part from `at` on is still to be given out.
pub struct Text {
    path: PathBuf,
    content: Content,
    buffer: Vec<u8>,
    at: usize,
    is_over: bool,
    /// Of the next byte, counted from 1.
    line: usize,
    /// Bytes given out so far.
    offset: usize,
}

/// A part of the text, and the line that it begins in.
pub struct Piece {
    pub text: String,
    pub line: usize,
}

/// An error for a record that has more than LIMIT bytes.
pub fn too_large(path: &Path, line: usize) -> anyhow::Error {
    invalid!(
        "{}:{line}: the record that begins here has more than {} MiB; is a quote, a bracket or the end of a line missing?",
        path.display(),
        LIMIT >> 20
    )
}

impl Text {
    /// `taken`: counts the bytes of the file that were read.
    ///
    /// # Errors
    /// As [`Content`].
    pub fn open(path: &Path, taken: &Arc<AtomicU64>) -> Result<Self> {
        let content = Content::open(path, taken)?;
        let path = path.to_path_buf();
        let mut text = Self { path, content, buffer: vec![], at: 0, is_over: false, line: 1, offset: 0 };
        text.fill()?;
        if text.buffer.starts_with(BYTE_ORDER_MARK) {
            text.skip(BYTE_ORDER_MARK.len());
        }
        Ok(text)
    }

    /// Whether the text is a JSON array, as far as its first character tells.
    pub fn is_array(&self) -> bool {
        self.rest().iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[')
    }

    /// The next line without its end; `None` after the last. Only \n ends a line: JSON strings may hold U+2028 and other
    /// separators unescaped.
    ///
    /// # Errors
    /// As [`Content`]; text that is not UTF-8; a line larger than any record.
    pub fn line(&mut self) -> Result<Option<Piece>> {
        let mut searched = 0;
        loop {
            match self.rest().iter().skip(searched).position(|&byte| byte == b'\n') {
                Some(length) => {
                    let piece = self.give(searched + length)?;
                    self.skip(1);
                    return Ok(Some(piece));
                }
                None if self.is_over && self.rest().is_empty() => return Ok(None),
                None if self.is_over => return self.give(self.rest().len()).map(Some),
                None => {
                    searched = self.rest().len();
                    self.check_size(searched)?;
                    self.fill()?;
                }
            }
        }
    }

    /// The next byte, not given out yet; `None` at the end.
    ///
    /// # Errors
    /// As [`Content`].
    pub fn peek(&mut self) -> Result<Option<u8>> {
        while self.rest().is_empty() && !self.is_over {
            self.fill()?;
        }
        Ok(self.rest().first().copied())
    }

    /// Skips white space, and then says what comes next.
    ///
    /// # Errors
    /// As [`Content`].
    pub fn peek_word(&mut self) -> Result<Option<u8>> {
        while self.peek()?.is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.skip(1);
        }
        self.peek()
    }

    /// The text up to the comma or bracket that ends an element of an array.
    ///
    /// # Errors
    /// As [`Text::line`]; the text ends before the element, or a line within one of its strings.
    pub fn element(&mut self) -> Result<Piece> {
        let (mut length, mut depth, mut in_string, mut escaped) = (0, 0_usize, false, false);
        loop {
            while let Some(&byte) = self.rest().get(length) {
                match byte {
                    // Else a quote too many or too few would make one element of all that follows.
                    b'\n' if in_string => {
                        self.skip(length);
                        return Err(self.malformed("the line ends within a string; is a quote missing, or a \\n?"));
                    }
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    b'[' | b'{' => depth += 1,
                    b',' | b']' if depth == 0 => return self.give(length),
                    b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                length += 1;
            }
            if self.is_over {
                return Err(self.malformed("EOF while parsing a list"));
            }
            self.check_size(length)?;
            self.fill()?;
        }
    }

    /// Passes over bytes.
    pub fn skip(&mut self, count: usize) {
        let skipped = self.rest().get(..count).unwrap_or_default();
        let (lines, count) = (skipped.iter().filter(|&&byte| byte == b'\n').count(), skipped.len());
        (self.line, self.at, self.offset) = (self.line + lines, self.at + count, self.offset + count);
    }

    /// An error at the next byte.
    pub fn malformed(&self, what: &str) -> anyhow::Error {
        invalid!("{}:{}: malformed JSON: {what}", self.path.display(), self.line)
    }

    fn check_size(&self, bytes: usize) -> Result<()> {
        if bytes < LIMIT { Ok(()) } else { Err(too_large(&self.path, self.line)) }
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn give(&mut self, length: usize) -> Result<Piece> {
        let bytes = self.rest().get(..length).unwrap_or_default();
        let text = String::from_utf8(bytes.to_vec()).map_err(|e| {
            let valid = e.utf8_error().valid_up_to();
            let lines = e.as_bytes().iter().take(valid).filter(|&&byte| byte == b'\n').count();
            invalid!(
                "{}:{}: not UTF-8 (at byte {}); convert the file to UTF-8",
                self.path.display(),
                self.line + lines,
                self.offset + valid
            )
        })?;
        let line = self.line;
        self.skip(length);
        Ok(Piece { text, line })
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let before = self.buffer.len();
        self.content.read(&mut self.buffer, PIECE_BYTES)?;
        self.is_over = self.buffer.len() - before < PIECE_BYTES;
        Ok(())
    }
}
