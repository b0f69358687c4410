//! One column of a batch: numbers, one or a fixed number of them a row.
//!
//! Decides which Arrow types are columns of numbers and refuses the rest by name. Nulls, ragged rows and values that are
//! not finite are refused here, so that nobody after this needs to ask.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
};
use arrow_array::{Array, OffsetSizeTrait};
use arrow_schema::DataType;
use serde::{Deserialize, Serialize};

use super::Error;

/// Most bytes of one row of one column.
const MAX_ROW_BYTES: usize = 256 * 1024 * 1024;

/// Type of a column's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Number {
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    Float32,
    Float64,
}

impl Number {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::UInt8 => 1,
            Self::Int16 => 2,
            Self::Int32 | Self::Float32 => 4,
            Self::Int64 | Self::Float64 => 8,
        }
    }

    /// Name as in messages: `int32`, `float64`, ….
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::UInt8 => "uint8",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
        }
    }

    fn of(kind: &DataType) -> Option<Self> {
        Some(match kind {
            DataType::Int8 => Self::Int8,
            DataType::Int16 => Self::Int16,
            DataType::Int32 => Self::Int32,
            DataType::Int64 => Self::Int64,
            DataType::UInt8 => Self::UInt8,
            DataType::Float32 => Self::Float32,
            DataType::Float64 => Self::Float64,
            _ => return None,
        })
    }
}

/// Reads one column, batch by batch.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) number: Number,
    /// Whether a row is a list.
    list: bool,
    /// Numbers in a row, once a row was seen.
    width: Option<usize>,
    /// Rows read so far.
    rows: u64,
}

impl Column {
    /// A column of the given Arrow type.
    pub(super) fn new(name: &str, kind: &DataType) -> Result<Self, Error> {
        let (number, list) = match kind {
            DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
                (Number::of(field.data_type()), true)
            }
            scalar => (Number::of(scalar), false),
        };
        let number = number.ok_or_else(|| Error::Type {
            column: name.to_owned(),
            found: crate::failure::cut(&kind.to_string(), 100),
            wanted: "expected int8, int16, int32, int64, uint8, float32 or float64, or a list of them",
        })?;
        Ok(Self {
            name: name.to_owned(),
            number,
            list,
            width: None,
            rows: 0,
        })
    }

    /// Shape of a row: nothing for scalars, the width for lists.
    pub(super) fn shape(&self) -> Vec<usize> {
        if self.list {
            vec![self.width.unwrap_or(0)]
        } else {
            Vec::new()
        }
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> usize {
        self.width.unwrap_or(0) * self.number.bytes()
    }

    /// Appends the rows of `array` as little-endian numbers.
    pub(super) fn append(&mut self, array: &dyn Array, out: &mut Vec<u8>) -> Result<(), Error> {
        self.no_nulls(array)?;
        match array.data_type() {
            DataType::FixedSizeList(..) => {
                let list = array.as_fixed_size_list();
                let width = usize::try_from(list.value_length()).unwrap_or(0);
                if !list.is_empty() {
                    self.take_width(width, 0)?;
                }
                // A sliced array's values are sliced with it.
                self.numbers(list.values().as_ref(), out)?;
            }
            DataType::List(_) => self.lists::<i32>(array, out)?,
            DataType::LargeList(_) => self.lists::<i64>(array, out)?,
            _ => {
                if !array.is_empty() {
                    self.take_width(1, 0)?;
                }
                self.numbers(array, out)?;
            }
        }
        self.rows += array.len() as u64;
        Ok(())
    }

    fn lists<O: OffsetSizeTrait>(&mut self, array: &dyn Array, out: &mut Vec<u8>) -> Result<(), Error> {
        let list = array.as_list::<O>();
        let offsets = list.value_offsets();
        for (row, pair) in offsets.windows(2).enumerate() {
            self.take_width(pair[1].as_usize() - pair[0].as_usize(), row)?;
        }
        let (Some(begin), Some(end)) = (offsets.first(), offsets.last()) else {
            return Ok(());
        };
        let values = list.values().slice(begin.as_usize(), end.as_usize() - begin.as_usize());
        self.numbers(values.as_ref(), out)
    }

    /// Every row must be as wide as the first.
    fn take_width(&mut self, width: usize, row: usize) -> Result<(), Error> {
        let problem = match self.width {
            _ if width == 0 => "the list is empty".to_owned(),
            _ if width > MAX_ROW_BYTES / self.number.bytes() => {
                format!(
                    "{width} numbers in one row; at most {} are read",
                    MAX_ROW_BYTES / self.number.bytes()
                )
            }
            None => {
                self.width = Some(width);
                return Ok(());
            }
            Some(first) if first == width => return Ok(()),
            Some(first) => format!("{width} numbers, but row 0 has {first}: pad or cut rows to one length"),
        };
        Err(self.value(row, problem))
    }

    fn numbers(&self, values: &dyn Array, out: &mut Vec<u8>) -> Result<(), Error> {
        self.no_nulls(values)?;
        match self.number {
            Number::Int8 => encode::<Int8Type, 1>(values, out, i8::to_le_bytes),
            Number::Int16 => encode::<Int16Type, 2>(values, out, i16::to_le_bytes),
            Number::Int32 => encode::<Int32Type, 4>(values, out, i32::to_le_bytes),
            Number::Int64 => encode::<Int64Type, 8>(values, out, i64::to_le_bytes),
            Number::UInt8 => encode::<UInt8Type, 1>(values, out, u8::to_le_bytes),
            Number::Float32 => {
                self.finite(
                    values
                        .as_primitive::<Float32Type>()
                        .values()
                        .iter()
                        .map(|&value| f64::from(value)),
                )?;
                encode::<Float32Type, 4>(values, out, f32::to_le_bytes);
            }
            Number::Float64 => {
                self.finite(values.as_primitive::<Float64Type>().values().iter().copied())?;
                encode::<Float64Type, 8>(values, out, f64::to_le_bytes);
            }
        }
        Ok(())
    }

    fn finite(&self, mut values: impl Iterator<Item = f64>) -> Result<(), Error> {
        match values.position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.value(
                at / self.width.unwrap_or(1),
                "a value is NaN or infinite: clean the data".into(),
            )),
        }
    }

    fn no_nulls(&self, array: &dyn Array) -> Result<(), Error> {
        match array.logical_null_count() {
            0 => Ok(()),
            nulls => Err(self.value(0, format!("{nulls} values in this batch are null: fill or drop them"))),
        }
    }

    fn value(&self, row: usize, problem: String) -> Error {
        Error::Value {
            column: self.name.clone(),
            row: self.rows + row as u64,
            problem,
        }
    }
}

fn encode<T: ArrowPrimitiveType, const N: usize>(
    values: &dyn Array,
    out: &mut Vec<u8>,
    bytes: impl Fn(T::Native) -> [u8; N],
) {
    let values = values.as_primitive::<T>().values();
    out.reserve(values.len() * N);
    for &value in values {
        out.extend_from_slice(&bytes(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, ListArray, StringArray};

    use super::*;

    fn read(array: &dyn Array) -> Result<(Column, Vec<u8>), Error> {
        let mut column = Column::new("c", array.data_type())?;
        let mut out = Vec::new();
        column.append(array, &mut out)?;
        Ok((column, out))
    }

    #[test]
    fn scalars_and_lists_become_bytes() {
        let (column, bytes) = read(&Int32Array::from(vec![1, -2])).unwrap();
        assert_eq!((column.shape(), column.row_bytes()), (vec![], 4));
        assert_eq!(bytes, [1, 0, 0, 0, 254, 255, 255, 255]);
        let list =
            ListArray::from_iter_primitive::<UInt8Type, _, _>([Some([Some(1), Some(2)]), Some([Some(3), Some(4)])]);
        let (column, bytes) = read(&list.slice(1, 1)).unwrap();
        assert_eq!((column.shape(), bytes), (vec![2], vec![3, 4]));
        let fixed = FixedSizeListArray::from_iter_primitive::<Int8Type, _, _>(
            [Some([Some(1), Some(2)]), Some([Some(3), Some(4)])],
            2,
        );
        assert_eq!(read(&fixed.slice(1, 1)).unwrap().1, [3, 4]);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let ragged =
            ListArray::from_iter_primitive::<UInt8Type, _, _>([Some(vec![Some(1)]), Some(vec![Some(1), Some(2)])]);
        let null = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some(vec![Some(1), None])]);
        let empty = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some(Vec::<Option<u8>>::new())]);
        let cases: [(ArrayRef, &str); 6] = [
            (Arc::new(ragged), "row 1: 2 numbers, but row 0 has 1"),
            (Arc::new(null), "null"),
            (Arc::new(empty), "empty"),
            (Arc::new(Int32Array::from(vec![Some(1), None])), "null"),
            (
                Arc::new(Float32Array::from(vec![1.0, f32::NAN])),
                "row 1: a value is NaN",
            ),
            (Arc::new(StringArray::from(vec!["a"])), "has type Utf8"),
        ];
        for (array, why) in cases {
            let error = read(array.as_ref()).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
