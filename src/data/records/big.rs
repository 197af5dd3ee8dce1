//! Integers beyond 64 bits, which serde_json would read as floats: an id of a tool call would then be trained on as
//! `1.2345678901234568e+20`. They are read as strings of a form of their own, which templates see as integers.

use crate::ensure_valid;
use anyhow::Result;
use regex::Regex;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Before the digits: a noncharacter, which no text has (Unicode 16, section 23.7).
const MARK: char = '\u{fdd2}';
/// Integers of fewer digits fit into 64 bits.
const LONG: usize = 19;

/// JSON with its large integers as marked strings.
///
/// # Errors
/// An integer beyond 128 bits.
pub fn marked(text: &str) -> Result<Cow<'_, str>> {
    if !has_long_number(text.as_bytes()) {
        return Ok(Cow::Borrowed(text));
    }
    let (mut marked, mut copied) = (String::with_capacity(text.len() + 16), 0);
    for (start, end) in integers(text.as_bytes()) {
        let Some(digits) = text.get(start..end) else { continue };
        if digits.parse::<i64>().is_ok() || digits.parse::<u64>().is_ok() {
            continue;
        }
        ensure_valid!(digits.parse::<i128>().is_ok(), "the integer {digits:.60} is beyond 128 bits");
        marked.push_str(text.get(copied..start).unwrap_or_default());
        marked.extend(['"', MARK]);
        marked.push_str(digits);
        marked.push('"');
        copied = end;
    }
    marked.push_str(text.get(copied..).unwrap_or_default());
    Ok(Cow::Owned(marked))
}

/// The integer that a string stands for.
pub fn integer(text: &str) -> Option<i128> {
    text.strip_prefix(MARK)?.parse().ok()
}

/// A record that is written again, with its integers as they were.
pub fn restored(json: &str) -> Cow<'_, str> {
    static MARKED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(&format!("\"{MARK}(-?[0-9]+)\"")).expect("the pattern is a constant"));
    MARKED.replace_all(json, "$1")
}

/// Whether a value is a string, and not an integer in the form of one.
pub fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| integer(text).is_none())
}

fn has_long_number(bytes: &[u8]) -> bool {
    bytes.chunk_by(|a, b| a.is_ascii_digit() && b.is_ascii_digit()).any(|run| run.len() >= LONG)
}

/// The places of integers outside of strings.
fn integers(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut found, mut at) = (vec![], 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let end = end_of(bytes, at, |b| b.is_ascii_digit() || b"+-.eE".contains(b));
                if bytes.get(at + 1..end).is_some_and(|rest| rest.iter().all(u8::is_ascii_digit)) {
                    found.push((at, end));
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    found
}

/// The place after the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn end_of(bytes: &[u8], start: usize, part: impl Fn(&u8) -> bool) -> usize {
    bytes.iter().skip(start).position(|byte| !part(byte)).map_or(bytes.len(), |length| start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integers_beyond_64_bits_are_marked() {
        for same in [
            "{\"a\": 18446744073709551615, \"b\": -9223372036854775808}",
            "[1.23456789012345678901]",
            "[1e30]",
            "",
            "[\"12345678901234567890123\"]",
            "[\"a\\\"12345678901234567890123\"]",
        ] {
            assert_eq!(marked(same).unwrap(), same);
        }
        let text =
            marked("{\"é\": [123456789012345678901, -9223372036854775809], \"b\": \"123456789012345678901\"}").unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let read = |value: &Value| integer(value.as_str().unwrap());
        assert_eq!(read(&value["é"][0]), Some(123_456_789_012_345_678_901));
        assert_eq!(read(&value["é"][1]), Some(-9_223_372_036_854_775_809));
        assert!(restored(&value.to_string()).contains("[123456789012345678901,-9223372036854775809]"));
        assert!(is_text(&value["b"]) && !is_text(&value["é"][0]));
        let huge = format!("[{}]", "9".repeat(50));
        assert!(marked(&huge).unwrap_err().to_string().contains("beyond 128 bits"));
        // Unfinished JSON is left to its reader.
        assert_eq!(marked("[\"1234567890123456789012").unwrap(), "[\"1234567890123456789012");
    }
}
