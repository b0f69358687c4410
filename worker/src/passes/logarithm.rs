//! Which values end in a logarithm, as the spectra of speech models do. There the size of an error beside the value counts, and rounding to
//! 8 bits makes errors of one size beside the largest: what is quiet is lost, by tens of decibels.
//!
//! Decides by operators that keep small things small (sums, products, squares, roots, moves, filters) and end at whatever bends or squashes,
//! such as a Relu or an exponential. Rounds nothing.

use crate::onnx::{Index, Node};
use std::collections::HashSet;

/// Why a node that makes such a value is left.
pub(super) const WHY: &str = "a logarithm follows: rounded to 8 bits, what is small beside the largest value would be lost, and there it counts as much";

/// Operators behind which a small difference is still one.
const THROUGH: [&str; 29] = [
    "Abs",
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "Identity",
    "MatMul",
    "Max",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Reshape",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Names of the values of one graph that reach a `Log` through nothing but such operators. Those that an inner graph takes the logarithm of
/// are not among them.
pub(super) fn feeding<'g>(index: &Index<'g>) -> HashSet<&'g str> {
    let mut feeding: HashSet<&str> = HashSet::new();
    for node in index.graph.nodes.iter().rev() {
        let passes =
            node.is("Log") || (through(node) && node.outputs.iter().any(|name| feeding.contains(name.as_str())));
        if passes {
            feeding.extend(node.inputs.iter().map(String::as_str).filter(|name| !name.is_empty()));
        }
    }
    feeding
}

fn through(node: &Node) -> bool {
    THROUGH.iter().any(|op_type| node.is(op_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue, Model, Tensor},
        passes::{Mode, Quantize, tests::quantized},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    /// A spectrogram by convolution, a filter bank, the logarithm, and a network of two products behind it.
    fn listener() -> (Model, [String; 4]) {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 1, 512]);
        let (filters, bank, first, second) = (
            b.weights(&[48, 1, 64]),
            b.weights(&[48, 24]),
            b.weights(&[24, 64]),
            b.weights(&[64, 32]),
        );
        let bins = b.node("Conv", &[&x, &filters]);
        let power = b.node("Mul", &[&bins, &bins]);
        let turned = b.node_with("Transpose", &[&power], &[("perm", AttributeValue::Ints(vec![0, 2, 1]))]);
        let bands = b.node("MatMul", &[&turned, &bank]);
        let magnitude = b.node("Abs", &[&bands]);
        let floor = b.scalar(1e-6);
        let floored = b.node("Add", &[&magnitude, &floor]);
        let log = b.node("Log", &[&floored]);
        let hidden = b.node("MatMul", &[&log, &first]);
        let relu = b.node("Relu", &[&hidden]);
        let y = b.node("MatMul", &[&relu, &second]);
        (b.finish(&[&y]), [bins, bands, hidden, y])
    }

    /// Loud at first, and quiet then.
    fn sound(seed: u64) -> Vec<Tensor> {
        let loud = |at: usize| if at < 256 { 1.0 } else { 1e-3 };
        let values = noise(seed, 512).into_iter().enumerate();
        let values: Vec<f32> = values.map(|(at, value)| value * loud(at)).collect();
        vec![Tensor::floats("x", &[1, 1, 512], &values).unwrap()]
    }

    #[test]
    fn what_a_logarithm_is_taken_of_stays_and_what_follows_does_not() {
        let (model, [bins, bands, hidden, _]) = listener();
        let found = feeding(&Index::new(&model.graph));
        assert!(found.contains(bins.as_str()) && found.contains(bands.as_str()) && !found.contains(hidden.as_str()));
        for mode in [Mode::Dynamic, Mode::Static] {
            let settings = Quantize {
                mode,
                ..Quantize::default()
            };
            let (after, report) = quantized(&model, &settings, &sound);
            assert_eq!(report.changed, 2, "{mode:?} {report:?}");
            assert_eq!(
                report.left.iter().filter(|left| left.why == WHY).count(),
                2,
                "{mode:?} {report:?}"
            );
            let difference = relative_difference(&run(&model, &sound(1)), &run_optimized(&after, &sound(1)).0);
            assert!(difference < 0.05, "{mode:?}: {difference}");
        }
    }

    #[test]
    fn the_logarithm_of_a_probability_is_another_matter() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 64]);
        let w = b.weights(&[64, 64]);
        let scores = b.node("MatMul", &[&x, &w]);
        let shares = b.node("Softmax", &[&scores]);
        let y = b.node("Log", &[&shares]);
        let model = b.finish(&[&y]);
        assert!(!feeding(&Index::new(&model.graph)).contains(scores.as_str()));
    }
}
