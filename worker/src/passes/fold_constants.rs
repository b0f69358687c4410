//! Nodes whose inputs are all constant are computed once, here, and become initializers.
//!
//! Only operators that move or convert elements are folded, exactly and bounded by the size of their input, or all together by that of all
//! weights where they cut and join; arithmetic on constants is left to ONNX Runtime, which folds it at load.

use super::{Error, Report, parts};
use crate::onnx::{ElementType, Index, Model, Node, Patch, Tensor, rewrite};

use std::collections::HashMap;

pub(super) const NAME: &str = "fold-constants";
/// Passes over the graph: each folds nodes whose inputs an earlier one folded.
const MOST_ROUNDS: usize = 16;
/// What cutting and joining may make, in bytes of all weights: each cut once and joined once, and as much again.
const MOST_COPIES: usize = 4;
/// The same in bytes (128 MiB): a hostile graph has as much made in each round of simplification.
const MOST_BYTES: usize = 128 << 20;
/// Bytes of a constant that is not written twice where that can be helped.
const LARGE: usize = 1 << 16;
/// Bytes of a constant that may be a setting, such as axes or bounds.
const MOST_SETTING: usize = 64;

/// Folds until nothing is left to fold. `keep_tied`: but for large constants that are turned here and read as they are elsewhere.
pub fn apply(model: &mut Model, keep_tied: bool) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let weights = model.graph.initializers.iter().map(|tensor| tensor.bytes().len());
    let mut room = weights.sum::<usize>().saturating_mul(MOST_COPIES).min(MOST_BYTES);
    for _ in 0..MOST_ROUNDS {
        let mut made = Made::default();
        let folded = rewrite(model, |index| -> Result<Patch, Error> {
            let mut patch = Patch::new(NAME);
            for (position, node) in index.graph.nodes.iter().enumerate() {
                if index.is_output(node.output()) || (keep_tied && tied(index, node)) {
                    continue;
                }
                let uses = index.uses(node.output());
                let twin = made
                    .twin(index, node)
                    .filter(|_| uses.iter().all(|usage| usage.slot.is_some()));
                if let Some(twin) = twin {
                    for usage in uses {
                        patch.rewire(usage.node, usage.slot.unwrap_or(0), &twin);
                    }
                } else if let Some(tensor) = fold(index, node, &mut room) {
                    patch.add_tensor(tensor?);
                    made.add(index, node);
                } else {
                    continue;
                }
                patch.remove(position);
                report.changed += 1;
            }
            Ok(patch)
        })?;
        if !folded {
            break;
        }
    }
    Ok(report)
}

/// Whether `node` turns a large constant that others read as it is.
fn tied(index: &Index<'_>, node: &Node) -> bool {
    let input = node.input(0).filter(|_| node.is("Transpose")).unwrap_or("");
    let large = index
        .constant(input)
        .is_some_and(|tensor| tensor.bytes().len() >= LARGE);
    large
        && index
            .uses(input)
            .iter()
            .any(|usage| !index.graph.nodes[usage.node].is("Transpose"))
}

/// Constants of one round by what they are made of: layers that share weights, each behind an `Identity` or a `Transpose` of its own, go on
/// sharing them.
#[derive(Default)]
struct Made(HashMap<String, String>);

impl Made {
    /// The constant that `node` would make again.
    fn twin(&self, index: &Index<'_>, node: &Node) -> Option<String> {
        if node.is("Identity") {
            let input = node.input(0)?;
            return index.constant(input).map(|_| input.to_owned());
        }
        self.0.get(&Self::key(index, node)).cloned()
    }

    fn add(&mut self, index: &Index<'_>, node: &Node) {
        self.0.insert(Self::key(index, node), node.output().to_owned());
    }

    /// Settings go by their value, since each node has tensors of its own for them.
    fn key(index: &Index<'_>, node: &Node) -> String {
        let inputs = node.inputs.iter().map(|name| {
            let small = index
                .constant(name)
                .filter(|tensor| tensor.bytes().len() <= MOST_SETTING);
            match small {
                Some(tensor) => format!("{:?}", (tensor.element, &tensor.dims, tensor.bytes())),
                None => name.clone(),
            }
        });
        let inputs: Vec<String> = inputs.collect();
        format!("{:?}", (&node.domain, &node.op_type, inputs, &node.attributes))
    }
}

/// The value of a foldable node; none for any other. `room`: bytes that may still be cut and joined.
fn fold(index: &Index<'_>, node: &Node, room: &mut usize) -> Option<Result<Tensor, Error>> {
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
        "Slice" => {
            let (dims, bytes) = parts::sliced(index, node, data, room)?;
            (data.element, dims, bytes)
        }
        "Concat" => {
            let (dims, bytes) = parts::joined(index, node, room)?;
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
