//! Which sequences the body for any device pads together: each to the longest of a group of like length, lest a long one and many short
//! ones in a batch hold many times their rows. Lengths alone decide, so a plan made before the run knows the groups too.

use super::shape::CHUNK;
use std::cmp::Reverse;

/// At most so many places a row.
const PLACES: usize = 2;

/// The sequences in groups, by number, each group in the order of rows: few groups, of at most [`PLACES`] places a row. `lengths`: the
/// rows of each sequence.
pub fn groups(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|number| Reverse(lengths[*number]));
    let mut groups: Vec<Vec<usize>> = vec![];
    let (mut length, mut rows) = (0, 0);
    for number in longest_first {
        let own = lengths[number];
        match groups.last_mut() {
            Some(group) if (group.len() + 1) * length <= PLACES * (rows + own) => {
                group.push(number);
                rows += own;
            }
            _ => {
                groups.push(vec![number]);
                let (chunks, chunk) = chunks(own);
                (length, rows) = (chunks * chunk, own);
            }
        }
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// n and C for a longest sequence.
pub fn chunks(longest: usize) -> (usize, usize) {
    let longest = longest.max(1);
    let chunk = CHUNK.min(longest.next_power_of_two());
    (longest.div_ceil(chunk), chunk)
}

/// What sequences come to once they are padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padded {
    pub groups: usize,
    /// Through which a state goes one after another: n of every group.
    pub chunks: usize,
    /// Rows and padding of all groups.
    pub places: usize,
    /// The same of the group that has most.
    pub most_places: usize,
}

impl Padded {
    /// Of sequences of so many rows each.
    pub fn of(lengths: &[usize]) -> Self {
        groups(lengths).iter().fold(Self::default(), |sum, group| {
            let longest = group.iter().map(|number| lengths[*number]).max().unwrap_or(0);
            let (chunks, chunk) = chunks(longest);
            let places = group.len() * chunks * chunk;
            Self {
                groups: sum.groups + 1,
                chunks: sum.chunks + chunks,
                places: sum.places + places,
                most_places: sum.most_places.max(places),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_like_length_are_padded_together() {
        assert_eq!(groups(&[512; 8]), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        assert_eq!(groups(&[300, 512, 400]), [[0, 1, 2]]);
        assert_eq!(groups(&[5, 1, 3]), [vec![0, 2], vec![1]]);
        // One long and many short ones, as rows are packed.
        let mut lengths = vec![50; 22];
        lengths.insert(3, 3000);
        let found = groups(&lengths);
        assert_eq!(found.len(), 2);
        let mut all = found.concat();
        all.sort_unstable();
        assert_eq!(all, (0..23).collect::<Vec<usize>>());
    }

    #[test]
    fn padding_is_known_from_lengths() {
        let padded = |groups, chunks, places, most_places| Padded { groups, chunks, places, most_places };
        assert_eq!(Padded::of(&[]), Padded::default());
        assert_eq!(Padded::of(&[512; 8]), padded(1, 8, 8 * 512, 8 * 512));
        assert_eq!(Padded::of(&[300, 512, 400]), padded(1, 8, 3 * 512, 3 * 512));
        // A chunk is no longer than the longest sequence asks for.
        assert_eq!(Padded::of(&[5, 1, 3]), padded(2, 2, 2 * 8 + 1, 2 * 8));
        // The long one has room for one of the short ones.
        let mut lengths = vec![50; 22];
        lengths.insert(3, 3000);
        let found = Padded::of(&lengths);
        assert_eq!(found, padded(2, 47 + 1, 2 * 47 * 64 + 21 * 64, 2 * 47 * 64));
        assert!(found.places <= PLACES * (3000 + 22 * 50));
    }
}
