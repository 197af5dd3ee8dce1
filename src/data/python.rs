//! What chat templates expect from Python: how values print, `json.dumps`, string methods, `strftime`.
//!
//! minijinja charges a template's fuel for what its own filters and operators visit and produce; work done here is
//! charged here ([`Writer`], [`charge`]), since one short expression gives a template a list of a hundred million
//! items.

mod filters;
mod json;
mod methods;
mod space;
mod strings;
mod value;

pub use filters::{
    center, default, dict, escape, float, int, is_iterable, is_sequence, iterated, strftime_now, today, trim, truncate,
    wordcount,
};
pub use json::to_json;
pub use methods::methods;
pub use value::{print, to_jinja, to_str};
