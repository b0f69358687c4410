//! Raising the operator set inside bodies of control flow, however deep, and with weights among the inputs: the same bits.

use super::opset::{check_same, image};
use crate::{
    onnx::{AttributeValue as A, Dim, ElementType, Model, Node, Tensor, ValueInfo},
    testing::Build,
};

/// Size of the value that goes through everything.
const DIMS: [i64; 4] = [1, 3, 4, 4];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    If,
    Loop,
    Scan,
}

fn ints(name: &'static str, values: &[i64]) -> (&'static str, A) {
    (name, A::Ints(values.to_vec()))
}

/// Every operator that is rewritten on the way from `opset`, one behind the other. Sizes stay.
fn rewritten(b: &mut Build, opset: i64, x: &str) -> String {
    let mut y = x.to_owned();
    if opset < 10 {
        let scales = b.floats(&[4], &[1.0, 1.0, 2.0, 2.0]);
        let wide = b.node("Upsample", &[&y, &scales]);
        y = b.node_with(
            "Slice",
            &[&wide],
            &[ints("axes", &[2, 3]), ints("starts", &[1, 2]), ints("ends", &[5, 6])],
        );
        let (top, at) = (format!("{y}/top"), format!("{y}/at"));
        b.push(Node::new("TopK", &[&y], &[&top, &at]).with("k", A::Int(2)));
        y = b.node_with("Concat", &[&top, &top], &[("axis", A::Int(3))]);
    }
    if opset == 10 {
        let scales = b.floats(&[4], &[1.0, 1.0, 0.5, 0.6]);
        let small = b.node("Resize", &[&y, &scales]);
        let pads = ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1]);
        y = b.node_with("Pad", &[&small], &[pads, ("value", A::Float(0.25))]);
    }
    if opset < 11 {
        y = b.node_with("Clip", &[&y], &[("min", A::Float(-0.75)), ("max", A::Float(0.75))]);
        let places = Tensor::int64s("", &[1, 1, 1, 2], &[3, 0]).unwrap();
        let places = b.node_with("Constant", &[], &[("value", A::Tensor(places))]);
        let updates = b.weights(&[1, 1, 1, 2]);
        y = b.node_with("Scatter", &[&y, &places, &updates], &[("axis", A::Int(3))]);
    }
    if opset >= 10 {
        let rois = b.floats(&[1, 4], &[0.5, 0.0, 3.0, 3.5]);
        let zero = b.ints(&[0]);
        let size = [("output_height", A::Int(4)), ("output_width", A::Int(4))];
        y = b.node_with("RoiAlign", &[&y, &rois, &zero], &size);
    }
    let vectors: Vec<String> = [1.5, 0.25, -0.5, 0.75].map(|value| b.floats(&[3], &[value; 3])).into();
    let inputs: Vec<&str> = std::iter::once(&y).chain(&vectors).map(String::as_str).collect();
    y = b.node("BatchNormalization", &inputs);
    y = b.node("Dropout", &[&y]);
    let axes = ints("axes", &[0, 3]);
    let more = b.node_with("Unsqueeze", &[&y], std::slice::from_ref(&axes));
    y = b.node_with("Squeeze", &[&more], &[axes]);
    let along = ("axis", A::Int(1));
    let (first, rest) = (format!("{y}/first"), format!("{y}/rest"));
    let split = Node::new("Split", &[&y], &[&first, &rest]).with("axis", A::Int(1));
    b.push(split.with("split", A::Ints(vec![1, 2])));
    y = b.node_with("Concat", &[&rest, &first], &[along]);
    let sum = b.node_with("ReduceSum", &[&y], &[ints("axes", &[2])]);
    y = b.node("Add", &[&y, &sum]);
    b.node_with("Softmax", &[&y], &[("axis", A::Int(2))])
}

/// `x` through control flow, from the outside to the inside, with [`rewritten`] in the innermost body.
fn nested(b: &mut Build, opset: i64, kinds: &[Kind], x: &str) -> String {
    let [kind, kinds @ ..] = kinds else {
        return rewritten(b, opset, x);
    };
    let level = kinds.len() + 1;
    let mut inner = Build::inside(opset, level);
    let state = format!("state{level}");
    match kind {
        Kind::If => {
            let then = nested(&mut inner, opset, kinds, x);
            let then = A::Graph(Box::new(inner.body(&[&then])));
            let mut other = Build::inside(opset, level);
            let same = other.node_with("Softmax", &[x], &[("axis", A::Int(1))]);
            let other = A::Graph(Box::new(other.body(&[&same])));
            b.node_with("If", &["choice"], &[("then_branch", then), ("else_branch", other)])
        }
        Kind::Loop => {
            inner.typed_input(&format!("iteration{level}"), ElementType::Int64, &[]);
            let on = inner.typed_input(&format!("on{level}"), ElementType::Bool, &[]);
            inner.input(&state, &DIMS);
            let next = nested(&mut inner, opset, kinds, &state);
            let on = inner.node("Identity", &[&on]);
            let body = A::Graph(Box::new(inner.body(&[&on, &next])));
            let twice = b.ints(&[2]);
            b.node_with("Loop", &[&twice, "", x], &[("body", body)])
        }
        Kind::Scan => {
            inner.input(&state, &DIMS);
            let element = inner.input(&format!("element{level}"), &DIMS);
            let sum = inner.node("Add", &[&state, &element]);
            let next = nested(&mut inner, opset, kinds, &sum);
            let mut body = inner.body(&[&next, &sum]);
            // ONNX Runtime needs them here, and does not find out what control flow gives.
            for output in &mut body.outputs {
                *output = ValueInfo::tensor(&output.name, ElementType::Float, &DIMS.map(Dim::Fixed));
            }
            let body = A::Graph(Box::new(body));
            let elements = b.weights(&[2, 1, 3, 4, 4]);
            let (last, sums) = (format!("last{level}"), format!("sums{level}"));
            let scan = Node::new("Scan", &[x, &elements], &[&last, &sums]);
            b.push(scan.with("body", body).with("num_scan_inputs", A::Int(1)));
            last
        }
    }
}

fn model(opset: i64, kinds: &[Kind]) -> Model {
    let mut b = Build::opset(opset);
    let x = b.input("x", &DIMS);
    b.typed_input("choice", ElementType::Bool, &[]);
    let y = nested(&mut b, opset, kinds, &x);
    b.finish(&[&y])
}

fn inputs(choice: bool) -> Vec<Tensor> {
    let (_, _, mut inputs) = image();
    inputs.push(Tensor::new("choice", ElementType::Bool, &[], vec![u8::from(choice)]).unwrap());
    inputs
}

#[test]
fn bodies_inside_bodies_are_raised_too() {
    use Kind::{If, Loop, Scan};
    for opset in [9, 10, 11, 12] {
        for kinds in [
            &[If][..],
            &[Loop],
            &[Scan],
            &[If, Loop, Scan],
            &[Loop, Scan, If],
            &[Scan, If, Loop],
        ] {
            let model = model(opset, kinds);
            for choice in [true, false].into_iter().take(1 + usize::from(kinds.contains(&If))) {
                check_same(&model, &inputs(choice));
            }
        }
    }
}

#[test]
fn weights_among_the_inputs_are_raised_too() {
    for kinds in [&[][..], &[Kind::If, Kind::Loop]] {
        let mut model = model(9, kinds);
        // In which each initializer has to be an input as well.
        model.ir_version = if kinds.is_empty() { 3 } else { 4 };
        let listed = model.graph.initializers.iter().map(|tensor| {
            let dims = tensor.dims.iter().map(|dim| Dim::Fixed(i64::try_from(*dim).unwrap()));
            ValueInfo::tensor(&tensor.name, tensor.element, &dims.collect::<Vec<_>>())
        });
        model.graph.inputs.extend(listed);
        check_same(&model, &inputs(true));
    }
}
