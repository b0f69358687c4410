//! Weights that several products share stay one tensor, whatever is done to win back accuracy.

use super::{
    Bits, Blocks, Inputs, Mode, Quantize, Recovering, Recovery, Smoothing, product_inputs, quantize_blocks,
    quantize_dynamic,
    raise_precision::{Bounds, Ladder, Otherwise},
    smooth,
};
use crate::{
    calibrate::{self, Gram, Rows as _},
    onnx::{self, AttributeValue, ElementType, Limits, Model, Tensor},
    testing::{self, Build, noise, relative_difference, run, run_optimized},
};
use std::collections::BTreeMap;

const WIDTH: usize = 64;
const STEPS: usize = 4;

fn small(b: &mut Build, dims: &[usize], seed: u64) -> String {
    let values = noise(seed, dims.iter().product());
    b.floats(dims, &values.iter().map(|value| 0.2 * value).collect::<Vec<_>>())
}

/// One channel is far larger than the others.
fn uneven(b: &mut Build, x: &str) -> String {
    let mut scale = vec![1.0; WIDTH];
    scale[5] = 40.0;
    let scale = b.floats(&[WIDTH], &scale);
    b.node("Mul", &[x, &scale])
}

/// Time steps of a recurrent layer, unrolled, and a product of its own behind them.
fn unrolled() -> Model {
    let mut b = Build::opset(17);
    let mut state = b.input("x", &[-1, 64]);
    let (weights, bias) = (small(&mut b, &[WIDTH, WIDTH], 1), small(&mut b, &[WIDTH], 2));
    for _ in 0..STEPS {
        let product = b.node("MatMul", &[&state, &weights]);
        let sum = b.node("Add", &[&product, &bias]);
        let bent = b.node("Tanh", &[&sum]);
        state = uneven(&mut b, &bent);
    }
    let head = small(&mut b, &[WIDTH, 32], 3);
    let y = b.node("MatMul", &[&state, &head]);
    b.finish(&[&y])
}

fn rows(seed: u64) -> Vec<Tensor> {
    let mut values = noise(seed, 8 * WIDTH);
    values
        .iter_mut()
        .skip(5)
        .step_by(WIDTH)
        .for_each(|value| *value *= 40.0);
    vec![Tensor::floats("x", &[8, WIDTH], &values).unwrap()]
}

fn seen<T: calibrate::Rows + Send>(model: &Model) -> BTreeMap<String, T> {
    let mut batches = (0..4).map(|seed| Ok(rows(seed)));
    let taps = product_inputs(model);
    calibrate::rows(&testing::runtime(), 1, model, &taps, &mut batches, &mut |_| {}).unwrap()
}

/// Bytes of everything but the graph.
fn weights(model: &Model) -> usize {
    model.graph.initializers.iter().map(|tensor| tensor.bytes().len()).sum()
}

fn smoothed(float: &Model) -> (Model, super::Report) {
    let mut model = float.clone();
    let smoothing = Smoothing {
        mode: Mode::Dynamic,
        gptq: false,
        four_bits: false,
    };
    let report = smooth::apply(&mut model, smoothing, &seen(float)).unwrap();
    onnx::check(&model, &Limits::default()).unwrap();
    let difference = relative_difference(&run(float, &rows(9)), &run(&model, &rows(9)));
    assert!(difference < 1e-5, "{difference}");
    (model, report)
}

#[test]
fn inputs_of_shared_weights_are_divided_alike() {
    let float = unrolled();
    let (model, report) = smoothed(&float);
    assert_eq!(report.changed, STEPS + 1, "{report:?}");
    // One divisor for all steps, and one for the product behind them.
    assert_eq!(weights(&model), weights(&float) + 2 * 4 * WIDTH);
    let quantized = |model: &Model| {
        let mut model = model.clone();
        let settings = Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        };
        quantize_dynamic::apply(&mut model, &settings).unwrap();
        model
    };
    let before = run(&float, &rows(9));
    let lost = |model: &Model| relative_difference(&before, &run_optimized(&quantized(model), &rows(9)).0);
    let (plain, even) = (lost(&float), lost(&model));
    assert!(even < 0.7 * plain, "{even} {plain}");
    assert_eq!(weights(&quantized(&model)), weights(&quantized(&float)) + 2 * 4 * WIDTH);
}

/// Two layers of attention with the same weights; `read`: something else reads the values of the second.
fn attention(read: bool) -> Model {
    let mut b = Build::opset(17);
    let mut x = b.input("x", &[-1, 64]);
    let (values, bias) = (small(&mut b, &[WIDTH, WIDTH], 1), small(&mut b, &[WIDTH], 2));
    let mut columns = noise(3, WIDTH * WIDTH);
    columns
        .iter_mut()
        .skip(7 * WIDTH)
        .take(WIDTH)
        .for_each(|value| *value *= 0.01);
    let output = b.floats(&[WIDTH, WIDTH], &columns);
    let mut outputs = Vec::new();
    for layer in 0..2 {
        let turned = b.node("Transpose", &[&x]);
        let scores = b.node("MatMul", &[&x, &turned]);
        let shares = b.node("Softmax", &[&scores]);
        let product = b.node("MatMul", &[&x, &values]);
        let value = b.node("Add", &[&product, &bias]);
        let mixed = b.node("MatMul", &[&shares, &value]);
        x = b.node("MatMul", &[&mixed, &output]);
        if read && layer == 1 {
            outputs.push(b.node("Tanh", &[&value]));
        }
    }
    outputs.push(x);
    b.finish(&outputs.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn values_that_share_weights_take_divisions_together_or_not_at_all() {
    for (read, divisors) in [(false, 1), (true, 2)] {
        let float = attention(read);
        let (model, report) = smoothed(&float);
        assert_eq!(weights(&model), weights(&float) + divisors * 4 * WIDTH, "{report:?}");
        let values = ["2 in the weights", "0 in the weights"][usize::from(read)];
        assert!(report.note.contains(values), "{report:?}");
    }
}

#[test]
fn weights_are_rounded_once_by_what_was_seen_of_all_their_inputs() {
    let float = unrolled();
    let before = run(&float, &rows(9));
    let inputs = Inputs {
        grams: seen(&float),
        ..Inputs::default()
    };
    let of = |bits: Option<Bits>, gptq: bool, bias_correction: bool| {
        let recovery = Recovery {
            gptq,
            bias_correction,
            raise: None,
        };
        let mut recovering = Recovering::new(&recovery, &inputs, &float);
        let mut model = float.clone();
        match bits {
            None => {
                let settings = Quantize {
                    mode: Mode::Dynamic,
                    ..Quantize::default()
                };
                quantize_dynamic::apply_recovering(&mut model, &settings, &mut recovering).unwrap();
            }
            Some(bits) => {
                let settings = Blocks {
                    bits,
                    size: 32,
                    recovery: recovery.clone(),
                };
                quantize_blocks::apply(&mut model, &settings, &mut recovering).unwrap();
            }
        }
        onnx::check(&model, &Limits::default()).unwrap();
        let lost = relative_difference(&before, &run_optimized(&model, &rows(9)).0);
        (weights(&model), lost)
    };
    for bits in [None, Some(Bits::Four)] {
        let (plain, _) = of(bits, false, false);
        for (gptq, bias_correction) in [(true, false), (false, true), (true, true)] {
            let (bytes, lost) = of(bits, gptq, bias_correction);
            // A bias for the product behind the steps, which has none.
            assert!(
                bytes <= plain + 4 * 32,
                "{bits:?} {gptq} {bias_correction}: {bytes} {plain}"
            );
            assert!(lost < 0.3, "{bits:?} {gptq} {bias_correction}: {lost}");
        }
    }
}

#[test]
fn what_shares_weights_is_raised_together() {
    let float = unrolled();
    let inputs = Inputs {
        grams: seen(&float),
        ..Inputs::default()
    };
    let otherwise = Otherwise::Integers(Quantize::default().grid());
    let mut recovering = Recovering::new(&Recovery::default(), &inputs, &float);
    let worst = |share: f64, recovering: &Recovering<'_>| {
        let bounds = Bounds {
            share,
            goal: false,
            blocks: true,
            floats: 128,
        };
        Ladder::worst(&float, bounds, otherwise, recovering, &BTreeMap::new()).unwrap()
    };
    // The weights of all steps are two thirds of all weights.
    let ladder = worst(0.7, &recovering);
    assert_eq!((ladder.count(), ladder.in_blocks(1).len()), (1, STEPS));
    let mut model = float.clone();
    let report = ladder.raise(&mut model, 1, otherwise, &mut recovering).unwrap();
    assert_eq!((report.changed, report.raised.len()), (STEPS, STEPS));
    let codes = model
        .graph
        .initializers
        .iter()
        .filter(|tensor| tensor.name.ends_with("/q"));
    assert_eq!(codes.count(), 1);
    assert_eq!(worst(0.5, &recovering).in_blocks(1).len(), 1, "they are too many");
}

#[test]
fn a_head_that_is_an_embedding_stays_one_with_it() {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", ElementType::Int64, &[6]);
    let (table, weights) = (small(&mut b, &[96, WIDTH], 1), small(&mut b, &[WIDTH, WIDTH], 2));
    let rows = b.node("Gather", &[&table, &ids]);
    let state = b.node("MatMul", &[&rows, &weights]);
    let y = b.node_with("Gemm", &[&state, &table], &[("transB", AttributeValue::Int(1))]);
    let float = b.finish(&[&y]);
    let gram = |seed| {
        let mut gram = Gram::new(WIDTH);
        gram.add(&noise(seed, 32 * WIDTH));
        gram.finish();
        gram
    };
    let inputs = Inputs {
        grams: [(rows, gram(1)), (state, gram(2))].into(),
        ..Inputs::default()
    };
    let recovery = Recovery {
        gptq: true,
        ..Recovery::default()
    };
    let mut recovering = Recovering::new(&recovery, &inputs, &float);
    let settings = Blocks {
        bits: Bits::Four,
        size: 32,
        recovery,
    };
    let mut model = float.clone();
    quantize_blocks::apply(&mut model, &settings, &mut recovering).unwrap();
    onnx::check(&model, &Limits::default()).unwrap();
    let reports = recovering.finish().unwrap();
    assert_eq!((reports[0].changed, reports[0].left_count), (1, 1));
    assert!(reports[0].left[0].why.contains("an embedding shares its weights"));
    let read = |op_type: &str, slot: usize| -> Vec<&str> {
        let nodes = model.graph.nodes.iter().filter(|node| node.op_type == op_type);
        nodes.filter_map(|node| node.input(slot)).collect()
    };
    assert_eq!(read("GatherBlockQuantized", 0), read("MatMulNBits", 1)[1..]);
    let ids = [Tensor::int64s("ids", &[6], &[0, 95, 7, 7, 31, 2]).unwrap()];
    let difference = relative_difference(&run(&float, &ids), &run(&model, &ids));
    assert!(difference < 0.3, "{difference}");
}
