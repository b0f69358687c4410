//! One-hot rows times a matrix become a `Gather` of the matrix's rows, for every index, also those outside.
//!
//! `one_hot(i) W` is row `i` of `W` for `0 <= i < n`, and zero otherwise. `W'` is `W` with one row of zeros behind it and
//! `i' = clip(i, -1, n)`: both ends name that row (`Gather` counts `-1` from the back), so nothing about the indices
//! needs to be known. Where the user asserts that no index is outside, `W` is read as it is.

use super::{Error, Report};
use crate::onnx::{AttributeValue, ElementType, Index, Model, Names, Node, Patch, Shapes, Tensor, rewrite};

pub(super) const NAME: &str = "gather-one-hot";

/// Rewrites every such product.
///
/// `in_bounds`: no index is ever outside of its matrix, or it may fail the run.
pub fn apply(model: &mut Model, in_bounds: bool) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    rewrite(model, |index| -> Result<Patch, Error> {
        let shapes = Shapes::new(index);
        let mut patch = Patch::new(NAME);
        for (position, node) in index
            .graph
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.is("MatMul"))
        {
            if let Some(product) = find(index, &shapes, node) {
                product.write(node, position, in_bounds, &mut names, &mut patch)?;
                report.changed += 1;
            }
        }
        Ok(patch)
    })?;
    Ok(report)
}

struct Product<'g> {
    /// Integer indices; their last dimension is of size 1.
    indices: &'g str,
    element: ElementType,
    matrix: &'g Tensor,
}

/// `MatMul(Cast(Equal(indices, [0, 1, ... n - 1])), W)`, with or without an `Expand` of the indices.
fn find<'g>(index: &Index<'g>, shapes: &Shapes<'g>, node: &'g Node) -> Option<Product<'g>> {
    let matrix = index.constant(node.input(1)?)?;
    let [rows, _] = matrix.dims[..] else { return None };
    let (_, cast) = index.producer(node.input(0)?)?;
    if !cast.is("Cast") || cast.int("to", 0) != Some(ElementType::Float.number()) {
        return None;
    }
    let (_, equal) = index.producer(cast.input(0)?)?;
    if !equal.is("Equal") {
        return None;
    }
    let (slot, counted) = (0..2).find_map(|slot| Some((slot, index.constant(equal.input(slot)?)?)))?;
    let counts = counted.to_ints()?;
    let in_order = counts.iter().zip(0..).all(|(count, expected)| *count == expected);
    if counts.len() != rows || counted.dims.last() != Some(&rows) || !in_order {
        return None;
    }
    let mut indices = equal.input(1 - slot)?;
    let one_hot = shapes.get(equal.output())?;
    // The indices as they were before they were repeated along the last dimension.
    while let Some((_, expand)) = index.producer(indices).filter(|(_, node)| node.is("Expand")) {
        indices = expand.input(0)?;
    }
    let shape = shapes.get(indices)?;
    let single = shape.last() == Some(&crate::onnx::Size::Known(1));
    let others = shape.len() == one_hot.len() && shape[..shape.len() - 1] == one_hot[..shape.len() - 1];
    if !single || !others || counted.dims.len() > one_hot.len() {
        return None;
    }
    // Zero times infinity would be no zero. Looked at last: most matrices are no such table.
    let mut values = matrix.float_bytes()?.iter().map(|bytes| f32::from_le_bytes(*bytes));
    if !values.all(f32::is_finite) {
        return None;
    }
    Some(Product {
        indices,
        element: counted.element,
        matrix,
    })
}

impl Product<'_> {
    fn write(
        &self,
        node: &Node,
        position: usize,
        in_bounds: bool,
        names: &mut Names,
        patch: &mut Patch,
    ) -> Result<(), Error> {
        let output = node.output();
        let axes = Tensor::int64s(&names.fresh(output, "/last"), &[1], &[-1])?;
        let indices = names.fresh(output, "/indices");
        let mut nodes = vec![Node::new("Squeeze", &[self.indices, &axes.name], &[&indices])];
        patch.add_tensor(axes);
        let (table, rows) = if in_bounds {
            (self.matrix.name.clone(), indices)
        } else {
            let rows = names.fresh(output, "/rows");
            let [least, most, table] = self.bounded(output, names)?;
            let inputs = [indices.as_str(), &least.name, &most.name];
            nodes.push(Node::new("Clip", &inputs, &[&rows]));
            let name = table.name.clone();
            for tensor in [least, most, table] {
                patch.add_tensor(tensor);
            }
            (name, rows)
        };
        let gather = Node::new("Gather", &[&table, &rows], &[output]);
        nodes.push(gather.with("axis", AttributeValue::Int(0)));
        patch.replace(position, nodes);
        Ok(())
    }

    /// Least and largest index, both of which name the row of zeros behind the matrix; and the matrix with that row.
    fn bounded(&self, output: &str, names: &mut Names) -> Result<[Tensor; 3], Error> {
        let mut table = self.matrix.to_floats().unwrap_or_default();
        let (rows, columns) = (self.matrix.dims[0], self.matrix.dims[1]);
        table.resize((rows + 1) * columns, 0.0);
        let table = Tensor::floats(&names.fresh(&self.matrix.name, "/table"), &[rows + 1, columns], &table)?;
        let bound = |name: String, value: i64| -> Result<Tensor, Error> {
            Ok(match self.element {
                ElementType::Int32 => Tensor::int32s(&name, &[], &[i32::try_from(value).unwrap_or(i32::MAX)])?,
                _ => Tensor::int64s(&name, &[], &[value])?,
            })
        };
        let most = i64::try_from(rows).unwrap_or(i64::MAX);
        Ok([
            bound(names.fresh(output, "/least"), -1)?,
            bound(names.fresh(output, "/most"), most)?,
            table,
        ])
    }
}
