//! Staged data: what `stage` leaves for the containers that load models.
//!
//! A folder with `inputs.json` (rows, and per input its column, number type and row shape) and one file an input
//! (`0.bin`, `1.bin`, …): the rows one after the other, little-endian, all of the same length, so that row *i* starts at
//! *i* times the row's bytes. Labels lie in another folder as `labels.bin`: one signed 64-bit integer a row.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Number};
use crate::failure::{Failure, bug};
use crate::layout::{read_note, write_note};

const HEADER: &str = "inputs.json";
const LABELS: &str = "labels.bin";

/// What lies in a folder of staged inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Number of rows.
    pub rows: u64,
    /// The inputs, in the plan's order.
    pub inputs: Vec<StagedInput>,
}

/// One staged input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StagedInput {
    /// Name of the model's input.
    pub input: String,
    /// The column that it came from.
    pub column: String,
    /// Type of its numbers.
    pub number: Number,
    /// Shape of a row.
    pub shape: Vec<usize>,
}

impl StagedInput {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.number.bytes()
    }
}

/// Writes one file of rows.
pub(super) struct RowWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl RowWriter {
    pub(super) fn input(folder: &Path, index: usize) -> Result<Self, Error> {
        Self::create(folder.join(format!("{index}.bin")))
    }

    pub(super) fn labels(folder: &Path) -> Result<Self, Error> {
        Self::create(folder.join(LABELS))
    }

    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = File::create(&path).map_err(Error::disk("create", &path))?;
        Ok(Self {
            out: BufWriter::with_capacity(256 * 1024, file),
            path,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::disk("write", &self.path))
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.out.flush().map_err(Error::disk("write", &self.path))
    }
}

/// Writes the header last: a folder without it is incomplete.
pub(super) fn write_header(folder: &Path, header: &Header) -> Result<(), Failure> {
    write_note(&folder.join(HEADER), header)
}

/// Staged inputs, opened for reading by rows.
#[derive(Debug)]
pub struct Staged {
    /// What lies there.
    pub header: Header,
    files: Vec<File>,
}

impl Staged {
    /// Opens a folder and checks that its files are as long as its header says.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let header: Header = read_note(&folder.join(HEADER))?;
        let mut files = Vec::new();
        for (index, input) in header.inputs.iter().enumerate() {
            let path = folder.join(format!("{index}.bin"));
            let file = File::open(&path).map_err(Error::disk("open", &path))?;
            let length = file.metadata().map_err(Error::disk("inspect", &path))?.len();
            if Some(length) != header.rows.checked_mul(input.row_bytes() as u64) {
                return Err(bug(format!(
                    "staged input `{}` has {length} bytes for {} rows",
                    input.input, header.rows
                )));
            }
            files.push(file);
        }
        Ok(Self { header, files })
    }

    /// The bytes of `count` rows of input `index`, from row `first`.
    pub fn rows(&self, index: usize, first: u64, count: usize) -> Result<Vec<u8>, Error> {
        let row = self.header.inputs[index].row_bytes();
        let mut bytes = vec![0; row * count];
        let read = self.files[index].read_exact_at(&mut bytes, first * row as u64);
        read.map_err(Error::disk("read", "staged inputs"))?;
        Ok(bytes)
    }
}

/// Reads the staged labels.
pub fn read_labels(folder: &Path) -> Result<Vec<i64>, Failure> {
    let path = folder.join(LABELS);
    let bytes = std::fs::read(&path).map_err(Error::disk("read", &path))?;
    let (labels, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(bug(format!("{} ends within a label", path.display())));
    }
    Ok(labels.iter().map(|label| i64::from_le_bytes(*label)).collect())
}
