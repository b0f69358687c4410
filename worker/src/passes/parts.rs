//! Constant tensors cut and joined, as exporters do with the gates of recurrent operators: what `Slice` and `Concat` make of them, exactly.
//! Takes no more memory than it is given; computes with no element.

use crate::onnx::{ElementType, Index, Node, Tensor, from_front, within};
use std::{borrow::Cow, ops::Range};

/// Dimensions and bytes.
pub(super) type Part = (Vec<usize>, Vec<u8>);

/// What `node`, a `Slice` of `data`, cuts out; none where it runs backwards, where its bounds are not constant, or where that is more
/// than `room` bytes, of which it takes its own.
pub(super) fn sliced(index: &Index<'_>, node: &Node, data: &Tensor, room: &mut usize) -> Option<Part> {
    let ints = |slot: usize| index.constant(node.input(slot)?)?.to_ints();
    let (starts, ends) = (ints(1)?, ints(2)?);
    let along = match node.input(3) {
        Some(_) => ints(3)?,
        None => (0..i64::try_from(starts.len()).ok()?).collect(),
    };
    let steps = match node.input(4) {
        Some(_) => ints(4)?,
        None => vec![1; starts.len()],
    };
    let cuts = [ends.len(), along.len(), steps.len()];
    if cuts.iter().any(|&count| count != starts.len()) {
        return None;
    }
    let mut kept: Vec<(Range<usize>, usize)> = data.dims.iter().map(|&size| (0..size, 1)).collect();
    for (at, &axis) in along.iter().enumerate() {
        let axis = from_front(axis, data.dims.len())?;
        let size = i64::try_from(data.dims[axis]).ok()?;
        let bound = |bound: i64| usize::try_from(within(bound, size)).ok();
        let (from, to) = (bound(starts[at])?, bound(ends[at])?);
        kept[axis] = (
            from..to.max(from),
            usize::try_from(steps[at]).ok().filter(|&step| step > 0)?,
        );
    }
    let dims: Vec<usize> = kept.iter().map(|(range, step)| range.len().div_ceil(*step)).collect();
    let width = width(data.element)?;
    take(room, &dims, width)?;
    // From the front, so that what is cut off is never copied.
    let mut bytes = Cow::Borrowed(data.bytes());
    for (axis, (range, step)) in kept.into_iter().enumerate() {
        let size = data.dims[axis];
        if range.len() < size || step > 1 {
            let inner = data.dims[axis + 1..].iter().product::<usize>() * width;
            let mut picked = Vec::new();
            for row in bytes.chunks_exact((size * inner).max(1)) {
                for at in range.clone().step_by(step) {
                    picked.extend_from_slice(&row[at * inner..(at + 1) * inner]);
                }
            }
            bytes = Cow::Owned(picked);
        }
    }
    Some((dims, bytes.into_owned()))
}

/// What `node`, a `Concat`, makes of constants; none where one is not constant, or where that is more than `room` bytes, of which it takes
/// its own.
pub(super) fn joined(index: &Index<'_>, node: &Node, room: &mut usize) -> Option<Part> {
    let parts: Vec<&Tensor> = node
        .inputs
        .iter()
        .map(|name| index.constant(name))
        .collect::<Option<_>>()?;
    let first = parts.first()?;
    let axis = from_front(node.int("axis", 0)?, first.dims.len())?;
    let others = |tensor: &Tensor| [&tensor.dims[..axis], &tensor.dims[axis + 1..]].concat();
    let alike = |tensor: &&Tensor| {
        tensor.element == first.element && tensor.dims.len() == first.dims.len() && others(tensor) == others(first)
    };
    if !parts.iter().all(alike) {
        return None;
    }
    let mut dims = first.dims.clone();
    dims[axis] = parts
        .iter()
        .try_fold(0_usize, |sum, tensor| sum.checked_add(tensor.dims[axis]))?;
    let width = width(first.element)?;
    let size = take(room, &dims, width)?;
    let outer: usize = dims[..axis].iter().product();
    let mut bytes = Vec::with_capacity(size);
    for row in 0..outer {
        for part in &parts {
            let length = part.bytes().len() / outer;
            bytes.extend_from_slice(&part.bytes()[row * length..(row + 1) * length]);
        }
    }
    Some((dims, bytes))
}

/// Bytes of an element; none where it has not whole ones.
fn width(element: ElementType) -> Option<usize> {
    let bits = element.bits();
    usize::try_from(bits.filter(|bits| bits % 8 == 0)? / 8).ok()
}

/// The bytes of a tensor, taken from `room` where there is enough.
fn take(room: &mut usize, dims: &[usize], width: usize) -> Option<usize> {
    let size = dims.iter().try_fold(width, |size, &dim| size.checked_mul(dim))?;
    *room = room.checked_sub(size)?;
    Some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue as A, Limits, Model},
        passes::{Mode, Quantize, fold_constants, quantize_dynamic},
        testing::{self, Build, relative_difference, run, run_optimized},
    };

    /// Whether nothing but the sum is left, after which the numbers must be the same ones.
    fn folds(model: &Model) -> bool {
        let mut folded = model.clone();
        fold_constants::apply(&mut folded, false).unwrap();
        crate::onnx::check(&folded, &Limits::default()).unwrap();
        let x = [Tensor::floats("x", &[1], &[0.0]).unwrap()];
        assert_eq!(run(&folded, &x), run(model, &x));
        folded.graph.nodes.len() == 1
    }

    #[test]
    fn constants_are_cut_as_onnx_runtime_cuts_them() {
        for (starts, ends, axes, steps) in [
            (vec![1], vec![3], None, None),
            (vec![-3, 0], vec![i64::MAX, 2], Some(vec![2, -3]), None),
            (vec![0, 1], vec![-1, 100], Some(vec![1, 2]), Some(vec![2, 3])),
            (vec![i64::MIN], vec![2], Some(vec![0]), Some(vec![1])),
        ] {
            let mut b = Build::opset(17);
            let x = b.input("x", &[1]);
            let w = b.weights(&[3, 4, 5]);
            let mut inputs = vec![w, b.ints(&starts), b.ints(&ends)];
            inputs.extend([axes, steps].into_iter().flatten().map(|list| b.ints(&list)));
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let cut = b.node("Slice", &inputs);
            let y = b.node("Add", &[&x, &cut]);
            assert!(folds(&b.finish(&[&y])), "{starts:?}");
        }
    }

    #[test]
    fn constants_are_joined_along_any_dimension_and_none_runs_backwards() {
        for axis in [0, 1, -1] {
            let mut b = Build::opset(17);
            let x = b.input("x", &[1]);
            let parts = [b.weights(&[2, 3, 4]), b.weights(&[2, 3, 4])];
            let joined = b.node_with("Concat", &[&parts[0], &parts[1], &parts[0]], &[("axis", A::Int(axis))]);
            let y = b.node("Add", &[&x, &joined]);
            assert!(folds(&b.finish(&[&y])), "{axis}");
        }
        let mut b = Build::opset(17);
        let x = b.input("x", &[1]);
        let w = b.weights(&[6]);
        let [start, end, axis, step] = [-1, i64::MIN, 0, -1].map(|value| b.ints(&[value]));
        let turned = b.node("Slice", &[&w, &start, &end, &axis, &step]);
        let y = b.node("Add", &[&x, &turned]);
        assert!(!folds(&b.finish(&[&y])), "a slice that runs backwards stays");
    }

    /// Each joins the one before it with itself, so that the last would have a million times the bytes of the first.
    #[test]
    fn a_bomb_of_constants_is_not_lit() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1]);
        let mut last = b.weights(&[1024]);
        for _ in 0..20 {
            last = b.node_with("Concat", &[&last, &last], &[("axis", A::Int(0))]);
        }
        let y = b.node("Add", &[&x, &last]);
        let mut model = b.finish(&[&y]);
        assert_eq!(fold_constants::apply(&mut model, false).unwrap().changed, 1);
    }

    /// As `PyTorch` turns the order of gates into ONNX's.
    #[test]
    fn an_lstm_whose_gates_are_reordered_in_the_graph_has_constant_weights() {
        let (size, mut b) = (32, Build::opset(17));
        let x = b.input("x", &[10, 1, 32]);
        let turned = |b: &mut Build| {
            let weights = b.weights(&[4 * 32, 32]);
            let gates = [(0, 1), (3, 4), (1, 3)].map(|(from, to)| {
                let (from, to, axis) = (b.ints(&[from * size]), b.ints(&[to * size]), b.ints(&[0]));
                b.node("Slice", &[&weights, &from, &to, &axis])
            });
            let joined = b.node_with("Concat", &[&gates[0], &gates[1], &gates[2]], &[("axis", A::Int(0))]);
            let axis = b.ints(&[0]);
            b.node("Unsqueeze", &[&joined, &axis])
        };
        let (input, hidden) = (turned(&mut b), turned(&mut b));
        let y = b.node_with("LSTM", &[&x, &input, &hidden], &[("hidden_size", A::Int(size))]);
        let float = b.finish(&[&y]);
        let mut model = float.clone();
        assert_eq!(fold_constants::apply(&mut model, false).unwrap().changed, 10);
        let settings = Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        };
        assert_eq!(quantize_dynamic::apply(&mut model, &settings).unwrap().changed, 1);
        let x = [Tensor::floats("x", &[10, 1, 32], &testing::noise(8, 320)).unwrap()];
        let difference = relative_difference(&run(&float, &x), &run_optimized(&model, &x).0);
        assert!(difference < 0.05, "{difference}");
    }
}
