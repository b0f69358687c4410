//! Simplifying passes on small graphs and on the real model: the same outputs, with fewer nodes.

use super::*;
use crate::{
    onnx::{AttributeValue as A, ElementType, Limits, Model, Tensor},
    testing::{self, Build, relative_difference, run},
};

fn valid(model: &Model) {
    crate::onnx::check(model, &Limits::default()).unwrap();
}

fn count(model: &Model, op_type: &str) -> usize {
    model.graph.nodes.iter().filter(|node| node.op_type == op_type).count()
}

/// Indices -> `Expand` -> `Equal` -> `Cast` -> `MatMul` -> `Add` -> `Relu`, as converters write embeddings.
fn one_hot() -> Model {
    let mut b = Build::opset(17);
    let ids = b.typed_input("ids", ElementType::Int32, &[-1, 6]);
    let lifted = b.ints(&[-1, 6, 1]);
    let lifted = b.node("Reshape", &[&ids, &lifted]);
    let shape = b.node("Shape", &[&ids]);
    let (zero, one) = (b.ints(&[0]), b.ints(&[1]));
    let batch = b.node("Slice", &[&shape, &zero, &one, &zero]);
    let rest = b.ints(&[6, 1]);
    let target = b.node_with("Concat", &[&batch, &rest], &[("axis", A::Int(0))]);
    let spread = b.node("Expand", &[&lifted, &target]);
    let count = b.ints(&[0, 1, 2, 3, 4]);
    let count = b.node_with("Cast", &[&count], &[("to", A::Int(ElementType::Int32.number()))]);
    let equal = b.node("Equal", &[&spread, &count]);
    let hot = b.node_with("Cast", &[&equal], &[("to", A::Int(ElementType::Float.number()))]);
    let (w, bias) = (b.weights(&[5, 3]), b.weights(&[1, 1, 3]));
    let product = b.node("MatMul", &[&hot, &w]);
    let sum = b.node("Add", &[&product, &bias]);
    let y = b.node("Relu", &[&sum]);
    b.finish(&[&y])
}

fn ids(values: &[i32]) -> Vec<Tensor> {
    vec![Tensor::int32s("ids", &[values.len() / 6, 6], values).unwrap()]
}

#[test]
fn one_hot_products_become_lookups_for_every_index() {
    let model = one_hot();
    let mut simple = model.clone();
    fold_constants::apply(&mut simple, false).unwrap();
    assert!(fold_shapes::apply(&mut simple).unwrap().changed > 0);
    assert_eq!(one_hot::apply(&mut simple, false).unwrap().changed, 1);
    valid(&simple);
    assert_eq!((count(&simple, "MatMul"), count(&simple, "Gather")), (0, 1));
    assert_eq!(
        fold_table::apply(&mut simple).unwrap().changed,
        2,
        "the sum and its Relu"
    );
    valid(&simple);
    assert_eq!(
        (count(&simple, "Add"), count(&simple, "Relu"), count(&simple, "Shape")),
        (0, 0, 0)
    );
    let odd = ids(&[0, 4, 5, -1, i32::MIN, i32::MAX, 1, 2, 3, 4, 0, 77]);
    assert!(relative_difference(&run(&model, &odd), &run(&simple, &odd)) < 1e-6);
}

#[test]
fn asserted_bounds_need_no_clip_and_no_row_of_zeros() {
    let model = one_hot();
    let settings = Simplify {
        indices_in_bounds: true,
        skip: vec![fold_table::NAME],
        ..Simplify::default()
    };
    let mut simple = model.clone();
    let reports = simplify(&mut simple, &settings, &Limits::default()).unwrap();
    assert!(reports.iter().all(|report| report.name != fold_table::NAME));
    assert_eq!(
        (count(&simple, "Gather"), count(&simple, "Clip"), count(&simple, "Add")),
        (1, 0, 1)
    );
    let inside = ids(&[0, 4, 1, 2, 3, 0]);
    assert!(relative_difference(&run(&model, &inside), &run(&simple, &inside)) < 1e-6);
}

#[test]
fn passes_have_the_names_that_manifests_give_them_in_the_same_order() {
    let wanted = assayer_crds::stages::SimplifyPass::ALL.map(assayer_crds::stages::SimplifyPass::name);
    assert_eq!(SIMPLIFYING.map(|(name, _)| name), wanted);
}

#[test]
fn what_is_simple_already_has_no_effect() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 4]);
    let y = b.node("Relu", &[&x]);
    let mut model = b.finish(&[&y]);
    let reports = simplify(&mut model, &Simplify::default(), &Limits::default()).unwrap();
    let error = require_simpler(&reports).unwrap_err();
    assert!(error.to_string().contains("as simple as"), "{error}");
}

#[test]
fn stale_shapes_of_intermediate_values_are_gone() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 4]);
    let inner = b.node("Relu", &[&x]);
    let y = b.node("Neg", &[&inner]);
    let mut model = b.finish(&[&y]);
    let wrong = crate::onnx::ValueInfo::tensor(&inner, ElementType::Float, &[crate::onnx::Dim::Fixed(7)]);
    model.graph.value_info.push(wrong);
    let normalized = crate::onnx::normalize(&mut model).unwrap();
    assert_eq!((normalized.types_dropped, model.graph.value_info.len()), (1, 0));
}

#[test]
fn counting_that_is_not_in_order_is_no_one_hot() {
    let mut model = one_hot();
    fold_constants::apply(&mut model, false).unwrap();
    let counted = model
        .graph
        .initializers
        .iter_mut()
        .find(|tensor| tensor.to_ints().is_some_and(|ints| ints.len() == 5));
    let counted = counted.unwrap();
    *counted = Tensor::int32s(&counted.name.clone(), &[5], &[0, 2, 1, 3, 4]).unwrap();
    fold_shapes::apply(&mut model).unwrap();
    assert_eq!(one_hot::apply(&mut model, false).unwrap().changed, 0);
}

#[test]
fn operators_that_move_nothing_go_away_and_others_stay() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 4, 1]);
    let (zero, all, one) = (b.ints(&[0]), b.ints(&[i64::MAX]), b.ints(&[1]));
    let slice = b.node("Slice", &[&x, &zero, &all, &one]);
    let turned = b.node_with("Transpose", &[&slice], &[("perm", A::Ints(vec![0, 1, 2]))]);
    let same = b.node("Identity", &[&turned]);
    let minus = b.ints(&[-1]);
    let (end, step) = (b.ints(&[i64::MIN]), b.ints(&[-1]));
    let backwards = b.node("Slice", &[&same, &minus, &end, &one, &step]);
    let y = b.node("Relu", &[&backwards]);
    let model = b.finish(&[&y]);
    let mut simple = model.clone();
    assert_eq!(fold_shapes::apply(&mut simple).unwrap().changed, 3);
    valid(&simple);
    assert_eq!(simple.graph.nodes.len(), 2, "reversing is not nothing");
    let input = [Tensor::floats("x", &[2, 4, 1], &testing::noise(1, 8)).unwrap()];
    assert_eq!(run(&model, &input), run(&simple, &input));
}

#[test]
fn the_real_model_keeps_its_outputs() {
    let mut model = crate::onnx::read(&testing::magika(), &Limits::default()).unwrap();
    crate::onnx::normalize(&mut model).unwrap();
    crate::onnx::upgrade(&mut model).unwrap();
    let mut simple = model.clone();
    let reports = simplify(&mut simple, &Simplify::default(), &Limits::default()).unwrap();
    let changed = |name: &str| reports.iter().find(|report| report.name == name).unwrap().changed;
    assert_eq!(
        (changed("gather-one-hot"), changed("fold-into-table")),
        (1, 2),
        "{reports:?}"
    );
    assert_eq!((count(&simple, "Gather"), count(&simple, "Shape")), (1, 0));
    for batch in [1, 3] {
        let bytes: Vec<i32> = (0..batch * 2048).map(|at| (at * at + at / 7) % 259 - 1).collect();
        let count = usize::try_from(batch).unwrap();
        let input = [Tensor::int32s("bytes", &[count, 2048], &bytes).unwrap()];
        assert!(relative_difference(&run(&model, &input), &run(&simple, &input)) < 1e-5);
    }
}
