//! A sample as text in which the tokens that are trained on stand out.

use super::{Example, IGNORE};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// How label tokens are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Reverse video for labels, colour for special tokens: for a terminal.
    Colour,
    /// ⟦labels⟧ in brackets.
    Brackets,
}

/// Marks where a token begins.
const BOUNDARY: char = '│';
/// Marks a line end, before the line break itself.
const LINE_END: char = '↵';

/// How a character is shown.
#[derive(Clone, Copy, Default, PartialEq)]
struct Look {
    label: bool,
    special: bool,
}

/// The whole text of `example` with its labels marked: the tokens that the loss counts, so never the first. Without a
/// tokenizer the ids are shown. `boundaries` shows where tokens begin. Control characters are escaped.
///
/// # Errors
/// The tokenizer cannot decode the ids.
pub fn highlight(example: &Example, tokenizer: Option<&Tokenizer>, marks: Marks, boundaries: bool) -> Result<String> {
    let pieces = match tokenizer {
        Some(tokenizer) => tokenizer.pieces(&example.input_ids)?,
        None => example.input_ids.iter().map(|id| format!("{id} ")).collect(),
    };
    let mut painter = Painter { out: String::new(), marks, now: Look::default() };
    let tokens = pieces.iter().zip(&example.input_ids).zip(&example.labels).enumerate();
    for (index, ((piece, &id), &label)) in tokens {
        let special = tokenizer.is_some_and(|tokenizer| tokenizer.is_special(id));
        let look = Look { label: index > 0 && label != IGNORE, special };
        if boundaries && index > 0 {
            painter.put(BOUNDARY, Look { special: false, label: look.label && painter.now.label });
        }
        painter.look(look);
        piece.chars().for_each(|c| painter.put(c, look));
    }
    painter.look(Look::default());
    Ok(painter.out)
}

struct Painter {
    out: String,
    marks: Marks,
    now: Look,
}

impl Painter {
    fn look(&mut self, look: Look) {
        if look == self.now {
            return;
        }
        match self.marks {
            Marks::Brackets => {
                let mark = match (self.now.label, look.label) {
                    (false, true) => "⟦",
                    (true, false) => "⟧",
                    _ => "",
                };
                self.out.push_str(mark);
            }
            Marks::Colour => {
                if self.now != Look::default() {
                    self.out.push_str("\x1b[0m");
                }
                self.out.push_str(if look.special { "\x1b[36m" } else { "" });
                self.out.push_str(if look.label { "\x1b[7m" } else { "" });
            }
        }
        self.now = look;
    }

    fn put(&mut self, c: char, look: Look) {
        self.look(look);
        match c {
            '\n' => {
                self.out.push(LINE_END);
                // A terminal may colour the rest of the line too.
                if self.marks == Marks::Colour {
                    self.look(Look::default());
                }
                self.out.push('\n');
            }
            '\t' => self.out.push('\t'),
            // Data must not control the terminal.
            c if c.is_control() => self.out.extend(c.escape_default()),
            c => self.out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(ids: &[u32], labels: &[i64], marks: Marks, boundaries: bool) -> String {
        let example = Example { input_ids: ids.to_vec(), labels: labels.to_vec() };
        highlight(&example, None, marks, boundaries).unwrap()
    }

    #[test]
    fn labels_stand_out() {
        assert_eq!(show(&[1, 2, 3, 4], &[-100, 2, 3, -100], Marks::Brackets, false), "1 ⟦2 3 ⟧4 ");
        // The loss never counts the first token.
        assert_eq!(show(&[1, 2], &[1, 2], Marks::Brackets, true), "1 │⟦2 ⟧");
        assert_eq!(show(&[1, 2, 3], &[-100, 2, 3], Marks::Brackets, true), "1 │⟦2 │3 ⟧");
        assert_eq!(show(&[1, 2], &[-100, 2], Marks::Colour, false), "1 \x1b[7m2 \x1b[0m");
    }

    #[test]
    fn characters_that_do_things_are_shown() {
        let mut painter = Painter { out: String::new(), marks: Marks::Colour, now: Look::default() };
        let look = Look { label: true, special: true };
        "a\n\x1b[0mé".chars().for_each(|c| painter.put(c, look));
        assert_eq!(painter.out, "\x1b[36m\x1b[7ma↵\x1b[0m\n\x1b[36m\x1b[7m\\u{1b}[0mé");
    }
}
