//! 16-bit floats (IEEE 754 binary16): weights and what is computed with them in half the bytes, between casts where 32 bits are needed.
//!
//! A node stays in 32 bits, with the reason, where ONNX gives its operator no 16-bit form, where a value that it reads or gives comes near the
//! end of the range, or where a constant would become zero. Inputs and outputs of the model keep their types. Bodies of control flow and local
//! functions are never touched.

use super::{Error, Report};
use crate::onnx::{AttributeValue, ElementType, Index, Model, Names, Node, Patch, Tensor, rewrite_main, shown};
use half::f16;
use std::collections::{BTreeMap, HashMap};

const NAME: &str = "float16";
/// How much further than what was seen other inputs may reach.
const ROOM: f32 = 2.0;
/// Weights from which on it counts that they would be kept twice.
const MANY: usize = 1024;
/// Operators whose weights are summed up in products, so that what is far below the largest of them does not count.
const PRODUCTS: [&str; 7] = ["Conv", "ConvTranspose", "GRU", "Gather", "Gemm", "LSTM", "MatMul"];

/// ONNX's operators, as of operator set 17, of which all floats are of one type that may have 16 bits. Those whose result depends on the last
/// bits of their input (comparisons, cumulative sums, sorting) are left out.
#[rustfmt::skip]
const OPERATORS: &[&str] = &[
    "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DepthToSpace", "Div", "Einsum", "Elu", "Erf",
    "Expand", "Flatten", "GRU", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "LSTM", "LayerNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu",
    "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Softplus",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
];
/// The same of ONNX Runtime's own.
const CONTRIBUTED: &[&str] = &["FastGelu", "Gelu", "QuickGelu"];

/// Turns every node that can be turned. `magnitudes`: of all 32-bit floats that the main graph reads or computes, by name.
pub fn apply(model: &mut Model, magnitudes: &BTreeMap<String, f32>) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let floats = Floats {
            index: &index,
            magnitudes,
        };
        let mut halved = vec![false; index.graph.nodes.len()];
        for (node, halved) in index.graph.nodes.iter().zip(&mut halved) {
            if !floats.touches(node) {
                continue;
            }
            match floats.refuse(node) {
                Some(why) => report.leave(node, why),
                None => *halved = true,
            }
        }
        report.changed = halved.iter().filter(|halved| **halved).count();
        let mut rewrite = Rewrite {
            floats,
            halved: &halved,
            names: Names::new(&model.graph),
            halves: HashMap::new(),
            patch: Patch::new(NAME),
        };
        for (position, _) in halved.iter().enumerate().filter(|(_, halved)| **halved) {
            rewrite.node(position)?;
        }
        rewrite.patch
    };
    let report = super::require_effect(report)?;
    rewrite_main(model, patch)?;
    Ok(report)
}

/// Which values are 32-bit floats, and what is known of them.
struct Floats<'i, 'g> {
    index: &'i Index<'g>,
    magnitudes: &'i BTreeMap<String, f32>,
}

impl Floats<'_, '_> {
    fn constant(&self, value: &str) -> Option<&Tensor> {
        let constant = self.index.constant(value);
        constant.filter(|tensor| tensor.element == ElementType::Float)
    }

    fn is_float(&self, value: &str) -> bool {
        !value.is_empty() && (self.magnitudes.contains_key(value) || self.constant(value).is_some())
    }

    fn touches(&self, node: &Node) -> bool {
        node.inputs
            .iter()
            .chain(&node.outputs)
            .any(|value| self.is_float(value))
    }

    /// Whether a product reads `value` on its left.
    fn feeds_product(&self, value: &str) -> bool {
        let mut uses = self.index.uses(value).iter();
        uses.any(|usage| usage.slot == Some(0) && self.index.graph.nodes[usage.node].is("MatMul"))
    }

    /// Whether `value` is constant, large, and read by the body of a control-flow node.
    fn in_body(&self, value: &str) -> bool {
        self.constant(value).is_some_and(|tensor| tensor.len() >= MANY)
            && self.index.uses(value).iter().any(|usage| usage.slot.is_none())
    }

    /// Why `node` stays in 32 bits; none if it need not.
    fn refuse(&self, node: &Node) -> Option<String> {
        let known = match node.domain.as_str() {
            "" => OPERATORS.contains(&node.op_type.as_str()),
            "com.microsoft" => CONTRIBUTED.contains(&node.op_type.as_str()),
            _ => false,
        };
        if !known {
            return Some(format!("{} is computed in 32 bits", shown(&node.op_type)));
        }
        let outputs = node.outputs.iter();
        if !outputs.clone().any(|output| self.is_float(output)) || !node.inputs.iter().any(|input| self.is_float(input))
        {
            return Some("it gives or reads no float".to_owned());
        }
        if carries_first_inwards(node) && self.feeds_product(node.output()) {
            return Some(
                "ONNX Runtime ends the process where it moves a cast across a Transpose that carries the first dimension inwards, in front of \
                 a product"
                    .to_owned(),
            );
        }
        let far = node.inputs.iter().chain(outputs).find_map(|value| {
            let magnitude = *self.magnitudes.get(value)?;
            // Not a number is beyond any limit.
            let near = magnitude <= f16::MAX.to_f32() / ROOM;
            (!near).then(|| {
                format!(
                    "{} reaches {magnitude:e}; 16-bit floats end at {}",
                    shown(value),
                    f16::MAX
                )
            })
        });
        if let Some(twice) = node.inputs.iter().find(|input| self.in_body(input)) {
            return Some(format!(
                "a body, which is computed in 32 bits, reads {} too: it would be in the file twice",
                shown(twice)
            ));
        }
        let summed = node.domain.is_empty() && PRODUCTS.contains(&node.op_type.as_str());
        far.or_else(|| {
            let mut constants = node.inputs.iter().filter_map(|input| self.constant(input));
            constants.find_map(|tensor| lost(tensor, summed))
        })
    }
}

/// Whether a Transpose puts the first dimension last or last but one and leaves the others in order, as in front of the projections of attention
/// with sequences first. ONNX Runtime 1.32 (`MatmulTransposeFusion`) takes it for a product's own, once it has moved the cast between them
/// to the other side, and crashes where the product's weights have no dimension to match: a matrix of 16 bits, which it casts, is enough.
fn carries_first_inwards(node: &Node) -> bool {
    let Some(perm) = node.ints("perm").filter(|_| node.is("Transpose")) else {
        return false;
    };
    let others: Vec<i64> = perm.iter().copied().filter(|&axis| axis != 0).collect();
    perm.len() > 2 && perm.iter().rev().take(2).any(|&axis| axis == 0) && others.is_sorted()
}

/// What 16 bits would make of a constant that nobody wants; none where they only round it. `summed`: what is small beside the largest value
/// does not count.
fn lost(tensor: &Tensor, summed: bool) -> Option<String> {
    let smallest = f16::MIN_POSITIVE.to_f32();
    let (mut largest, mut least) = (0.0_f32, f32::INFINITY);
    for bytes in tensor.float_bytes()? {
        let magnitude = f32::from_le_bytes(*bytes).abs();
        if !magnitude.is_finite() || magnitude > f16::MAX.to_f32() {
            let name = shown(&tensor.name);
            return Some(format!("{name} holds {magnitude:e}; 16-bit floats end at {}", f16::MAX));
        }
        largest = largest.max(magnitude);
        if magnitude > 0.0 {
            least = least.min(magnitude);
        }
    }
    let small = if summed { largest } else { least };
    (small > 0.0 && small < smallest).then(|| {
        let name = shown(&tensor.name);
        format!("{name} holds {small:e}; below {smallest:e} 16-bit floats lose digits and become zero")
    })
}

struct Rewrite<'i, 'g> {
    floats: Floats<'i, 'g>,
    halved: &'i [bool],
    names: Names,
    /// Value in 32 bits to its name in 16.
    halves: HashMap<String, String>,
    patch: Patch,
}

impl Rewrite<'_, '_> {
    fn node(&mut self, position: usize) -> Result<(), Error> {
        let index = self.floats.index;
        let mut node = index.graph.nodes[position].clone();
        for input in &mut node.inputs {
            if self.floats.is_float(input) {
                *input = self.half(input)?;
            }
        }
        let mut casts = Vec::new();
        for output in &mut node.outputs {
            if !self.floats.is_float(output) {
                continue;
            }
            let half = self.half(output)?;
            let single = std::mem::replace(output, half);
            let wanted = index.uses(&single).iter().any(|usage| !self.halved[usage.node]);
            if wanted || index.is_output(&single) {
                casts.push(cast(output, ElementType::Float, &single));
            }
        }
        self.patch
            .replace(position, std::iter::once(node).chain(casts).collect());
        Ok(())
    }

    /// The 16-bit form of `value`, made here unless a node computes it.
    fn half(&mut self, value: &str) -> Result<String, Error> {
        if let Some(known) = self.halves.get(value) {
            return Ok(known.clone());
        }
        let half = self.names.fresh(value, "/half");
        self.halves.insert(value.to_owned(), half.clone());
        if let Some(tensor) = self.floats.constant(value) {
            let floats = tensor.float_bytes().unwrap_or_default().iter();
            let bytes: Vec<u8> = floats
                .flat_map(|bytes| f16::from_f32(f32::from_le_bytes(*bytes)).to_le_bytes())
                .collect();
            tensor.release();
            self.patch
                .add_tensor(Tensor::new(&half, ElementType::Float16, &tensor.dims, bytes)?);
            return Ok(half);
        }
        let producer = self.floats.index.producer(value).map(|(position, _)| position);
        if producer.is_none_or(|position| !self.halved[position]) {
            let after = producer.map_or(0, |position| position + 1);
            self.patch
                .insert_before(after, [cast(value, ElementType::Float16, &half)]);
        }
        Ok(half)
    }
}

fn cast(from: &str, element: ElementType, to: &str) -> Node {
    Node::new("Cast", &[from], &[to]).with("to", AttributeValue::Int(element.number()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate,
        onnx::Limits,
        testing::{self, Build, noise, relative_difference, run, run_optimized},
    };

    fn rows(scale: f32) -> Vec<Tensor> {
        let values: Vec<f32> = noise(7, 4 * 64).iter().map(|value| value * scale).collect();
        vec![Tensor::floats("x", &[4, 64], &values).unwrap()]
    }

    fn halved(model: &Model, scale: f32) -> (Model, Report) {
        let mut batches = std::iter::once(Ok(rows(scale)));
        let seen = calibrate::magnitudes(&testing::runtime(), 1, model, &mut batches, &mut |_| {}).unwrap();
        let mut half = model.clone();
        let report = apply(&mut half, &seen).unwrap();
        crate::onnx::check(&half, &Limits::default()).unwrap();
        (half, report)
    }

    /// A product, a sum, a normalization with a tiny constant, a comparison, and a second product.
    fn layers() -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 64]);
        let (w1, w2, bias) = (b.weights(&[64, 256]), b.weights(&[256, 64]), b.weights(&[256]));
        let product = b.node("MatMul", &[&x, &w1]);
        let h = b.node("Add", &[&product, &bias]);
        let (epsilon, zero) = (b.scalar(1e-12), b.scalar(0.0));
        let positive = b.node("Greater", &[&h, &zero]);
        let square = b.node("Mul", &[&h, &h]);
        let safe = b.node("Add", &[&square, &epsilon]);
        let root = b.node("Sqrt", &[&safe]);
        let chosen = b.node("Where", &[&positive, &root, &h]);
        let y = b.node("MatMul", &[&chosen, &w2]);
        b.finish(&[&y, &h])
    }

    #[test]
    fn weights_take_half_and_what_needs_32_bits_keeps_them() {
        let float = layers();
        let (half, report) = halved(&float, 1.0);
        let why: Vec<&str> = report.left.iter().map(|left| left.why.as_str()).collect();
        assert_eq!((report.changed, report.left_count), (6, 2), "{why:?}");
        assert!(
            why.iter().any(|why| why.contains("`Greater` is computed in 32 bits")),
            "{why:?}"
        );
        assert!(why.iter().any(|why| why.contains("1e-12")), "{why:?}");
        let (before, after) = (run(&float, &rows(1.0)), run_optimized(&half, &rows(1.0)).0);
        let difference = relative_difference(&before, &after);
        assert!(difference > 0.0 && difference < 2e-3, "{difference}");
        let bytes = |model: &Model| crate::onnx::to_bytes(model).len();
        assert!(bytes(&half) * 100 < bytes(&float) * 55);
    }

    #[test]
    fn weights_that_a_body_reads_too_are_not_kept_twice() {
        let branch = || {
            let mut b = Build::inside(17, 1);
            let y = b.node("MatMul", &["x", "shared"]);
            AttributeValue::Graph(Box::new(b.body(&[&y])))
        };
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 64]);
        let (limit, own) = (b.scalar(2.0), b.weights(&[64, 64]));
        b.named("shared", &[64, 64]);
        let product = b.node("MatMul", &[&x, "shared"]);
        let h = b.node("MatMul", &[&product, &own]);
        let sum = b.node("ReduceSum", &[&x]);
        let scalar = b.ints(&[]);
        let sum = b.node("Reshape", &[&sum, &scalar]);
        let choice = b.node("Less", &[&sum, &limit]);
        let branches = [("then_branch", branch()), ("else_branch", branch())];
        let either = b.node_with("If", &[&choice], &branches);
        let float = b.finish(&[&h, &either]);
        let (half, report) = halved(&float, 1.0);
        assert!(
            report.left.iter().any(|left| left.why.contains("in the file twice")),
            "{report:?}"
        );
        let bytes = |model: &Model| crate::onnx::to_bytes(model).len();
        assert!(bytes(&half) * 100 < bytes(&float) * 80);
        let (before, after) = (run(&float, &rows(1.0)), run_optimized(&half, &rows(1.0)).0);
        assert!(relative_difference(&before, &after) < 2e-3);
    }

    #[test]
    fn what_comes_near_the_end_of_the_range_stays() {
        let float = layers();
        let (half, report) = halved(&float, 1e3);
        assert!(
            report
                .left
                .iter()
                .any(|left| left.why.contains("16-bit floats end at 65504")),
            "{report:?}"
        );
        let difference = relative_difference(&run(&float, &rows(1e3)), &run_optimized(&half, &rows(1e3)).0);
        assert!(difference < 2e-3, "{difference}");
    }

    /// Sequences first, as in `PyTorch`'s attention: turning one of these in 16 bits would end the process of this test.
    #[test]
    fn a_transpose_in_front_of_a_product_stays_where_onnx_runtime_would_crash() {
        for (perm, stays) in [
            ([1, 0, 2], true),
            ([1, 2, 0], true),
            ([0, 2, 1], false),
            ([2, 0, 1], false),
        ] {
            let mut b = Build::opset(17);
            let x = b.input("x", &[8, 8, 8]);
            let turned = b.node_with("Transpose", &[&x], &[("perm", AttributeValue::Ints(perm.to_vec()))]);
            let w = b.weights(&[8, 40]);
            let y = b.node("MatMul", &[&turned, &w]);
            let float = b.finish(&[&y]);
            let rows = vec![Tensor::floats("x", &[8, 8, 8], &noise(3, 512)).unwrap()];
            let seen = BTreeMap::from([("x".to_owned(), 1.0), (turned, 1.0), (y, 8.0)]);
            let mut half = float.clone();
            let report = apply(&mut half, &seen).unwrap();
            assert_eq!(report.left_count, usize::from(stays), "{perm:?}");
            let difference = relative_difference(&run(&float, &rows), &run_optimized(&half, &rows).0);
            assert!(difference < 2e-3, "{perm:?}: {difference}");
        }
    }

    #[test]
    fn a_model_beyond_the_range_is_no_success() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[-1, 64]);
        let w = b.floats(&[64, 1], &[1e5; 64]);
        let y = b.node("MatMul", &[&x, &w]);
        let mut model = b.finish(&[&y]);
        let seen = BTreeMap::from([("x".to_owned(), 1.0), (y, 1.0)]);
        let error = apply(&mut model, &seen).unwrap_err().to_string();
        assert!(error.contains("changed nothing") && error.contains("1e5"), "{error}");
        assert!(lost(&Tensor::floats("w", &[2], &[1.0, 1e-9]).unwrap(), true).is_none());
        assert!(lost(&Tensor::floats("w", &[2], &[1.0, 1e-9]).unwrap(), false).is_some());
        assert!(lost(&Tensor::floats("w", &[1], &[f32::NAN]).unwrap(), true).is_some());
    }
}
