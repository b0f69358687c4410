//! One column of a batch: numbers, one or a list of them a row.
//!
//! Decides which Arrow types are columns of numbers and refuses the rest by name. Nulls, empty rows and values that are
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
    /// Shape that every row must have, where the user gave one.
    given: Option<Vec<usize>>,
    /// Rows read so far.
    rows: u64,
}

/// Rows of one column, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// Little-endian numbers.
    pub(super) bytes: Vec<u8>,
    /// Numbers up to the end of each row.
    pub(super) ends: Vec<usize>,
}

impl Rows {
    /// The bytes of each row, of numbers of this type.
    pub(super) fn each(&self, number: Number) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let spans = begins.zip(&self.ends);
        spans.map(move |(begin, end)| &self.bytes[begin * number.bytes()..end * number.bytes()])
    }
}

impl Column {
    /// A column of the given Arrow type, with rows of the shape that the user gave.
    pub(super) fn new(name: &str, kind: &DataType, given: Option<Vec<usize>>) -> Result<Self, Error> {
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
            given,
            rows: 0,
        })
    }

    /// Shape of rows of `width` numbers: the given one; else nothing for scalars, the width for lists.
    pub(super) fn shape(&self, width: usize) -> Vec<usize> {
        match &self.given {
            Some(shape) => shape.clone(),
            None if self.list => vec![width],
            None => Vec::new(),
        }
    }

    /// The rows of `array`.
    pub(super) fn read(&mut self, array: &dyn Array) -> Result<Rows, Error> {
        self.no_nulls(array)?;
        let mut rows = Rows::default();
        match array.data_type() {
            DataType::FixedSizeList(..) => {
                let list = array.as_fixed_size_list();
                let width = usize::try_from(list.value_length()).unwrap_or(0);
                rows.ends = (1..=list.len()).map(|row| row * width).collect();
                self.check_widths(&rows)?;
                // A sliced array's values are sliced with it.
                self.numbers(list.values().as_ref(), &mut rows)?;
            }
            DataType::List(_) => self.lists::<i32>(array, &mut rows)?,
            DataType::LargeList(_) => self.lists::<i64>(array, &mut rows)?,
            _ => {
                rows.ends = (1..=array.len()).collect();
                self.check_widths(&rows)?;
                self.numbers(array, &mut rows)?;
            }
        }
        self.rows += array.len() as u64;
        Ok(rows)
    }

    fn lists<O: OffsetSizeTrait>(&mut self, array: &dyn Array, rows: &mut Rows) -> Result<(), Error> {
        let list = array.as_list::<O>();
        let offsets = list.value_offsets();
        let Some((begin, ends)) = offsets.split_first() else {
            return Ok(());
        };
        let begin = begin.as_usize();
        rows.ends = ends.iter().map(|end| end.as_usize() - begin).collect();
        self.check_widths(rows)?;
        let values = list.values().slice(begin, rows.ends.last().copied().unwrap_or(0));
        self.numbers(values.as_ref(), rows)
    }

    fn check_widths(&self, rows: &Rows) -> Result<(), Error> {
        let most = MAX_ROW_BYTES / self.number.bytes();
        let given = self.given.as_ref().map(|shape| (shape, numbers_in(shape)));
        let mut begin = 0;
        for (row, end) in rows.ends.iter().enumerate() {
            let width = end - begin;
            if width == 0 {
                return Err(self.value(row, "the list is empty: fill or drop the row".to_owned()));
            }
            if width > most {
                let problem = format!("{width} numbers in one row; at most {most} are read");
                return Err(self.value(row, problem));
            }
            if let Some((shape, numbers)) = given.filter(|(_, numbers)| *numbers != Some(width)) {
                let numbers = numbers.map_or_else(|| "too many".to_owned(), |numbers| numbers.to_string());
                let problem = format!("{width} numbers, but data.inputs[].shape {shape:?} takes {numbers}");
                return Err(self.value(row, problem));
            }
            begin = *end;
        }
        Ok(())
    }

    fn numbers(&self, values: &dyn Array, rows: &mut Rows) -> Result<(), Error> {
        self.no_nulls(values)?;
        let Rows { bytes: out, ends } = rows;
        match self.number {
            Number::Int8 => encode::<Int8Type, 1>(values, out, i8::to_le_bytes),
            Number::Int16 => encode::<Int16Type, 2>(values, out, i16::to_le_bytes),
            Number::Int32 => encode::<Int32Type, 4>(values, out, i32::to_le_bytes),
            Number::Int64 => encode::<Int64Type, 8>(values, out, i64::to_le_bytes),
            Number::UInt8 => encode::<UInt8Type, 1>(values, out, u8::to_le_bytes),
            Number::Float32 => {
                let floats = values.as_primitive::<Float32Type>().values();
                self.finite(floats.iter().map(|&value| f64::from(value)), ends)?;
                encode::<Float32Type, 4>(values, out, f32::to_le_bytes);
            }
            Number::Float64 => {
                let floats = values.as_primitive::<Float64Type>().values();
                self.finite(floats.iter().copied(), ends)?;
                encode::<Float64Type, 8>(values, out, f64::to_le_bytes);
            }
        }
        Ok(())
    }

    fn finite(&self, mut values: impl Iterator<Item = f64>, ends: &[usize]) -> Result<(), Error> {
        match values.position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.value(
                ends.partition_point(|end| *end <= at),
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

/// Numbers in a row of this shape; none where there are more than can be counted.
fn numbers_in(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, size| product.checked_mul(*size))
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

    fn read(array: &dyn Array) -> Result<Rows, Error> {
        Column::new("c", array.data_type(), None)?.read(array)
    }

    fn list(rows: &[&[u8]]) -> ListArray {
        ListArray::from_iter_primitive::<UInt8Type, _, _>(rows.iter().map(|row| Some(row.iter().map(|v| Some(*v)))))
    }

    #[test]
    fn scalars_and_lists_become_bytes() {
        let rows = read(&Int32Array::from(vec![1, -2])).unwrap();
        assert_eq!(
            (rows.bytes, rows.ends),
            (vec![1, 0, 0, 0, 254, 255, 255, 255], vec![1, 2])
        );
        let rows = read(&list(&[&[1, 2], &[3, 4]]).slice(1, 1)).unwrap();
        assert_eq!((rows.bytes, rows.ends), (vec![3, 4], vec![2]));
        let fixed = FixedSizeListArray::from_iter_primitive::<Int8Type, _, _>(
            [Some([Some(1), Some(2)]), Some([Some(3), Some(4)])],
            2,
        );
        assert_eq!(read(&fixed.slice(1, 1)).unwrap().bytes, [3, 4]);
    }

    #[test]
    fn lists_keep_their_lengths() {
        let rows = read(&list(&[&[9], &[1], &[2, 3, 4], &[5, 6]]).slice(1, 3)).unwrap();
        assert_eq!((&rows.bytes, &rows.ends), (&vec![1, 2, 3, 4, 5, 6], &vec![1, 4, 6]));
        let each: Vec<&[u8]> = rows.each(Number::UInt8).collect();
        assert_eq!(each, [&[1][..], &[2, 3, 4][..], &[5, 6][..]]);
    }

    #[test]
    fn rows_fill_the_given_shape() {
        let array = list(&[&[1, 2, 3, 4, 5, 6], &[1, 2, 3]]);
        let column = |shape: &[usize]| Column::new("c", array.data_type(), Some(shape.to_vec())).unwrap();
        let mut images = column(&[3, 2, 1]);
        assert_eq!(images.read(&array.slice(0, 1)).unwrap().ends, [6]);
        assert_eq!(images.shape(6), [3, 2, 1]);
        for (shape, words) in [
            (&[3, 2][..], "row 1: 3 numbers, but data.inputs[].shape [3, 2] takes 6"),
            (&[7][..], "row 0: 6 numbers, but data.inputs[].shape [7] takes 7"),
            (&[0][..], "takes 0"),
            (&[usize::MAX, 2][..], "takes too many"),
        ] {
            let error = column(shape).read(&array).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let null = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some(vec![Some(1), None])]);
        let missing = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some(vec![Some(1)]), None]);
        let infinite = [Some(vec![Some(1.0)]), Some(vec![Some(2.0), Some(f32::INFINITY)])];
        let infinite = ListArray::from_iter_primitive::<Float32Type, _, _>(infinite);
        let cases: [(ArrayRef, &str); 7] = [
            (Arc::new(null), "null"),
            (Arc::new(missing), "null"),
            (Arc::new(list(&[&[1], &[]])), "row 1: the list is empty"),
            (Arc::new(infinite), "row 1: a value is NaN"),
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
