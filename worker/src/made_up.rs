//! Inputs for a first run of a model for which nobody gave data: well-formed, always the same, and of no meaning.
//!
//! Enough to see that a candidate loads, runs and gives finite numbers of the baseline's shape; nothing is measured on them.

use crate::onnx::{Dim, ElementType, Model, RowShapes, Tensor, shown};
use std::collections::BTreeMap;

/// Size of a free dimension other than the first.
const FREE: usize = 16;
/// Most elements of one input.
const MOST_ELEMENTS: usize = 1 << 26;

/// One tensor for every input of the model: a batch of one row, or all, of the shape in `rows`; else free dimensions of 16 (equal where they have one name), small
/// floats of both signs, and ones for integers, which are a valid token, mask and type alike. Says which input has no
/// declared tensor type.
pub(crate) fn inputs(model: &Model, rows: &RowShapes) -> Result<Vec<Tensor>, String> {
    let graph = &model.graph;
    let given = |name: &str| graph.initializers.iter().any(|tensor| tensor.name == name);
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    let mut inputs = Vec::new();
    for info in graph.inputs.iter().filter(|info| !given(&info.name)) {
        let name = shown(&info.name);
        let declared = info.tensor_type().ok_or_else(|| format!("input {name} is no tensor"))?;
        let shape = declared
            .shape
            .ok_or_else(|| format!("input {name} has no declared shape"))?;
        let dims: Vec<usize> = shape
            .iter()
            .enumerate()
            .map(|(axis, dim)| {
                let row_size = rows.get(&info.name).and_then(|row| {
                    // Without the batch, where there is one.
                    let axis = (axis + row.len()).checked_sub(shape.len())?;
                    row.get(axis)
                });
                let free = row_size.copied().unwrap_or(if axis == 0 { 1 } else { FREE });
                match dim {
                    Dim::Fixed(size) => usize::try_from(*size).ok().filter(|size| *size > 0).unwrap_or(free),
                    Dim::Named(name) if row_size.is_none() => *named.entry(name.clone()).or_insert(free),
                    Dim::Named(_) | Dim::Unknown => free,
                }
            })
            .collect();
        let count = dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let count = count
            .filter(|count| *count <= MOST_ELEMENTS)
            .ok_or_else(|| format!("input {name} of shape {dims:?} has more than {MOST_ELEMENTS} elements"))?;
        let bytes = elements(declared.element, count)
            .ok_or_else(|| format!("input {name} is of type {:?}", declared.element))?;
        inputs.push(Tensor::new(&info.name, declared.element, &dims, bytes).map_err(|error| error.to_string())?);
    }
    Ok(inputs)
}

fn elements(element: ElementType, count: usize) -> Option<Vec<u8>> {
    use ElementType as T;
    let wave = (0..count).map(|at| f32::from(u8::try_from(at * 37 % 255).unwrap_or(0)) / 127.0 - 1.0);
    Some(match element {
        T::Float => wave.flat_map(f32::to_le_bytes).collect(),
        T::Double => wave.flat_map(|value| f64::from(value).to_le_bytes()).collect(),
        T::Uint8 | T::Int8 | T::Bool => vec![1; count],
        T::Uint16 | T::Int16 => 1_u16.to_le_bytes().repeat(count),
        T::Uint32 | T::Int32 => 1_u32.to_le_bytes().repeat(count),
        T::Uint64 | T::Int64 => 1_u64.to_le_bytes().repeat(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Build;

    #[test]
    fn inputs_fit_what_is_declared_and_equal_names_get_equal_sizes() {
        let mut b = Build::opset(17);
        let ids = b.typed_input("ids", ElementType::Int64, &[-1, -1]);
        let x = b.input("x", &[2, 3]);
        let y = b.node("Identity", &[&ids]);
        let z = b.node("Identity", &[&x]);
        let model = b.finish(&[&y, &z]);
        let made = inputs(&model, &RowShapes::new()).unwrap();
        assert_eq!(made[0].dims, [1, 1], "one name is one size, and the first is the batch");
        assert_eq!(made[0].to_ints().unwrap(), [1]);
        assert_eq!(made[1].dims, [2, 3]);
        assert!(made[1].to_floats().unwrap().iter().any(|value| *value < 0.0));
        let rows = RowShapes::from([("ids".to_owned(), vec![5])]);
        assert_eq!(inputs(&model, &rows).unwrap()[0].dims, [1, 5]);
        let whole = RowShapes::from([("ids".to_owned(), vec![3, 5])]);
        assert_eq!(inputs(&model, &whole).unwrap()[0].dims, [3, 5]);
    }
}
