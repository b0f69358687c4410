//! Embeddings in 8 bits: rows are read from an integer table, and only what was read is scaled back.
//!
//! One scale a column, which costs a sentence encoder 0.00002 of its cosine where one scale for the table costs 0.0011. Rows are picked
//! by `Gather` or, as positions often are, cut out by `Slice`. Every other node that reads the table keeps the floats, so that a table
//! with two kinds of readers is left.

use super::{Error, Granularity, Grid, Report, Weights, layout, layout::Layout, weights};
use crate::onnx::{ElementType, Index, Model, Names, Node, Patch, Tensor, rewrite, shown};
use std::collections::HashSet;

const NAME: &str = "quantize-tables";
/// A smaller table saves less than its scales and nodes cost.
const SMALLEST: usize = 16_384;

/// Quantizes every table of which only whole rows are read. `four_bits`: the block in which they are kept in 4 bits, if they are.
pub fn apply(model: &mut Model, four_bits: Option<usize>) -> Result<Report, Error> {
    // One scale a column; rows are scaled back and never multiplied in 8 bits, so that they may use all of them.
    let grid = Grid {
        granularity: Granularity::PerChannel,
        weights: Weights::Int8,
        four_bits,
    };
    let mut report = Report::new(NAME);
    let mut layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
    let shared = read_otherwise(model);
    rewrite(model, |index| {
        for (position, node) in index.graph.nodes.iter().enumerate() {
            let Some(table) = rows_of(index, node) else {
                continue;
            };
            if let Some(why) = node.pinned {
                report.leave(node, why);
                continue;
            }
            if table.len() < SMALLEST {
                report.leave(node, "its table is too small to pay for scaling back");
                continue;
            }
            if shared.contains(&table.name) {
                report.leave(node, "its table is read by other operators, too");
                continue;
            }
            let quantized = weights::quantize(table, 1, grid, |_| 0.0).ok_or_else(|| Error::NotFinite {
                name: shown(&table.name),
            })?;
            let mut packed = layout.weights(table, 1, quantized)?;
            let rows = layout.names.fresh(node.output(), "/rows");
            let mut read = node.clone();
            read.inputs[0] = std::mem::replace(&mut packed.values, rows.clone());
            read.outputs[0] = rows;
            // The last dimension of what was read is the table's, whatever the rank of the indices.
            let scaled = layout::dequantize_last(&packed, node.output());
            layout.patch.replace(position, vec![read, scaled]);
            report.changed += 1;
        }
        Ok::<_, Error>(layout.take_patch(NAME))
    })?;
    Ok(report)
}

/// Constants of which, in some graph of the model, something else is read than whole rows.
fn read_otherwise(model: &Model) -> HashSet<String> {
    let mut names = HashSet::new();
    for index in Index::all(&model.graph) {
        for node in &index.graph.nodes {
            let rows = usize::from(rows_of(&index, node).is_some());
            names.extend(node.inputs.iter().skip(rows).cloned());
        }
        names.extend(index.graph.outputs.iter().map(|output| output.name.clone()));
    }
    names
}

/// The constant matrix of which `node` reads whole rows.
fn rows_of<'g>(index: &Index<'g>, node: &Node) -> Option<&'g Tensor> {
    table(index, node).or_else(|| cut(index, node))
}

/// The constant matrix of which `node`, a `Gather`, picks whole rows.
pub(super) fn table<'g>(index: &Index<'g>, node: &Node) -> Option<&'g Tensor> {
    let rows = node.is("Gather") && matches!(node.int("axis", 0), Some(0 | -2));
    matrix(index, node).filter(|_| rows)
}

/// The constant matrix out of which `node`, a `Slice`, cuts whole rows.
fn cut<'g>(index: &Index<'g>, node: &Node) -> Option<&'g Tensor> {
    let axes = node.input(3).filter(|_| node.is("Slice"));
    let axes = axes.and_then(|name| index.constant(name))?.to_ints()?;
    matrix(index, node).filter(|_| matches!(axes.as_slice(), [0 | -2]))
}

fn matrix<'g>(index: &Index<'g>, node: &Node) -> Option<&'g Tensor> {
    let matrix = node.input(0).and_then(|name| index.constant(name))?;
    (matrix.dims.len() == 2 && matrix.element == ElementType::Float && !matrix.is_empty()).then_some(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::Limits,
        testing::{Build, relative_difference, run_optimized},
    };

    fn embedding(shared: bool) -> Model {
        let mut b = Build::opset(17);
        let ids = b.typed_input("ids", ElementType::Int64, &[2, 5]);
        let table = b.weights(&[300, 64]);
        let mut y = b.node("Gather", &[&table, &ids]);
        if shared {
            let turned = b.node("Transpose", &[&table]);
            y = b.node("MatMul", &[&y, &turned]);
        }
        b.finish(&[&y])
    }

    fn ids() -> Vec<Tensor> {
        vec![Tensor::int64s("ids", &[2, 5], &[0, 7, 299, 3, 3, 12, 130, 1, 25, 44]).unwrap()]
    }

    #[test]
    fn a_table_becomes_a_quarter_and_rows_come_back() {
        let float = embedding(false);
        let mut model = float.clone();
        let report = apply(&mut model, None).unwrap();
        crate::onnx::check(&model, &Limits::default()).unwrap();
        assert_eq!((report.changed, report.left_count), (1, 0));
        let (before, _) = run_optimized(&float, &ids());
        let (after, operators) = run_optimized(&model, &ids());
        assert!(relative_difference(&before, &after) < 0.005);
        assert_eq!(operators, ["Gather", "DequantizeLinear"]);
        assert!(crate::onnx::to_bytes(&model).len() * 3 < crate::onnx::to_bytes(&float).len());
    }

    #[test]
    fn rows_that_are_cut_out_come_back_too() {
        let graph = |axis: i64| {
            let mut b = Build::opset(17);
            let end = b.typed_input("end", ElementType::Int64, &[1]);
            let table = b.weights(&[300, 64]);
            let (start, axis) = (b.ints(&[7]), b.ints(&[axis]));
            let rows = b.node("Slice", &[&table, &start, &end, &axis]);
            b.finish(&[&rows])
        };
        let end = [Tensor::int64s("end", &[1], &[60]).unwrap()];
        for (axis, changed) in [(0, 1), (-2, 1), (1, 0)] {
            let float = graph(axis);
            let mut model = float.clone();
            assert_eq!(apply(&mut model, None).unwrap().changed, changed, "along {axis}");
            crate::onnx::check(&model, &Limits::default()).unwrap();
            let (before, after) = (run_optimized(&float, &end).0, run_optimized(&model, &end).0);
            assert!(relative_difference(&before, &after) < 0.005);
        }
    }

    #[test]
    fn a_table_that_others_read_stays() {
        let mut model = embedding(true);
        let report = apply(&mut model, None).unwrap();
        assert_eq!((report.changed, report.left_count), (0, 1));
        assert!(crate::onnx::to_bytes(&model).len() > 300 * 64 * 4);
    }
}
