//! Nodes whose inputs are all constant are computed once, here, and become initializers.
//!
//! Only operators that move or convert elements are folded, exactly and bounded by the size of their input; arithmetic on
//! constants is left to ONNX Runtime, which folds it at load.

use super::{Error, Report};
use crate::onnx::{ElementType, Index, Model, Node, Patch, Tensor, rewrite};

pub(super) const NAME: &str = "fold-constants";
/// Passes over the graph: each folds nodes whose inputs an earlier one folded.
const MOST_ROUNDS: usize = 16;

/// Folds until nothing is left to fold.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    for _ in 0..MOST_ROUNDS {
        let folded = rewrite(model, |index| -> Result<Patch, Error> {
            let mut patch = Patch::new(NAME);
            for (position, node) in index.graph.nodes.iter().enumerate() {
                if index.is_output(node.output()) {
                    continue;
                }
                if let Some(tensor) = fold(index, node) {
                    patch.add_tensor(tensor?);
                    patch.remove(position);
                    report.changed += 1;
                }
            }
            Ok(patch)
        })?;
        if !folded {
            break;
        }
    }
    Ok(report)
}

/// The value of a foldable node; none for any other.
fn fold(index: &Index<'_>, node: &Node) -> Option<Result<Tensor, Error>> {
    if !node.domain.is_empty() || node.outputs.len() != 1 {
        return None;
    }
    let constant = |slot: usize| node.input(slot).and_then(|name| index.constant(name));
    let data = constant(0)?;
    let (element, dims, bytes) = match node.op_type.as_str() {
        "Identity" => {
            return Some(Ok(Tensor {
                name: node.output().to_owned(),
                ..data.clone()
            }));
        }
        "Unsqueeze" => (
            data.element,
            unsqueezed(data, &constant(1)?.to_ints()?)?,
            data.bytes().to_vec(),
        ),
        "Squeeze" => (
            data.element,
            squeezed(data, &constant(1)?.to_ints()?)?,
            data.bytes().to_vec(),
        ),
        "Reshape" => {
            let allow_zero = node.int("allowzero", 0)? == 1;
            (
                data.element,
                reshaped(data, &constant(1)?.to_ints()?, allow_zero)?,
                data.bytes().to_vec(),
            )
        }
        "Transpose" => {
            let (dims, bytes) = transposed(data, node.ints("perm"))?;
            (data.element, dims, bytes)
        }
        "Cast" => {
            let element = ElementType::from_number(node.int("to", 0)?)?;
            (element, data.dims.clone(), cast(data, element)?)
        }
        _ => return None,
    };
    Some(Tensor::new(node.output(), element, &dims, bytes).map_err(Error::from))
}

pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    usize::try_from(axis).ok().filter(|_| axis < rank)
}

fn unsqueezed(data: &Tensor, axes: &[i64]) -> Option<Vec<usize>> {
    let rank = data.dims.len().checked_add(axes.len()).filter(|&rank| rank <= 16)?;
    let mut dims: Vec<Option<usize>> = vec![None; rank];
    for &new in axes {
        let slot = &mut dims[axis(new, rank)?];
        if slot.replace(1).is_some() {
            return None;
        }
    }
    let mut old = data.dims.iter().copied();
    dims.into_iter().map(|dim| dim.or_else(|| old.next())).collect()
}

fn squeezed(data: &Tensor, axes: &[i64]) -> Option<Vec<usize>> {
    let gone: Vec<usize> = axes
        .iter()
        .map(|&gone| axis(gone, data.dims.len()))
        .collect::<Option<_>>()?;
    if gone.iter().any(|&gone| data.dims[gone] != 1) {
        return None;
    }
    Some(
        data.dims
            .iter()
            .enumerate()
            .filter(|(i, _)| !gone.contains(i))
            .map(|(_, &dim)| dim)
            .collect(),
    )
}

fn reshaped(data: &Tensor, shape: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let mut open = None;
    let mut dims = Vec::with_capacity(shape.len());
    for (slot, &dim) in shape.iter().enumerate() {
        dims.push(match dim {
            -1 if open.replace(slot).is_none() => 1,
            0 if !allow_zero => *data.dims.get(slot)?,
            dim => usize::try_from(dim).ok()?,
        });
    }
    let known = dims
        .iter()
        .try_fold(1_usize, |product, &dim| product.checked_mul(dim))?;
    if let Some(slot) = open {
        if known == 0 || !data.len().is_multiple_of(known) {
            return None;
        }
        dims[slot] = data.len() / known;
    }
    (dims
        .iter()
        .try_fold(1_usize, |product, &dim| product.checked_mul(dim))?
        == data.len())
    .then_some(dims)
}

fn transposed(data: &Tensor, perm: Option<&[i64]>) -> Option<(Vec<usize>, Vec<u8>)> {
    let rank = data.dims.len();
    let perm: Vec<usize> = match perm {
        Some(perm) => perm.iter().map(|&from| axis(from, rank)).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return None;
    }
    let width = usize::try_from(data.element.bits().filter(|bits| bits % 8 == 0)? / 8).ok()?;
    let mut strides = vec![1_usize; rank];
    for dim in (1..rank).rev() {
        strides[dim - 1] = strides[dim] * data.dims[dim];
    }
    let dims: Vec<usize> = perm.iter().map(|&from| data.dims[from]).collect();
    let steps: Vec<usize> = perm.iter().map(|&from| strides[from]).collect();
    let mut bytes = Vec::with_capacity(data.bytes().len());
    let mut at = vec![0_usize; rank];
    for _ in 0..data.len() {
        let from: usize = at.iter().zip(&steps).map(|(at, step)| at * step).sum();
        bytes.extend_from_slice(&data.bytes()[from * width..(from + 1) * width]);
        for dim in (0..rank).rev() {
            at[dim] += 1;
            if at[dim] < dims[dim] {
                break;
            }
            at[dim] = 0;
        }
    }
    Some((dims, bytes))
}

/// Casts that are exact or defined by ONNX without doubt: between integers that fit, and integers to floats.
fn cast(data: &Tensor, to: ElementType) -> Option<Vec<u8>> {
    use ElementType as T;
    if data.element == to {
        return Some(data.bytes().to_vec());
    }
    let ints = data.to_ints()?;
    match to {
        T::Int64 => Some(ints.iter().flat_map(|value| value.to_le_bytes()).collect()),
        T::Int32 => {
            let values: Option<Vec<i32>> = ints.iter().map(|&value| i32::try_from(value).ok()).collect();
            Some(values?.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        #[allow(clippy::cast_precision_loss, reason = "the guard admits only what is exact")]
        T::Float if ints.iter().all(|value| value.unsigned_abs() <= 1 << 24) => {
            Some(ints.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect())
        }
        _ => None,
    }
}
