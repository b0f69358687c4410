//! Normalizations in generated spellings: one operator, the same numbers; and formulas that only look alike, which stay.

use super::*;
use crate::{
    onnx::{AttributeValue as A, Limits},
    testing::{Build, noise, relative_difference, run},
};

const SIZE: usize = 24;
/// The same, as dimensions and as numbers of a graph are written.
const COLUMNS: i64 = 24;
const COUNT: f32 = 24.0;

/// A choice for each part of the formula.
#[derive(Debug, Clone, Copy)]
struct Spelling {
    mean: usize,
    square: usize,
    root: usize,
    affine: usize,
    simplified: bool,
}

fn spellings() -> impl Iterator<Item = Spelling> {
    // Steps that have no factor in common with the counts reach all pairs of choices.
    (0..60).map(|at| Spelling {
        mean: at % 4,
        square: at % 3,
        root: at % 5,
        affine: at / 5 % 6,
        simplified: at % 7 == 0,
    })
}

fn mean(b: &mut Build, of: &str, way: usize) -> String {
    let last = [("axes", A::Ints(vec![-1]))];
    match way {
        0 => b.node_with("ReduceMean", &[of], &last),
        1 => b.node_with(
            "ReduceMean",
            &[of],
            &[("axes", A::Ints(vec![2])), ("keepdims", A::Int(1))],
        ),
        way => {
            let axes = b.ints(&[-1]);
            let sum = b.node("ReduceSum", &[of, &axes]);
            if way == 2 {
                let share = b.scalar(1.0 / COUNT);
                b.node("Mul", &[&share, &sum])
            } else {
                let count = b.floats(&[1], &[COUNT]);
                b.node("Div", &[&sum, &count])
            }
        }
    }
}

fn spelled(way: Spelling) -> Model {
    let mut b = Build::opset(17);
    let input = b.input("x", &[-1, 5, COLUMNS]);
    let x = b.node("Tanh", &[&input]);
    let centred = if way.simplified {
        x.clone()
    } else {
        let m = mean(&mut b, &x, way.mean);
        if way.mean == 1 {
            let turned = b.node("Sub", &[&m, &x]);
            b.node("Neg", &[&turned])
        } else {
            b.node("Sub", &[&x, &m])
        }
    };
    let square = match way.square {
        0 => {
            let two = b.scalar(2.0);
            b.node("Pow", &[&centred, &two])
        }
        1 => b.node("Mul", &[&centred, &centred]),
        _ => {
            let two = b.ints(&[2]);
            b.node("Pow", &[&centred, &two])
        }
    };
    let variance = mean(&mut b, &square, way.mean);
    let epsilon = b.scalar(1e-5);
    let under = b.node("Add", &[&epsilon, &variance]);
    let (g, bias) = (b.weights(&[SIZE]), b.weights(&[1, 1, SIZE]));
    let half = |b: &mut Build, power: f32| {
        let power = b.scalar(power);
        b.node("Pow", &[&under, &power])
    };
    // The reciprocal of the root; none where it is divided by.
    let (root, inverse) = match way.root {
        0 => (Some(b.node("Sqrt", &[&under])), None),
        1 => (Some(half(&mut b, 0.5)), None),
        2 => {
            let root = b.node("Sqrt", &[&under]);
            (None, Some(b.node("Reciprocal", &[&root])))
        }
        3 => (None, Some(half(&mut b, -0.5))),
        _ => {
            let (root, one) = (b.node("Sqrt", &[&under]), b.scalar(1.0));
            (None, Some(b.node("Div", &[&one, &root])))
        }
    };
    let y = match (root, inverse, way.affine) {
        (Some(root), _, 5) => {
            let scaled = b.node("Mul", &[&g, &centred]);
            b.node("Div", &[&scaled, &root])
        }
        (Some(root), ..) => b.node("Div", &[&centred, &root]),
        (_, Some(inverse), 5) => {
            let scaled = b.node("Mul", &[&inverse, &g]);
            b.node("Mul", &[&scaled, &centred])
        }
        (_, inverse, _) => b.node("Mul", &[&centred, &inverse.unwrap_or_default()]),
    };
    let y = match way.affine {
        1 => b.node("Mul", &[&y, &g]),
        2 | 5 => {
            let scaled = if way.affine == 2 { b.node("Mul", &[&g, &y]) } else { y };
            if way.simplified {
                scaled
            } else {
                b.node("Add", &[&bias, &scaled])
            }
        }
        3 if !way.simplified => b.node("Sub", &[&y, &bias]),
        0 | 3 => y,
        _ => {
            let two = b.scalar(2.0);
            b.node("Mul", &[&two, &y])
        }
    };
    b.finish(&[&y])
}

fn input(seed: u64) -> [Tensor; 1] {
    [Tensor::floats("x", &[2, 5, SIZE], &noise(seed, 10 * SIZE)).unwrap()]
}

#[test]
fn every_spelling_becomes_one_operator_with_the_same_numbers() {
    for (seed, way) in (0..).zip(spellings()) {
        let model = spelled(way);
        let mut fused = model.clone();
        assert_eq!(apply(&mut fused).unwrap().changed, 1, "{way:?}");
        crate::onnx::check(&fused, &Limits::default()).unwrap();
        let left: Vec<&str> = fused.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
        let wanted = if way.simplified {
            "SimplifiedLayerNormalization"
        } else {
            "LayerNormalization"
        };
        assert_eq!(left, ["Tanh", wanted], "{way:?}");
        let difference = relative_difference(&run(&model, &input(seed)), &run(&fused, &input(seed)));
        assert!(difference < 1e-5, "{way:?}: {difference}");
    }
}

/// `x (r g) + (b - m (r g))`, as one framework writes it.
#[test]
fn a_formula_that_is_multiplied_out_is_the_same() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[2, 5, COLUMNS]);
    let average = mean(&mut b, &x, 0);
    let (squares, centre) = (b.node("Mul", &[&x, &x]), b.node("Mul", &[&average, &average]));
    let square = mean(&mut b, &squares, 0);
    let variance = b.node("Sub", &[&square, &centre]);
    let epsilon = b.scalar(1e-3);
    let under = b.node("Add", &[&variance, &epsilon]);
    let root = b.node("Sqrt", &[&under]);
    let inverse = b.node("Reciprocal", &[&root]);
    let (gain, bias) = (b.weights(&[SIZE]), b.weights(&[SIZE]));
    let factor = b.node("Mul", &[&inverse, &gain]);
    let (scaled, moved) = (b.node("Mul", &[&x, &factor]), b.node("Mul", &[&average, &factor]));
    let rest = b.node("Sub", &[&bias, &moved]);
    let y = b.node("Add", &[&scaled, &rest]);
    let model = b.finish(&[&y]);
    let mut fused = model.clone();
    assert_eq!(apply(&mut fused).unwrap().changed, 1);
    assert_eq!(fused.graph.nodes.len(), 1);
    assert!(relative_difference(&run(&model, &input(1)), &run(&fused, &input(1))) < 1e-5);
}

#[test]
fn what_others_read_stays() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[2, 5, COLUMNS]);
    let m = mean(&mut b, &x, 0);
    let centred = b.node("Sub", &[&x, &m]);
    let square = b.node("Mul", &[&centred, &centred]);
    let variance = mean(&mut b, &square, 0);
    let epsilon = b.scalar(1e-5);
    let under = b.node("Add", &[&variance, &epsilon]);
    let root = b.node("Sqrt", &[&under]);
    let plain = b.node("Div", &[&centred, &root]);
    let (g, other) = (b.weights(&[SIZE]), b.weights(&[SIZE]));
    let (first, second) = (b.node("Mul", &[&plain, &g]), b.node("Mul", &[&plain, &other]));
    let model = b.finish(&[&first, &second, &m]);
    let mut fused = model.clone();
    assert_eq!(apply(&mut fused).unwrap().changed, 1);
    crate::onnx::check(&fused, &Limits::default()).unwrap();
    let count = |op_type: &str| fused.graph.nodes.iter().filter(|node| node.is(op_type)).count();
    assert_eq!(
        (count("LayerNormalization"), count("Mul"), count("ReduceMean")),
        (1, 2, 1)
    );
    assert!(relative_difference(&run(&model, &input(1)), &run(&fused, &input(1))) < 1e-5);
}

/// Builds the usual formula, with one part of it wrong.
fn wrong(part: &str) -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 5, COLUMNS]);
    let axis = if part == "another axis" { 1 } else { -1 };
    let over = [("axes", A::Ints(vec![axis]))];
    let m = b.node_with("ReduceMean", &[&x], &over);
    let doubled = b.node("Add", &[&m, &m]);
    let centred = b.node("Sub", &[&x, if part == "twice the mean" { &doubled } else { &m }]);
    let cube = b.node("Mul", &[&centred, &centred]);
    let cube = if part == "cube" {
        b.node("Mul", &[&cube, &centred])
    } else {
        cube
    };
    let variance = b.node_with("ReduceMean", &[&cube], &over);
    let epsilon = b.scalar(if part == "negative epsilon" { -1e-5 } else { 1e-5 });
    let under = b.node("Add", &[&variance, &epsilon]);
    let mut root = b.node("Sqrt", &[&under]);
    if part == "epsilon outside" {
        root = b.node("Add", &[&root, &epsilon]);
    }
    let mut y = b.node("Div", &[if part == "not centred" { &x } else { &centred }, &root]);
    if part == "maximum" {
        y = b.node("Max", &[&y, &root]);
    }
    b.finish(&[&y])
}

#[test]
fn what_only_looks_alike_is_left_with_a_reason() {
    for part in [
        "another axis",
        "cube",
        "negative epsilon",
        "epsilon outside",
        "not centred",
    ] {
        let model = wrong(part);
        let mut same = model.clone();
        let report = apply(&mut same).unwrap();
        assert_eq!((report.changed, report.left_count), (0, 1), "{part}");
        assert_eq!(same, model, "{part}");
    }
    assert_eq!(apply(&mut wrong("maximum")).unwrap().changed, 1);
    // What is squared is what is divided: the mean square of a row of its own.
    let model = wrong("twice the mean");
    let mut fused = model.clone();
    assert_eq!(apply(&mut fused).unwrap().changed, 1);
    assert!(
        fused
            .graph
            .nodes
            .iter()
            .any(|node| node.is("SimplifiedLayerNormalization"))
    );
    assert!(relative_difference(&run(&model, &input(1)), &run(&fused, &input(1))) < 1e-5);
}
