//! Which parts of a region are free: the smallest that is long enough is taken, and neighbours that are given back become one.

use std::collections::{BTreeMap, BTreeSet};

/// Every extent starts at a multiple of this many bytes, a line of a cache.
pub const UNIT: usize = 64;

/// Free parts of `0..end`, none of which touch; all from `end` on has never been taken.
#[derive(Debug)]
pub struct Extents {
    /// Length by start.
    free: BTreeMap<usize, usize>,
    /// (length, start)
    by_length: BTreeSet<(usize, usize)>,
    end: usize,
}

/// A part that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub start: usize,
    /// Whether nobody had any of it before.
    pub is_fresh: bool,
}

/// What is taken for a block of `bytes`: an odd number of units, so that blocks of one size, of which a model has many, do not all
/// start at the same place of a page, where a CPU takes a read of one for a read of another.
pub fn padded(bytes: usize) -> Option<usize> {
    (bytes.div_ceil(UNIT) | 1).checked_mul(UNIT)
}

impl Extents {
    pub const fn new() -> Self {
        Self { free: BTreeMap::new(), by_length: BTreeSet::new(), end: 0 }
    }

    /// Where the part that was never taken begins.
    pub fn end(&self) -> usize {
        self.end
    }

    /// `length` bytes somewhere below `limit`, if there is room.
    pub fn take(&mut self, length: usize, limit: usize) -> Option<Taken> {
        if let Some(&(found, start)) = self.by_length.range((length, 0)..).next() {
            self.remove(start, found);
            self.insert(start + length, found - length);
            return Some(Taken { start, is_fresh: false });
        }
        let last = self.free_before(self.end);
        let start = last.map_or(self.end, |(start, _)| start);
        let end = start.checked_add(length).filter(|end| *end <= limit)?;
        if let Some((start, found)) = last {
            self.remove(start, found);
        }
        let is_fresh = start == self.end;
        self.end = end;
        Some(Taken { start, is_fresh })
    }

    /// Makes a part free that had been taken.
    pub fn give_back(&mut self, mut start: usize, mut length: usize) {
        if let Some((before, found)) = self.free_before(start) {
            self.remove(before, found);
            (start, length) = (before, found + length);
        }
        if let Some(&found) = self.free.get(&(start + length)) {
            self.remove(start + length, found);
            length += found;
        }
        self.insert(start, length);
    }

    /// Makes a taken part of `length` bytes longer by `more`, where it is; false if what follows is not free or reaches beyond `limit`.
    pub fn lengthen(&mut self, start: usize, length: usize, more: usize, limit: usize) -> bool {
        let after = start + length;
        let found = self.free.get(&after).copied().unwrap_or(0);
        if found >= more {
            self.remove(after, found);
            self.insert(after + more, found - more);
            return true;
        }
        let reaches = after.checked_add(more).filter(|end| *end <= limit);
        match reaches {
            Some(end) if after + found == self.end => {
                self.remove(after, found);
                self.end = end;
                true
            }
            _ => false,
        }
    }

    /// Start and length of the free part that ends at `end`.
    fn free_before(&self, end: usize) -> Option<(usize, usize)> {
        let (start, length) = self.free.range(..end).next_back()?;
        (start + length == end).then_some((*start, *length))
    }

    fn insert(&mut self, start: usize, length: usize) {
        if length > 0 {
            self.free.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn remove(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn the_smallest_sufficient_part_is_taken_and_neighbours_become_one() {
        let mut extents = Extents::new();
        let starts: Vec<usize> = [300, 10, 100, 10].map(|length| extents.take(length, 1000).unwrap().start).into();
        assert_eq!(starts, [0, 300, 310, 410]);
        extents.give_back(0, 300);
        extents.give_back(310, 100);
        assert_eq!(extents.take(90, 1000), Some(Taken { start: 310, is_fresh: false }));
        assert_eq!(extents.take(11, 1000), Some(Taken { start: 0, is_fresh: false }));
        // What is left around two parts becomes one with them.
        extents.give_back(300, 10);
        extents.give_back(310, 90);
        assert_eq!(extents.free, BTreeMap::from([(11, 399)]));
        // The last free part is taken together with what follows it.
        extents.give_back(410, 10);
        assert_eq!((extents.end(), extents.take(980, 1000)), (420, Some(Taken { start: 11, is_fresh: false })));
        assert_eq!((extents.end(), extents.take(10, 1000)), (991, None));
        assert_eq!(extents.take(9, 1000), Some(Taken { start: 991, is_fresh: true }));
    }

    #[test]
    fn a_part_is_lengthened_only_into_what_is_free() {
        let mut extents = Extents::new();
        let starts = [10, 20, 30].map(|length| extents.take(length, 100).unwrap().start);
        assert!(!extents.lengthen(starts[0], 10, 1, 100));
        extents.give_back(10, 20);
        assert!(
            !extents.lengthen(0, 10, 21, 100) && extents.lengthen(0, 10, 15, 100) && extents.lengthen(0, 25, 5, 100)
        );
        assert!(!extents.lengthen(30, 30, 41, 100) && extents.lengthen(30, 30, 40, 100));
        assert_eq!((extents.end(), extents.free.len(), extents.by_length.len()), (100, 0, 0));
    }

    #[test]
    fn parts_never_overlap_and_all_are_one_when_none_is_held() {
        const LIMIT: usize = 1000;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (mut extents, mut owned, mut refused) = (Extents::new(), [false; LIMIT], 0);
        let mut held: Vec<(usize, usize)> = vec![];
        for _ in 0..20_000 {
            let (length, choice) = (random.random_range(1..60), random.random_range(0..5));
            if choice < 2 {
                let Some(Taken { start, is_fresh }) = extents.take(length, LIMIT) else {
                    refused += 1;
                    assert!(!owned.windows(length).any(|part| part.iter().all(|owned| !owned)), "{length} were free");
                    continue;
                };
                assert!(
                    owned[start..start + length].iter().all(|owned| !owned)
                        && (!is_fresh || start + length == extents.end())
                );
                owned[start..start + length].fill(true);
                held.push((start, length));
            } else if !held.is_empty() {
                let place = random.random_range(0..held.len());
                let (start, old) = held[place];
                if choice == 2 {
                    let is_free =
                        start + old + length <= LIMIT && owned[start + old..][..length].iter().all(|owned| !owned);
                    assert_eq!(extents.lengthen(start, old, length, LIMIT), is_free);
                    owned[start..start + old + length * usize::from(is_free)].fill(true);
                    held[place].1 += length * usize::from(is_free);
                } else {
                    extents.give_back(start, old);
                    owned[start..start + old].fill(false);
                    held.swap_remove(place);
                }
            }
        }
        assert!(refused > 100 && extents.end() == LIMIT, "{refused}, {}", extents.end());
        for (start, length) in held {
            extents.give_back(start, length);
        }
        assert_eq!((extents.free, extents.by_length), (BTreeMap::from([(0, LIMIT)]), BTreeSet::from([(LIMIT, 0)])));
    }
}
