//! Four bits a value as bitsandbytes has them (NF4 and FP4): each is a number of a table of 16, times its block's scale.
//!
//! Blocks run over the flattened matrix, so a row may start in the middle of one. The scales may be quantised in turn
//! ("double" or "nested" quantisation): a byte each, from a table of 256, with a scale for each 256 of them and one
//! offset. A value is table[code] · scale in f32, then rounded to the type that the matrix had when it was quantised, if
//! that is a half: so do bitsandbytes' `dequantize_4bit` and its backward pass; its forward pass does not round.

mod codes;
mod lookup;
mod quantise;
mod tables;

pub use codes::{FourBit, Nested, Parts, Rounding, Scales};
pub use quantise::{Quantiser, bytes_of};
pub use tables::Kind;

#[cfg(test)]
mod tests;
