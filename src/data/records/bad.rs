//! All bad records of a file in one message.

use super::record::{Place, Unusable};
use crate::error::{exit_code, listing};
use crate::invalid;
use anyhow::Result;
use std::path::Path;

/// Most bad records that a message names.
const NAMED: usize = 20;
/// Records of which none can be used, before the others are not looked at.
const HOPELESS: usize = 1000;

/// The bad records of one file, in file order: the first ones named, all of them counted.
#[derive(Default)]
pub struct BadRecords {
    count: usize,
    /// Each problem once, with the places that have it.
    problems: Vec<(String, Vec<Place>)>,
    /// What helps against all of them, if anything does.
    hint: Option<&'static str>,
}

impl BadRecords {
    /// Notes what is wrong with the record at `place`.
    ///
    /// # Errors
    /// `error` itself, with its place, if it is not the user's mistake.
    pub fn note(&mut self, path: &Path, place: Place, error: anyhow::Error) -> Result<()> {
        if exit_code(&error) != 2 {
            return Err(error.context(format!("{}{place}", path.display())));
        }
        self.count += 1;
        if self.count > NAMED {
            return Ok(());
        }
        let problem = format!("{error:#}");
        match self.problems.iter_mut().find(|(known, _)| *known == problem) {
            Some((_, places)) => places.push(place),
            None => self.problems.push((problem, vec![place])),
        }
        Ok(())
    }

    /// Notes a record that cannot be read.
    ///
    /// # Errors
    /// As [`BadRecords::note`].
    pub fn note_unusable(&mut self, path: &Path, unusable: Unusable) -> Result<()> {
        self.hint = self.hint.or(unusable.hint);
        self.note(path, unusable.place, unusable.error)
    }

    /// Whether none of the `tried` records that come first can be used and they are so many that the others are hardly different: the format is
    /// another, or a column has another name.
    pub fn is_hopeless(&self, tried: usize) -> bool {
        self.count == tried && tried >= HOPELESS
    }

    /// # Errors
    /// All that was noted, if anything was, of the `tried` records that come first; that the others are like them.
    pub fn give_up(self, path: &Path, tried: usize) -> Result<()> {
        self.refuse(path, tried, tried)
            .map_err(|error| invalid!("{error:#}\n  the others were not tried: none so far can be used"))
    }

    /// # Errors
    /// All that was noted, if anything was; `tried`: how many records were looked at, out of `records`.
    pub fn refuse(self, path: &Path, tried: usize, records: usize) -> Result<()> {
        let (path, hint) = (path.display(), self.hint.map(|hint| format!("; {hint}")).unwrap_or_default());
        match (self.problems.as_slice(), self.count) {
            ([], _) => Ok(()),
            ([(problem, places)], 1) => Err(invalid!("{path}{}: {problem}{hint}", places[0])),
            (problems, count) => {
                let mut text = format!("{path}: {count} of {tried} records cannot be used{hint}:");
                for (problem, places) in problems {
                    text.push_str(&format!("\n  {path}{}: {problem}{}", places[0], others(&places[1..])));
                }
                if count > NAMED {
                    text.push_str(&format!("\n  and {} more", count - NAMED));
                }
                if tried < records {
                    text.push_str(&format!("\n  the other {} were not tried: these took long", records - tried));
                }
                Err(invalid!("{text}"))
            }
        }
    }
}

/// The other places with the same problem.
fn others(places: &[Place]) -> String {
    let numbers: Vec<String> = places.iter().map(|place| place.number().to_string()).collect();
    match places {
        [] => String::new(),
        [one] => format!("; the same in {} {}", one.noun(), numbers[0]),
        [one, ..] => format!("; the same in {}s {}", one.noun(), listing(&numbers, NAMED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_are_named_and_all_are_counted() {
        let mut bad = BadRecords::default();
        for line in 1..=30 {
            let problem = if line % 2 == 0 { "even".to_string() } else { format!("odd {line}") };
            bad.note(Path::new("f"), Place::Line(line), invalid!("{problem}")).unwrap();
        }
        let text = bad.refuse(Path::new("f"), 40, 40).unwrap_err().to_string();
        assert!(text.starts_with("f: 30 of 40 records cannot be used:\n  f:1: odd 1\n  f:2: even; the same in lines"));
        assert!(
            text.contains("lines 4, 6, 8, 10, 12, 14, 16, 18, 20\n") && text.ends_with("\n  and 10 more"),
            "{text}"
        );
        assert!(BadRecords::default().refuse(Path::new("f"), 1, 1).is_ok());
        let mut one = BadRecords::default();
        one.note(Path::new("f"), Place::Item(3), invalid!("odd")).unwrap();
        assert_eq!(one.refuse(Path::new("f"), 3, 3).unwrap_err().to_string(), "f, record 3: odd");
        let mut all = BadRecords::default();
        for line in 1..=HOPELESS {
            assert!(!all.is_hopeless(line - 1));
            all.note(Path::new("f"), Place::Line(line), invalid!("odd")).unwrap();
        }
        assert!(all.is_hopeless(HOPELESS) && !all.is_hopeless(HOPELESS + 1));
        let error = all.give_up(Path::new("f"), HOPELESS).unwrap_err();
        let text = error.to_string();
        assert_eq!(exit_code(&error), 2);
        assert!(text.starts_with("f: 1000 of 1000 records") && text.ends_with("none so far can be used"), "{text}");
        let failure = BadRecords::default().note(Path::new("f"), Place::Row(1), anyhow::anyhow!("a bug"));
        assert_eq!(exit_code(&failure.unwrap_err()), 1);
    }
}
