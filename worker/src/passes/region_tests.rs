//! What stays an integer between integer kernels, read from the graph that ONNX Runtime really runs.

use super::{
    tests::{count, image, quantized, valid},
    *,
};
use crate::{
    onnx::{AttributeValue as A, Model, Node, Tensor},
    testing::{self, Build, relative_difference, run, run_optimized},
};

/// A convolution that keeps height and width.
fn conv(b: &mut Build, x: &str, channels: [usize; 2], size: usize) -> String {
    let weights = b.weights(&[channels[1], channels[0], size, size]);
    let bias = b.weights(&[channels[1]]);
    let pads = i64::try_from(size / 2).unwrap();
    b.node_with("Conv", &[x, &weights, &bias], &[("pads", A::Ints(vec![pads; 4]))])
}

/// A convolution to 16 channels, what `middle` puts behind it, and a convolution of its `channels`.
fn around(channels: usize, middle: impl FnOnce(&mut Build, &str) -> String) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 12, 12]);
    let first = conv(&mut b, &x, [8, 16], 3);
    let value = middle(&mut b, &first);
    let last = conv(&mut b, &value, [channels, 8], 1);
    b.finish(&[&last])
}

type Middle = Box<dyn Fn(&mut Build, &str) -> String>;

/// One operator with these attributes.
fn one(op_type: &'static str, attributes: Vec<(&'static str, A)>) -> Middle {
    Box::new(move |b, x| b.node_with(op_type, &[x], &attributes))
}

/// One operator that also reads a second convolution of the model's input.
fn two(op_type: &'static str, attributes: Vec<(&'static str, A)>) -> Middle {
    Box::new(move |b, x| {
        let other = conv(b, "x", [8, 16], 3);
        b.node_with(op_type, &[x, &other], &attributes)
    })
}

/// One operator with settings as inputs.
fn set(op_type: &'static str, settings: Vec<Vec<i64>>) -> Middle {
    Box::new(move |b, x| {
        let settings: Vec<String> = settings.iter().map(|values| b.ints(values)).collect();
        let inputs: Vec<&str> = std::iter::once(x).chain(settings.iter().map(String::as_str)).collect();
        b.node(op_type, &inputs)
    })
}

fn ints(values: &[i64]) -> A {
    A::Ints(values.to_vec())
}

#[test]
fn the_table_says_what_onnx_runtime_fuses() {
    let cases: Vec<(&str, usize, Middle)> = vec![
        ("QLinearAdd", 16, two("Add", vec![])),
        ("QLinearMul", 16, two("Mul", vec![])),
        ("QLinearConcat", 32, two("Concat", vec![("axis", A::Int(1))])),
        (
            "QLinearAdd",
            16,
            Box::new(|b, x| {
                let other = conv(b, "x", [8, 16], 3);
                let sum = b.node("Add", &[&other, x]);
                b.node("Relu", &[&sum])
            }),
        ),
        (
            "QLinearAveragePool",
            16,
            one("AveragePool", vec![("kernel_shape", ints(&[2, 2]))]),
        ),
        ("QLinearGlobalAveragePool", 16, one("GlobalAveragePool", vec![])),
        ("QLinearLeakyRelu", 16, one("LeakyRelu", vec![("alpha", A::Float(0.1))])),
        ("QLinearSigmoid", 16, one("Sigmoid", vec![])),
        ("NhwcMaxPool", 16, one("MaxPool", vec![("kernel_shape", ints(&[2, 2]))])),
        ("DepthToSpace", 4, one("DepthToSpace", vec![("blocksize", A::Int(2))])),
        ("Reshape", 16, set("Reshape", vec![vec![1, 16, 6, 24]])),
        ("Slice", 8, set("Slice", vec![vec![0], vec![8], vec![1]])),
        ("Pad", 16, set("Pad", vec![vec![0, 0, 1, 1, 0, 0, 1, 0]])),
        (
            "Resize",
            16,
            Box::new(|b, x| {
                let scales = b.floats(&[4], &[1.0, 1.0, 2.0, 2.0]);
                b.node("Resize", &[x, "", &scales])
            }),
        ),
        (
            "Reshape",
            4,
            Box::new(|b, x| {
                let flat = b.node("Flatten", &[x]);
                let shape = b.ints(&[1, 4, 24, 24]);
                b.node("Reshape", &[&flat, &shape])
            }),
        ),
        (
            "Squeeze",
            12,
            Box::new(|b, x| {
                let axis = b.ints(&[0]);
                let flat = b.node("Squeeze", &[x, &axis]);
                let turned = b.node_with("Transpose", &[&flat], &[("perm", ints(&[1, 0, 2]))]);
                b.node("Unsqueeze", &[&turned, &axis])
            }),
        ),
        (
            "Split",
            8,
            Box::new(|b, x| {
                b.push(Node::new("Split", &[x], &["left", "right"]).with("axis", A::Int(1)));
                b.node("Add", &["left", "right"])
            }),
        ),
    ];
    for (kernel, channels, middle) in cases {
        let model = around(channels, middle);
        // ONNX Runtime fuses no convolutions of signed values that share an input, or that stand behind a Pad.
        let readers = model
            .graph
            .nodes
            .iter()
            .filter(|node| node.inputs.iter().any(|name| name == "x"));
        let signed = (readers.count() == 1 && kernel != "Pad").then_some(Activations::Int8);
        for activations in std::iter::once(Activations::UInt8).chain(signed) {
            let settings = Quantize {
                activations,
                ..Quantize::default()
            };
            let (candidate, report) = quantized(&model, &settings, &image);
            assert_eq!(report.left_count, 0, "{kernel}: {report:?}");
            let (outputs, operators) = run_optimized(&candidate, &image(50));
            let converted = count(&operators, "QuantizeLinear") + count(&operators, "DequantizeLinear");
            assert_eq!(
                (count(&operators, kernel), converted),
                (1, 2),
                "{kernel} {activations:?}: {operators:?}"
            );
            let difference = relative_difference(&run(&model, &image(50)), &outputs);
            assert!(difference < 0.05, "{kernel} {activations:?} {difference}");
        }
    }
}

#[test]
fn operators_at_the_rim_that_save_nothing_stay_float() {
    let model = around(16, |b, x| {
        // A float value joins: one conversion either way, and the float sum is not rounded.
        let float = b.node("Softplus", &["x"]);
        let wide = b.node_with("Concat", &[&float, &float], &[("axis", A::Int(1))]);
        let sum = b.node("Add", &[x, &wide]);
        b.node("Softplus", &[&sum])
    });
    let (candidate, report) = quantized(&model, &Quantize::default(), &image);
    assert_eq!((report.changed, report.left_count), (2, 2), "{report:?}");
    assert!(report.left[0].why.contains("converted"), "{report:?}");
    let (_, operators) = run_optimized(&candidate, &image(50));
    assert_eq!(
        (count(&operators, "QLinearAdd"), count(&operators, "QLinearConcat")),
        (0, 0),
        "{operators:?}"
    );
}

#[test]
fn shapes_are_no_values() {
    let model = around(16, |b, x| {
        let shape = b.node("Shape", &[x]);
        let one = b.ints(&[1, 1, 1, 1]);
        let same = b.node("Mul", &[&shape, &one]);
        b.node("Reshape", &[x, &same])
    });
    let (candidate, report) = quantized(&model, &Quantize::default(), &image);
    assert_eq!(report.changed, 3, "{report:?}");
    assert!(relative_difference(&run(&model, &image(50)), &run_optimized(&candidate, &image(50)).0) < 0.03);
}

/// Of `channels` images of 16 by 16.
fn pictures(channels: usize) -> impl Fn(u64) -> Vec<Tensor> {
    move |seed| vec![Tensor::floats("x", &[1, channels, 16, 16], &testing::noise(seed, channels * 256)).unwrap()]
}

#[test]
fn narrow_inputs_are_filled_up_with_zeros() {
    for channels in [1_usize, 2, 3, 5] {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, i64::try_from(channels).unwrap(), 16, 16]);
        let first = conv(&mut b, &x, [channels, 16], 3);
        let relu = b.node("Relu", &[&first]);
        let last = conv(&mut b, &relu, [16, 8], 1);
        let model = b.finish(&[&last]);
        let inputs = pictures(channels);
        let (candidate, report) = quantized(&model, &Quantize::default(), &inputs);
        assert_eq!((report.changed, report.left_count), (2, 0), "{report:?}");
        let (outputs, operators) = run_optimized(&candidate, &inputs(50));
        assert_eq!(
            (count(&operators, "Pad"), count(&operators, "QLinearConv")),
            (1, 2),
            "{operators:?}"
        );
        assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.03);
    }
}

#[test]
fn convolutions_of_signed_values_run_on_integers_around_a_pad_and_with_narrow_inputs() {
    let padded = around(16, set("Pad", vec![vec![0, 0, 1, 1, 0, 0, 1, 0]]));
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 3, 16, 16]);
    let first = conv(&mut b, &x, [3, 16], 3);
    let last = conv(&mut b, &first, [16, 8], 1);
    let narrow = b.finish(&[&last]);
    let settings = Quantize {
        activations: Activations::Int8,
        ..Quantize::default()
    };
    let pictures = pictures(3);
    for (model, inputs) in [(padded, &image as &dyn Fn(u64) -> _), (narrow, &pictures)] {
        let (candidate, _) = quantized(&model, &settings, inputs);
        let (outputs, operators) = run_optimized(&candidate, &inputs(50));
        assert_eq!(
            (count(&operators, "QLinearConv"), count(&operators, "Conv")),
            (2, 0),
            "{operators:?}"
        );
        assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.03);
    }
}

#[test]
fn groups_of_few_channels_stay_float_and_depthwise_ones_do_not() {
    for (groups, outputs, integers) in [(16, 16, 2), (8, 16, 1), (16, 32, 1)] {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 16, 16, 16]);
        let weights = b.weights(&[outputs, 16 / groups, 3, 3]);
        let group = A::Int(i64::try_from(groups).unwrap());
        let first = b.node_with("Conv", &[&x, &weights], &[("group", group)]);
        let last = conv(&mut b, &first, [outputs, 8], 1);
        let model = b.finish(&[&last]);
        let inputs = pictures(16);
        let (candidate, report) = quantized(&model, &Quantize::default(), &inputs);
        assert_eq!(report.changed, integers, "{report:?}");
        let (outputs, operators) = run_optimized(&candidate, &inputs(50));
        assert_eq!(count(&operators, "QLinearConv"), integers, "{operators:?}");
        assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.03);
    }
}

/// Squeeze and excitation behind a depthwise convolution and `HardSwish`, as `MobileNetV3` has; then a transposed convolution. Without
/// names, and one channel never shows anything.
fn mobile() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 16, 16, 16]);
    let mut depthwise = testing::noise(3, 16 * 9);
    depthwise[..9].fill(0.0);
    let weights = b.floats(&[16, 1, 3, 3], &depthwise);
    let group = [("group", A::Int(16)), ("pads", ints(&[1; 4]))];
    let first = b.node_with("Conv", &[&x, &weights], &group);
    let swish = b.node("HardSwish", &[&first]);
    let mean = b.node("GlobalAveragePool", &[&swish]);
    let squeezed = conv(&mut b, &mean, [16, 8], 1);
    let relu = b.node("Relu", &[&squeezed]);
    let excited = conv(&mut b, &relu, [8, 16], 1);
    let gate = b.node("HardSigmoid", &[&excited]);
    let gated = b.node("Mul", &[&swish, &gate]);
    let projected = conv(&mut b, &gated, [16, 16], 1);
    let sum = b.node("Add", &[&projected, &x]);
    let weights = b.weights(&[16, 4, 2, 2]);
    let larger = b.node_with("ConvTranspose", &[&sum, &weights], &[("strides", ints(&[2, 2]))]);
    b.finish(&[&larger, &gated])
}

#[test]
fn mobile_blocks_are_faithful_and_run_no_float_convolution() {
    let (model, inputs) = (mobile(), pictures(16));
    let (candidate, _) = quantized(&model, &Quantize::default(), &inputs);
    valid(&candidate);
    let (outputs, operators) = run_optimized(&candidate, &inputs(50));
    assert_eq!(
        (count(&operators, "QLinearConv"), count(&operators, "Conv")),
        (5, 0),
        "{operators:?}"
    );
    assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.05);
}

/// A step of a decoder: pictures are made larger, with a Relu or without, and joined with what was there before.
fn decoder(relu: bool) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 16, 16, 16]);
    let skipped = conv(&mut b, &x, [16, 16], 3);
    let smaller = b.node_with(
        "MaxPool",
        &[&skipped],
        &[("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))],
    );
    let deep = conv(&mut b, &smaller, [16, 32], 3);
    let (weights, bias) = (b.weights(&[32, 16, 2, 2]), b.weights(&[16]));
    let mut larger = b.node_with(
        "ConvTranspose",
        &[&deep, &weights, &bias],
        &[("strides", ints(&[2, 2]))],
    );
    if relu {
        larger = b.node("Relu", &[&larger]);
    }
    let joined = b.node_with("Concat", &[&skipped, &larger], &[("axis", A::Int(1))]);
    let last = conv(&mut b, &joined, [32, 8], 1);
    b.finish(&[&last])
}

#[test]
fn a_transposed_convolution_without_overlap_runs_on_bytes() {
    for (relu, settings) in [
        (true, Quantize::default()),
        (false, Quantize::default()),
        (
            true,
            Quantize {
                granularity: Granularity::PerTensor,
                format: Format::Qdq,
                ..Quantize::default()
            },
        ),
    ] {
        let (model, inputs) = (decoder(relu), pictures(16));
        let (candidate, report) = quantized(&model, &settings, &inputs);
        assert!(report.left.is_empty(), "{report:?}");
        let (outputs, operators) = run_optimized(&candidate, &inputs(50));
        assert_eq!(
            (count(&operators, "QLinearConv"), count(&operators, "ConvTranspose")),
            (4, 0),
            "{operators:?}"
        );
        // At the ends, and none between.
        assert_eq!(
            count(&operators, "QuantizeLinear") + count(&operators, "DequantizeLinear"),
            2,
            "{operators:?}"
        );
        assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.05);
    }
}

#[test]
fn behind_signed_values_a_transposed_convolution_stays_float() {
    let (model, inputs) = (decoder(true), pictures(16));
    let settings = Quantize {
        activations: Activations::Int8,
        ..Quantize::default()
    };
    let (candidate, report) = quantized(&model, &settings, &inputs);
    assert!(report.left.iter().any(|left| left.why.contains("UInt8")), "{report:?}");
    let (outputs, operators) = run_optimized(&candidate, &inputs(50));
    assert_eq!(count(&operators, "ConvTranspose"), 1, "{operators:?}");
    assert!(relative_difference(&run(&model, &inputs(50)), &outputs) < 0.05);
}
