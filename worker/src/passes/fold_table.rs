//! What is done to every row of a constant table after it was gathered is done to the table instead, once.
//!
//! `f(gather(T, i)) = gather(f(T), i)` for a constant vector added to each row and for functions of single elements.
//! Computed in 64 bits, stored in 32. An embedding of bytes or types then costs one lookup.
#![allow(
    clippy::cast_possible_truncation,
    reason = "tables are 32-bit floats; each result is rounded to that once"
)]

use super::{Error, Report};
use crate::onnx::{Index, Model, Names, Node, Patch, Shapes, Tensor, rewrite};

pub(super) const NAME: &str = "fold-into-table";
/// Most elements of a table: beyond that, few of its rows are ever read, and the work is better left to run time.
const MOST_ELEMENTS: usize = 1 << 20;
/// Functions in a row.
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
    for (position, node) in index
        .graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.is("Gather"))
    {
        let Some((next, dims, values)) = fold(index, &shapes, node) else {
            continue;
        };
        let table = Tensor::floats(&names.fresh(node.output(), "/table"), &dims, &values)?;
        let mut gather = node.clone();
        gather.inputs[0].clone_from(&table.name);
        index.graph.nodes[next].output().clone_into(&mut gather.outputs[0]);
        patch.replace(position, vec![gather]);
        patch.remove(next);
        patch.add_tensor(table);
        *changed += 1;
    }
    Ok(patch)
}

/// The node that alone reads the gathered rows, and the table as that node leaves it.
fn fold(index: &Index<'_>, shapes: &Shapes<'_>, node: &Node) -> Option<(usize, Vec<usize>, Vec<f32>)> {
    let table = index.constant(node.input(0)?)?;
    let [_, columns] = table.dims[..] else { return None };
    let plain = node.int("axis", 0)? == 0 && table.len() <= MOST_ELEMENTS && index.constant(node.input(1)?).is_none();
    if !plain {
        return None;
    }
    let (next, reader) = index.only_use(node.output())?;
    if reader.outputs.len() != 1 {
        return None;
    }
    let single: Option<fn(f64) -> f64> = match (reader.domain.as_str(), reader.op_type.as_str()) {
        ("", "Relu") => Some(|x| x.max(0.0)),
        ("", "Tanh") => Some(f64::tanh),
        ("", "Sigmoid") => Some(|x| 1.0 / (1.0 + (-x).exp())),
        ("com.microsoft", "FastGelu") if reader.inputs.len() == 1 => {
            Some(|x| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()))
        }
        _ => None,
    };
    if let Some(function) = single {
        let mut values = table.to_floats()?;
        for value in &mut values {
            *value = function(f64::from(*value)) as f32;
        }
        return Some((next, table.dims.clone(), values));
    }
    if !reader.is("Add") {
        return None;
    }
    let other = reader.inputs.iter().find(|name| *name != node.output())?;
    let vector = index.constant(other)?;
    let row = vector.dims.last() == Some(&columns) && vector.len() == columns;
    let vector = vector
        .to_floats()
        .filter(|_| row && vector.dims.len() <= shapes.rank(node.output()).unwrap_or(1))?;
    let mut values = table.to_floats()?;
    for row in values.chunks_exact_mut(columns) {
        row.iter_mut().zip(&vector).for_each(|(value, more)| *value += more);
    }
    Some((next, table.dims.clone(), values))
}
