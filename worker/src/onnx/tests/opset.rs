//! Raising the operator set keeps outputs bit for bit, with ONNX Runtime's optimizer off.

use crate::{
    onnx::{self, AttributeValue as A, Limits, Model, Tensor, ops},
    testing::{self, Build},
};

pub(super) fn check_same(model: &Model, inputs: &[Tensor]) {
    let mut raised = model.clone();
    onnx::normalize(&mut raised).unwrap();
    let upgraded = onnx::upgrade(&mut raised).unwrap();
    onnx::check(&raised, &Limits::default()).unwrap();
    assert_eq!((upgraded.after, raised.opset("")), (17, Some(17)));
    assert_eq!(testing::run(&raised, inputs), testing::run(model, inputs));
}

pub(super) fn image() -> (Build, String, Vec<Tensor>) {
    let mut b = Build::opset(9);
    let x = b.input("x", &[1, 3, 4, 4]);
    (
        b,
        x,
        vec![Tensor::floats("x", &[1, 3, 4, 4], &testing::noise(3, 48)).unwrap()],
    )
}

/// One node of operator set 9 between an input and an output.
fn single(op_type: &str, attributes: &[(&str, A)]) {
    let (mut b, x, inputs) = image();
    let y = b.node_with(op_type, &[&x], attributes);
    check_same(&b.finish(&[&y]), &inputs);
}

#[test]
fn attributes_become_inputs() {
    single(
        "Slice",
        &[
            ("starts", A::Ints(vec![1, 0])),
            ("ends", A::Ints(vec![3, 9])),
            ("axes", A::Ints(vec![1, 3])),
        ],
    );
    single(
        "Slice",
        &[("starts", A::Ints(vec![0, 1])), ("ends", A::Ints(vec![1, 2]))],
    );
    single("Clip", &[("min", A::Float(-0.25)), ("max", A::Float(0.5))]);
    single("Clip", &[("max", A::Float(0.1))]);
    single(
        "Pad",
        &[
            ("pads", A::Ints(vec![0, 0, 1, 2, 0, 0, 1, 0])),
            ("value", A::Float(0.5)),
        ],
    );
    single("Unsqueeze", &[("axes", A::Ints(vec![0, 3]))]);
    single("Squeeze", &[("axes", A::Ints(vec![0]))]);
    single("Squeeze", &[]);
    single(
        "Slice",
        &[
            ("starts", A::Ints(vec![-3])),
            ("ends", A::Ints(vec![-1])),
            ("axes", A::Ints(vec![2])),
        ],
    );
    single("Clip", &[]);
    for mode in ["reflect", "edge"] {
        let pads = ("pads", A::Ints(vec![0, 0, 1, 2, 0, 0, 1, 0]));
        single("Pad", &[pads, ("mode", A::String(mode.into()))]);
    }
    single("Pad", &[("pads", A::Ints(vec![0, 0, -1, 0, 0, 0, 1, -2]))]);
    single("ReduceSum", &[("axes", A::Ints(vec![1, 2])), ("keepdims", A::Int(0))]);
    single("ReduceSum", &[]);
    single("ReduceSum", &[("axes", A::Ints(vec![-1]))]);
    single("Dropout", &[("ratio", A::Float(0.5))]);
    let (mut b, x, inputs) = image();
    b.push(
        onnx::Node::new("Split", &[&x], &["a", "b"])
            .with("axis", A::Int(3))
            .with("split", A::Ints(vec![1, 3])),
    );
    b.push(onnx::Node::new("TopK", &["b"], &["values", "indices"]).with("k", A::Int(2)));
    check_same(&b.finish(&["a", "values", "indices"]), &inputs);
    let (mut b, x, inputs) = image();
    b.push(onnx::Node::new("Split", &[&x], &["a", "b"]).with("axis", A::Int(2)));
    let top = onnx::Node::new("TopK", &["b"], &["values", "indices"]).with("k", A::Int(2));
    b.push(top.with("axis", A::Int(1)));
    check_same(&b.finish(&["a", "values", "indices"]), &inputs);
}

#[test]
fn softmax_keeps_its_flattened_rows() {
    for op_type in ["Softmax", "LogSoftmax", "Hardmax"] {
        for axis in [-4, -2, -1] {
            let mut b = Build::opset(11);
            let x = b.input("x", &[-1, 3, 4, 4]);
            // Nothing says of what rank this is.
            let shape = b.typed_input("shape", onnx::ElementType::Int64, &[-1]);
            let x = b.node("Reshape", &[&x, &shape]);
            let y = b.node_with(op_type, &[&x], &[("axis", A::Int(axis))]);
            let (_, _, mut inputs) = image();
            inputs.push(Tensor::int64s("shape", &[5], &[1, 3, 2, 2, 4]).unwrap());
            check_same(&b.finish(&[&y]), &inputs);
        }
        let mut b = Build::opset(11);
        let x = b.input("x", &[2, -1, 3]);
        let y = b.node_with(op_type, &[&x], &[("axis", A::Int(2))]);
        check_same(&b.finish(&[&y]), &[Tensor::floats("x", &[2, 0, 3], &[]).unwrap()]);
        for axis in [0, 1, 2, 3] {
            single(op_type, &[("axis", A::Int(axis))]);
        }
        single(op_type, &[]);
    }
}

#[test]
fn a_softmax_on_the_last_axis_needs_nothing_around_it() {
    for (axis, operators) in [(3, 1), (2, 4), (1, 4)] {
        let (mut b, x, _) = image();
        let y = b.node_with("Softmax", &[&x], &[("axis", A::Int(axis))]);
        let mut model = b.finish(&[&y]);
        onnx::upgrade(&mut model).unwrap();
        assert_eq!(model.graph.nodes.len(), operators);
    }
}

#[test]
fn upsample_becomes_resize() {
    for mode in ["nearest", "linear"] {
        for scales in [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.5, 2.5], [1.0, 1.0, 1.0, 1.7]] {
            let (mut b, x, inputs) = image();
            let scales = b.floats(&[4], &scales);
            let y = b.node_with("Upsample", &[&x, &scales], &[("mode", A::String(mode.into()))]);
            check_same(&b.finish(&[&y]), &inputs);
        }
    }
    // Some exporters keep the attribute of operator set 7; ONNX Runtime only takes the input.
    let (mut b, x, inputs) = image();
    let attributes = [("scales", A::Floats(vec![1.0, 1.0, 2.0, 2.0]))];
    let y = b.node_with("Upsample", &[&x], &attributes);
    let mut attribute = b.finish(&[&y]);
    onnx::upgrade(&mut attribute).unwrap();
    let (mut b, x, _) = image();
    let scales = b.floats(&[4], &[1.0, 1.0, 2.0, 2.0]);
    let y = b.node("Upsample", &[&x, &scales]);
    let outputs = testing::run(&b.finish(&[&y]), &inputs);
    assert_eq!(testing::run(&attribute, &inputs)[0].data, outputs[0].data);
}

fn image_of(opset: i64) -> (Build, String, Vec<Tensor>) {
    let mut b = Build::opset(opset);
    let x = b.input("x", &[1, 3, 7, 9]);
    let values = testing::noise(3, 189);
    (b, x, vec![Tensor::floats("x", &[1, 3, 7, 9], &values).unwrap()])
}

#[test]
fn resize_10_rounds_as_it_did() {
    let sizes = [
        [2.0, 2.0],
        [1.5, 2.5],
        [0.5, 0.25],
        [0.6, 0.7],
        [1.0 / 3.0, 1.0],
        [2.0, 0.5],
        [1.0, 1.7],
    ];
    for mode in ["nearest", "linear"] {
        for [tall, wide] in sizes {
            let (mut b, x, inputs) = image_of(10);
            let scales = b.floats(&[4], &[1.0, 1.0, tall, wide]);
            let y = b.node_with("Resize", &[&x, &scales], &[("mode", A::String(mode.into()))]);
            check_same(&b.finish(&[&y]), &inputs);
        }
    }
    let refused = |b: Build, y: &str| onnx::upgrade(&mut b.finish(&[y])).unwrap_err().to_string();
    let (mut b, x, _) = image_of(10);
    let scales = b.floats(&[4], &[1.0, 1.0, 1.7, 0.6]);
    let y = b.node("Resize", &[&x, &scales]);
    let error = refused(b, &y);
    assert!(error.contains("Resize") && error.contains("one axis"), "{error}");
    let (mut b, x, _) = image_of(10);
    let scales = b.input("scales", &[4]);
    let y = b.node("Resize", &[&x, &scales]);
    let error = refused(b, &y);
    assert!(error.contains("computed at run time"), "{error}");
}

#[test]
fn resize_11_keeps_its_coordinates() {
    for (mode, coordinates, nearest) in [
        ("nearest", "half_pixel", "round_prefer_floor"),
        ("nearest", "tf_half_pixel_for_nn", "floor"),
        ("nearest", "align_corners", "ceil"),
        ("linear", "pytorch_half_pixel", "floor"),
        ("linear", "tf_crop_and_resize", "floor"),
        ("cubic", "half_pixel", "floor"),
    ] {
        let (mut b, x, inputs) = image_of(11);
        let roi = b.floats(&[8], &[0.0, 0.0, 0.1, 0.1, 1.0, 1.0, 0.9, 0.8]);
        let scales = b.floats(&[4], &[1.0, 1.0, 1.7, 0.6]);
        let attributes = [
            ("mode", A::String(mode.into())),
            ("coordinate_transformation_mode", A::String(coordinates.into())),
            ("nearest_mode", A::String(nearest.into())),
        ];
        let y = b.node_with("Resize", &[&x, &roi, &scales], &attributes);
        check_same(&b.finish(&[&y]), &inputs);
    }
}

#[test]
fn bounds_take_the_width_of_their_data() {
    // 0.25 and more, with both signs.
    let halves: Vec<u8> = (0..48_u16)
        .flat_map(|at| (0x3400 + 23 * at + 0x8000 * (at % 2)).to_le_bytes())
        .collect();
    let halves = Tensor::new("", onnx::ElementType::Float16, &[1, 3, 4, 4], halves).unwrap();
    for (op_type, attributes) in [
        ("Clip", vec![("min", A::Float(-0.375)), ("max", A::Float(0.5))]),
        (
            "Pad",
            vec![
                ("pads", A::Ints(vec![0, 0, 1, 2, 0, 0, 1, 0])),
                ("value", A::Float(0.125)),
            ],
        ),
    ] {
        let (mut b, x, inputs) = image();
        let short = b.node_with("Constant", &[], &[("value", A::Tensor(halves.clone()))]);
        let y = b.node_with(op_type, &[&short], &attributes);
        let y = b.node_with("Cast", &[&y], &[("to", A::Int(onnx::ElementType::Float.number()))]);
        let z = b.node_with(op_type, &[&x], &attributes);
        check_same(&b.finish(&[&y, &z]), &inputs);
    }
    let (mut b, x, _) = image();
    let y = b.node_with("Clip", &[&x], &[("max", A::Float(0.5))]);
    let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0];
    let inputs = vec![Tensor::floats("x", &[1, 3, 4, 4], &odd.repeat(12)).unwrap()];
    check_same(&b.finish(&[&y]), &inputs);
}

#[test]
fn operators_that_only_change_their_number_stay() {
    let pool = [("kernel_shape", A::Ints(vec![3, 3])), ("strides", A::Ints(vec![2, 2]))];
    for padding in [
        ("auto_pad", A::String("SAME_LOWER".into())),
        ("pads", A::Ints(vec![1, 1, 0, 1])),
    ] {
        for op_type in ["MaxPool", "AveragePool", "LpPool"] {
            single(op_type, &[pool.as_slice(), std::slice::from_ref(&padding)].concat());
        }
    }
    for op_type in ["ArgMax", "ReduceL1", "ReduceMean", "ReduceLogSumExp"] {
        let name = if op_type == "ArgMax" { "axis" } else { "axes" };
        let axes = if op_type == "ArgMax" {
            A::Int(2)
        } else {
            A::Ints(vec![1, 3])
        };
        single(op_type, &[(name, axes)]);
    }
    let (mut b, x, inputs) = image();
    let kernel = b.weights(&[3, 2, 3, 3]);
    let strides = [
        ("strides", A::Ints(vec![2, 2])),
        ("auto_pad", A::String("SAME_UPPER".into())),
    ];
    let wide = b.node_with("ConvTranspose", &[&x, &kernel], &strides);
    let (indices, updates) = (b.ints(&[2, 0, 1]), b.weights(&[3]));
    let flat = b.ints(&[-1]);
    let rows = b.node("Reshape", &[&wide, &flat]);
    let scattered = b.node("Scatter", &[&rows, &indices, &updates]);
    let powers = b.scalar(3.0);
    let cubes = b.node("Pow", &[&scattered, &powers]);
    check_same(&b.finish(&[&cubes]), &inputs);

    let (mut b, x, inputs) = image();
    let places = Tensor::int64s("", &[1, 2, 1, 3], &[2, 0, 1, 1, 2, 0]).unwrap();
    let places = b.node_with("Constant", &[], &[("value", A::Tensor(places))]);
    let updates = b.weights(&[1, 2, 1, 3]);
    let y = b.node_with("Scatter", &[&x, &places, &updates], &[("axis", A::Int(1))]);
    // Negative ones came into being with operator set 11, and are refused before where they are constant.
    let (which, less) = (b.ints(&[3, 1, 0, -4, 4, 8]), b.ints(&[-1]));
    let which = b.node("Add", &[&which, &less]);
    let (depth, values) = (b.ints(&[4]), b.floats(&[2], &[-0.5, 2.0]));
    let one_hot = b.node_with("OneHot", &[&which, &depth, &values], &[("axis", A::Int(0))]);
    check_same(&b.finish(&[&y, &one_hot]), &inputs);

    let mut b = Build::opset(11);
    let x = b.input("x", &[1, 3, 4, 4]);
    let axis = b.ints(&[2]);
    let sum = b.node("CumSum", &[&x, &axis]);
    check_same(&b.finish(&[&sum]), &inputs);
}

#[test]
fn roi_align_keeps_its_half_pixel() {
    let mut b = Build::opset(10);
    let x = b.input("x", &[1, 3, 4, 4]);
    let rois = b.floats(&[2, 4], &[0.0, 0.0, 3.0, 3.5, 0.5, 1.0, 2.0, 2.5]);
    let batch = b.ints(&[0, 0]);
    let attributes = [
        ("output_height", A::Int(3)),
        ("output_width", A::Int(2)),
        ("sampling_ratio", A::Int(2)),
    ];
    let y = b.node_with("RoiAlign", &[&x, &rois, &batch], &attributes);
    let (_, _, inputs) = image();
    check_same(&b.finish(&[&y]), &inputs);
}

#[test]
fn bodies_are_raised_too() {
    let branch = |max: f32| {
        let mut inner = Build::opset(9);
        let clipped = inner.node_with("Clip", &["x"], &[("max", A::Float(max))]);
        let y = inner.node_with("Softmax", &[&clipped], &[("axis", A::Int(2))]);
        A::Graph(Box::new(inner.body(&[&y])))
    };
    let mut b = Build::opset(9);
    b.input("x", &[1, 3, 4, 4]);
    let choice = b.typed_input("choice", onnx::ElementType::Bool, &[]);
    let y = b.node_with(
        "If",
        &[&choice],
        &[("then_branch", branch(0.5)), ("else_branch", branch(-0.5))],
    );
    let model = b.finish(&[&y]);
    for choice in [0, 1] {
        let (_, _, mut inputs) = image();
        inputs.push(Tensor::new("choice", onnx::ElementType::Bool, &[], vec![choice]).unwrap());
        check_same(&model, &inputs);
    }
}

#[test]
fn a_network_of_the_kind_that_is_shipped_is_raised() {
    let (mut b, x, inputs) = image();
    let w = b.weights(&[8, 3, 3, 3]);
    let conv = b.node_with("Conv", &[&x, &w], &[("pads", A::Ints(vec![1; 4]))]);
    let vectors: Vec<String> = (0..4)
        .map(|i| b.floats(&[8], &[0.5 + f32::from(u8::try_from(i).unwrap()); 8]))
        .collect();
    let norm = b.node(
        "BatchNormalization",
        &[&conv, &vectors[0], &vectors[1], &vectors[2], &vectors[3]],
    );
    let relu = b.node("Relu", &[&norm]);
    let pool = b.node("GlobalAveragePool", &[&relu]);
    let flat = b.node("Flatten", &[&pool]);
    let dense = b.weights(&[8, 5]);
    let bias = b.weights(&[5]);
    let gemm = b.node("Gemm", &[&flat, &dense, &bias]);
    let y = b.node("Softmax", &[&gemm]);
    check_same(&b.finish(&[&y]), &inputs);
}

#[test]
fn what_cannot_be_raised_is_named() {
    let mut b = Build::opset(8);
    let x = b.input("x", &[1]);
    let y = b.node("Neg", &[&x]);
    let error = onnx::upgrade(&mut b.finish(&[&y])).unwrap_err().to_string();
    assert!(error.contains("too old"), "{error}");

    let mut b = Build::opset(9);
    let x = b.input("x", &[1]);
    b.push(onnx::Node::new("Dropout", &[&x], &["y", "mask"]));
    let inputs = [Tensor::floats("x", &[1], &[0.5]).unwrap()];
    check_same(&b.finish(&["y"]), &inputs);

    let mut b = Build::opset(9);
    let x = b.input("x", &[1]);
    b.push(onnx::Node::new("Dropout", &[&x], &["y", "mask"]));
    let error = onnx::upgrade(&mut b.finish(&["y", "mask"])).unwrap_err().to_string();
    assert!(error.contains("Dropout") && error.contains("mask"), "{error}");

    let (mut b, x, _) = image();
    let vectors: Vec<String> = (0..4).map(|_| b.floats(&[3], &[0.5; 3])).collect();
    let inputs = [&x, &vectors[0], &vectors[1], &vectors[2], &vectors[3]].map(String::as_str);
    b.push(onnx::Node::new("BatchNormalization", &inputs, &["y", "mean"]));
    let error = onnx::upgrade(&mut b.finish(&["y"])).unwrap_err().to_string();
    assert!(
        error.contains("BatchNormalization") && error.contains("training form"),
        "{error}"
    );

    let mut b = Build::opset(12);
    let x = b.input("x", &[1, 4]);
    let y = b.node("NegativeLogLikelihoodLoss", &[&x, &x]);
    let error = onnx::upgrade(&mut b.finish(&[&y])).unwrap_err().to_string();
    assert!(
        error.contains("NegativeLogLikelihoodLoss") && error.contains("13"),
        "{error}"
    );
}

/// Whatever is on neither list is refused by its name; of all operators of ONNX, only losses are.
#[test]
fn every_change_of_an_operator_is_on_a_list_or_refused_by_name() {
    let mut refused = Vec::new();
    for (op_type, versions) in ops::changes() {
        let first = i64::from(*versions.first().unwrap()).max(9);
        let mut b = Build::opset(first);
        let x = b.input("x", &[1, 3, 4, 4]);
        let y = b.node(op_type, &[&x, &x, &x]);
        // Of some, an attribute or input is missing here, which is another reason and named as well.
        if let Err(error) = onnx::upgrade(&mut b.unchecked(&[&y])) {
            let error = error.to_string();
            assert!(error.contains(&format!("operator {op_type} ")), "{error}");
            if error.contains("no rewrite is known") {
                refused.push(*op_type);
            }
        }
    }
    assert_eq!(refused, ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"]);
    let (mut b, x, _) = image();
    let y = b.node("Flatter", &[&x]);
    let error = onnx::check(&b.unchecked(&[&y]), &Limits::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("Flatter"), "{error}");
}

#[test]
fn newer_models_stay_as_they_are() {
    let mut b = Build::opset(21);
    let x = b.input("x", &[1]);
    let y = b.node("Neg", &[&x]);
    let mut model = b.finish(&[&y]);
    let before = model.clone();
    onnx::upgrade(&mut model).unwrap();
    assert_eq!(model, before);
}
