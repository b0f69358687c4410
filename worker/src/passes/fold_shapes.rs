//! Shape arithmetic becomes constants, and operators that change nothing go away.
//!
//! Exporters compute at run time what the graph already says (`Shape`, `Slice`, `Concat`, then `Reshape`), and put in
//! `Expand`, `Slice` or `Transpose` that move nothing. Decided by sizes that are known or known to be equal, for every
//! input of the declared shape; a target with one open size becomes `-1`.

use super::{Error, Report};
use crate::onnx::{Index, Model, Names, Node, Patch, Shapes, Size, Tensor, permutation, rewrite};

pub(super) const NAME: &str = "fold-shapes";
/// Passes over the graph: one change may enable another.
const MOST_ROUNDS: usize = 8;

/// Folds until nothing is left to fold.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    for _ in 0..MOST_ROUNDS {
        if !rewrite(model, |index| round(index, &mut names, &mut report.changed))? {
            break;
        }
    }
    Ok(report)
}

fn round(index: &Index<'_>, names: &mut Names, changed: &mut usize) -> Result<Patch, Error> {
    let shapes = Shapes::new(index);
    let mut patch = Patch::new(NAME);
    // A node whose neighbour changed already waits for the next round.
    let mut touched = vec![false; index.graph.nodes.len()];
    for (position, node) in index.graph.nodes.iter().enumerate() {
        if touched[position] || !node.domain.is_empty() {
            continue;
        }
        if let Some(kept) = unchanged(&shapes, node)
            && bypass(index, node, kept, &mut touched, &mut patch)
        {
            patch.remove(position);
            *changed += 1;
        } else if let Some(tensor) = constant(index, &shapes, node)? {
            patch.remove(position);
            patch.add_tensor(tensor);
            *changed += 1;
        } else if node.is("Reshape")
            && let Some(target) = target(index, &shapes, node)
        {
            let tensor = Tensor::int64s(&names.fresh(node.output(), "/shape"), &[target.len()], &target)?;
            let mut reshape = Node::new("Reshape", &[&node.inputs[0], &tensor.name], &[node.output()]);
            reshape.name.clone_from(&node.name);
            patch.replace(position, vec![reshape]);
            patch.add_tensor(tensor);
            touched[position] = true;
            *changed += 1;
        }
    }
    Ok(patch)
}

/// The input whose elements and shape the node's only output repeats.
fn unchanged<'g>(shapes: &Shapes<'_>, node: &'g Node) -> Option<&'g str> {
    let input = node.input(0)?;
    if node.outputs.iter().filter(|name| !name.is_empty()).count() != 1 {
        return None;
    }
    let same = || shapes.get(input).is_some() && shapes.get(input) == shapes.get(node.output());
    let repeats = match node.op_type.as_str() {
        "Identity" => true,
        // Without its training flag it passes everything on.
        "Dropout" => node.input(2).is_none(),
        "Reshape" | "Expand" | "Flatten" | "Squeeze" | "Unsqueeze" => same(),
        // The same sizes mean the same elements as long as nothing runs backwards.
        "Slice" => same() && forwards(shapes, node),
        "Transpose" => {
            let perm = permutation(node, shapes.rank(input)?)?;
            perm.iter().enumerate().all(|(to, &from)| to == from)
        }
        _ => false,
    };
    repeats.then_some(input)
}

fn forwards(shapes: &Shapes<'_>, node: &Node) -> bool {
    node.input(4).is_none_or(|steps| {
        shapes
            .values(steps)
            .is_some_and(|steps| steps.iter().all(|step| matches!(step, Size::Known(step) if *step > 0)))
    })
}

/// Lets every reader of the node's output read `kept`; false where a graph output or a body reads it.
fn bypass(index: &Index<'_>, node: &Node, kept: &str, touched: &mut [bool], patch: &mut Patch) -> bool {
    let uses = index.uses(node.output());
    let free = !index.is_output(node.output())
        && uses.iter().all(|usage| usage.slot.is_some() && !touched[usage.node])
        && index.producer(kept).is_none_or(|(position, _)| !touched[position]);
    if free {
        for usage in uses {
            patch.rewire(usage.node, usage.slot.unwrap_or(0), kept);
            touched[usage.node] = true;
        }
    }
    free
}

/// The value of a node that computes nothing but known sizes.
fn constant(index: &Index<'_>, shapes: &Shapes<'_>, node: &Node) -> Result<Option<Tensor>, Error> {
    let output = node.output();
    if !["Shape", "Gather", "Slice", "Concat", "Add", "Sub", "Mul", "Cast"].contains(&node.op_type.as_str())
        || index.is_output(output)
    {
        return Ok(None);
    }
    let (Some(values), Some(shape)) = (shapes.values(output), shapes.get(output)) else {
        return Ok(None);
    };
    let known = |sizes: &[Size]| -> Option<Vec<i64>> {
        let known = sizes.iter().map(|size| match size {
            Size::Known(size) => Some(*size),
            Size::Same(_) => None,
        });
        known.collect()
    };
    let (Some(values), Some(dims)) = (known(values), known(shape)) else {
        return Ok(None);
    };
    let dims: Vec<usize> = dims.into_iter().map(|dim| usize::try_from(dim).unwrap_or(0)).collect();
    if dims.iter().product::<usize>() != values.len() {
        return Ok(None);
    }
    Ok(match narrow(index, output) {
        Some(false) => Some(Tensor::int64s(output, &dims, &values)?),
        Some(true) => {
            let values: Option<Vec<i32>> = values.iter().map(|&value| i32::try_from(value).ok()).collect();
            values
                .map(|values| Tensor::int32s(output, &dims, &values))
                .transpose()?
        }
        None => None,
    })
}

/// Whether an integer value is of 32 bits; none where that is not certain.
fn narrow(index: &Index<'_>, value: &str) -> Option<bool> {
    use crate::onnx::ElementType as T;
    if let Some(tensor) = index.constant(value) {
        return match tensor.element {
            T::Int32 => Some(true),
            T::Int64 => Some(false),
            _ => None,
        };
    }
    let (_, node) = index.producer(value)?;
    match node.op_type.as_str() {
        "Shape" => Some(false),
        "Cast" => match node.int("to", 0)? {
            6 => Some(true),
            7 => Some(false),
            _ => None,
        },
        "Gather" | "Slice" | "Concat" | "Add" | "Sub" | "Mul" => narrow(index, node.input(0)?),
        _ => None,
    }
}

/// A constant target for a `Reshape` whose target is computed, with at most one size left open.
fn target(index: &Index<'_>, shapes: &Shapes<'_>, node: &Node) -> Option<Vec<i64>> {
    let target = node.input(1)?;
    if index.constant(target).is_some() || node.int("allowzero", 0) != Some(0) {
        return None;
    }
    let mut open = 0;
    let sizes: Option<Vec<i64>> = shapes
        .values(target)?
        .iter()
        .map(|size| match size {
            Size::Known(size) if *size == -1 || *size == 0 => None,
            Size::Known(size) => Some(*size),
            Size::Same(_) => {
                open += 1;
                Some(-1)
            }
        })
        .collect();
    sizes.filter(|_| open <= 1)
}
