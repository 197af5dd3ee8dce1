//! Tables as text: a header, then one record per row. Quoted as in RFC 4180: a field in double quotes may hold the
//! delimiter and line ends, and `""` is a quote in it. Every value is a string; empty lines are skipped.

use super::record::{Place, Record};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::path::Path;

/// The rows of `text`; `path` names the file in messages.
///
/// # Errors
/// A column name that occurs twice; a row with more or fewer fields than the header; a quote that is never closed.
pub fn read(path: &Path, text: &str, delimiter: u8) -> Result<Vec<Record>> {
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| invalid!("{}:1: {e}", path.display()))?.clone();
    for (index, name) in header.iter().enumerate() {
        ensure_valid!(
            !header.iter().take(index).any(|earlier| earlier == name),
            "{}:1: two columns are named {name:?}; rename one",
            path.display()
        );
    }
    let (mut records, mut row) = (vec![], StringRecord::new());
    let (mut lines, mut begin) = (Lines { text, offset: 0, line: 1 }, 0);
    loop {
        match reader.read_record(&mut row) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => return Err(explain(path, &mut lines, &header, &e)),
        }
        begin = row.position().map_or(begin, |position| position.byte() as usize);
        let fields: Map<String, Value> =
            header.iter().zip(&row).map(|(name, value)| (name.to_string(), Value::from(value))).collect();
        records.push(Record { fields, place: Place::Line(lines.at(begin)) });
    }
    ensure_valid!(
        !ends_in_quotes(text.get(begin..).unwrap_or_default(), delimiter),
        "{}:{}: a quote that opens in the row that begins here is never closed",
        path.display(),
        lines.line
    );
    Ok(records)
}

/// Counts lines up to increasing byte offsets.
struct Lines<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl Lines<'_> {
    /// The line of the row that was read from byte `begin` on.
    fn at(&mut self, begin: usize) -> usize {
        let bytes = self.text.as_bytes();
        // The reader's position is before the line ends that it skips.
        let skipped = bytes.iter().skip(begin).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let begin = (begin + skipped).min(bytes.len());
        self.line += bytes.get(self.offset..begin).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
        self.offset = begin.max(self.offset);
        self.line
    }
}

fn explain(path: &Path, lines: &mut Lines, header: &StringRecord, error: &csv::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::UnequalLengths { pos, len, .. } => {
            let line = pos.as_ref().map_or(lines.line, |pos| lines.at(pos.byte() as usize));
            let columns: Vec<&str> = header.iter().collect();
            invalid!(
                "{}:{line}: the row that begins here has {len} fields, the header has {} ({}); quote a field that \
                 holds the delimiter, a quote or a line end",
                path.display(),
                header.len(),
                crate::error::listing(&columns, 12)
            )
        }
        _ => invalid!("{}: {error}", path.display()),
    }
}

/// Whether a quote that opens in `rest`, the text from the last row on, is never closed. The reader does not report it:
/// such a field swallows all that follows.
fn ends_in_quotes(rest: &str, delimiter: u8) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        FieldStart,
        Field,
        Quoted,
        QuoteInQuoted,
    }
    let end = rest.bytes().fold(At::FieldStart, |at, byte| match (at, byte) {
        (At::Quoted, b'"') => At::QuoteInQuoted,
        (At::Quoted, _) | (At::FieldStart | At::QuoteInQuoted, b'"') => At::Quoted,
        (_, byte) if byte == delimiter || matches!(byte, b'\r' | b'\n') => At::FieldStart,
        _ => At::Field,
    });
    end == At::Quoted
}
