//! Values of a GGUF file's metadata.

use super::source::Source;
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// A value, as far as anything here reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any whole number that is not negative.
    Whole(u64),
    /// A negative one.
    Negative(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    /// An array of whole numbers; negative ones as they are in two's complement.
    Wholes(Vec<u64>),
    Flags(Vec<bool>),
    /// An array of anything else; its length.
    Other(u64),
}

/// The types of values by their numbers in files.
pub mod code {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

impl Value {
    /// The value of the metadata key `key`.
    pub fn read(source: &mut Source, key: &str) -> Result<Self> {
        match source.u32(key)? {
            code::ARRAY => {
                let (kind, count) = (source.u32(key)?, source.u64(key)?);
                array(source, kind, count, key)
            }
            kind => single(source, kind, key),
        }
    }
}

fn single(source: &mut Source, kind: u32, key: &str) -> Result<Value> {
    let signed = |value: i64| u64::try_from(value).map_or(Value::Negative(value), Value::Whole);
    Ok(match kind {
        code::U8 => Value::Whole(u8::from_le_bytes(source.bytes(key)?).into()),
        code::I8 => signed(i8::from_le_bytes(source.bytes(key)?).into()),
        code::U16 => Value::Whole(u16::from_le_bytes(source.bytes(key)?).into()),
        code::I16 => signed(i16::from_le_bytes(source.bytes(key)?).into()),
        code::U32 => Value::Whole(source.u32(key)?.into()),
        code::I32 => signed(i32::from_le_bytes(source.bytes(key)?).into()),
        code::U64 => Value::Whole(source.u64(key)?),
        code::I64 => signed(i64::from_le_bytes(source.bytes(key)?)),
        code::F32 => Value::Float(shortest(f32::from_le_bytes(source.bytes(key)?))),
        code::F64 => Value::Float(f64::from_le_bytes(source.bytes(key)?)),
        code::BOOL => Value::Flag(source.bytes::<1>(key)? != [0]),
        code::STRING => Value::Text(source.string(key)?),
        other => return Err(invalid!("{key} has the unknown type {other}")),
    })
}

/// The number that somebody wrote who meant this f32: 1e-5, not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

/// What no code here asks for is only counted, so that an array never takes much more memory than bytes in the file.
fn array(source: &mut Source, kind: u32, count: u64, key: &str) -> Result<Value> {
    let width = match kind {
        code::STRING => {
            let mut texts = vec![];
            for _ in 0..count {
                let bytes = source.u64(key)?;
                // Merges and tokens of some files are cut inside a character.
                texts.push(String::from_utf8_lossy(&source.vec(bytes, key)?).into_owned());
            }
            return Ok(Value::Texts(texts));
        }
        code::U8 | code::I8 | code::BOOL => 1,
        code::U16 | code::I16 => 2,
        code::U32 | code::I32 | code::F32 => 4,
        code::U64 | code::I64 | code::F64 => 8,
        other => return Err(invalid!("{key} is an array of type {other}, which is not supported")),
    };
    let bytes = count.checked_mul(width);
    ensure_valid!(bytes.is_some(), "{key} claims {count} values");
    let bytes = source.vec(bytes.unwrap_or_default(), key)?;
    let wide = |b: &[u8; 4]| u64::from(u32::from_le_bytes(*b));
    Ok(match kind {
        code::BOOL => Value::Flags(bytes.iter().map(|&b| b != 0).collect()),
        code::U32 => Value::Wholes(bytes.as_chunks().0.iter().map(wide).collect()),
        code::I32 => Value::Wholes(
            bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b)).cast_unsigned()).collect(),
        ),
        _ => Value::Other(count),
    })
}
