//! Shapes of values, as far as they follow from the graph: sizes that are known, and sizes that are known to be equal.
//!
//! Also follows small integer tensors that hold shapes (`Shape`, `Gather`, `Concat`, ... -> `Reshape`). Trusts operators and
//! what inputs declare as fixed; never names of dimensions nor the types that exporters left at intermediate values, both
//! of which are wrong in real files. Says nothing where it is not sure.

use super::{
    index::Index,
    model::{Dim, Node},
};
use std::collections::HashMap;

/// Most elements of an integer tensor that is followed by value.
const MOST_VALUES: usize = 32;
/// From here on, the end of a slice means the end of the dimension.
const ALL: i64 = 1_000_000_000;

/// Size of one dimension, or an element of a tensor that holds a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Size {
    /// A number.
    Known(i64),
    /// Unknown, and equal to every other size with this number.
    Same(u32),
}

use Size::{Known, Same};

/// Shapes of the values of one graph.
#[derive(Debug, Default)]
pub struct Shapes<'g> {
    of: HashMap<&'g str, Vec<Size>>,
    values: HashMap<&'g str, Vec<Size>>,
    next: u32,
}

impl<'g> Shapes<'g> {
    /// Follows a graph once, in order. In a body of control flow, nothing is known of what comes from outside but constants.
    pub fn new(index: &Index<'g>) -> Self {
        let graph = index.graph;
        let mut shapes = Self::default();
        for name in graph.nodes.iter().flat_map(|node| &node.inputs) {
            let Some(tensor) = index.constant(name).filter(|_| !shapes.of.contains_key(name.as_str())) else {
                continue;
            };
            let dims = tensor
                .dims
                .iter()
                .map(|&dim| Known(i64::try_from(dim).unwrap_or(i64::MAX)));
            shapes.of.insert(name, dims.collect());
            if tensor.len() <= MOST_VALUES
                && let Some(values) = tensor.to_ints()
            {
                shapes.values.insert(name, values.into_iter().map(Known).collect());
            }
        }
        // ONNX Runtime holds callers to what the main graph's inputs declare, and nobody to what a body's do.
        for input in graph.inputs.iter().filter(|_| !index.in_body()) {
            let Some(dims) = input.tensor_type().and_then(|declared| declared.shape) else {
                continue;
            };
            let dims = dims.iter().map(|dim| match dim {
                Dim::Fixed(size) if *size > 0 => Known(*size),
                _ => shapes.unknown(),
            });
            let dims = dims.collect();
            shapes.of.insert(&input.name, dims);
        }
        for node in &graph.nodes {
            if let Some(shape) = shapes.shape_of(node) {
                shapes.of.insert(node.output(), shape);
            }
            if node.is("Split") {
                shapes.split(node);
            }
            if let Some(values) = shapes.values_of(node).filter(|values| values.len() <= MOST_VALUES) {
                shapes.values.insert(node.output(), values);
            }
        }
        shapes
    }

    /// The shape of a value.
    pub fn get(&self, value: &str) -> Option<&[Size]> {
        self.of.get(value).map(Vec::as_slice)
    }

    /// The number of dimensions of a value.
    pub fn rank(&self, value: &str) -> Option<usize> {
        Some(self.get(value)?.len())
    }

    /// The elements of a small integer tensor, flattened.
    pub fn values(&self, value: &str) -> Option<&[Size]> {
        self.values.get(value).map(Vec::as_slice)
    }

    fn unknown(&mut self) -> Size {
        self.next += 1;
        Same(self.next)
    }

    fn input(&self, node: &Node, slot: usize) -> Option<Vec<Size>> {
        self.of.get(node.input(slot)?).cloned()
    }

    /// Integers that are constant, from an input.
    fn ints(&self, node: &Node, slot: usize) -> Option<Vec<i64>> {
        self.values
            .get(node.input(slot)?)?
            .iter()
            .map(|size| known(*size))
            .collect()
    }

    /// Axes from an input or, in old operator sets, an attribute; counted from the front.
    fn axes(&self, node: &Node, slot: usize, rank: usize) -> Option<Vec<usize>> {
        let axes = match node.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.ints(node, slot)?,
        };
        axes.into_iter().map(|axis| from_front(axis, rank)).collect()
    }

    fn shape_of(&mut self, node: &'g Node) -> Option<Vec<Size>> {
        if node.domain == "com.microsoft" {
            return ["FastGelu", "Gelu", "BiasGelu", "QuickGelu"]
                .contains(&node.op_type.as_str())
                .then(|| self.input(node, 0))?;
        }
        if !node.domain.is_empty() {
            return None;
        }
        match node.op_type.as_str() {
            "Abs"
            | "Cast"
            | "Ceil"
            | "Clip"
            | "Cos"
            | "DequantizeLinear"
            | "Dropout"
            | "Elu"
            | "Erf"
            | "Exp"
            | "Floor"
            | "HardSigmoid"
            | "HardSwish"
            | "Identity"
            | "LayerNormalization"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "Neg"
            | "Not"
            | "QuantizeLinear"
            | "Reciprocal"
            | "Relu"
            | "Round"
            | "Sigmoid"
            | "Sign"
            | "SimplifiedLayerNormalization"
            | "Sin"
            | "Softmax"
            | "Softplus"
            | "Sqrt"
            | "Tanh"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "CumSum" => self.input(node, 0),
            "Add" | "And" | "Div" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Max"
            | "Mean" | "Min" | "Mod" | "Mul" | "Or" | "Pow" | "PRelu" | "Sub" | "Sum" | "Where" => {
                let mut shape = self.input(node, 0)?;
                for slot in 1..node.inputs.len() {
                    let other = self.input(node, slot)?;
                    shape = self.broadcast(&shape, &other)?;
                }
                Some(shape)
            }
            _ => self.moved(node).or_else(|| self.computed(node)),
        }
    }

    /// Operators that move elements.
    fn moved(&mut self, node: &'g Node) -> Option<Vec<Size>> {
        match node.op_type.as_str() {
            "Expand" => {
                let target = self.values.get(node.input(1)?)?.clone();
                let shape = self.input(node, 0)?;
                self.broadcast(&shape, &target)
            }
            "Shape" => Some(vec![Known(i64::try_from(self.values_of(node)?.len()).ok()?)]),
            "Reshape" => {
                let data = self.input(node, 0);
                let target = self.values.get(node.input(1)?)?.clone();
                self.reshaped(data.as_deref(), &target, node.int("allowzero", 0)? == 1)
            }
            "Transpose" => {
                let shape = self.input(node, 0)?;
                let perm = permutation(node, shape.len())?;
                Some(perm.into_iter().map(|from| shape[from]).collect())
            }
            "Unsqueeze" => {
                let shape = self.input(node, 0)?;
                let count = node
                    .ints("axes")
                    .map_or_else(|| self.ints(node, 1).map(|axes| axes.len()), |axes| Some(axes.len()))?;
                let axes = self.axes(node, 1, shape.len() + count)?;
                let mut old = shape.into_iter();
                let rank = old.len() + count;
                (0..rank)
                    .map(|axis| {
                        if axes.contains(&axis) {
                            Some(Known(1))
                        } else {
                            old.next()
                        }
                    })
                    .collect()
            }
            "Squeeze" => {
                let shape = self.input(node, 0)?;
                let gone = self.axes(node, 1, shape.len())?;
                let kept = shape.iter().enumerate().filter(|(axis, _)| !gone.contains(axis));
                Some(kept.map(|(_, size)| *size).collect())
            }
            "Concat" => self.concatenated(node),
            "Slice" => {
                let shape = self.input(node, 0)?;
                self.sliced(node, shape)
            }
            "Gather" => {
                let (data, indices) = (self.input(node, 0)?, self.input(node, 1)?);
                let axis = from_front(node.int("axis", 0)?, data.len())?;
                Some([&data[..axis], &indices, &data[axis + 1..]].concat())
            }
            "Flatten" => {
                let shape = self.input(node, 0)?;
                let axis = from_front(node.int("axis", 1)?, shape.len() + 1)?;
                let (outer, inner) = shape.split_at(axis);
                Some(vec![self.product(outer), self.product(inner)])
            }
            _ => None,
        }
    }

    /// Operators that combine elements.
    fn computed(&mut self, node: &'g Node) -> Option<Vec<Size>> {
        match node.op_type.as_str() {
            "MatMul" => {
                let (left, right) = (self.input(node, 0)?, self.input(node, 1)?);
                let (Some(rows), Some(columns)) = (left.len().checked_sub(2), right.len().checked_sub(2)) else {
                    return None;
                };
                let mut shape = self.broadcast(&left[..rows], &right[..columns])?;
                shape.extend([left[rows], right[columns + 1]]);
                Some(shape)
            }
            "Gemm" => {
                let (left, right) = (self.input(node, 0)?, self.input(node, 1)?);
                let (rows, columns) = (node.int("transA", 0)? != 0, node.int("transB", 0)? == 0);
                Some(vec![*left.get(usize::from(rows))?, *right.get(usize::from(columns))?])
            }
            "Conv" => self.convolved(node),
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let mut shape = self.input(node, 0)?;
                shape.iter_mut().skip(2).for_each(|size| *size = Known(1));
                Some(shape)
            }
            "MaxPool" | "AveragePool" => {
                let shape = self.input(node, 0)?;
                let spatial = shape.iter().skip(2).map(|_| self.unknown()).collect::<Vec<_>>();
                Some(shape.iter().take(2).copied().chain(spatial).collect())
            }
            "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceSum" | "ReduceProd" | "ReduceL2" | "ReduceSumSquare" => {
                let shape = self.input(node, 0)?;
                let axes = if node.ints("axes").is_some() || node.input(1).is_some() {
                    self.axes(node, 1, shape.len())?
                } else if node.int("noop_with_empty_axes", 0)? == 1 {
                    return Some(shape);
                } else {
                    (0..shape.len()).collect()
                };
                let keep = node.int("keepdims", 1)? == 1;
                let sizes = shape.into_iter().enumerate().filter_map(|(axis, size)| {
                    if axes.contains(&axis) {
                        keep.then_some(Known(1))
                    } else {
                        Some(size)
                    }
                });
                Some(sizes.collect())
            }
            _ => None,
        }
    }

    fn values_of(&self, node: &Node) -> Option<Vec<Size>> {
        if !node.domain.is_empty() {
            return None;
        }
        let value = |slot: usize| self.values.get(node.input(slot)?);
        match node.op_type.as_str() {
            "Shape" => {
                let shape = self.of.get(node.input(0)?)?;
                let bound = |name: &str, default: i64| -> Option<usize> {
                    let rank = i64::try_from(shape.len()).ok()?;
                    let bound = node.int(name, default)?;
                    usize::try_from(within(bound, rank)).ok()
                };
                let (from, to) = (bound("start", 0)?, bound("end", i64::MAX)?);
                Some(shape[from..to.max(from)].to_vec())
            }
            "Cast" => {
                let integer = [6, 7].contains(&node.int("to", 0)?);
                value(0).filter(|_| integer).cloned()
            }
            "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" => value(0).cloned(),
            "Concat" => {
                let parts: Option<Vec<Vec<Size>>> = (0..node.inputs.len()).map(|slot| value(slot).cloned()).collect();
                let flat =
                    (0..node.inputs.len()).all(|slot| node.input(slot).and_then(|name| self.rank(name)) == Some(1));
                flat.then(|| parts.map(|parts| parts.concat()))?
            }
            "Gather" => {
                let (data, at) = (value(0)?, self.ints(node, 1)?);
                let flat = self.rank(node.input(0)?)? == 1;
                let pick = |at: i64| data.get(from_front(at, data.len())?).copied();
                flat.then(|| at.into_iter().map(pick).collect())?
            }
            "Slice" => {
                let data = value(0).filter(|_| node.input(0).and_then(|name| self.rank(name)) == Some(1))?;
                let [start, end] = [self.ints(node, 1)?, self.ints(node, 2)?].map(|list| list.first().copied());
                let step = node.input(4).map_or(Some(1), |_| self.ints(node, 4)?.first().copied());
                let length = i64::try_from(data.len()).ok()?;
                let clamp = |at: i64| usize::try_from(within(at, length)).ok();
                let (from, to) = (clamp(start?)?, clamp(end?)?);
                (step == Some(1)).then(|| data[from..to.max(from)].to_vec())
            }
            "Add" | "Sub" | "Mul" => {
                let (left, right) = (self.ints(node, 0)?, self.ints(node, 1)?);
                let pair = |at: usize| Some((left.get(at % left.len().max(1))?, right.get(at % right.len().max(1))?));
                let fits = left.len() == right.len() || left.len() == 1 || right.len() == 1;
                let result = (0..left.len().max(right.len())).map(|at| {
                    let (left, right) = pair(at)?;
                    let result = match node.op_type.as_str() {
                        "Add" => left.checked_add(*right),
                        "Sub" => left.checked_sub(*right),
                        _ => left.checked_mul(*right),
                    };
                    result.map(Known)
                });
                fits.then(|| result.collect())?
            }
            _ => None,
        }
    }

    /// Every part of a `Split` with constant sizes.
    fn split(&mut self, node: &'g Node) {
        let (Some(shape), Some(sizes)) = (self.input(node, 0), self.ints(node, 1)) else {
            return;
        };
        let Some(axis) = node.int("axis", 0).and_then(|axis| from_front(axis, shape.len())) else {
            return;
        };
        for (output, size) in node.outputs.iter().zip(sizes).filter(|(_, size)| *size > 0) {
            let mut part = shape.clone();
            part[axis] = Known(size);
            self.of.insert(output, part);
        }
    }

    fn broadcast(&mut self, left: &[Size], right: &[Size]) -> Option<Vec<Size>> {
        let rank = left.len().max(right.len());
        let size =
            |shape: &[Size], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(Known(1), |at| shape[at]);
        (0..rank)
            .map(|axis| match (size(left, axis), size(right, axis)) {
                (left, right) if left == right => Some(left),
                (Known(1), other) | (other, Known(1)) => Some(other),
                (Known(size), Same(_)) | (Same(_), Known(size)) => Some(Known(size)),
                (Same(_), Same(_)) => Some(self.unknown()),
                (Known(_), Known(_)) => None,
            })
            .collect()
    }

    /// The number of elements, where no size or only one with factors of 1 is unknown.
    fn product(&mut self, sizes: &[Size]) -> Size {
        let mut product = 1_i64;
        let mut open = None;
        for &size in sizes {
            match size {
                Known(size) => product = product.saturating_mul(size),
                Same(_) if open.is_none() => open = Some(size),
                Same(_) => return self.unknown(),
            }
        }
        match open {
            None => Known(product),
            Some(size) if product == 1 => size,
            Some(_) => self.unknown(),
        }
    }

    fn reshaped(&mut self, data: Option<&[Size]>, target: &[Size], allow_zero: bool) -> Option<Vec<Size>> {
        let mut shape = Vec::with_capacity(target.len());
        let mut open = None;
        for (slot, &size) in target.iter().enumerate() {
            shape.push(match size {
                Known(-1) if open.replace(slot).is_none() => Known(1),
                Known(0) if !allow_zero => *data?.get(slot)?,
                Known(size) if size < 0 => return None,
                size => size,
            });
        }
        if let Some(slot) = open {
            shape[slot] = match data {
                Some(data) => quotient(data, &shape).unwrap_or_else(|| self.unknown()),
                None => self.unknown(),
            };
        }
        Some(shape)
    }

    fn concatenated(&mut self, node: &Node) -> Option<Vec<Size>> {
        let mut shape = self.input(node, 0)?;
        let axis = from_front(node.int("axis", 0)?, shape.len())?;
        for slot in 1..node.inputs.len() {
            let other = self.input(node, slot)?;
            shape[axis] = match (shape[axis], *other.get(axis)?) {
                (Known(left), Known(right)) => Known(left.checked_add(right)?),
                _ => self.unknown(),
            };
        }
        Some(shape)
    }

    fn sliced(&mut self, node: &Node, mut shape: Vec<Size>) -> Option<Vec<Size>> {
        let (starts, ends) = (self.ints(node, 1), self.ints(node, 2));
        let axes = if node.input(3).is_some() {
            self.axes(node, 3, shape.len())?
        } else {
            let bounds = self.input(node, 1)?;
            (0..usize::try_from(known(*bounds.first()?)?).ok()?).collect()
        };
        let steps = match node.input(4) {
            Some(_) => self.ints(node, 4),
            None => Some(vec![1; axes.len()]),
        };
        let bound = |list: &Option<Vec<i64>>, slot: usize| list.as_ref().and_then(|list| list.get(slot).copied());
        for (slot, &axis) in axes.iter().enumerate() {
            let (start, end, step) = (bound(&starts, slot), bound(&ends, slot), bound(&steps, slot));
            let size = *shape.get(axis)?;
            shape[axis] = match (size, start, end, step) {
                // Exporters write "all" like this, and no open dimension is longer.
                (size, Some(0), Some(ALL..), Some(1)) => size,
                (Known(size), Some(start), Some(end), Some(step @ 1..)) => {
                    Known((within(end, size) - within(start, size)).max(0).checked_add(step - 1)? / step)
                }
                // Bounds that are found at run time leave the other dimensions as they are.
                _ => self.unknown(),
            };
        }
        Some(shape)
    }

    fn convolved(&mut self, node: &Node) -> Option<Vec<Size>> {
        let (data, weights) = (self.input(node, 0)?, self.input(node, 1)?);
        let mut shape = vec![*data.first()?, *weights.first()?];
        let automatic = node.attribute("auto_pad").is_some();
        let list = |name: &str, slot: usize, default: i64| {
            node.ints(name).map_or(Some(default), |list| list.get(slot).copied())
        };
        for axis in 2..data.len() {
            let slot = axis - 2;
            let (stride, dilation) = (list("strides", slot, 1)?, list("dilations", slot, 1)?);
            let pads = list("pads", slot, 0)? + list("pads", slot + data.len() - 2, 0)?;
            let size = match (data[axis], *weights.get(axis)?) {
                (Known(size), Known(kernel)) if !automatic && stride > 0 => {
                    Known((size + pads - dilation * (kernel - 1) - 1) / stride + 1)
                }
                _ => self.unknown(),
            };
            shape.push(size);
        }
        Some(shape)
    }
}

/// The size that is left when every size of `shape` is taken out of `data`.
fn quotient(data: &[Size], shape: &[Size]) -> Option<Size> {
    let mut left: Vec<u32> = Vec::new();
    let (mut over, mut under) = (1_i64, 1_i64);
    for &size in data {
        match size {
            Known(size) => over = over.checked_mul(size)?,
            Same(size) => left.push(size),
        }
    }
    for &size in shape {
        match size {
            Known(size) => under = under.checked_mul(size)?,
            Same(size) => {
                let at = left.iter().position(|other| *other == size)?;
                left.remove(at);
            }
        }
    }
    match left.as_slice() {
        [] if under > 0 && over % under == 0 => Some(Known(over / under)),
        [size] if over == under => Some(Same(*size)),
        _ => None,
    }
}

fn known(size: Size) -> Option<i64> {
    match size {
        Known(size) => Some(size),
        Same(_) => None,
    }
}

/// A bound of a slice that runs forwards, along a dimension of `size`: counted from the back where it is negative, and never beyond the ends.
pub fn within(bound: i64, size: i64) -> i64 {
    (if bound < 0 { bound + size } else { bound }).clamp(0, size.max(0))
}

/// An axis counted from the front; none outside `rank`.
pub fn from_front(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    usize::try_from(axis).ok().filter(|_| axis < rank)
}

/// The permutation of a `Transpose` of a tensor of `rank` dimensions.
pub fn permutation(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let perm: Vec<usize> = match node.ints("perm") {
        Some(perm) => perm.iter().map(|&axis| from_front(axis, rank)).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    (sorted == (0..rank).collect::<Vec<_>>()).then_some(perm)
}
