//! From bytes of a rendered conversation to tokens, and to where a turn ends.

use crate::tokenizer::{Encoded, Tokenizer};
use std::ops::Range;

/// The tokens of a rendered conversation.
pub struct Tokens<'a> {
    pub encoded: &'a Encoded,
    pub text: &'a str,
    pub tokenizer: &'a Tokenizer,
}

impl Tokens<'_> {
    /// The tokens that begin inside a byte span.
    pub fn range(&self, span: &Range<usize>) -> Range<usize> {
        let offsets = &self.encoded.offsets;
        let first = |byte: usize| offsets.iter().position(|(start, _)| *start >= byte).unwrap_or(offsets.len());
        let begin = first(span.start);
        begin..first(span.end).max(begin)
    }

    /// `range` of a whole turn without what follows its end: the special tokens after its content, of which some
    /// templates write several (`<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`).
    pub fn up_to_end_of_turn(&self, range: Range<usize>) -> Range<usize> {
        let content_end = range
            .clone()
            .rev()
            .find(|&index| !self.is_blank(index) && !self.is_special(index))
            .map_or(range.start, |last| last + 1);
        // Some tokenizers do not flag theirs as special (Gemma 1's, for one): then it is an added token at the very end.
        let end_of_turn = (content_end..range.end)
            .find(|&index| self.is_special(index))
            .or(content_end.checked_sub(1).filter(|&last| last >= range.start && self.is_added(last)));
        let closed = |first: usize| (first..range.end).find(|&index| !self.is_special(index)).unwrap_or(range.end);
        range.start..end_of_turn.map_or(range.end, |index| closed(index + 1))
    }

    /// `range` extended through the end of its turn after it, if there is one.
    pub fn through_end_of_turn(&self, range: Range<usize>) -> Range<usize> {
        let end = (range.end..self.encoded.ids.len()).find(|&index| self.is_special(index));
        range.start..end.map_or(range.end, |index| self.through_eos(index + 1))
    }

    /// `range` of the content, extended through the end of its turn if that follows at once.
    pub fn with_end_of_turn(&self, range: Range<usize>) -> Range<usize> {
        let next = (range.end..self.encoded.ids.len()).find(|&index| self.is_special(index) || !self.is_blank(index));
        let end_of_turn = next.filter(|&index| self.is_special(index) || self.is_added(index));
        range.start..end_of_turn.map_or(range.end, |index| self.through_eos(index + 1))
    }

    /// Where a turn ends whose first closing token is before `end`: with the eos, where that follows at once. Other
    /// special tokens may open the next turn.
    fn through_eos(&self, end: usize) -> usize {
        let is_eos = |index: usize| self.tokenizer.eos_id().as_ref() == self.encoded.ids.get(index);
        if end.checked_sub(1).is_some_and(is_eos) {
            return end;
        }
        let mut closing = (end..self.encoded.ids.len()).take_while(|&index| self.is_special(index));
        closing.find(|&index| is_eos(index)).map_or(end, |eos| eos + 1)
    }

    fn is_blank(&self, index: usize) -> bool {
        let covered = self.encoded.offsets.get(index).and_then(|&(start, end)| self.text.get(start..end));
        covered.is_some_and(|covered| covered.trim().is_empty())
    }

    fn is_special(&self, index: usize) -> bool {
        self.encoded.ids.get(index).is_some_and(|&id| self.tokenizer.is_special(id))
    }

    fn is_added(&self, index: usize) -> bool {
        self.encoded.ids.get(index).is_some_and(|&id| self.tokenizer.is_added(id))
    }
}
