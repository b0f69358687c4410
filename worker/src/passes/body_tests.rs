//! Weights inside `If`, `Loop` and `Scan`: brought home, simplified and quantized like those of the main graph, by the same passes.

use super::*;
use crate::{
    calibrate::{self, Method},
    onnx::{AttributeValue as A, ElementType, Graph, Limits, Model, Node, Tensor, visit_graphs},
    testing::{self, Build, relative_difference, run, run_optimized},
};

/// A branch: `relu(h w + b) + table[ids]`, with `w` in a `Constant` node of its own, or captured.
fn branch(captured: Option<&str>) -> Graph {
    let mut b = Build::opset(17);
    let w = captured.map_or_else(
        || {
            let value = Tensor::floats("", &[64, 64], &testing::noise(77, 64 * 64)).unwrap();
            b.node_with("Constant", &[], &[("value", A::Tensor(value))])
        },
        str::to_owned,
    );
    let bias = b.weights(&[64]);
    let product = b.node("MatMul", &["h", &w]);
    let sum = b.node("Add", &[&product, &bias]);
    let relu = b.node("Relu", &[&sum]);
    let rows = b.node("Gather", &["table", "ids"]);
    let y = b.node("Add", &[&relu, &rows]);
    b.body(&[&y])
}

/// `v <- tanh(v w / 50)`, with `w` as the body's own initializer.
fn repeated() -> Graph {
    let mut b = Build::opset(17);
    b.typed_input("iteration", ElementType::Int64, &[]);
    b.typed_input("on", ElementType::Bool, &[]);
    b.input("v", &[4, 64]);
    let w = b.weights(&[64, 64]);
    let product = b.node("MatMul", &["v", &w]);
    // Far from where the function is flat, and an error is lost or doubled.
    let small = b.scalar(0.02);
    let scaled = b.node("Mul", &[&product, &small]);
    let next = b.node("Tanh", &[&scaled]);
    let on = b.node("Identity", &["on"]);
    b.body(&[&on, &next])
}

/// A product in the main graph, and more in both branches of an `If` and in a `Loop`; `shared` is read by all but the first branch.
fn model() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[4, 64]);
    let choice = b.typed_input("choice", ElementType::Bool, &[]);
    b.typed_input("ids", ElementType::Int64, &[4]);
    b.named("shared", &[64, 64]);
    b.named("table", &[300, 64]);
    b.push(Node::new("MatMul", &[&x, "shared"], &["h"]));
    let either = b.node_with(
        "If",
        &[&choice],
        &[
            ("then_branch", A::Graph(Box::new(branch(None)))),
            ("else_branch", A::Graph(Box::new(branch(Some("shared"))))),
        ],
    );
    let twice = b.ints(&[2]);
    let looped = b.node_with(
        "Loop",
        &[&twice, "", &either],
        &[("body", A::Graph(Box::new(repeated())))],
    );
    b.finish(&[&either, &looped])
}

fn inputs(seed: u64, choice: bool) -> Vec<Tensor> {
    vec![
        Tensor::floats("x", &[4, 64], &testing::noise(seed, 256)).unwrap(),
        Tensor::new("choice", ElementType::Bool, &[], vec![u8::from(choice)]).unwrap(),
        Tensor::int64s("ids", &[4], &[0, 299, 7, 7]).unwrap(),
    ]
}

fn normalized() -> Model {
    let mut model = model();
    crate::onnx::normalize(&mut model).unwrap();
    valid(&model);
    model
}

/// Valid, with every value named once over all scopes and no initializer inside a body.
fn valid(model: &Model) {
    crate::onnx::check(model, &Limits::default()).unwrap();
    let mut names = std::collections::HashSet::new();
    let mut first = true;
    visit_graphs(&model.graph, &mut |graph: &Graph| {
        let inputs = graph.inputs.iter().map(|input| &input.name);
        let outputs = graph.nodes.iter().flat_map(|node| &node.outputs);
        let tensors = graph.initializers.iter().map(|tensor| &tensor.name);
        for name in inputs.chain(outputs).chain(tensors).filter(|name| !name.is_empty()) {
            assert!(names.insert(name.clone()), "{name} is defined twice");
        }
        assert!(first || graph.initializers.is_empty(), "{} keeps weights", graph.name);
        first = false;
    });
}

fn operators(model: &Model) -> Vec<String> {
    let mut operators = Vec::new();
    visit_graphs(&model.graph, &mut |graph: &Graph| {
        operators.extend(graph.nodes.iter().map(|node| node.op_type.clone()));
    });
    operators
}

fn bytes(model: &Model) -> usize {
    crate::onnx::to_bytes(model).len()
}

/// Both branches give what they gave, within `bound` of the largest magnitude, also with ONNX Runtime's optimizer on.
fn faithful(before: &Model, after: &Model, bound: f32) {
    for choice in [false, true] {
        let wanted = run(before, &inputs(9, choice));
        for given in [
            run(after, &inputs(9, choice)),
            run_optimized(after, &inputs(9, choice)).0,
        ] {
            let difference = relative_difference(&wanted, &given);
            assert!(difference <= bound, "{difference} with {choice}");
        }
    }
}

#[test]
fn weights_come_home_and_nothing_else_changes() {
    let before = model();
    let mut after = before.clone();
    let done = crate::onnx::normalize(&mut after).unwrap();
    valid(&after);
    assert_eq!((done.constants_lifted, done.brought_home), (1, 5), "{done:?}");
    assert!(done.values_renamed > 0, "the branches share names");
    for choice in [false, true] {
        assert_eq!(run(&after, &inputs(1, choice)), run(&before, &inputs(1, choice)));
    }
    let again = crate::onnx::normalize(&mut after.clone()).unwrap();
    assert_eq!((again.values_renamed, again.brought_home), (0, 0));
}

#[test]
fn what_a_body_gives_back_stays_its_own() {
    let constant = |value: f32| {
        let mut b = Build::opset(17);
        let w = b.scalar(value);
        A::Graph(Box::new(b.body(&[&w])))
    };
    let mut b = Build::opset(17);
    let choice = b.typed_input("choice", ElementType::Bool, &[]);
    let branches = [("then_branch", constant(1.0)), ("else_branch", constant(2.0))];
    let y = b.node_with("If", &[&choice], &branches);
    let before = b.finish(&[&y]);
    let mut after = before.clone();
    crate::onnx::normalize(&mut after).unwrap();
    for choice in [0, 1] {
        let input = [Tensor::new("choice", ElementType::Bool, &[], vec![choice]).unwrap()];
        assert_eq!(run(&after, &input), run(&before, &input));
    }
}

/// As in speech models, which begin with an `If` on the sampling rate.
#[test]
fn what_bodies_alone_need_is_imported() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[4, 64]);
    let choice = b.typed_input("choice", ElementType::Bool, &[]);
    b.typed_input("ids", ElementType::Int64, &[4]);
    b.named("table", &[300, 64]);
    b.push(Node::new("Relu", &[&x], &["h"]));
    let branches = ["then_branch", "else_branch"].map(|name| (name, A::Graph(Box::new(branch(None)))));
    let y = b.node_with("If", &[&choice], &branches);
    let mut float = b.finish(&[&y]);
    crate::onnx::normalize(&mut float).unwrap();
    let mut model = float.clone();
    let settings = Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    };
    assert_eq!(quantize_dynamic::apply(&mut model, &settings).unwrap().changed, 2);
    valid(&model);
    faithful(&float, &model, 0.05);
}

#[test]
fn dynamic_quantizes_products_and_tables_inside_bodies() {
    let float = normalized();
    let mut model = float.clone();
    let settings = Quantize {
        mode: Mode::Dynamic,
        ..Quantize::default()
    };
    assert_eq!(quantize_tables::apply(&mut model, None).unwrap().changed, 2);
    assert_eq!(quantize_dynamic::apply(&mut model, &settings).unwrap().changed, 4);
    valid(&model);
    faithful(&float, &model, 0.05);
    assert!(!operators(&model).iter().any(|operator| operator == "MatMul"));
    assert!(
        3 * bytes(&model) < bytes(&float),
        "a table or matrix that two branches read is packed once"
    );
}

/// What unpacks weights that a body reads runs once, in front of all.
#[test]
fn four_bits_inside_bodies_run_on_kernels_of_eight() {
    let float = normalized();
    let mut model = float.clone();
    let settings = Quantize {
        mode: Mode::Dynamic,
        four_bits: Some(32),
        ..Quantize::default()
    };
    quantize_blocks::tables(&mut model, 32).unwrap();
    assert_eq!(quantize_dynamic::apply(&mut model, &settings).unwrap().changed, 4);
    valid(&model);
    faithful(&float, &model, 0.3);
    let operators = operators(&model);
    assert!(
        ["MatMul", "BitShift", "QLinearMatMul"]
            .iter()
            .all(|name| !operators.iter().any(|operator| operator == name)),
        "{operators:?}"
    );
    assert!(4 * bytes(&model) < bytes(&float));
}

#[test]
fn blocks_are_cut_inside_bodies() {
    let float = normalized();
    for (bits, bound) in [(Bits::Eight, 0.03), (Bits::Four, 0.3)] {
        let mut model = float.clone();
        let settings = Blocks {
            bits,
            size: 32,
            recovery: Recovery::default(),
        };
        let report = quantize_blocks::apply(&mut model, &settings, &mut Recovering::default()).unwrap();
        assert_eq!(report.changed, 6);
        valid(&model);
        faithful(&float, &model, bound);
        let share = if bits == Bits::Eight { 3 } else { 5 };
        assert!(share * bytes(&model) < bytes(&float), "{bits:?}");
    }
}

#[test]
fn static_ranges_are_for_the_main_graph_and_bodies_find_theirs() {
    let float = normalized();
    let taps = quantize_static::taps(&float);
    assert_eq!(taps, ["x"], "nothing inside a body can be tapped");
    let mut batches = (0..4).map(|seed| Ok(inputs(seed, seed % 2 == 0)));
    let runtime = testing::runtime();
    let seen = calibrate::calibrate(&runtime, 1, &float, &taps, Method::MinMax, &mut batches, &mut |_| {}).unwrap();
    let mut model = float.clone();
    let report = quantize_static::apply(&mut model, &Quantize::default(), &seen).unwrap();
    assert_eq!((report.changed, report.raised.len()), (4, 3));
    assert!(
        report.raised[0].why.contains("found at run time"),
        "{:?}",
        report.raised
    );
    valid(&model);
    faithful(&float, &model, 0.05);

    let standard = Quantize {
        format: Format::Qdq,
        ..Quantize::default()
    };
    let mut model = float.clone();
    let report = quantize_static::apply(&mut model, &standard, &seen).unwrap();
    assert_eq!(report.changed, 4);
    assert_eq!(model.opset("com.microsoft"), None);
    valid(&model);
    faithful(&float, &model, 0.05);

    let signed = Quantize {
        activations: Activations::Int8,
        ..Quantize::default()
    };
    let mut model = float.clone();
    let report = quantize_static::apply(&mut model, &signed, &seen).unwrap();
    assert_eq!(report.changed, 1);
    assert!(report.left.iter().any(|left| left.why.contains("UInt8")));
    faithful(&float, &model, 0.05);
}

#[test]
fn what_goes_by_calibration_leaves_bodies_and_says_so() {
    let float = normalized();
    let taps = product_inputs(&float);
    assert_eq!(taps, ["x"]);
    let runtime = testing::runtime();
    let observe = || (0..4).map(|seed| Ok(inputs(seed, true)));
    let inputs = Inputs {
        grams: calibrate::rows(&runtime, 1, &float, &taps, &mut observe(), &mut |_| {}).unwrap(),
        ..Inputs::default()
    };
    let recovery = Recovery {
        gptq: true,
        ..Recovery::default()
    };
    let mut recovering = Recovering::new(&recovery, &inputs, &float);
    let mut model = float.clone();
    let settings = Quantize {
        mode: Mode::Dynamic,
        recovery,
        ..Quantize::default()
    };
    quantize_dynamic::apply_recovering(&mut model, &settings, &mut recovering).unwrap();
    faithful(&float, &model, 0.05);
    let reports = recovering.finish().unwrap();
    // One of those inside has the weights of the one outside.
    assert_eq!((reports[0].changed, reports[0].left_count), (2, 2));
    let packed = model
        .graph
        .initializers
        .iter()
        .filter(|tensor| tensor.name.starts_with("shared/q"));
    assert_eq!(packed.count(), 1);
    assert!(reports[0].left[0].why.contains("body of a control-flow node"));

    let channels = calibrate::rows(&runtime, 1, &float, &taps, &mut observe(), &mut |_| {}).unwrap();
    let smoothing = smooth::Smoothing {
        mode: Mode::Dynamic,
        gptq: false,
        four_bits: false,
    };
    // Whether the one product outside is even enough or not, those inside are left for what they are.
    let why = match smooth::apply(&mut float.clone(), smoothing, &channels) {
        Ok(report) => report.left[0].why.clone(),
        Err(error) => error.to_string(),
    };
    assert!(why.contains("body of a control-flow node"), "{why}");
}

#[test]
fn bodies_are_simplified() {
    let mut inner = Build::opset(17);
    let (w, bias) = (inner.weights(&[16, 3, 3, 3]), inner.weights(&[1, 16, 1, 1]));
    let conv = inner.node("Conv", &["x", &w]);
    let sum = inner.node("Add", &[&conv, &bias]);
    let vectors: Vec<String> = (0..3).map(|_| inner.weights(&[16])).collect();
    let variance = inner.floats(&[16], &[0.7; 16]);
    let again = inner.weights(&[16, 16, 1, 1]);
    let next = inner.node("Conv", &[&sum, &again]);
    let norm = inner.node(
        "BatchNormalization",
        &[&next, &vectors[0], &vectors[1], &vectors[2], &variance],
    );
    let same = inner.node("Identity", &[&norm]);
    let y = inner.node("Relu", &[&same]);
    let body = inner.body(&[&y]);
    let mut b = Build::opset(17);
    b.input("x", &[1, 3, 8, 8]);
    let choice = b.typed_input("choice", ElementType::Bool, &[]);
    let branches = [
        ("then_branch", A::Graph(Box::new(body.clone()))),
        ("else_branch", A::Graph(Box::new(body))),
    ];
    let y = b.node_with("If", &[&choice], &branches);
    let mut before = b.finish(&[&y]);
    crate::onnx::normalize(&mut before).unwrap();
    let mut after = before.clone();
    simplify(&mut after, &Simplify::default(), &Limits::default()).unwrap();
    valid(&after);
    let wanted = ["If", "Conv", "Conv", "Relu", "Conv", "Conv", "Relu"];
    assert_eq!(operators(&after), wanted);
    let given = vec![
        Tensor::floats("x", &[1, 3, 8, 8], &testing::noise(5, 192)).unwrap(),
        Tensor::new("choice", ElementType::Bool, &[], vec![1]).unwrap(),
    ];
    let wanted = run(&before, &given);
    assert!(relative_difference(&wanted, &run(&after, &given)) < 1e-5);

    // In the end each convolution has its weights and bias beside it, and the main graph none.
    crate::onnx::settle(&mut after.graph);
    crate::onnx::check(&after, &Limits::default()).unwrap();
    assert!(after.graph.initializers.is_empty());
    let bodies: Vec<usize> = after.graph.nodes[0]
        .bodies()
        .map(|body| body.initializers.len())
        .collect();
    assert_eq!(bodies, [4, 4]);
    assert!(relative_difference(&wanted, &run(&after, &given)) < 1e-5);
}
