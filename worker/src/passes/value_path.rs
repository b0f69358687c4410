//! Follows the channels of a value back to the product that makes them, through what attention does to its values: it mixes rows, and
//! moves channels about, so that a factor for each channel behind it may as well be in the weights in front (`softmax(q k) v`, and the
//! rows of `v = x w + b`). Reads the graph and changes nothing.

use crate::onnx::{ElementType, Index, Node, Shapes, Size, Tensor, from_front, permutation};

/// Most factors at once; more than any layer has channels.
const MOST_FACTORS: usize = 1 << 20;

/// Where channels come from.
#[derive(Debug, PartialEq)]
pub(super) struct Origin<'g> {
    /// Position of the product with constant weights that makes them.
    pub(super) product: usize,
    /// A factor for each of its columns; 1 for those that others read.
    pub(super) columns: Vec<f64>,
    /// Constants that are added on the way.
    pub(super) added: Vec<Added<'g>>,
}

/// A constant vector that a sum adds to each row.
#[derive(Debug, PartialEq)]
pub(super) struct Added<'g> {
    /// Position of the sum.
    pub(super) sum: usize,
    /// The input of the sum that is constant.
    pub(super) slot: usize,
    /// What it is: as many elements as the rows have.
    pub(super) vector: &'g Tensor,
    /// What belongs to its elements.
    pub(super) factors: Vec<f64>,
}

/// Where the channels (the last dimension) of `value` come from, if multiplying them there changes nothing but `value`, which `readers`
/// nodes read. `columns`: of the product at a position, if its weights may be changed.
pub(super) fn origin<'g>(
    index: &Index<'g>,
    shapes: &Shapes<'_>,
    value: &str,
    readers: usize,
    factors: &[f64],
    columns: impl Fn(usize) -> Option<usize>,
) -> Option<Origin<'g>> {
    let last = shapes.rank(value)?.checked_sub(1)?;
    let mut factors = Factors {
        axes: vec![last],
        dims: vec![factors.len()],
        values: factors.to_vec(),
    };
    let (mut value, mut readers) = (value, readers);
    let mut added = Vec::new();
    loop {
        let after = shapes.get(value)?;
        if index.is_output(value) || read(index, value).count() != readers || !factors.fit(after) {
            return None;
        }
        readers = 1;
        let (position, node) = index.producer(value)?;
        if let Some(count) = columns(position) {
            let columns = factors.vector(after.len()).filter(|all| all.len() == count)?;
            return Some(Origin {
                product: position,
                columns,
                added,
            });
        }
        let input = |slot: usize| node.input(slot);
        let shape = |slot: usize| shapes.get(node.input(slot)?);
        (factors, value) = match node.op_type.as_str() {
            _ if !node.domain.is_empty() => return None,
            "Identity" => (factors, input(0)?),
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => (factors.reshaped(shape(0)?, after)?, input(0)?),
            "Transpose" => (factors.moved(&permutation(node, after.len())?)?, input(0)?),
            "MatMul" => (factors.mixed(after.len(), shape(1)?)?, input(1)?),
            "Split" => (factors.part(node, value, after.len(), shapes)?, input(0)?),
            "Gather" => {
                let (axis, at) = picked(index, shapes, node)?;
                let data = shape(0)?;
                let others = read(index, input(0)?).filter(|(_, other)| !std::ptr::eq(*other, node));
                let apart = |(_, other): (usize, &Node)| {
                    let theirs = other.is("Gather").then(|| picked(index, shapes, other)).flatten();
                    theirs.is_some_and(|theirs| theirs.0 == axis && theirs.1 != at)
                };
                readers = 1 + others.clone().count();
                if !others.into_iter().all(apart) {
                    return None;
                }
                (factors.picked(axis, at, number(*data.get(axis)?)?)?, input(0)?)
            }
            "Add" => {
                let slot = (0..2).find(|slot| input(*slot).is_some_and(|name| index.constant(name).is_some()))?;
                let vector = index.constant(input(slot)?)?;
                let all = factors.vector(after.len())?;
                let row = vector.element == ElementType::Float
                    && vector.dims.last() == Some(&all.len())
                    && vector.len() == all.len();
                if !row || shapes.rank(input(1 - slot)?)? < vector.dims.len() {
                    return None;
                }
                added.push(Added {
                    sum: position,
                    slot,
                    vector,
                    factors: all,
                });
                (factors, input(1 - slot)?)
            }
            _ => return None,
        };
    }
}

/// Every reading of `value` but of its shape.
fn read<'i, 'g>(index: &'i Index<'g>, value: &str) -> impl Iterator<Item = (usize, &'g Node)> + Clone + use<'i, 'g> {
    let nodes = index.uses(value).iter();
    let nodes = nodes.map(|usage| (usage, &index.graph.nodes[usage.node]));
    let nodes = nodes.filter(|(usage, node)| usage.slot.is_none() || !node.is("Shape"));
    nodes.map(|(usage, node)| (usage.node, node))
}

/// Axis and index of a `Gather` of one constant index, which takes the axis away.
fn picked(index: &Index<'_>, shapes: &Shapes<'_>, node: &Node) -> Option<(usize, usize)> {
    let data = shapes.get(node.input(0)?)?;
    let axis = from_front(node.int("axis", 0)?, data.len())?;
    let which = index.constant(node.input(1)?).filter(|which| which.dims.is_empty())?;
    let at = *which.to_ints()?.first()?;
    Some((axis, from_front(at, number(data[axis])?)?))
}

fn number(size: Size) -> Option<usize> {
    match size {
        Size::Known(size) => usize::try_from(size).ok(),
        Size::Same(_) => None,
    }
}

/// Elements of a tensor, if they are no more than layers have.
fn count(dims: &[usize]) -> Option<usize> {
    let count = dims.iter().try_fold(1_usize, |count, dim| count.checked_mul(*dim));
    count.filter(|count| *count <= MOST_FACTORS)
}

/// Factors of a value: one for each index along some of its axes, whatever the index along others.
#[derive(Debug, PartialEq)]
struct Factors {
    /// Ascending.
    axes: Vec<usize>,
    /// Sizes of these axes.
    dims: Vec<usize>,
    /// Row by row.
    values: Vec<f64>,
}

impl Factors {
    /// Factors along `axes`, of which `at` gives the one at an index.
    fn of(axes: Vec<usize>, dims: Vec<usize>, at: impl Fn(&[usize]) -> f64) -> Option<Self> {
        let mut index = vec![0; dims.len()];
        let values = (0..count(&dims)?).map(|flat| {
            let mut left = flat;
            for (index, dim) in index.iter_mut().zip(&dims).rev() {
                (*index, left) = (left % dim, left / dim);
            }
            at(&index)
        });
        let values = values.collect();
        Some(Self { axes, dims, values })
    }

    /// The factor at the index that `along` gives for each axis.
    fn at(&self, along: impl Fn(usize) -> usize) -> f64 {
        let axes = self.axes.iter().zip(&self.dims);
        self.values[axes.fold(0, |flat, (axis, dim)| flat * dim + along(*axis))]
    }

    /// Whether a value of this shape has an element for each.
    fn fit(&self, shape: &[Size]) -> bool {
        let mut axes = self.axes.iter().zip(&self.dims);
        axes.all(|(axis, dim)| shape.get(*axis).and_then(|size| number(*size)) == Some(*dim))
    }

    /// One for each channel of a value of `rank`, if channels alone have them.
    fn vector(&self, rank: usize) -> Option<Vec<f64>> {
        (self.axes.len() == 1 && self.axes[0] + 1 == rank).then(|| self.values.clone())
    }

    /// In front of a transposition: axis `i` behind it was `permutation[i]`.
    fn moved(&self, permutation: &[usize]) -> Option<Self> {
        let mut axes: Vec<(usize, usize)> = self
            .axes
            .iter()
            .map(|axis| permutation[*axis])
            .zip(self.dims.clone())
            .collect();
        axes.sort_unstable();
        let (axes, dims): (Vec<usize>, Vec<usize>) = axes.into_iter().unzip();
        let place = |axis: usize| axes.iter().position(|other| *other == permutation[axis]);
        Self::of(axes.clone(), dims, |index| {
            self.at(|axis| place(axis).map_or(0, |place| index[place]))
        })
    }

    /// In front of a product whose right side has the shape `right`: rows are mixed, all else stays.
    fn mixed(&self, rank: usize, right: &[Size]) -> Option<Self> {
        let missing = rank.checked_sub(right.len()).filter(|_| right.len() > 1)?;
        let axes: Option<Vec<usize>> = self.axes.iter().map(|axis| axis.checked_sub(missing)).collect();
        let axes = axes?;
        // What is repeated on the way has one value where there would be several factors.
        let whole = |(axis, dim): (&usize, &usize)| number(right[*axis]) == Some(*dim) && *axis + 2 != right.len();
        axes.iter().zip(&self.dims).all(whole).then(|| Self {
            axes: axes.clone(),
            dims: self.dims.clone(),
            values: self.values.clone(),
        })
    }

    /// In front of a `Split` with constant sizes that gives `value`.
    fn part(&self, node: &Node, value: &str, rank: usize, shapes: &Shapes<'_>) -> Option<Self> {
        let axis = from_front(node.int("axis", 0)?, rank)?;
        let sizes: Option<Vec<usize>> = shapes
            .values(node.input(1)?)?
            .iter()
            .map(|size| number(*size))
            .collect();
        let sizes = sizes?;
        let which = node.outputs.iter().position(|output| output == value)?;
        let sum = |sizes: &[usize]| sizes.iter().try_fold(0_usize, |sum, size| sum.checked_add(*size));
        self.within(axis, sum(sizes.get(..which)?)?, *sizes.get(which)?, sum(&sizes)?)
    }

    /// Before the index `at` of an axis of `size` was picked.
    fn picked(&self, axis: usize, at: usize, size: usize) -> Option<Self> {
        let back = |other: usize| other + usize::from(other >= axis);
        let with = Self {
            axes: self.axes.iter().map(|other| back(*other)).collect(),
            dims: self.dims.clone(),
            values: self.values.clone(),
        };
        with.within(axis, at, 1, size)
    }

    /// Factors of a value of which these are the part of `size` from `start` on along an axis of `all`; the rest has the factor 1.
    fn within(&self, cut: usize, start: usize, size: usize, all: usize) -> Option<Self> {
        let (mut axes, mut dims) = (self.axes.clone(), self.dims.clone());
        let place = axes.binary_search(&cut).unwrap_or_else(|place| {
            axes.insert(place, cut);
            dims.insert(place, size);
            place
        });
        if dims[place] != size {
            return None;
        }
        dims[place] = all;
        let known = axes.clone();
        Self::of(axes, dims, |index| {
            if !(start..start + size).contains(&index[place]) {
                return 1.0;
            }
            self.at(|axis| {
                let at = known.binary_search(&axis).map_or(0, |place| index[place]);
                if axis == cut { at - start } else { at }
            })
        })
    }

    /// Before elements were only counted otherwise: from the shape `before` to `after`.
    fn reshaped(&self, before: &[Size], after: &[Size]) -> Option<Self> {
        let (mut axes, mut dims) = (Vec::new(), Vec::new());
        let (mut wide, mut sizes) = (Vec::new(), Vec::new());
        let mut covered = 0;
        for (from, to) in aligned(before, after) {
            let touched = self.axes.iter().filter(|axis| to.contains(axis)).count();
            covered += touched;
            if touched == 0 {
                continue;
            }
            for axis in to {
                wide.push(axis);
                sizes.push(number(after[axis])?);
            }
            for axis in from {
                axes.push(axis);
                dims.push(number(before[axis])?);
            }
        }
        if covered != self.axes.len() || count(&sizes)? != count(&dims)? {
            return None;
        }
        let places = wide.clone();
        let all = Self::of(wide, sizes, |index| {
            self.at(|axis| places.binary_search(&axis).map_or(0, |place| index[place]))
        })?;
        Some(Self {
            axes,
            dims,
            values: all.values,
        })
    }
}

type Axes = std::ops::Range<usize>;

/// Axes of two shapes of the same elements that hold the same elements together, from the front to the back.
fn aligned(before: &[Size], after: &[Size]) -> Vec<(Axes, Axes)> {
    let mut pairs = Vec::new();
    let (mut left, mut right) = (before.len(), after.len());
    // From the back: numbers whose products are equal.
    loop {
        let (mut from, mut to) = (left, right);
        let (mut over, mut under) = (1_usize, 1_usize);
        let equal = loop {
            let (shape, at, product) = if over <= under && from > 0 {
                (before, &mut from, &mut over)
            } else if to > 0 {
                (after, &mut to, &mut under)
            } else {
                break false;
            };
            *at -= 1;
            match number(shape[*at]).and_then(|size| product.checked_mul(size)) {
                Some(size) => *product = size,
                None => break false,
            }
            if over == under && from < left && to < right {
                break true;
            }
        };
        if !equal {
            break;
        }
        pairs.push((from..left, to..right));
        (left, right) = (from, to);
    }
    // From the front: equal sizes.
    let mut start = 0;
    while start < left.min(right) && before[start] == after[start] {
        start += 1;
    }
    if start < left || start < right {
        pairs.push((start..left, start..right));
    }
    pairs.extend((0..start).rev().map(|axis| (axis..axis + 1, axis..axis + 1)));
    pairs.reverse();
    pairs
}

#[cfg(test)]
#[path = "value_path_tests.rs"]
mod tests;
