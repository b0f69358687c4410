//! Whole data sets: split, fingerprinted, and refused for what is wrong with them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, Float32Array, Int64Array, ListArray, RecordBatch, StringArray};
use assayer_crds::contract::{InputBinding, reasons};

use super::*;
use crate::failure::Failure;

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn features(rows: std::ops::Range<i32>) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
        rows.map(|row| Some(vec![Some(row), Some(row * 2)])),
    ))
}

fn labels(rows: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.map(|row| row % 3)))
}

fn bound() -> Vec<InputBinding> {
    vec![InputBinding {
        name: "bytes".into(),
        column: "features".into(),
        shape: None,
        padding_mask: false,
    }]
}

struct Folder {
    dir: tempfile::TempDir,
    parquet: PathBuf,
}

impl Folder {
    fn with(columns: Vec<(&str, ArrayRef)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let parquet = dir.path().join("d.parquet");
        write(&parquet, columns);
        for name in ["inputs", "labels"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, parquet }
    }

    fn split(&self, most: Option<u64>, forbidden: Option<&Fingerprints>) -> Result<u64, Failure> {
        let (inputs, into, labels) = (bound(), self.dir.path().join("inputs"), self.dir.path().join("labels"));
        split(
            &self.parquet,
            &Split {
                inputs: &inputs,
                label: Some(("label", &labels)),
                most,
                forbidden,
                into: &into,
            },
        )
    }
}

#[test]
fn inputs_and_labels_part_ways() {
    let folder = Folder::with(vec![
        ("features", features(0..600)),
        ("label", labels(0..600)),
        ("extra", labels(0..600)),
    ]);
    assert_eq!(folder.split(None, None).unwrap(), 600);
    let staged = Staged::open(&folder.dir.path().join("inputs")).unwrap();
    assert_eq!(
        (staged.header.rows, &staged.header.inputs[0].shape),
        (600, &Some(vec![2]))
    );
    assert_eq!(
        staged.rows(0, &[599]).unwrap(),
        [599_i32.to_le_bytes(), 1198_i32.to_le_bytes()].concat()
    );
    let labels = read_labels(&folder.dir.path().join("labels")).unwrap();
    assert_eq!((labels.len(), labels[599]), (600, 599 % 3));
    let names: Vec<_> = std::fs::read_dir(folder.dir.path().join("inputs"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "only the header and one column: {names:?}");
    assert_eq!(folder.split(Some(300), None).unwrap(), 300);
    assert_eq!(read_labels(&folder.dir.path().join("labels")).unwrap().len(), 300);
}

/// Rows of one to seven numbers.
fn ragged(rows: std::ops::Range<i32>) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows.map(|row| {
        Some((0..=row % 7).map(move |at| Some(row + at)).collect::<Vec<_>>())
    })))
}

#[test]
fn rows_of_different_lengths_are_split_labelled_and_compared() {
    let columns = || vec![("features", ragged(0..600)), ("label", labels(0..600))];
    let folder = Folder::with(columns());
    assert_eq!(folder.split(None, None).unwrap(), 600);
    let staged = Staged::open(&folder.dir.path().join("inputs")).unwrap();
    assert_eq!((staged.header.rows, &staged.header.inputs[0].shape), (600, &None));
    for row in [0, 1, 5, 255, 256, 599] {
        let wanted = (0..=row % 7).flat_map(|at| i32::try_from(row + at).unwrap().to_le_bytes());
        assert_eq!(staged.rows(0, &[row]).unwrap(), wanted.collect::<Vec<u8>>());
    }
    assert_eq!(read_labels(&folder.dir.path().join("labels")).unwrap().len(), 600);
    let other = Folder::with(vec![("features", ragged(595..700)), ("label", labels(0..105))]);
    let prints = fingerprints(&other.parquet, &bound()).unwrap();
    let failure = folder.split(None, Some(&prints)).unwrap_err();
    assert!(failure.message.contains("5 of 600"), "{}", failure.message);
    // Where all rows that are taken have one length, nothing says where they end.
    assert_eq!(folder.split(Some(1), None).unwrap(), 1);
    let staged = Staged::open(&folder.dir.path().join("inputs")).unwrap();
    assert_eq!(staged.header.inputs[0].shape, Some(vec![1]));
}

#[test]
fn shared_rows_are_found_whatever_type_stores_them() {
    let calibration = Folder::with(vec![("features", features(95..120)), ("label", labels(0..25))]);
    let prints = fingerprints(&calibration.parquet, &bound()).unwrap();
    let evaluation = Folder::with(vec![("features", features(0..100)), ("label", labels(0..100))]);
    let failure = evaluation.split(None, Some(&prints)).unwrap_err();
    assert_eq!(failure.reason, reasons::DATA_SHARED);
    assert!(
        failure.message.contains("5 of 100") && failure.message.contains("row 95"),
        "{}",
        failure.message
    );
    let other = Folder::with(vec![("features", features(200..300)), ("label", labels(0..100))]);
    assert_eq!(other.split(None, Some(&prints)).unwrap(), 100);
}

#[test]
fn bad_sets_are_refused_with_the_reason() {
    let negative: ArrayRef = Arc::new(Int64Array::from(vec![0, -1]));
    let names: ArrayRef = Arc::new(StringArray::from(vec!["pdf", "zip"]));
    let floats: ArrayRef = Arc::new(Float32Array::from(vec![0.0, 1.0]));
    let nulls: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), None]));
    for (columns, reason, why) in [
        (
            vec![("features", features(0..2))],
            reasons::COLUMN_MISSING,
            "column `label` is not in the data set; it has features",
        ),
        (
            vec![("label", labels(0..2))],
            reasons::COLUMN_MISSING,
            "column `features`",
        ),
        (
            vec![("features", features(0..0)), ("label", labels(0..0))],
            reasons::DATA_EMPTY,
            "0 rows",
        ),
        (
            vec![("features", features(0..2)), ("label", negative)],
            reasons::DATA_INVALID,
            "row 1: a label is negative",
        ),
        (
            vec![("features", features(0..2)), ("label", names)],
            reasons::DATA_INVALID,
            "write the class index",
        ),
        (
            vec![("features", features(0..2)), ("label", floats)],
            reasons::DATA_INVALID,
            "an integer from 0",
        ),
        (
            vec![("features", features(0..2)), ("label", nulls)],
            reasons::DATA_INVALID,
            "null",
        ),
    ] {
        let failure = Folder::with(columns).split(None, None).unwrap_err();
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(why), "{why}: {}", failure.message);
    }
}

#[test]
fn a_label_that_is_an_input_is_refused() {
    let folder = Folder::with(vec![("features", features(0..2)), ("label", labels(0..2))]);
    let inputs = vec![InputBinding {
        name: "bytes".into(),
        column: "label".into(),
        shape: None,
        padding_mask: false,
    }];
    let labels = folder.dir.path().join("labels");
    let into = folder.dir.path().join("inputs");
    let asked = Split {
        inputs: &inputs,
        label: Some(("label", &labels)),
        most: None,
        forbidden: None,
        into: &into,
    };
    assert!(
        split(&folder.parquet, &asked)
            .unwrap_err()
            .message
            .contains("also the label")
    );
}

#[test]
fn one_input_at_most_is_the_padding_mask() {
    let input = |name: &str, padding_mask| InputBinding {
        name: name.into(),
        column: name.into(),
        padding_mask,
        ..InputBinding::default()
    };
    assert_eq!(padding_mask(&[input("ids", false)]).unwrap(), None);
    let one = [input("ids", false), input("mask", true)];
    assert_eq!(padding_mask(&one).unwrap(), Some("mask"));
    let refused = padding_mask(&[input("ids", true), input("mask", true)]).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("input `mask` (column `mask`): it is a second padding mask"),
        "{refused}"
    );
}

#[test]
fn damaged_files_are_refused_wherever_they_are_damaged() {
    let folder = Folder::with(vec![("features", features(0..600)), ("label", labels(0..600))]);
    let whole = std::fs::read(&folder.parquet).unwrap();
    for (at, cut) in [(0, 0), (0, 10), (0, whole.len() / 2), (0, whole.len() - 1)] {
        std::fs::write(&folder.parquet, &whole[at..cut]).unwrap();
        assert_eq!(folder.split(None, None).unwrap_err().reason, reasons::DATA_INVALID);
    }
    // Flipped bytes either do no harm to what is read or are refused; they never break the process.
    for at in (4..whole.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        std::fs::write(&folder.parquet, &flipped).unwrap();
        if let Err(failure) = folder.split(None, None) {
            assert_ne!(
                failure.class,
                crate::failure::FailureClass::Bug,
                "{at}: {}",
                failure.message
            );
        }
    }
}
