//! Rows meet declared shapes and types.

use super::super::Number;
use super::super::staged::{Header, RowWriter, write_header};
use super::*;

fn staged(number: Number, shape: Vec<usize>, rows: u64, bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = RowWriter::input(folder.path(), 0).unwrap();
    writer.write(bytes).unwrap();
    writer.finish().unwrap();
    let input = StagedInput {
        input: "x".into(),
        column: "c".into(),
        number,
        shape,
    };
    write_header(
        folder.path(),
        &Header {
            rows,
            inputs: vec![input],
        },
    )
    .unwrap();
    folder
}

fn takes(element: ElementType, dims: Option<Vec<Dim>>) -> Vec<Input> {
    vec![Input {
        name: "x".into(),
        element,
        dims,
    }]
}

fn batch() -> Dim {
    Dim::Named("N".into())
}

#[test]
fn rows_take_the_declared_shape() {
    let folder = staged(Number::UInt8, vec![4], 3, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for (dims, shape) in [
        (None, vec![2, 4]),
        (Some(vec![batch(), Dim::Unknown]), vec![2, 4]),
        (Some(vec![batch(), Dim::Fixed(4)]), vec![2, 4]),
        (
            Some(vec![batch(), Dim::Fixed(1), Dim::Fixed(2), Dim::Fixed(2)]),
            vec![2, 1, 2, 2],
        ),
        (Some(vec![batch(), Dim::Fixed(2), Dim::Unknown]), vec![2, 2, 2]),
    ] {
        let feed = Feed::open(folder.path(), takes(ElementType::Int32, dims)).unwrap();
        let tensors = feed.tensors(1..3).unwrap();
        assert_eq!((tensors[0].name.as_str(), &tensors[0].dims), ("x", &shape));
        assert_eq!(tensors[0].to_ints().unwrap(), [5, 6, 7, 8, 9, 10, 11, 12]);
    }
    let feed = Feed::open(folder.path(), takes(ElementType::Uint8, None)).unwrap();
    let sizes: Vec<usize> = feed.batches(2).map(|batch| batch.unwrap()[0].dims[0]).collect();
    assert_eq!(sizes, [1, 2]);
    let one = Feed::open(
        folder.path(),
        takes(ElementType::Uint8, Some(vec![Dim::Fixed(1), Dim::Fixed(4)])),
    )
    .unwrap();
    assert_eq!((one.batch_limit(), one.batches(8).count()), (1, 3));
}

#[test]
fn scalars_feed_models_that_take_one_number_a_row() {
    let folder = staged(
        Number::Int64,
        vec![],
        2,
        &[1_i64.to_le_bytes(), 2_i64.to_le_bytes()].concat(),
    );
    let feed = Feed::open(folder.path(), takes(ElementType::Int64, Some(vec![batch()]))).unwrap();
    assert_eq!(feed.tensors(0..2).unwrap()[0].dims, [2]);
    let feed = Feed::open(
        folder.path(),
        takes(ElementType::Int64, Some(vec![batch(), Dim::Fixed(1)])),
    )
    .unwrap();
    assert_eq!(feed.tensors(0..2).unwrap()[0].dims, [2, 1]);
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides() {
    let folder = staged(Number::UInt8, vec![4], 1, &[1, 2, 3, 200]);
    for (dims, why) in [
        (
            vec![batch(), Dim::Fixed(5)],
            "a row has 4 numbers, the model takes [5] a row",
        ),
        (vec![batch(), Dim::Unknown, Dim::Unknown], "[?, ?]"),
        (vec![batch(), Dim::Fixed(0), Dim::Unknown], "[0, ?]"),
        (vec![Dim::Fixed(10), Dim::Fixed(4)], "fixed at 10"),
        (vec![], "scalar"),
    ] {
        let failure = Feed::open(folder.path(), takes(ElementType::Uint8, Some(dims))).unwrap_err();
        assert!(failure.message.contains(why), "{why}: {}", failure.message);
    }
    let feed = Feed::open(folder.path(), takes(ElementType::Int8, None)).unwrap();
    let error = feed.tensors(0..1).unwrap_err().to_string();
    assert!(error.contains("200 (uint8)") && error.contains("Int8"), "{error}");
    let mut two = takes(ElementType::Uint8, None);
    two.push(Input {
        name: "y".into(),
        element: ElementType::Float,
        dims: None,
    });
    assert!(
        Feed::open(folder.path(), two)
            .unwrap_err()
            .message
            .contains("binds no column")
    );
    assert!(
        Feed::open(folder.path(), Vec::new())
            .unwrap_err()
            .message
            .contains("no such input")
    );
}

#[test]
fn a_cut_file_is_noticed() {
    let folder = staged(Number::UInt8, vec![4], 2, &[1, 2, 3, 4]);
    assert!(Feed::open(folder.path(), takes(ElementType::Uint8, None)).is_err());
}
