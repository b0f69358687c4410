//! Padded rows are fed as if nobody had padded them, or refused.

use super::super::tests::{Staging, batch, folder_of};
use super::super::*;
use super::{Number, marks};

const DATA: &[&[u8]] = &[&[1, 2, 3], &[4], &[5, 6], &[7, 8], &[9, 10, 11, 12, 13]];

/// One column of numbers, each padded with `fill` to the width of its row.
fn padded(fill: u8, widths: &[usize], row: impl Fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for (data, width) in DATA.iter().zip(widths) {
        let mut row = row(data);
        row.resize(*width, fill);
        bytes.extend(row);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn column<'c>(input: &'c str, (bytes, ends): &'c (Vec<u8>, Vec<usize>)) -> Staging<'c> {
    let width = ends[0];
    let even = ends.iter().enumerate().all(|(row, end)| *end == (row + 1) * width);
    (input, Number::UInt8, even.then(|| vec![width]), bytes, ends.clone())
}

fn takes(name: &str, dims: &[Dim]) -> Input {
    Input {
        name: name.into(),
        element: ElementType::Uint8,
        dims: Some([&[batch()], dims].concat()),
    }
}

fn ones(data: &[u8]) -> Vec<u8> {
    vec![1; data.len()]
}

/// A tensor: its name, dimensions and bytes.
type Fed = (String, Vec<usize>, Vec<u8>);

fn fed(feed: &Feed) -> Vec<Vec<Fed>> {
    let tensors = |batch: Result<Vec<Tensor>, Error>| batch.unwrap().into_iter();
    let all = feed.batches(8).map(|batch| {
        let all = tensors(batch).map(|tensor| (tensor.name.clone(), tensor.dims.clone(), tensor.bytes().to_vec()));
        all.collect()
    });
    all.collect()
}

#[test]
fn padded_rows_are_fed_as_natural_ones() {
    let length = Dim::Named("length".into());
    let natural: Vec<usize> = DATA.iter().map(|row| row.len()).collect();
    for dim in [length, Dim::Unknown] {
        let inputs = || {
            vec![
                takes("ids", std::slice::from_ref(&dim)),
                takes("mask", std::slice::from_ref(&dim)),
                takes("frames", &[Dim::Fixed(2), dim.clone(), Dim::Fixed(3)]),
                takes("age", &[Dim::Fixed(1)]),
            ]
        };
        let open = |widths: &[usize]| {
            let (ids, mask) = (padded(99, widths, <[u8]>::to_vec), padded(0, widths, ones));
            let (mut frames, mut ends) = (Vec::new(), Vec::new());
            for (data, width) in DATA.iter().zip(widths) {
                for half in 0..2 {
                    let row: Vec<u8> = data.iter().flat_map(|value| [value + half, *value, half]).collect();
                    frames.extend(&row);
                    frames.extend(vec![77; width * 3 - row.len()]);
                }
                ends.push(frames.len());
            }
            let frames = (frames, ends);
            let age = (vec![30, 31, 32, 33, 34], vec![1, 2, 3, 4, 5]);
            let columns = vec![
                column("ids", &ids),
                column("mask", &mask),
                column("frames", &frames),
                column("age", &age),
            ];
            let folder = folder_of(columns);
            Feed::open(folder.path(), inputs())
                .unwrap()
                .without_padding("mask")
                .unwrap()
        };
        let wanted = fed(&open(&natural));
        let shapes: Vec<Vec<usize>> = wanted.iter().map(|batch| batch[2].1.clone()).collect();
        assert_eq!(shapes, [[1, 2, 3, 3], [1, 2, 1, 3], [2, 2, 2, 3], [1, 2, 5, 3]]);
        assert_eq!(wanted[2][0].2, [5, 6, 7, 8]);
        assert_eq!(wanted[0][2].2, [1, 1, 0, 2, 2, 0, 3, 3, 0, 2, 1, 1, 3, 2, 1, 4, 3, 1]);
        for widths in [[5; 5], [3, 3, 3, 4, 5], [8, 1, 2, 5, 5]] {
            assert_eq!(fed(&open(&widths)), wanted, "{widths:?}");
        }
    }
}

#[test]
fn inputs_that_have_nothing_to_do_with_the_mask_stay_whole() {
    let (mask, other) = (padded(0, &[4; 5], ones), padded(9, &[4; 5], <[u8]>::to_vec));
    let folder = folder_of(vec![column("mask", &mask), column("other", &other)]);
    let named = |name: &str| Dim::Named(name.into());
    let shape = |mask: Dim, other: Dim| {
        let inputs = vec![takes("mask", &[mask]), takes("other", &[other])];
        let feed = Feed::open(folder.path(), inputs)
            .unwrap()
            .without_padding("mask")
            .unwrap();
        fed(&feed)[0][1].1.clone()
    };
    assert_eq!(shape(named("tokens"), named("pixels")), [1, 4]);
    assert_eq!(shape(named("tokens"), Dim::Fixed(4)), [1, 4]);
    assert_eq!(shape(named("tokens"), named("tokens")), [1, 3]);
    assert_eq!(
        shape(named("tokens"), Dim::Unknown),
        [1, 3],
        "of the same size in every row"
    );
    let wider = padded(9, &[4, 4, 4, 4, 5], <[u8]>::to_vec);
    let folder = folder_of(vec![column("mask", &mask), column("other", &wider)]);
    let inputs = vec![takes("mask", &[Dim::Unknown]), takes("other", &[Dim::Unknown])];
    let feed = Feed::open(folder.path(), inputs)
        .unwrap()
        .without_padding("mask")
        .unwrap();
    assert_eq!(fed(&feed)[0][1].1, [1, 4], "of another size in one row");
}

#[test]
fn masks_that_are_none_are_refused() {
    let refused = |bytes: &[u8], dim: Dim| {
        let folder = folder_of(vec![("mask", Number::UInt8, Some(vec![3]), bytes, vec![3, 6])]);
        let feed = Feed::open(folder.path(), vec![takes("mask", &[dim])]).unwrap();
        feed.without_padding("mask").map(|_| ()).unwrap_err().message
    };
    for (bytes, why) in [
        (
            [1, 1, 0, 0, 1, 1],
            "column `mask-column`, row 1: the padding mask has 0 before 1",
        ),
        ([1, 1, 0, 1, 0, 1], "row 1: the padding mask has 0 before 1"),
        ([1, 1, 0, 0, 0, 0], "row 1: the padding mask has no 1"),
        ([1, 1, 1, 1, 2, 0], "row 1: 2 in a padding mask"),
    ] {
        let message = refused(&bytes, Dim::Unknown);
        assert!(message.contains(why), "{why}: {message}");
    }
    let message = refused(&[1, 1, 1, 1, 1, 0], Dim::Fixed(3));
    assert!(
        message.contains("row 1 has padding, and the model declares its length as fixed"),
        "{message}"
    );
    let whole = folder_of(vec![("mask", Number::UInt8, Some(vec![3]), &[1; 6], vec![3, 6])]);
    let open = || Feed::open(whole.path(), vec![takes("mask", &[Dim::Fixed(3)])]).unwrap();
    assert_eq!(
        fed(&open().without_padding("mask").unwrap()),
        fed(&open()),
        "nothing is padded"
    );
    assert!(
        open()
            .without_padding("other")
            .unwrap_err()
            .message
            .contains("no such input")
    );
    for (bytes, value) in [([1.0, 0.5], "0.5"), ([f32::NAN, 1.0], "NaN")] {
        let bytes: Vec<u8> = bytes.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        assert_eq!(marks(Number::Float32, &bytes).unwrap_err(), value);
    }
}

#[test]
fn what_shares_the_dimension_must_be_as_long_and_must_not_have_a_shape() {
    let tokens = || Dim::Named("tokens".into());
    let (mask, ids) = (padded(0, &[4; 5], ones), padded(9, &[6; 5], <[u8]>::to_vec));
    let folder = folder_of(vec![column("mask", &mask), column("ids", &ids)]);
    let inputs = || vec![takes("mask", &[tokens()]), takes("ids", &[tokens()])];
    let failure = Feed::open(folder.path(), inputs())
        .unwrap()
        .without_padding("mask")
        .unwrap_err();
    assert!(
        failure
            .message
            .contains("row 0: it has shape [1, 6], and its padding mask [1, 4]"),
        "{}",
        failure.message
    );
    let (mask, far) = (
        padded(0, &[3, 3, 3, 3, 6], ones),
        (vec![1; 72], vec![9, 18, 27, 36, 72]),
    );
    let folder = folder_of(vec![column("mask", &mask), column("far", &far)]);
    let inputs = vec![takes("mask", &[tokens()]), takes("far", &[tokens(), tokens()])];
    let failure = Feed::open(folder.path(), inputs)
        .unwrap()
        .without_padding("mask")
        .unwrap_err();
    assert!(failure.message.contains("more than once"), "{}", failure.message);
    let mask = padded(0, &[4; 5], ones);
    let square = Dim::Fixed(2);
    let pairs = (vec![5; 40], (1..=5).map(|row| row * 8).collect());
    let mut shaped = column("ids", &pairs);
    shaped.2 = Some(vec![2, 4]);
    let folder = folder_of(vec![column("mask", &mask), shaped]);
    let inputs = vec![takes("mask", &[tokens()]), takes("ids", &[square, tokens()])];
    let failure = Feed::open(folder.path(), inputs)
        .unwrap()
        .without_padding("mask")
        .unwrap_err();
    assert!(failure.message.contains("remove shape"), "{}", failure.message);
}
