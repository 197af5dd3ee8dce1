//! Reasoning in a rendered turn: whose it is, and where it ends.

use crate::data::turns::REASONING;
use serde_json::Value;
use std::ops::Range;

/// Marks around reasoning, of the models in use.
const MARKS: [(&str, &str); 3] = [("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]")];

/// Whether a message has reasoning in a field of its own.
pub fn has_own(message: &Value) -> bool {
    REASONING.iter().any(|name| message[*name].as_str().is_some_and(|text| !text.trim().is_empty()))
}

/// Where a turn's own words begin: after the empty thoughts at its start, unless they are the record's.
pub fn after_empty(text: &str, span: &Range<usize>, message: &Value) -> usize {
    let (Some(before), Some(turn)) = (text.get(..span.start), text.get(span.clone())) else { return span.start };
    let content = message["content"].as_str().unwrap_or_default().trim_start();
    for (open, close) in MARKS {
        if has_own(message) || content.starts_with(open) {
            continue;
        }
        let rest = turn.trim_start();
        // Opened by the template here, or before, in the generation prompt.
        let opened = rest.strip_prefix(open).or_else(|| before.trim_end().ends_with(open).then_some(rest));
        if let Some(answer) = opened.and_then(|rest| rest.trim_start().strip_prefix(close)) {
            return span.end - answer.trim_start().len();
        }
    }
    span.start
}

/// Where a turn goes on after all of its reasoning.
pub fn after_any(text: &str, span: &Range<usize>) -> usize {
    let Some(turn) = text.get(span.clone()) else { return span.start };
    let ends = MARKS.iter().filter_map(|(_, close)| Some(turn.rfind(close)? + close.len()));
    let rest = ends.max().and_then(|end| turn.get(end..)).unwrap_or(turn);
    let skipped = turn.len() - rest.len();
    if skipped == 0 { span.start } else { span.end - rest.trim_start().len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empty_thoughts_are_the_template_s_unless_the_record_has_them() {
        let start = |text: &str, from: usize, message: Value| after_empty(text, &(from..text.len()), &message);
        let plain = json!({"content": "4"});
        assert_eq!(start("A<think>\n\n</think>\n\n4", 1, plain.clone()), 20);
        // The generation prompt has opened them.
        assert_eq!(start("A<think>\n\n</think>\n\n4", 9, plain.clone()), 20);
        assert_eq!(start("A<think>\nso\n</think>\n\n4", 1, plain.clone()), 1);
        assert_eq!(start("A<think>\n\n</think>\n\n4", 1, json!({"content": "<think>\n\n</think>\n\n4"})), 1);
        assert_eq!(start("A4", 1, plain), 1);
    }

    #[test]
    fn what_follows_the_last_thought_is_the_answer() {
        let text = "<think>a</think> b <think>c</think>\n\n4";
        assert_eq!(&text[after_any(text, &(0..text.len()))..], "4");
        assert_eq!(after_any("no thoughts", &(3..11)), 3);
    }
}
