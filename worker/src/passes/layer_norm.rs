//! Layer normalization written out in elementary operators becomes one operator, whatever its spelling.
//!
//! `(x - m) / sqrt(v + e) * g + b` over the last dimension becomes `LayerNormalization` (Ba et al., arXiv:1607.06450), and
//! `x / sqrt(s + e) * g` becomes ONNX Runtime's `SimplifiedLayerNormalization` (`RMSNorm`; Zhang and Sennrich, arXiv:1910.07467), with `m`, `v`
//! and `s` the mean, the variance and the mean square of `x`. Proven by comparing polynomials. Values that others read stay.
#![allow(
    clippy::cast_possible_truncation,
    reason = "parameters are 32-bit floats; each is rounded to that once"
)]

use super::{
    Error, Report,
    moments::{Evaluator, Polynomial, Powers},
};
use crate::onnx::{AttributeValue, Index, Model, Names, Node, Patch, Shapes, Size, Tensor, rewrite};
use std::collections::BTreeSet;

pub(super) const NAME: &str = "fuse-layer-norm";
/// Relative difference of coefficients that a 32-bit factor such as `1 / n` stays below.
const TOLERANCE: f64 = 1e-6;
/// Nodes between the root and either end of the formula.
const REACH: usize = 16;

/// Fuses every layer normalization.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    rewrite(model, |index| -> Result<Patch, Error> {
        let shapes = Shapes::new(index);
        let mut patch = Patch::new(NAME);
        let mut ends = BTreeSet::new();
        for node in &index.graph.nodes {
            let Some(under) = under_root(index, node) else {
                continue;
            };
            match find(index, &shapes, under) {
                Some(found) if ends.insert(found.end) => {
                    found.write(index, &mut names, &mut patch)?;
                    report.changed += 1;
                }
                Some(_) => {}
                None => report.leave(
                    node,
                    "its root is not that of a layer normalization over the last dimension",
                ),
            }
        }
        Ok(patch)
    })?;
    Ok(report)
}

/// The value of which `node` takes a square root, unless it is constant.
fn under_root<'g>(index: &Index<'g>, node: &'g Node) -> Option<&'g str> {
    let exponent = || node.input(1).and_then(|name| index.constant(name))?.to_scalar();
    let root = node.is("Sqrt") || (node.is("Pow") && matches!(exponent(), Some(0.5 | -0.5)));
    let under = node.input(0).filter(|_| root)?;
    index.constant(under).is_none().then_some(under)
}

/// A normalization that was recognised.
struct Found<'g> {
    /// Position of the node that ends it.
    end: usize,
    x: &'g str,
    /// Without a mean that is taken away.
    simplified: bool,
    epsilon: f64,
    /// Size of a row.
    size: usize,
    scale: Affine<'g>,
    bias: Affine<'g>,
}

/// `constant + factor * vector`.
#[derive(Debug, Clone, Copy, Default)]
struct Affine<'g> {
    constant: f64,
    vector: Option<(f64, &'g Tensor)>,
}

/// The variance or mean square under a root: `factor * (s - m^2) + epsilon`, or without the mean.
struct Spread {
    simplified: bool,
    factor: f64,
    epsilon: f64,
}

fn find<'g>(index: &Index<'g>, shapes: &Shapes<'_>, under: &'g str) -> Option<Found<'g>> {
    let mut candidates = Vec::new();
    for x in upstream(index, under) {
        let shape = shapes.get(x);
        let size = match shape.and_then(<[Size]>::last) {
            Some(Size::Known(1)) => continue,
            Some(Size::Known(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let mut evaluator = Evaluator {
            index,
            x,
            under: None,
            rank: shape.map(<[Size]>::len),
            size,
            vectors: Vec::new(),
        };
        if let Some(spread) = evaluator.evaluate(under).as_ref().and_then(spread) {
            evaluator.under = Some(under);
            candidates.push((spread, evaluator));
        }
    }
    // What has its mean taken away has none itself: as the row of a simplified normalization it is only second best.
    candidates.sort_by_key(|(spread, _)| spread.simplified);
    candidates
        .into_iter()
        .find_map(|(spread, evaluator)| end(index, under, &spread, evaluator))
}

/// Values that `value` is computed from, nearest first, no constants.
fn upstream<'g>(index: &Index<'g>, value: &'g str) -> Vec<&'g str> {
    let mut found = vec![value];
    let mut at = 0;
    while at < found.len() && found.len() < REACH {
        if let Some((_, node)) = index.producer(found[at]).filter(|(_, node)| follows(node)) {
            for input in node.inputs.iter().map(String::as_str) {
                if !input.is_empty() && index.constant(input).is_none() && !found.contains(&input) {
                    found.push(input);
                }
            }
        }
        at += 1;
    }
    found.remove(0);
    found
}

fn follows(node: &Node) -> bool {
    const ARITHMETIC: [&str; 12] = [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Identity",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
    ];
    ARITHMETIC.iter().any(|op_type| node.is(op_type))
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() <= TOLERANCE * left.abs().max(right.abs())
}

fn spread(under: &Polynomial) -> Option<Spread> {
    let none = Powers::default();
    let (square, mean) = (Powers { square: 1, ..none }, Powers { mean: 2, ..none });
    let (factor, mean_factor, epsilon) = (under.of(square), under.of(mean), under.of(none));
    let simplified = !under.0.contains_key(&mean);
    let others = under.0.keys().any(|powers| ![square, mean, none].contains(powers));
    let matches = factor > 0.0 && epsilon >= 0.0 && !others && (simplified || close(factor, -mean_factor));
    matches.then_some(Spread {
        simplified,
        factor,
        epsilon,
    })
}

/// Follows what is computed from the root to the last value that is still the normalization.
fn end<'g>(index: &Index<'g>, under: &str, spread: &Spread, mut evaluator: Evaluator<'_, 'g>) -> Option<Found<'g>> {
    let mut best = None;
    for position in downstream(index, under) {
        let value = index.graph.nodes[position].output();
        let Some((scale, bias)) = evaluator
            .evaluate(value)
            .and_then(|polynomial| normalized(&polynomial, spread, &evaluator.vectors))
        else {
            continue;
        };
        let length = |affine: &Affine<'_>| affine.vector.map(|(_, vector)| vector.len());
        let Some(size) = evaluator.size.or(length(&scale)).or(length(&bias)) else {
            continue;
        };
        best = Some(Found {
            end: position,
            x: evaluator.x,
            simplified: spread.simplified,
            epsilon: spread.epsilon / spread.factor,
            size,
            scale,
            bias,
        });
        // What others read too must be computed anyway: what follows it is better left to follow.
        if index.only_use(value).is_none() {
            break;
        }
    }
    best
}

/// Positions of nodes that `value` reaches through arithmetic, in execution order.
fn downstream(index: &Index<'_>, value: &str) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut values = vec![value];
    let mut at = 0;
    while at < values.len() && found.len() < REACH {
        for usage in index.uses(values[at]) {
            let node = &index.graph.nodes[usage.node];
            if follows(node) && found.insert(usage.node) {
                values.push(node.output());
            }
        }
        at += 1;
    }
    found
}

/// Scale and bias, where the polynomial is `scale * (x - m) / root + bias`, or `scale * x / root` for a simplified one.
fn normalized<'g>(
    polynomial: &Polynomial,
    spread: &Spread,
    vectors: &[&'g Tensor],
) -> Option<(Affine<'g>, Affine<'g>)> {
    let (mut scale, mut bias) = (Affine::default(), Affine::default());
    // Factor and vectors of the row and of its mean: they must be each other's opposite.
    let (mut row, mut mean) = (None, None);
    for (&powers, &factor) in &polynomial.0 {
        let vector = match powers.vectors {
            [0, 0] => None,
            [1, 0] => Some(*vectors.first()?),
            [0, 1] => Some(*vectors.get(1)?),
            _ => return None,
        };
        let first = match (powers.x, powers.mean, powers.square, powers.root) {
            (1, 0, 0, -1) => {
                // The root that was written is larger than the one of the operator.
                scale = Affine::of(factor / spread.factor.sqrt(), vector);
                row.replace((powers.vectors, factor)).is_none()
            }
            (0, 1, 0, -1) => mean.replace((powers.vectors, -factor)).is_none(),
            (0, 0, 0, 0) if vector.is_some() && bias.vector.is_none() => {
                bias.vector = Affine::of(factor, vector).vector;
                true
            }
            (0, 0, 0, 0) if vector.is_none() => {
                bias.constant = factor;
                true
            }
            _ => false,
        };
        if !first {
            return None;
        }
    }
    let (vectors, factor) = row?;
    let moved = bias.constant != 0.0 || bias.vector.is_some();
    let centred = match mean {
        None => spread.simplified && !moved,
        Some((others, other)) => !spread.simplified && others == vectors && close(other, factor),
    };
    centred.then_some((scale, bias))
}

impl<'g> Affine<'g> {
    fn of(factor: f64, vector: Option<&'g Tensor>) -> Self {
        match vector {
            None => Self {
                constant: factor,
                vector: None,
            },
            Some(vector) => Self {
                constant: 0.0,
                vector: Some((factor, vector)),
            },
        }
    }

    /// Name of an initializer `[size]` that holds it: the vector itself where nothing is done to it.
    fn tensor(&self, size: usize, name: impl FnOnce() -> String, patch: &mut Patch) -> Result<String, Error> {
        let values = match self.vector {
            Some((factor, vector)) if close(factor, 1.0) && self.constant == 0.0 && vector.dims == [size] => {
                return Ok(vector.name.clone());
            }
            Some((factor, vector)) => vector
                .to_floats()
                .unwrap_or_default()
                .into_iter()
                .map(|value| (factor * f64::from(value) + self.constant) as f32)
                .collect(),
            None => vec![self.constant as f32; size],
        };
        let tensor = Tensor::floats(&name(), &[size], &values)?;
        let name = tensor.name.clone();
        patch.add_tensor(tensor);
        Ok(name)
    }
}

impl Found<'_> {
    fn write(&self, index: &Index<'_>, names: &mut Names, patch: &mut Patch) -> Result<(), Error> {
        let output = index.graph.nodes[self.end].output();
        let scale = self.scale.tensor(self.size, || names.fresh(output, "/scale"), patch)?;
        let mut inputs = vec![self.x.to_owned(), scale];
        if self.bias.constant != 0.0 || self.bias.vector.is_some() {
            inputs.push(self.bias.tensor(self.size, || names.fresh(output, "/bias"), patch)?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let op_type = if self.simplified {
            "SimplifiedLayerNormalization"
        } else {
            "LayerNormalization"
        };
        let node = Node::new(op_type, &inputs, &[output])
            .with("axis", AttributeValue::Int(-1))
            .with("epsilon", AttributeValue::Float(self.epsilon as f32));
        patch.replace(self.end, vec![node]);
        Ok(())
    }
}

#[cfg(test)]
#[path = "layer_norm_tests.rs"]
mod tests;
