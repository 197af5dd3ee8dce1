//! Parquet files: one record per row, with lists and structs as JSON.
//!
//! A struct's null members are left out, since a file has to store the same members for every struct of a column.
//! Dates, times and decimals become text. Bytes that are not UTF-8 (pictures, say) count as null.

use super::record::{Place, Record};
use crate::error::listing;
use crate::untrusted::without_panic;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that a Parquet file begins and ends with.
pub const MAGIC: &[u8; 4] = b"PAR1";

/// The rows of a file, read as they are asked for.
pub struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    /// Rows given out.
    count: usize,
    bytes_per_row: f64,
    taken: Arc<AtomicU64>,
}

impl Rows {
    /// `taken`: counts the bytes of the file that were read, about.
    ///
    /// # Errors
    /// A file that cannot be opened, is damaged or is encrypted.
    pub fn open(path: &Path, taken: &Arc<AtomicU64>) -> Result<Self> {
        // The library asserts some things that a damaged file can violate.
        without_panic(|| Self::open_checked(path, taken)).unwrap_or_else(|| Err(damaged(path)))
    }

    fn open_checked(path: &Path, taken: &Arc<AtomicU64>) -> Result<Self> {
        let file = File::open(path).map_err(|e| invalid!("cannot read dataset {}: {e}", path.display()))?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let unreadable = |e| invalid!("{}: not a readable Parquet file: {e}", path.display());
        let reader = SerializedFileReader::new(file).map_err(unreadable)?;
        let rows = reader.metadata().file_metadata().num_rows().max(1);
        let bytes_per_row = size as f64 / rows as f64;
        let (path, rows, taken) = (path.to_path_buf(), reader.into_iter(), Arc::clone(taken));
        Ok(Self { path, rows, count: 0, bytes_per_row, taken })
    }
}

impl Iterator for Rows {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let row = without_panic(|| self.rows.next());
        let Some(row) = row else { return Some(Err(damaged(&self.path))) };
        self.count += 1;
        self.taken.store((self.count as f64 * self.bytes_per_row) as u64, Ordering::Relaxed);
        let (place, path) = (Place::Row(self.count), self.path.display());
        Some(match row? {
            Ok(row) => record(&row, place, &self.path),
            Err(e) => Err(invalid!("{path}{place}: not readable as Parquet: {e}")),
        })
    }
}

fn damaged(path: &Path) -> anyhow::Error {
    invalid!("{}: not a readable Parquet file: it is damaged; make or download it anew", path.display())
}

/// # Errors
/// Two columns of the same name.
fn record(row: &Row, place: Place, path: &Path) -> Result<Record> {
    let fields: Map<String, Value> = row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
    ensure_valid!(
        fields.len() == row.len(),
        "{}: two columns have the same name; rename one (the columns are {})",
        path.display(),
        listing(&row.get_column_iter().map(|(name, _)| name).collect::<Vec<_>>(), 12)
    );
    Ok(Record { fields, place })
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => Value::from(*flag),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float16(number) => float(f64::from(*number)),
        Field::Float(number) => float(f64::from(*number)),
        Field::Double(number) => float(*number),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(members(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            Value::Object(map.entries().iter().map(|(key, field)| (text(key), value(field))).collect())
        }
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::from(field.to_string()),
    }
}

fn members(row: &Row) -> Map<String, Value> {
    let members = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
    members.filter(|(_, value)| !value.is_null()).collect()
}

/// JSON has no infinity and no NaN.
fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// A map's key as text.
fn text(field: &Field) -> String {
    match value(field) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
