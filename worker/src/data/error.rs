//! Why data can't be used: the column, the row, the value and the way out.

use std::io;
use std::path::PathBuf;

use crate::failure::{Failure, disk, reasons, refused};

/// Data that can't feed a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no Parquet, is damaged, or uses something that is not read.
    #[error("the data set can't be read: {0}")]
    Unreadable(String),
    /// A column that was named is not there.
    #[error("column `{column}` is not in the data set; it has {available}")]
    Missing {
        /// As named in `data.inputs` or `data.label`.
        column: String,
        /// What is there.
        available: String,
    },
    /// A column has a type that can't be used.
    #[error("column `{column}` has type {found}: {wanted}")]
    Type {
        /// Name of the column.
        column: String,
        /// Its type.
        found: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// A value that can't be used.
    #[error("column `{column}`, row {row}: {problem}")]
    Value {
        /// Name of the column.
        column: String,
        /// Row, from 0.
        row: u64,
        /// What is wrong and the way out.
        problem: String,
    },
    /// Column and model input don't fit.
    #[error("input `{input}` (column `{column}`): {problem}")]
    Binding {
        /// Name of the model's input.
        input: String,
        /// Name of the column.
        column: String,
        /// What is wrong and the way out.
        problem: String,
    },
    /// There is no row.
    #[error("the data set has 0 rows, and at least 1 is needed: push one with rows")]
    Empty,
    /// Calibration and evaluation data share rows.
    #[error(
        "{count} of {rows} evaluation rows are also in the calibration data (first: row {first}): a model measured on data that tuned it looks better than it is; use disjoint sets"
    )]
    Shared {
        /// Rows that are shared.
        count: u64,
        /// Rows of evaluation data.
        rows: u64,
        /// First shared row, from 0.
        first: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Disk { action, path, source } => disk(action, &path, &source),
            Error::Missing { .. } | Error::Binding { .. } => refused(reasons::COLUMN_MISSING, message),
            Error::Empty => refused(reasons::DATA_EMPTY, message),
            Error::Shared { .. } => refused(reasons::DATA_SHARED, message),
            Error::Unreadable(_) | Error::Type { .. } | Error::Value { .. } => refused(reasons::DATA_INVALID, message),
        }
    }
}
