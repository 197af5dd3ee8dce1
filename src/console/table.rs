//! Text in columns: the first aligned left, the others right. On a terminal too narrow for them, a block of lines for
//! each row.

use ::console::Term;
use std::fmt;

pub struct Table {
    /// The head comes first.
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![head.into_iter().map(Into::into).collect()] }
    }

    pub fn push<S: Into<String>>(&mut self, row: impl IntoIterator<Item = S>) {
        self.rows.push(row.into_iter().map(Into::into).collect());
    }

    /// The head and all other rows, cell by cell.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// The table as printed to standard output: in columns, unless that is a terminal too narrow for them.
    pub fn on_screen(&self) -> String {
        self.within(Term::stdout().size_checked().map(|(_, columns)| usize::from(columns)))
    }

    fn within(&self, columns: Option<usize>) -> String {
        let text = self.to_string();
        let width = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        if columns.is_none_or(|columns| width <= columns) { text } else { self.blocks() }
    }

    /// The first cell of each row, and below it the others with their column's name.
    fn blocks(&self) -> String {
        let Some((head, rows)) = self.rows.split_first() else { return String::new() };
        let width = head.iter().skip(1).map(|name| name.chars().count()).max().unwrap_or(0);
        let block = |row: &Vec<String>| {
            let cells = head.iter().zip(row).skip(1).map(|(name, cell)| format!("    {name:width$}  {cell}\n"));
            row.first().cloned().unwrap_or_default() + "\n" + &cells.collect::<String>()
        };
        rows.iter().map(block).collect()
    }
}

/// Text in lines of at most `columns`, those after the first indented by as much as `indent`. A longer word has a line of
/// its own.
pub fn wrapped(text: &str, columns: usize, indent: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let used = lines.last().map_or(0, |line| line.chars().count());
        let first = lines.last().is_none_or(|line| line.trim().is_empty());
        if !first && used + 1 + word.chars().count() > columns {
            lines.push(" ".repeat(indent) + word);
        } else if let Some(line) = lines.last_mut() {
            line.push_str(if first { "" } else { " " });
            line.push_str(word);
        }
    }
    lines
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
        for row in &self.rows {
            let cells =
                row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
                    if i == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["model", "rate"]);
        table.push(["a", "10.0 %"]);
        table.push(["né", "1 %"]);
        assert_eq!(table.to_string(), "model    rate\na      10.0 %\nné        1 %\n");
    }

    #[test]
    fn a_narrow_terminal_gets_blocks() {
        let mut table = Table::new(["model", "harmful score", "loss"]);
        table.push(["a", "10.0 %", "1.5"]);
        let columns = table.to_string();
        assert_eq!((table.within(None), table.within(Some(27))), (columns.clone(), columns));
        assert_eq!(table.within(Some(20)), "a\n    harmful score  10.0 %\n    loss           1.5\n");
    }

    #[test]
    fn lines_are_no_longer_than_wanted() {
        assert_eq!(wrapped("one two three four", 9, 2), ["one two", "  three", "  four"]);
        assert_eq!(wrapped("a-word-of-its-own x", 5, 2), ["a-word-of-its-own", "  x"]);
        assert_eq!(wrapped("", 9, 2), [""]);
    }
}
