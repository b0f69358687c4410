//! Staged data: what `stage` leaves for the containers that load models.
//!
//! A folder with `inputs.json` (rows, and per input its column, number type and row shape) and one file an input
//! (`0.bin`, `1.bin`, …): the rows one after the other, little-endian. Where all rows have one length, row *i* starts at
//! *i* times the row's bytes; else `0.ends`, … says where each row ends: unsigned 64-bit integers that count numbers.
//! Labels lie in another folder as `labels.bin`: one signed 64-bit integer a row.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::column::Rows;
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
    /// Shape of a row; none where rows are lists of different lengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// Whether the user gave that shape. Such rows go one at a time: nothing says whether the model takes more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
}

/// Writes one file of rows.
pub(super) struct RowWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl RowWriter {
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

/// Writes the rows of one input, and where they end once two of them differ in length.
pub(super) struct InputWriter {
    values: RowWriter,
    ends: Option<RowWriter>,
    ends_path: PathBuf,
    /// Numbers in the first row.
    width: Option<u64>,
    rows: u64,
    /// Numbers written.
    numbers: u64,
}

impl InputWriter {
    pub(super) fn create(folder: &Path, index: usize) -> Result<Self, Error> {
        Ok(Self {
            values: RowWriter::create(values_path(folder, index))?,
            ends: None,
            ends_path: ends_path(folder, index),
            width: None,
            rows: 0,
            numbers: 0,
        })
    }

    pub(super) fn write(&mut self, rows: &Rows) -> Result<(), Error> {
        let before = self.numbers;
        for &end in &rows.ends {
            let end = before + end as u64;
            let width = *self.width.get_or_insert(end - self.numbers);
            if self.ends.is_none() && width != end - self.numbers {
                let mut ends = RowWriter::create(self.ends_path.clone())?;
                (1..=self.rows).try_for_each(|row| ends.write(&(row * width).to_le_bytes()))?;
                self.ends = Some(ends);
            }
            if let Some(ends) = &mut self.ends {
                ends.write(&end.to_le_bytes())?;
            }
            self.numbers = end;
            self.rows += 1;
        }
        self.values.write(&rows.bytes)
    }

    /// Numbers in a row; none where rows differ.
    pub(super) fn finish(self) -> Result<Option<usize>, Error> {
        self.values.finish()?;
        if let Some(ends) = self.ends {
            ends.finish()?;
            return Ok(None);
        }
        Ok(Some(self.width.map_or(0, |width| usize::try_from(width).unwrap_or(0))))
    }
}

fn values_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("{index}.bin"))
}

fn ends_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("{index}.ends"))
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
    columns: Vec<Values>,
}

/// One input's rows.
#[derive(Debug)]
struct Values {
    file: File,
    number: Number,
    ends: Ends,
}

/// Where rows end, in numbers.
#[derive(Debug)]
enum Ends {
    /// All rows are as long.
    Every(u64),
    Each(Vec<u64>),
}

impl Ends {
    /// Numbers before a row, which may be the one after the last.
    fn before(&self, row: u64) -> u64 {
        match self {
            Self::Every(width) => row.saturating_mul(*width),
            Self::Each(ends) => {
                let last = row.checked_sub(1).and_then(|row| usize::try_from(row).ok());
                last.and_then(|row| ends.get(row)).copied().unwrap_or(0)
            }
        }
    }
}

impl Staged {
    /// Opens a folder and checks that its files are as long as its header says.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let header: Header = read_note(&folder.join(HEADER))?;
        let mut columns = Vec::new();
        for (index, input) in header.inputs.iter().enumerate() {
            let broken = |what: String| bug(format!("staged input `{}` {what}", input.input));
            let path = values_path(folder, index);
            let file = File::open(&path).map_err(Error::disk("open", &path))?;
            let length = file.metadata().map_err(Error::disk("inspect", &path))?.len();
            let ends = match &input.shape {
                Some(shape) => Ends::Every(shape.iter().product::<usize>() as u64),
                None => Ends::Each(read_ends(&ends_path(folder, index), header.rows).map_err(broken)?),
            };
            if ends.before(header.rows).checked_mul(input.number.bytes() as u64) != Some(length) {
                return Err(broken(format!("has {length} bytes for {} rows", header.rows)));
            }
            let number = input.number;
            columns.push(Values { file, number, ends });
        }
        Ok(Self { header, columns })
    }

    /// Numbers in row `row` of input `index`.
    pub fn width(&self, index: usize, row: u64) -> usize {
        let ends = &self.columns[index].ends;
        usize::try_from(ends.before(row + 1).saturating_sub(ends.before(row))).unwrap_or(usize::MAX)
    }

    /// The bytes of some rows of input `index`, one after another.
    pub fn rows(&self, index: usize, rows: &[u64]) -> Result<Vec<u8>, Error> {
        let Values { file, number, ends } = &self.columns[index];
        let size = number.bytes() as u64;
        let mut bytes = Vec::new();
        // What lies together is read at once.
        for run in rows.chunk_by(|one, next| one + 1 == *next) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let (begin, end) = (ends.before(*first) * size, ends.before(last + 1) * size);
            let filled = bytes.len();
            bytes.resize(
                filled + usize::try_from(end.saturating_sub(begin)).unwrap_or(usize::MAX),
                0,
            );
            let read = file.read_exact_at(bytes.get_mut(filled..).unwrap_or_default(), begin);
            read.map_err(Error::disk("read", "staged inputs"))?;
        }
        Ok(bytes)
    }
}

/// Where each of `rows` rows ends, or what is wrong with the file that says so.
fn read_ends(path: &Path, rows: u64) -> Result<Vec<u64>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("has no readable {}: {error}", path.display()))?;
    let (ends, rest) = bytes.as_chunks::<8>();
    let ends: Vec<u64> = ends.iter().map(|end| u64::from_le_bytes(*end)).collect();
    if !rest.is_empty() || ends.len() as u64 != rows || !ends.is_sorted_by(|one, next| one < next) {
        return Err(format!("has {} ends out of order for {rows} rows", ends.len()));
    }
    Ok(ends)
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
