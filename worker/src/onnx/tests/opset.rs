//! Raising the operator set keeps outputs bit for bit, with ONNX Runtime's optimizer off.

use crate::{
    onnx::{self, AttributeValue as A, Limits, Model, Tensor},
    testing::{self, Build},
};

fn check_same(model: &Model, inputs: &[Tensor]) {
    let mut raised = model.clone();
    onnx::normalize(&mut raised).unwrap();
    let upgraded = onnx::upgrade(&mut raised).unwrap();
    onnx::check(&raised, &Limits::default()).unwrap();
    assert_eq!((upgraded.after, raised.opset("")), (17, Some(17)));
    assert_eq!(testing::run(&raised, inputs), testing::run(model, inputs));
}

fn image() -> (Build, String, Vec<Tensor>) {
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
    single("ReduceSum", &[("axes", A::Ints(vec![1, 2])), ("keepdims", A::Int(0))]);
    single("ReduceSum", &[]);
    single("Dropout", &[("ratio", A::Float(0.5))]);
    let (mut b, x, inputs) = image();
    b.push(
        onnx::Node::new("Split", &[&x], &["a", "b"])
            .with("axis", A::Int(3))
            .with("split", A::Ints(vec![1, 3])),
    );
    b.push(onnx::Node::new("TopK", &["b"], &["values", "indices"]).with("k", A::Int(2)));
    check_same(&b.finish(&["a", "values", "indices"]), &inputs);
}

#[test]
fn softmax_keeps_its_flattened_rows() {
    for op_type in ["Softmax", "LogSoftmax", "Hardmax"] {
        for axis in [0, 1, 2, 3] {
            single(op_type, &[("axis", A::Int(axis))]);
        }
        single(op_type, &[]);
    }
}

#[test]
fn upsample_becomes_resize() {
    for mode in ["nearest", "linear"] {
        let (mut b, x, inputs) = image();
        let scales = b.floats(&[4], &[1.0, 1.0, 2.0, 2.0]);
        let y = b.node_with("Upsample", &[&x, &scales], &[("mode", A::String(mode.into()))]);
        check_same(&b.finish(&[&y]), &inputs);
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
    let error = onnx::upgrade(&mut b.finish(&["y", "mask"])).unwrap_err().to_string();
    assert!(error.contains("Dropout") && error.contains("mask"), "{error}");

    let mut b = Build::opset(12);
    let x = b.input("x", &[1, 4]);
    let y = b.node("NegativeLogLikelihoodLoss", &[&x, &x]);
    let error = onnx::upgrade(&mut b.finish(&[&y])).unwrap_err().to_string();
    assert!(
        error.contains("NegativeLogLikelihoodLoss") && error.contains("13"),
        "{error}"
    );
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
