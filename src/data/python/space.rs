//! What Python takes for white space.

/// str.isspace: Unicode white space and four separators that Rust does not include.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
