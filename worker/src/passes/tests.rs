//! Every pass on small graphs, compared with ONNX Runtime: float rewrites within 1e-5 of the largest output, quantized
//! ones within an analytical bound, and the operators that ONNX Runtime really runs.

use super::*;
use crate::{
    calibrate,
    onnx::{AttributeValue as A, Limits, Model, Tensor},
    testing::{self, Build, relative_difference, run, run_optimized},
};

pub(super) fn image(seed: u64) -> Vec<Tensor> {
    vec![Tensor::floats("x", &[1, 8, 12, 12], &testing::noise(seed, 8 * 144)).unwrap()]
}

/// Conv - `BatchNormalization` - Relu - Conv - `GlobalAveragePool` - Flatten - Gemm, as image classifiers have.
fn classifier() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let (w1, w2) = (b.weights(&[16, 8, 3, 3]), b.weights(&[32, 16, 3, 3]));
    let c1 = b.node_with("Conv", &[&x, &w1], &[("pads", A::Ints(vec![1; 4]))]);
    let vectors: Vec<String> = (0..3).map(|_| b.weights(&[16])).collect();
    let variance = b.floats(&[16], &[0.7; 16]);
    let norm = b.node(
        "BatchNormalization",
        &[&c1, &vectors[0], &vectors[1], &vectors[2], &variance],
    );
    let relu = b.node("Relu", &[&norm]);
    let bias = b.weights(&[32]);
    let c2 = b.node("Conv", &[&relu, &w2, &bias]);
    let pool = b.node("GlobalAveragePool", &[&c2]);
    let flat = b.node("Flatten", &[&pool]);
    let (dense, dense_bias) = (b.weights(&[40, 32]), b.weights(&[40]));
    let y = b.node_with("Gemm", &[&flat, &dense, &dense_bias], &[("transB", A::Int(1))]);
    b.finish(&[&y])
}

/// `MatMul` - Add - written-out GELU - `MatMul` - Add on rows, as encoders have. `erf` chooses the GELU.
fn encoder(erf: bool) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[2, 5, 32]);
    let (w1, b1, w2, b2) = (
        b.weights(&[32, 64]),
        b.weights(&[64]),
        b.weights(&[64, 32]),
        b.weights(&[32]),
    );
    let product = b.node("MatMul", &[&x, &w1]);
    let h = b.node("Add", &[&product, &b1]);
    let gelu = if erf {
        b.spelled_gelu(&h)
    } else {
        let (three, k, root) = (b.scalar(3.0), b.scalar(0.044_715), b.scalar(0.797_884_6));
        let (one, half) = (b.scalar(1.0), b.scalar(0.5));
        let cube = b.node("Pow", &[&h, &three]);
        let small = b.node("Mul", &[&cube, &k]);
        let sum = b.node("Add", &[&h, &small]);
        let scaled = b.node("Mul", &[&root, &sum]);
        let tanh = b.node("Tanh", &[&scaled]);
        let plus = b.node("Add", &[&one, &tanh]);
        let halved = b.node("Mul", &[&half, &h]);
        b.node("Mul", &[&halved, &plus])
    };
    let product = b.node("MatMul", &[&gelu, &w2]);
    let y = b.node("Add", &[&product, &b2]);
    b.finish(&[&y])
}

fn rows(seed: u64) -> Vec<Tensor> {
    vec![Tensor::floats("x", &[2, 5, 32], &testing::noise(seed, 320)).unwrap()]
}

pub(super) fn valid(model: &Model) {
    crate::onnx::check(model, &Limits::default()).unwrap();
}

pub(super) fn quantized(model: &Model, settings: &Quantize, inputs: &dyn Fn(u64) -> Vec<Tensor>) -> (Model, Report) {
    let mut quantized = model.clone();
    let report = match settings.mode {
        Mode::Dynamic => quantize_dynamic::apply(&mut quantized, settings).unwrap(),
        Mode::Static => {
            let taps = quantize_static::taps(model);
            let mut batches = (0..8).map(|seed| Ok(inputs(seed)));
            let (runtime, method) = (testing::runtime(), settings.calibration);
            let seen = calibrate::calibrate(&runtime, 1, model, &taps, method, &mut batches, &mut |_| {}).unwrap();
            quantize_static::apply(&mut quantized, settings, &seen).unwrap()
        }
    };
    valid(&quantized);
    (quantized, report)
}

pub(super) fn count(operators: &[String], op_type: &str) -> usize {
    operators.iter().filter(|name| *name == op_type).count()
}

#[test]
fn batch_norm_disappears_and_outputs_stay() {
    let model = classifier();
    let mut folded = model.clone();
    let report = fold_batch_norm::apply(&mut folded).unwrap();
    valid(&folded);
    assert_eq!(report.changed, 1);
    assert!(folded.graph.nodes.iter().all(|node| !node.is("BatchNormalization")));
    assert!(relative_difference(&run(&model, &image(1)), &run(&folded, &image(1))) < 1e-5);
}

#[test]
fn batch_norm_behind_a_shared_convolution_is_left_with_the_reason() {
    let mut model = classifier();
    let output = model.graph.nodes[0].output().to_owned();
    model.graph.outputs.push(crate::onnx::ValueInfo::untyped(&output));
    let report = fold_batch_norm::apply(&mut model).unwrap();
    assert_eq!((report.changed, report.left_count), (0, 1));
    assert!(report.left[0].why.contains("used elsewhere"), "{report:?}");
}

#[test]
fn both_gelus_are_recognised_and_outputs_stay() {
    for (erf, fused) in [(false, "FastGelu"), (true, "Gelu")] {
        let model = encoder(erf);
        let mut simple = model.clone();
        assert_eq!(gelu::apply(&mut simple).unwrap().changed, 1);
        valid(&simple);
        let operators: Vec<&str> = simple.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(operators, ["MatMul", "Add", fused, "MatMul", "Add"]);
        assert!(relative_difference(&run(&model, &rows(1)), &run(&simple, &rows(1))) < 1e-5);
    }
}

#[test]
fn a_formula_that_is_almost_gelu_is_left_alone() {
    let mut model = encoder(false);
    let factor = model
        .graph
        .initializers
        .iter_mut()
        .find(|tensor| tensor.to_scalar() == Some(0.044_715))
        .unwrap();
    *factor = Tensor::floats(&factor.name.clone(), &[], &[0.05]).unwrap();
    let report = gelu::apply(&mut model).unwrap();
    assert_eq!((report.changed, report.left_count), (0, 1));
}

#[test]
fn biases_move_across_slices_and_squeezes() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let w = b.weights(&[16, 8, 3, 12]);
    let conv = b.node("Conv", &[&x, &w]);
    let (starts, ends, axes) = (b.ints(&[0, 1]), b.ints(&[99, 7]), b.ints(&[1, 2]));
    let slice = b.node("Slice", &[&conv, &starts, &ends, &axes]);
    let last = b.ints(&[3]);
    let squeeze = b.node("Squeeze", &[&slice, &last]);
    let bias = b.weights(&[1, 16, 1]);
    let y = b.node("Add", &[&bias, &squeeze]);
    let model = b.finish(&[&y]);
    let mut folded = model.clone();
    assert_eq!(fold_bias::apply(&mut folded).unwrap().changed, 1);
    valid(&folded);
    assert_eq!(folded.graph.nodes.len(), 3);
    assert!(relative_difference(&run(&model, &image(1)), &run(&folded, &image(1))) < 1e-5);
}

#[test]
fn constants_are_folded_exactly() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[2, 3]);
    let w = b.weights(&[6]);
    let (shape, axes) = (b.ints(&[3, -1]), b.ints(&[0]));
    let reshaped = b.node("Reshape", &[&w, &shape]);
    let turned = b.node("Transpose", &[&reshaped]);
    let lifted = b.node("Unsqueeze", &[&turned, &axes]);
    let flat = b.node("Squeeze", &[&lifted, &axes]);
    let y = b.node("Mul", &[&x, &flat]);
    let model = b.finish(&[&y]);
    let mut folded = model.clone();
    assert_eq!(fold_constants::apply(&mut folded, false).unwrap().changed, 4);
    valid(&folded);
    assert_eq!(folded.graph.nodes.len(), 1);
    let input = [Tensor::floats("x", &[2, 3], &testing::noise(1, 6)).unwrap()];
    assert_eq!(run(&model, &input), run(&folded, &input));
}

/// Layers with the same weights, each of which an exporter turns anew.
#[test]
fn weights_that_layers_share_stay_one() {
    let mut b = Build::opset(17);
    let mut x = b.input("x", &[2, 8]);
    let w = b.weights(&[8, 12]);
    for _ in 0..3 {
        let same = b.node("Identity", &[&w]);
        let turned = b.node("Transpose", &[&same]);
        let (from, to) = (b.ints(&[2]), b.ints(&[10]));
        let cut = b.node("Slice", &[&turned, &from, &to]);
        x = b.node("MatMul", &[&x, &cut]);
    }
    let model = b.finish(&[&x]);
    let mut folded = model.clone();
    fold_constants::apply(&mut folded, false).unwrap();
    valid(&folded);
    assert_eq!((folded.graph.nodes.len(), folded.graph.initializers.len()), (3, 1));
    let input = [Tensor::floats("x", &[2, 8], &testing::noise(1, 16)).unwrap()];
    assert_eq!(run(&model, &input), run(&folded, &input));
}

/// A head that is the embedding, turned.
#[test]
fn tied_weights_are_written_twice_only_for_those_who_quantize_them() {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", crate::onnx::ElementType::Int64, &[3]);
    let table = b.weights(&[512, 64]);
    let rows = b.node("Gather", &[&table, &ids]);
    let turned = b.node_with("Transpose", &[&table], &[("perm", A::Ints(vec![1, 0]))]);
    let y = b.node("MatMul", &[&rows, &turned]);
    let model = b.finish(&[&y]);
    for (keep_tied, changed) in [(true, 0), (false, 1)] {
        let mut folded = model.clone();
        assert_eq!(fold_constants::apply(&mut folded, keep_tied).unwrap().changed, changed);
    }
}

#[test]
fn static_convolutions_and_products_run_on_integer_kernels() {
    for granularity in [Granularity::PerChannel, Granularity::PerTensor] {
        for activations in [Activations::UInt8, Activations::Int8] {
            let mut model = classifier();
            fold_batch_norm::apply(&mut model).unwrap();
            let settings = Quantize {
                activations,
                granularity,
                ..Quantize::default()
            };
            let (candidate, report) = quantized(&model, &settings, &image);
            assert_eq!((report.changed, report.left_count), (5, 0), "with pooling: {report:?}");
            let (outputs, operators) = run_optimized(&candidate, &image(50));
            assert_eq!(
                (
                    count(&operators, "QLinearConv"),
                    count(&operators, "QGemm") + count(&operators, "MatMulIntegerToFloat")
                ),
                (2, 1),
                "{operators:?}"
            );
            assert_eq!(
                (
                    count(&operators, "Conv"),
                    count(&operators, "Gemm"),
                    count(&operators, "Relu")
                ),
                (0, 0, 0)
            );
            let difference = relative_difference(&run(&model, &image(50)), &outputs);
            assert!(difference < 0.03, "{settings:?} {difference}");
        }
    }
}

#[test]
fn static_products_of_rows_keep_float_outputs() {
    let mut model = encoder(true);
    gelu::apply(&mut model).unwrap();
    let (candidate, report) = quantized(&model, &Quantize::default(), &rows);
    assert_eq!(report.changed, 2);
    let (outputs, operators) = run_optimized(&candidate, &rows(50));
    assert_eq!(count(&operators, "MatMulIntegerToFloat"), 2, "{operators:?}");
    assert!(relative_difference(&run(&model, &rows(50)), &outputs) < 0.03);
}

#[test]
fn every_calibration_method_gives_a_faithful_model() {
    let mut model = classifier();
    fold_batch_norm::apply(&mut model).unwrap();
    for calibration in [
        calibrate::Method::MinMax,
        calibrate::Method::Entropy,
        calibrate::Method::MovingAverage(0.5),
        calibrate::Method::MeanSquaredError,
        calibrate::Method::Percentile(99.99),
    ] {
        let (candidate, _) = quantized(
            &model,
            &Quantize {
                calibration,
                ..Quantize::default()
            },
            &image,
        );
        let difference = relative_difference(&run(&model, &image(50)), &run_optimized(&candidate, &image(50)).0);
        assert!(difference < 0.06, "{calibration:?} {difference}");
    }
}

#[test]
fn a_convolution_whose_output_leaves_the_graph_keeps_its_name() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let (w1, w2) = (b.weights(&[16, 8, 3, 3]), b.weights(&[4, 16, 3, 3]));
    let first = b.node("Conv", &[&x, &w1]);
    let relu = b.node("Relu", &[&first]);
    let second = b.node("Conv", &[&relu, &w2]);
    let model = b.finish(&[&relu, &second]);
    let (candidate, _) = quantized(&model, &Quantize::default(), &image);
    let (outputs, operators) = run_optimized(&candidate, &image(50));
    assert_eq!(count(&operators, "QLinearConv"), 2, "{operators:?}");
    assert!(relative_difference(&run(&model, &image(50)), &outputs) < 0.03);
}

#[test]
fn dynamic_quantization_is_faithful_and_needs_no_data() {
    for granularity in [Granularity::PerChannel, Granularity::PerTensor] {
        let settings = Quantize {
            mode: Mode::Dynamic,
            granularity,
            ..Quantize::default()
        };
        let (candidate, report) = quantized(&classifier(), &settings, &image);
        assert_eq!(
            (report.changed, report.left_count),
            (1, 2),
            "the convolutions are small"
        );
        let (outputs, operators) = run_optimized(&candidate, &image(50));
        assert_eq!(count(&operators, "ConvInteger"), 0, "{operators:?}");
        assert!(relative_difference(&run(&classifier(), &image(50)), &outputs) < 0.03);

        let (candidate, _) = quantized(&encoder(true), &settings, &rows);
        let (outputs, operators) = run_optimized(&candidate, &rows(50));
        let fused = count(&operators, "DynamicQuantizeMatMul") + count(&operators, "MatMulIntegerToFloat");
        assert_eq!(fused, 2, "{operators:?}");
        assert!(relative_difference(&run(&encoder(true), &rows(50)), &outputs) < 0.03);
    }
}

#[test]
fn dynamic_convolutions_become_products_of_rows() {
    let attributes: [(&str, Vec<i64>); 3] = [
        ("pads", vec![1, 0, 2, 1]),
        ("strides", vec![2, 1]),
        ("dilations", vec![1, 2]),
    ];
    let input = |seed| vec![Tensor::floats("x", &[2, 64, 9, 8], &testing::noise(seed, 2 * 64 * 72)).unwrap()];
    for (kernel, count_of) in [([3, 3], 3), ([1, 1], 3), ([1, 1], 0)] {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 64, 9, 8]);
        let outputs = 256;
        let (w, bias) = (b.weights(&[outputs, 64, kernel[0], kernel[1]]), b.weights(&[outputs]));
        let given: Vec<(&str, A)> = attributes[..count_of]
            .iter()
            .map(|(name, values)| (*name, A::Ints(values.clone())))
            .collect();
        let conv = b.node_with("Conv", &[&x, &w, &bias], &given);
        let y = b.node("Relu", &[&conv]);
        let model = b.finish(&[&y]);
        let settings = Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        };
        let mut candidate = model.clone();
        if kernel == [1, 1] {
            // 64 inputs for each product are too few to pay.
            assert!(matches!(
                quantize_dynamic::apply(&mut candidate, &settings),
                Err(Error::NoEffect { .. })
            ));
            continue;
        }
        quantize_dynamic::apply(&mut candidate, &settings).unwrap();
        valid(&candidate);
        let (outputs, operators) = run_optimized(&candidate, &input(3));
        assert_eq!(count(&operators, "MatMulIntegerToFloat"), 1, "{operators:?}");
        assert!(relative_difference(&run(&model, &input(3)), &outputs) < 0.03);
    }
}

#[test]
fn products_of_one_input_quantize_it_once() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[2, 5, 32]);
    let weights: Vec<String> = (0..3).map(|_| b.weights(&[32, 64])).collect();
    let outputs: Vec<String> = weights.iter().map(|w| b.node("MatMul", &[&x, w])).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let model = b.finish(&outputs);
    let settings = Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    };
    let (candidate, _) = quantized(&model, &settings, &rows);
    let (outputs, operators) = run_optimized(&candidate, &rows(9));
    assert_eq!(
        (
            count(&operators, "DynamicQuantizeLinear"),
            count(&operators, "MatMulIntegerToFloat")
        ),
        (1, 3),
        "{operators:?}"
    );
    assert!(relative_difference(&run(&model, &rows(9)), &outputs) < 0.03);
}

#[test]
fn what_cannot_be_quantized_is_left_or_refused_with_the_reason() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let y = b.node("MatMul", &[&x, &x]);
    let mut model = b.finish(&[&y]);
    let error = quantize_dynamic::apply(
        &mut model,
        &Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        },
    );
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("changed nothing") && text.contains("computed at run time"),
        "{text}"
    );

    let settings = Quantize {
        mode: Mode::Dynamic,
        activations: Activations::Int8,
        ..Quantize::default()
    };
    assert!(matches!(
        quantize_dynamic::apply(&mut classifier(), &settings),
        Err(Error::Setting { .. })
    ));

    let mut model = classifier();
    let name = model.graph.nodes.last().unwrap().inputs[1].clone();
    let tensor = model
        .graph
        .initializers
        .iter_mut()
        .find(|tensor| tensor.name == name)
        .unwrap();
    let mut values = tensor.to_floats().unwrap();
    values[5] = f32::NAN;
    *tensor = Tensor::floats(&name, &tensor.dims.clone(), &values).unwrap();
    let settings = Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    };
    assert!(matches!(
        quantize_dynamic::apply(&mut model, &settings),
        Err(Error::NotFinite { .. })
    ));
}

#[test]
fn an_input_that_is_always_zero_leaves_its_node_float() {
    let zeros = |_| vec![Tensor::floats("x", &[1, 8, 12, 12], &[0.0; 8 * 144]).unwrap()];
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let (w1, w2) = (b.weights(&[16, 8, 3, 3]), b.weights(&[4, 16, 3, 3]));
    let bias = b.weights(&[16]);
    let first = b.node("Conv", &[&x, &w1, &bias]);
    let second = b.node("Conv", &[&first, &w2]);
    let model = b.finish(&[&second]);
    let (candidate, report) = quantized(&model, &Quantize::default(), &zeros);
    assert_eq!((report.changed, report.left_count), (1, 1));
    assert!(report.left[0].why.contains("zero"), "{report:?}");
    assert!(relative_difference(&run(&model, &zeros(0)), &run_optimized(&candidate, &zeros(0)).0) < 0.03);
}

#[test]
fn in_onnx_own_operators_products_say_the_same_and_dynamic_ones_run_on_the_same_kernels() {
    for mode in [Mode::Static, Mode::Dynamic] {
        let made = |format| {
            let settings = Quantize {
                mode,
                format,
                ..Quantize::default()
            };
            quantized(&encoder(true), &settings, &rows).0
        };
        let (own, standard) = (made(Format::QOperator), made(Format::Qdq));
        assert!(own.opset("com.microsoft").is_some());
        assert_eq!(standard.opset("com.microsoft"), None);
        assert!(standard.graph.nodes.iter().all(|node| node.domain.is_empty()));
        let ((left, _), (right, operators)) = (run_optimized(&own, &rows(50)), run_optimized(&standard, &rows(50)));
        let fused = count(&operators, "DynamicQuantizeMatMul") + count(&operators, "MatMulIntegerToFloat");
        // ONNX Runtime joins a product between Dequantize nodes and its sum to a float `Gemm`.
        assert_eq!(fused, if mode == Mode::Dynamic { 2 } else { 0 }, "{operators:?}");
        assert!(relative_difference(&left, &right) < 1e-5);
    }
}

#[test]
fn weights_of_seven_bits_never_overflow_two_products_in_sixteen() {
    for mode in [Mode::Static, Mode::Dynamic] {
        let settings = Quantize {
            mode,
            weights: Weights::Int7,
            chosen_for: Some("avx2"),
            ..Quantize::default()
        };
        let (candidate, report) = quantized(&encoder(true), &settings, &rows);
        assert!(report.note.contains("avx2"), "{report:?}");
        let bytes = candidate.graph.initializers.iter();
        let bytes = bytes.filter(|tensor| tensor.element == crate::onnx::ElementType::Int8);
        let largest = bytes
            .flat_map(Tensor::bytes)
            .map(|byte| byte.cast_signed().unsigned_abs())
            .max();
        assert_eq!(largest, Some(63));
        let outputs = run_optimized(&candidate, &rows(50)).0;
        assert!(relative_difference(&run(&encoder(true), &rows(50)), &outputs) < 0.04);
    }
}
