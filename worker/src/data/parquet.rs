//! Parquet to staged data: bound columns to the model's side, labels to the scorer's side.
//!
//! Decides which columns are read and that rows are complete and finite. Reads row group by row group; keeps no rows.

use std::collections::HashSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use assayer_crds::contract::InputBinding;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::Error;
use super::column::{Column, Rows};
use super::overlap::{Fingerprint, Fingerprints};
use super::staged::{Header, InputWriter, RowWriter, StagedInput, write_header};
use crate::failure::Failure;
use crate::onnx::RowShapes;

/// Rows that are decoded at once.
const BATCH: usize = 256;
/// Most numbers that are read at once, unless a single row has more.
const MOST_VALUES: usize = 1 << 20;

/// What is read of a data set, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    /// Columns that feed the model.
    pub inputs: &'a [InputBinding],
    /// Column with the class index, and the folder for labels.
    pub label: Option<(&'a str, &'a Path)>,
    /// Most rows that are taken, from the first.
    pub most: Option<u64>,
    /// Rows that must not come.
    pub forbidden: Option<&'a Fingerprints>,
    /// Folder for inputs.
    pub into: &'a Path,
}

/// Splits a data set and returns the number of rows.
pub fn split(parquet: &Path, split: &Split<'_>) -> Result<u64, Failure> {
    if let Some((label, _)) = split.label
        && let Some(bound) = split.inputs.iter().find(|input| input.column == label)
    {
        return Err(Error::Binding {
            input: bound.name.clone(),
            column: label.to_owned(),
            problem: "it is also the label: a model must not see what it is scored against".into(),
        }
        .into());
    }
    let mut source = Source::open(parquet, split.inputs, split.label.map(|(label, _)| label))?;
    let mut writers: Vec<InputWriter> = (0..split.inputs.len())
        .map(|index| InputWriter::create(split.into, index))
        .collect::<Result<_, _>>()?;
    let mut labels = split.label.map(|(_, folder)| RowWriter::labels(folder)).transpose()?;
    let (mut rows, mut shared, mut first_shared) = (0_u64, 0_u64, 0_u64);
    let most = split.most.unwrap_or(u64::MAX);
    while let Some(batch) = source.next(usize::try_from(most - rows).unwrap_or(usize::MAX))? {
        for (writer, rows) in writers.iter_mut().zip(&batch.columns) {
            writer.write(rows)?;
        }
        if let Some(writer) = &mut labels {
            let bytes: Vec<u8> = batch.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
            writer.write(&bytes)?;
        }
        if let Some(forbidden) = split.forbidden {
            for (row, print) in source.fingerprints(&batch).enumerate() {
                if forbidden.contains(&print) {
                    first_shared = if shared == 0 { rows + row as u64 } else { first_shared };
                    shared += 1;
                }
            }
        }
        rows += batch.rows as u64;
    }
    if rows == 0 {
        return Err(Error::Empty.into());
    }
    if shared > 0 {
        return Err(Error::Shared {
            count: shared,
            rows,
            first: first_shared,
        }
        .into());
    }
    labels.map_or(Ok(()), RowWriter::finish)?;
    let mut inputs = Vec::with_capacity(split.inputs.len());
    for ((bound, column), writer) in split.inputs.iter().zip(&source.columns).zip(writers) {
        inputs.push(StagedInput {
            input: bound.name.clone(),
            column: bound.column.clone(),
            number: column.number,
            shape: writer.finish()?.map(|width| column.shape(width)),
            given: bound.shape.is_some(),
        });
    }
    write_header(split.into, &Header { rows, inputs })?;
    Ok(rows)
}

/// The shapes of rows that the user gave.
pub fn row_shapes(inputs: &[InputBinding]) -> RowShapes {
    let size = |size: &u32| usize::try_from(*size).unwrap_or(usize::MAX);
    let given = inputs.iter().filter_map(|input| Some((input, input.shape.as_ref()?)));
    given
        .map(|(input, shape)| (input.name.clone(), shape.iter().map(size).collect()))
        .collect()
}

/// The input that says what of the rows is padding, if one does.
pub fn padding_mask(inputs: &[InputBinding]) -> Result<Option<&str>, Error> {
    let mut masks = inputs.iter().filter(|input| input.padding_mask);
    let mask = masks.next();
    match masks.next() {
        None => Ok(mask.map(|mask| mask.name.as_str())),
        Some(second) => Err(Error::Binding {
            input: second.name.clone(),
            column: second.column.clone(),
            problem: "it is a second padding mask, and at most one input is: remove paddingMask from the others"
                .to_owned(),
        }),
    }
}

/// Fingerprints of every row's bound columns.
pub fn fingerprints(parquet: &Path, inputs: &[InputBinding]) -> Result<Fingerprints, Failure> {
    let mut source = Source::open(parquet, inputs, None)?;
    let mut prints = HashSet::new();
    while let Some(batch) = source.next(usize::MAX)? {
        prints.extend(source.fingerprints(&batch));
    }
    Ok(prints)
}

/// A data set, read in batches.
struct Source<'a> {
    reader: ParquetRecordBatchReader,
    inputs: &'a [InputBinding],
    columns: Vec<Column>,
    label: Option<&'a str>,
    rows: u64,
}

/// Rows that are read at once: few where they are long, so that images take no more memory than numbers.
fn batch(metadata: &ParquetMetaData) -> usize {
    let columns = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    // What the file says of itself; whatever that is, at least one row is read and at most as many as ever.
    let values: i64 = columns
        .map(|column| column.num_values().max(0))
        .fold(0, i64::saturating_add);
    let rows = metadata.file_metadata().num_rows().max(1);
    let long = usize::try_from(values / rows).unwrap_or(usize::MAX).max(1);
    (MOST_VALUES / long).clamp(1, BATCH)
}

/// Rows, per bound column.
struct Batch {
    rows: usize,
    columns: Vec<Rows>,
    labels: Vec<i64>,
}

impl<'a> Source<'a> {
    fn open(path: &Path, inputs: &'a [InputBinding], label: Option<&'a str>) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::disk("open", path))?;
        guarded(move || {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(unreadable)?;
            let schema = builder.schema().clone();
            let mut roots = Vec::new();
            let mut columns = Vec::new();
            for bound in inputs {
                let index = find(&schema, &bound.column)?;
                let given = row_shapes(std::slice::from_ref(bound)).remove(&bound.name);
                columns.push(Column::new(&bound.column, schema.field(index).data_type(), given)?);
                roots.push(index);
            }
            if let Some(label) = label {
                let index = find(&schema, label)?;
                check_label(label, schema.field(index).data_type())?;
                roots.push(index);
            }
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            let rows = batch(builder.metadata());
            let reader = builder
                .with_projection(mask)
                .with_batch_size(rows)
                .build()
                .map_err(unreadable)?;
            Ok(Self {
                reader,
                inputs,
                columns,
                label,
                rows: 0,
            })
        })
    }

    /// The next rows, at most `most`; none at the end.
    fn next(&mut self, most: usize) -> Result<Option<Batch>, Error> {
        if most == 0 {
            return Ok(None);
        }
        guarded(|| {
            let Some(batch) = self.reader.next() else {
                return Ok(None);
            };
            let batch = batch.map_err(unreadable)?;
            let batch = if batch.num_rows() > most {
                batch.slice(0, most)
            } else {
                batch
            };
            let mut columns = Vec::new();
            for (bound, column) in self.inputs.iter().zip(&mut self.columns) {
                columns.push(column.read(array(&batch, &bound.column)?)?);
            }
            let labels = match self.label {
                Some(label) => labels(label, array(&batch, label)?, self.rows)?,
                None => Vec::new(),
            };
            self.rows += batch.num_rows() as u64;
            Ok(Some(Batch {
                rows: batch.num_rows(),
                columns,
                labels,
            }))
        })
    }

    fn fingerprints<'b>(&'b self, batch: &'b Batch) -> impl Iterator<Item = [u8; 32]> + 'b {
        let mut columns: Vec<_> = self
            .columns
            .iter()
            .zip(&batch.columns)
            .map(|(column, rows)| (column.number, rows.each(column.number)))
            .collect();
        (0..batch.rows).map(move |_| {
            let mut print = Fingerprint::default();
            for (number, rows) in &mut columns {
                print.add(*number, rows.next().unwrap_or_default());
            }
            print.finish()
        })
    }
}

fn find(schema: &Schema, column: &str) -> Result<usize, Error> {
    schema.index_of(column).map_err(|_| {
        let names: Vec<&str> = schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .take(20)
            .collect();
        Error::Missing {
            column: column.to_owned(),
            available: crate::failure::cut(&names.join(", "), 300),
        }
    })
}

fn array<'b>(batch: &'b RecordBatch, column: &str) -> Result<&'b dyn Array, Error> {
    let array = batch.column_by_name(column).map(AsRef::as_ref);
    array.ok_or_else(|| Error::Unreadable(format!("column `{column}` vanished between two batches")))
}

fn check_label(column: &str, kind: &DataType) -> Result<(), Error> {
    let wanted = match kind {
        kind if kind.is_integer() && *kind != DataType::UInt64 => return Ok(()),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            "labels by name need the model's list of class names, which can't be given yet: write the class index (an integer, from 0) instead"
        }
        _ => "a label is the class index: an integer from 0",
    };
    Err(Error::Type {
        column: column.to_owned(),
        found: crate::failure::cut(&kind.to_string(), 100),
        wanted,
    })
}

fn labels(column: &str, array: &dyn Array, before: u64) -> Result<Vec<i64>, Error> {
    let wrong = |row: usize, problem: &str| Error::Value {
        column: column.to_owned(),
        row: before + row as u64,
        problem: problem.to_owned(),
    };
    if array.logical_null_count() > 0 {
        return Err(wrong(0, "labels in this batch are null: fill or drop those rows"));
    }
    macro_rules! read {
        ($($arrow:ident => $kind:ty),*) => {
            match array.data_type() {
                $(DataType::$arrow => array.as_primitive::<$kind>().values().iter().map(|&v| i64::from(v)).collect(),)*
                other => return Err(Error::Unreadable(format!("label column `{column}` turned into {other}"))),
            }
        };
    }
    let labels: Vec<i64> = read!(Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type,
        UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type);
    match labels.iter().position(|label| *label < 0) {
        Some(row) => Err(wrong(row, "a label is negative: class indices start at 0")),
        None => Ok(labels),
    }
}

fn unreadable(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let hint = if text.contains("Disabled feature") {
        " (write it with snappy or without compression)"
    } else {
        ""
    };
    Error::Unreadable(format!("{}{hint}", crate::failure::cut(&text, 400)))
}

/// The Parquet reader panics on some damaged files: that is the file's fault, not a bug of ours.
fn guarded<T>(read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::Unreadable(
            "the Parquet reader broke on it: it is damaged".into(),
        ))
    })
}
