//! GELU written out in elementary operators becomes ONNX Runtime's one kernel for it.
//!
//! `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` becomes `FastGelu`, `0.5 x (1 + erf(x / sqrt 2))` becomes `Gelu`
//! (Hendrycks and Gimpel, arXiv 1606.08415), whatever the order of the factors, by comparing polynomials.

use super::{
    Error, Report,
    polynomial::{Evaluator, Polynomial},
};
use crate::onnx::{Index, Model, Node, Patch, rewrite};
use std::collections::BTreeSet;

pub(super) const NAME: &str = "fuse-gelu";
const DOMAIN: &str = "com.microsoft";
/// Relative difference of coefficients that exporters' 32-bit constants stay below.
const TOLERANCE: f64 = 2e-3;
/// Nodes between the function and either end of the formula.
const REACH: usize = 12;

/// Fuses every GELU.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    rewrite(model, |index| -> Result<Patch, Error> {
        let mut patch = Patch::new(NAME);
        for node in &index.graph.nodes {
            let (inner, fused) = if node.is("Tanh") {
                let cubic = [(1, 0, 0.797_884_560_8), (3, 0, 0.797_884_560_8 * 0.044_715)];
                (Polynomial::of(&cubic), "FastGelu")
            } else if node.is("Erf") {
                (Polynomial::of(&[(1, 0, std::f64::consts::FRAC_1_SQRT_2)]), "Gelu")
            } else {
                continue;
            };
            match find(index, node, &inner) {
                Some((position, x)) => {
                    let output = index.graph.nodes[position].output();
                    patch.replace(position, vec![Node::new(fused, &[&x], &[output]).in_domain(DOMAIN)]);
                    report.changed += 1;
                }
                None => report.leave(node, "it is not part of a GELU"),
            }
        }
        Ok(patch)
    })?;
    if report.changed > 0 {
        model.import(DOMAIN, 1);
    }
    Ok(report)
}

/// The node that ends the formula around `function`, and the value that it is a function of.
fn find(index: &Index<'_>, function: &Node, inner: &Polynomial) -> Option<(usize, String)> {
    let start = function.input(0)?;
    for x in upstream(index, start) {
        let rank = least_rank(index, x, REACH);
        let evaluator = Evaluator {
            index,
            x,
            t: None,
            rank,
        };
        if !evaluator
            .evaluate(start)
            .is_some_and(|polynomial| polynomial.is_close(inner, TOLERANCE))
        {
            continue;
        }
        let whole = Polynomial::of(&[(1, 0, 0.5), (1, 1, 0.5)]);
        let evaluator = Evaluator {
            t: Some(function.output()),
            ..evaluator
        };
        let end = downstream(index, function.output()).into_iter().find(|&position| {
            let value = index.graph.nodes[position].output();
            evaluator
                .evaluate(value)
                .is_some_and(|polynomial| polynomial.is_close(&whole, TOLERANCE))
        });
        if let Some(position) = end {
            return Some((position, x.to_owned()));
        }
    }
    None
}

/// Values that `value` is computed from by sums and products, nearest first, no constants.
fn upstream<'g>(index: &Index<'g>, value: &'g str) -> Vec<&'g str> {
    let mut found = vec![value];
    let mut at = 0;
    while at < found.len() && found.len() < REACH {
        if let Some((_, node)) = index.producer(found[at])
            && arithmetic(node)
        {
            for input in node.inputs.iter().map(String::as_str) {
                if index.constant(input).is_none() && !found.contains(&input) {
                    found.push(input);
                }
            }
        }
        at += 1;
    }
    found
}

/// Nodes that `value` reaches through sums and products, nearest first.
fn downstream(index: &Index<'_>, value: &str) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut values = vec![value.to_owned()];
    let mut at = 0;
    while at < values.len() && found.len() < REACH {
        for usage in index.uses(&values[at]) {
            let node = &index.graph.nodes[usage.node];
            if arithmetic(node) && seen.insert(usage.node) {
                found.push(usage.node);
                values.push(node.output().to_owned());
            }
        }
        at += 1;
    }
    found
}

fn arithmetic(node: &Node) -> bool {
    ["Add", "Sub", "Mul", "Div", "Neg", "Pow", "Identity"]
        .iter()
        .any(|op_type| node.is(op_type))
}

/// A rank that `value` has at least, as far as its nearest producers tell.
fn least_rank(index: &Index<'_>, value: &str, depth: usize) -> usize {
    if let Some(tensor) = index.constant(value) {
        return tensor.dims.len();
    }
    let declared = index.graph.inputs.iter().find(|input| input.name == value);
    if let Some(shape) = declared
        .and_then(crate::onnx::ValueInfo::tensor_type)
        .and_then(|declared| declared.shape)
    {
        return shape.len();
    }
    let Some((_, node)) = index.producer(value).filter(|_| depth > 0) else {
        return 0;
    };
    let of = |slot: usize| node.input(slot).map_or(0, |name| least_rank(index, name, depth - 1));
    match node.op_type.as_str() {
        "Add" | "Sub" | "Mul" | "Div" => of(0).max(of(1)),
        "Conv" | "ConvTranspose" => of(1),
        "Gemm" => 2,
        "Relu" | "Tanh" | "Sigmoid" | "Identity" | "Softmax" | "LayerNormalization" | "BatchNormalization" => of(0),
        _ => 0,
    }
}
