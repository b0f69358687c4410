//! Rows meet declared shapes and types.

use super::super::Number;
use super::super::column::Rows;
use super::super::staged::{Header, InputWriter, write_header};
use super::*;

fn staged(number: Number, shape: Vec<usize>, rows: u64, bytes: &[u8]) -> tempfile::TempDir {
    let width: usize = shape.iter().product();
    let ends = (1..=usize::try_from(rows).unwrap()).map(|row| row * width).collect();
    folder_of(vec![("x", number, Some(shape), bytes, ends)])
}

/// Columns as they are staged: input, type, shape where all rows have one, numbers, and where rows end.
pub(super) type Staging<'s> = (&'s str, Number, Option<Vec<usize>>, &'s [u8], Vec<usize>);

pub(super) fn folder_of(columns: Vec<Staging<'_>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut header = Header {
        rows: columns[0].4.len() as u64,
        inputs: Vec::new(),
    };
    for (index, (input, number, shape, bytes, ends)) in columns.into_iter().enumerate() {
        let mut writer = InputWriter::create(folder.path(), index).unwrap();
        let bytes = bytes.to_vec();
        writer.write(&Rows { bytes, ends }).unwrap();
        assert_eq!(writer.finish().unwrap().is_some(), shape.is_some());
        header.inputs.push(StagedInput {
            input: input.into(),
            column: format!("{input}-column"),
            number,
            given: shape.as_ref().is_some_and(|shape| shape.len() > 1),
            shape,
        });
    }
    write_header(folder.path(), &header).unwrap();
    folder
}

fn takes(element: ElementType, dims: Option<Vec<Dim>>) -> Vec<Input> {
    vec![Input {
        name: "x".into(),
        element,
        dims,
    }]
}

pub(super) fn batch() -> Dim {
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

/// As models have them that are given distances from each position to each.
#[test]
fn dimensions_of_one_name_have_one_size() {
    let seq = || Dim::Named("seq".into());
    let ends = vec![2, 5];
    let columns = |distances: Vec<usize>| {
        vec![
            ("ids", Number::UInt8, None, &[1, 2, 3, 4, 5][..], ends.clone()),
            ("far", Number::UInt8, None, &[7; 13][..], distances),
        ]
    };
    let input = |name: &str, dims| Input {
        name: name.into(),
        element: ElementType::Int64,
        dims: Some(dims),
    };
    let inputs = || {
        vec![
            input("ids", vec![batch(), seq()]),
            input("far", vec![batch(), seq(), seq()]),
        ]
    };
    let folder = folder_of(columns(vec![4, 13]));
    let feed = Feed::open(folder.path(), inputs()).unwrap();
    for (row, size) in [(0, 2), (1, 3)] {
        assert_eq!(feed.tensors([row]).unwrap()[1].dims, [1, size, size]);
    }
    // Eight is no square, nine is not that of two, and sizes of two names are anyone's guess.
    for (ends, last, said) in [
        (vec![8, 13], seq(), "give the shape of a row"),
        (vec![9, 13], seq(), "share the dimension"),
        (vec![4, 13], Dim::Named("other".into()), "give the shape of a row"),
    ] {
        let folder = folder_of(columns(ends));
        let inputs = vec![
            input("ids", vec![batch(), seq()]),
            input("far", vec![batch(), seq(), last]),
        ];
        let message = Feed::open(folder.path(), inputs).unwrap_err().message;
        assert!(message.contains(said), "{message}");
    }
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

/// As speech models have them: a rate for all, and states of `[layers, batch, hidden]`.
#[test]
fn scalars_and_states_are_fed_whole_one_row_a_run() {
    let rates: Vec<u8> = [8000_i64, 16_000].iter().flat_map(|rate| rate.to_le_bytes()).collect();
    let columns = vec![
        ("rate", Number::Int64, Some(vec![]), &rates[..], vec![1, 2]),
        (
            "state",
            Number::UInt8,
            Some(vec![2, 1, 2]),
            &[1, 2, 3, 4, 5, 6, 7, 8][..],
            vec![4, 8],
        ),
    ];
    let folder = folder_of(columns);
    let inputs = |hidden| {
        let input = |name: &str, element, dims| Input {
            name: name.into(),
            element,
            dims: Some(dims),
        };
        vec![
            input("rate", ElementType::Int64, vec![]),
            input(
                "state",
                ElementType::Float,
                vec![Dim::Fixed(2), batch(), Dim::Fixed(hidden)],
            ),
        ]
    };
    let feed = Feed::open(folder.path(), inputs(2)).unwrap();
    assert_eq!(feed.batch_limit(), 1);
    let tensors = feed.tensors([1]).unwrap();
    assert_eq!((tensors[0].dims.len(), &tensors[1].dims[..]), (0, &[2, 1, 2][..]));
    assert_eq!(tensors[0].to_ints().unwrap(), [16_000]);
    assert_eq!(tensors[1].to_floats().unwrap(), [5.0, 6.0, 7.0, 8.0]);
    let failure = Feed::open(folder.path(), inputs(3)).unwrap_err();
    assert!(
        failure.message.contains("shape [2, 1, 2], the model takes [2, N, 3]"),
        "{}",
        failure.message
    );
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides() {
    let folder = staged(Number::UInt8, vec![4], 1, &[1, 2, 3, 200]);
    for (dims, why) in [
        (
            vec![batch(), Dim::Fixed(5)],
            "a row has 4 numbers, the model takes [5] a row",
        ),
        (
            vec![batch(), Dim::Unknown, Dim::Unknown],
            "[?, ?] a row: give the shape",
        ),
        (vec![batch(), Dim::Fixed(0), Dim::Unknown], "[0, ?]"),
        (
            vec![Dim::Fixed(10), Dim::Fixed(4)],
            "fixed at 10, which rows can't fill one at a time: give the shape",
        ),
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

#[test]
fn rows_of_a_given_shape_keep_it_and_go_one_at_a_time() {
    let folder = staged(
        Number::UInt8,
        vec![1, 2, 2],
        3,
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    );
    let free = vec![batch(), Dim::Fixed(1), Dim::Unknown, Dim::Unknown];
    let feed = Feed::open(folder.path(), takes(ElementType::Uint8, Some(free))).unwrap();
    let batches: Vec<Tensor> = feed.batches(8).map(|batch| batch.unwrap().remove(0)).collect();
    assert_eq!(
        batches.iter().map(|tensor| tensor.dims.clone()).collect::<Vec<_>>(),
        vec![[1, 1, 2, 2]; 3]
    );
    assert_eq!(batches[2].bytes(), [9, 10, 11, 12]);
}

fn sentences(lengths: &[&[usize]]) -> tempfile::TempDir {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let columns = ["ids", "mask"].iter().zip(lengths).map(|(input, lengths)| {
        let ends: Vec<usize> = lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        (*input, Number::UInt8, None, &bytes[..*ends.last().unwrap()], ends)
    });
    folder_of(columns.collect())
}

fn tokens(names: &[&str], length: &Dim) -> Vec<Input> {
    let input = |name: &&str| Input {
        name: (*name).into(),
        element: ElementType::Uint8,
        dims: Some(vec![batch(), length.clone()]),
    };
    names.iter().map(input).collect()
}

#[test]
fn rows_of_one_length_run_together_at_their_natural_length() {
    // Row i begins with number ends[i - 1], so that each batch says which rows it is of.
    let batches = |lengths: &[&[usize]], size: usize| -> Vec<(Vec<usize>, Vec<u8>)> {
        let folder = sentences(lengths);
        let columns = ["ids", "mask"].iter().zip(lengths);
        let inputs = columns.map(|(name, _)| tokens(&[name], &Dim::Named(format!("{name}-length"))));
        let feed = Feed::open(folder.path(), inputs.flatten().collect()).unwrap();
        let batches = feed.batches(size).map(|batch| batch.unwrap().remove(0));
        batches
            .map(|batch| (batch.dims.clone(), batch.bytes().to_vec()))
            .collect()
    };
    let dims = |lengths: &[&[usize]], size| -> Vec<Vec<usize>> {
        batches(lengths, size).into_iter().map(|(dims, _)| dims).collect()
    };
    assert_eq!(
        batches(&[&[2, 1, 4, 1, 2, 1]], 8),
        [
            (vec![1, 2], vec![0, 1]),
            (vec![3, 1], vec![2, 7, 10]),
            (vec![1, 4], vec![3, 4, 5, 6]),
            (vec![1, 2], vec![8, 9]),
        ],
        "the first row is alone"
    );
    assert_eq!(
        dims(&[&[1, 2, 2, 2, 3, 5]], 8),
        [[1, 1], [2, 2], [1, 2], [1, 3], [1, 5]],
        "no more numbers than the longest row has"
    );
    assert_eq!(dims(&[&[1, 2, 9, 2]], 1), [[1, 1], [1, 2], [1, 9], [1, 2]]);
    assert_eq!(dims(&[&[4, 3, 3, 3, 3, 3, 3]], 4), [[1, 4], [4, 3], [2, 3]]);
    let far: Vec<usize> = std::iter::repeat_n(1, 65).chain([1, 3, 1, 1]).collect();
    let found = dims(&[&far], 64);
    assert_eq!(found[1], [64, 1]);
    assert_eq!(found[2..], [[3, 1], [1, 3]], "a window of its own");
    assert_eq!(
        dims(&[&[2, 2, 2, 3], &[4, 4, 5, 5]], 8),
        [[1, 2]; 3].iter().copied().chain([[1, 3]]).collect::<Vec<_>>(),
        "alike in every column"
    );
}

#[test]
fn rows_of_a_length_that_does_not_fit_are_named() {
    let length = Dim::Named("length".into());
    let alike = sentences(&[&[2, 3, 1], &[2, 3, 1]]);
    assert!(Feed::open(alike.path(), tokens(&["ids", "mask"], &length)).is_ok());
    let folder = sentences(&[&[2, 3, 1], &[2, 2, 1]]);
    let refused = |inputs| Feed::open(folder.path(), inputs).unwrap_err().message;
    let message = refused(tokens(&["ids", "mask"], &length));
    assert!(
        message.contains("column `ids-column`, row 1: 3 numbers, but column `mask-column` has 2"),
        "{message}"
    );
    let message = refused(tokens(&["ids", "mask"], &Dim::Fixed(2)));
    assert!(
        message.contains("row 1: a row has 3 numbers, the model takes [2]"),
        "{message}"
    );
}

#[test]
fn ends_that_are_no_ends_are_noticed() {
    let folder = sentences(&[&[2, 3, 1]]);
    let ends = folder.path().join("0.ends");
    let whole = std::fs::read(&ends).unwrap();
    assert_eq!(whole.len(), 24);
    let swapped = [&whole[8..16], &whole[..8], &whole[16..]].concat();
    let longer = [&whole[..16], &9_u64.to_le_bytes()].concat();
    for bad in [&whole[..16], &whole[..20], &swapped, &longer] {
        std::fs::write(&ends, bad).unwrap();
        assert!(Feed::open(folder.path(), tokens(&["ids"], &Dim::Unknown)).is_err());
    }
}
