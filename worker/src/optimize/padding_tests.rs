//! Padding that a mask names leaves no trace in a candidate, whatever is learned from the rows.

use super::{trial::made_of_rows, *};
use crate::{
    calibrate::Method,
    data::{self, Feed, inputs_of},
    onnx::{AttributeValue, ElementType},
    passes::{Bits, Blocks, Mode, Quantize, Raise, Recovery, Smoothing},
    testing::{self, Build},
};
use arrow_array::{ArrayRef, ListArray, RecordBatch, types::Int64Type};
use assayer_crds::contract::InputBinding;
use parquet::arrow::ArrowWriter;
use std::sync::Arc;

const WIDTH: usize = 32;
const TOKENS: usize = 24;
/// A token that only padding has, far larger than the others.
const PADDING: i64 = 23;
const LENGTHS: [usize; 9] = [4, 7, 7, 3, 9, 9, 1, 5, 6];
const LONGEST: usize = 9;

/// An encoder of one layer, with attention that minds the mask.
pub(super) fn encoder() -> Model {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", ElementType::Int64, &[-1, -1]);
    let mask = b.typed_input("mask", ElementType::Int64, &[-1, -1]);
    let mut table = testing::noise(7, TOKENS * WIDTH);
    for (at, value) in table.iter_mut().enumerate() {
        let (token, channel) = (at / WIDTH, at % WIDTH);
        *value *= if channel == 3 { 20.0 } else { 1.0 };
        *value *= if token + 1 == TOKENS { 50.0 } else { 1.0 };
    }
    let table = b.floats(&[TOKENS, WIDTH], &table);
    let embedded = b.node("Gather", &[&table, &ids]);
    let project = |b: &mut Build, x: &str, from: usize, to: usize| {
        let weights = b.weights(&[from, to]);
        b.node("MatMul", &[x, &weights])
    };
    let [query, key, value] = [(); 3].map(|()| project(&mut b, &embedded, WIDTH, WIDTH));
    let turned = b.node_with("Transpose", &[&key], &[("perm", AttributeValue::Ints(vec![0, 2, 1]))]);
    let scores = b.node("MatMul", &[&query, &turned]);
    let floats = b.node_with("Cast", &[&mask], &[("to", AttributeValue::Int(1))]);
    let (one, far, axis) = (b.scalar(1.0), b.scalar(-10_000.0), b.ints(&[1]));
    let padded = b.node("Sub", &[&one, &floats]);
    let padded = b.node("Mul", &[&padded, &far]);
    let padded = b.node("Unsqueeze", &[&padded, &axis]);
    let scores = b.node("Add", &[&scores, &padded]);
    let shares = b.node("Softmax", &[&scores]);
    let mixed = b.node("MatMul", &[&shares, &value]);
    let mixed = project(&mut b, &mixed, WIDTH, WIDTH);
    let sum = b.node("Add", &[&embedded, &mixed]);
    let (scale, bias) = (b.weights(&[WIDTH]), b.weights(&[WIDTH]));
    let even = b.node("LayerNormalization", &[&sum, &scale, &bias]);
    let wide = project(&mut b, &even, WIDTH, 2 * WIDTH);
    let wide = b.node("Relu", &[&wide]);
    let y = project(&mut b, &wide, 2 * WIDTH, WIDTH);
    b.finish(&[&y])
}

/// Rows of [`LENGTHS`], each padded to at least `width`, as the calibration data of a job.
pub(super) fn feed(model: &Model, width: usize, cut: bool) -> Feed {
    let folder = tempfile::tempdir().unwrap();
    let rows = |fill: i64, value: &dyn Fn(usize, usize) -> i64| -> ArrayRef {
        let rows = LENGTHS.iter().enumerate().map(|(row, &length)| {
            let at = |at| Some(if at < length { value(row, at) } else { fill });
            Some((0..length.max(width)).map(at).collect::<Vec<_>>())
        });
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows))
    };
    let token = |row: usize, at: usize| i64::try_from((row * 5 + at * 3) % (TOKENS - 1)).unwrap();
    let columns = [("ids", rows(PADDING, &token)), ("mask", rows(0, &|_, _| 1))];
    let parquet = folder.path().join("rows.parquet");
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&parquet).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let inputs = ["ids", "mask"].map(|name| InputBinding {
        name: name.to_owned(),
        column: name.to_owned(),
        ..InputBinding::default()
    });
    let split = data::Split {
        inputs: &inputs,
        label: None,
        most: None,
        forbidden: None,
        into: folder.path(),
    };
    data::split(&parquet, &split).unwrap();
    let feed = Feed::open(folder.path(), inputs_of(model).unwrap()).unwrap();
    if cut {
        feed.without_padding("mask").unwrap()
    } else {
        feed
    }
}

/// The candidate's bytes, and what its report says.
fn candidate(model: &Model, stages: &[Stage], feed: &Feed) -> (Vec<u8>, Vec<String>) {
    let (bytes, report) = made_of_rows(model, stages, Given::default(), feed);
    (bytes, report.passes.into_iter().map(|pass| pass.note).collect())
}

#[test]
fn padded_rows_with_a_mask_give_the_bytes_of_natural_ones() {
    let model = encoder();
    let (natural, padded) = (feed(&model, 0, false), feed(&model, LONGEST, true));
    let whole = feed(&model, LONGEST, false);
    let fixed = |calibration| {
        Stage::Quantize(Quantize {
            mode: Mode::Static,
            calibration,
            ..Quantize::default()
        })
    };
    let recovered = |recovery| {
        Stage::QuantizeBlocks(Blocks {
            bits: Bits::Four,
            size: 16,
            recovery,
        })
    };
    let none = Recovery::default();
    let raise = Some(Raise::Worst {
        share: 0.9,
        goal: Some(0.999_999),
    });
    let smoothing = Smoothing {
        mode: Mode::Static,
        gptq: false,
        four_bits: false,
    };
    let asked = [
        vec![fixed(Method::MinMax)],
        vec![fixed(Method::MovingAverage(0.1))],
        vec![fixed(Method::Entropy)],
        vec![fixed(Method::Percentile(99.9))],
        vec![fixed(Method::MeanSquaredError)],
        vec![Stage::Smooth(smoothing), fixed(Method::MinMax)],
        vec![recovered(Recovery {
            gptq: true,
            ..none.clone()
        })],
        vec![recovered(Recovery {
            bias_correction: true,
            ..none.clone()
        })],
        vec![recovered(Recovery { raise, ..none })],
    ];
    for stages in asked {
        let wanted = candidate(&model, &stages, &natural);
        assert!(candidate(&model, &stages, &padded) == wanted, "{stages:?}");
        assert!(
            candidate(&model, &stages, &whole) != wanted,
            "padding goes unnoticed: {stages:?}"
        );
    }
}
