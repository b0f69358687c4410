//! Recognises a normalization by what it computes, not by how it is spelled: sums, products, means and roots are evaluated as polynomials in
//! a row, its mean, its mean square, one root and constant vectors, and compared by coefficients. Never changes a graph.
//!
//! Means are linear, and `mean(x^2) = s`, `mean(x) = m`, so `mean((x - m)^2)` and `mean(x^2) - m^2` are the same polynomial `s - m^2`.

use crate::onnx::{ElementType, Index, Node, Tensor, from_front};
use std::collections::BTreeMap;

/// Nodes that one evaluation may look at.
const MOST_STEPS: u32 = 96;
/// Terms of a polynomial that is followed.
const MOST_TERMS: usize = 16;
/// Largest power of a variable.
const MOST_POWER: i8 = 4;
/// Constant vectors that one formula may name: a scale and a bias.
const VECTORS: usize = 2;
/// A sum smaller than this against what was added is what rounding left of zero.
const ROUNDING: f64 = 1e-7;

/// Powers of the variables in one term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Powers {
    /// The row `x`.
    pub(super) x: i8,
    /// Its mean.
    pub(super) mean: i8,
    /// The mean of its squares.
    pub(super) square: i8,
    /// The square root of the value under the root.
    pub(super) root: i8,
    /// Constant vectors, in the order in which they were met.
    pub(super) vectors: [i8; VECTORS],
}

impl Powers {
    /// Each power changed by its counterpart; none beyond what is followed.
    fn combine(self, other: Self, change: impl Fn(i8, i8) -> i8) -> Option<Self> {
        let bounded = |left, right| Some(change(left, right)).filter(|power| power.abs() <= MOST_POWER);
        Some(Self {
            x: bounded(self.x, other.x)?,
            mean: bounded(self.mean, other.mean)?,
            square: bounded(self.square, other.square)?,
            root: bounded(self.root, other.root)?,
            vectors: [
                bounded(self.vectors[0], other.vectors[0])?,
                bounded(self.vectors[1], other.vectors[1])?,
            ],
        })
    }

    fn of_root(root: i8) -> Self {
        Self {
            root,
            ..Self::default()
        }
    }
}

/// A sum of terms.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Polynomial(pub(super) BTreeMap<Powers, f64>);

impl Polynomial {
    fn term(powers: Powers, coefficient: f64) -> Self {
        Self(BTreeMap::from([(powers, coefficient)]))
    }

    fn constant(value: f64) -> Self {
        Self::term(Powers::default(), value)
    }

    fn plus(mut self, other: &Self, sign: f64) -> Option<Self> {
        for (&powers, &coefficient) in &other.0 {
            let sum = self.0.entry(powers).or_default();
            let largest = sum.abs().max(coefficient.abs());
            *sum += sign * coefficient;
            if sum.abs() <= ROUNDING * largest {
                self.0.remove(&powers);
            }
        }
        (self.0.len() <= MOST_TERMS).then_some(self)
    }

    fn times(&self, other: &Self) -> Option<Self> {
        let mut product = Self::default();
        for (&left, &factor) in &self.0 {
            for (&right, &other_factor) in &other.0 {
                let powers = left.combine(right, |left, right| left + right)?;
                product = product.plus(&Self::term(powers, factor * other_factor), 1.0)?;
            }
        }
        Some(product)
    }

    /// The one term, where it has nothing but a positive factor and a power of the root.
    fn power_of_root(&self) -> Option<(i8, f64)> {
        let (&powers, &factor) = self.0.first_key_value().filter(|_| self.0.len() == 1)?;
        (powers == Powers::of_root(powers.root) && factor > 0.0).then_some((powers.root, factor))
    }

    fn inverse(&self) -> Option<Self> {
        let (power, factor) = self.power_of_root()?;
        Some(Self::term(Powers::of_root(-power), 1.0 / factor))
    }

    fn square_root(&self) -> Option<Self> {
        let (power, factor) = self.power_of_root().filter(|(power, _)| power % 2 == 0)?;
        Some(Self::term(Powers::of_root(power / 2), factor.sqrt()))
    }

    /// The mean over the row; none where it is no polynomial.
    fn mean(&self) -> Option<Self> {
        let mut mean = Self::default();
        for (&powers, &factor) in &self.0 {
            if powers.vectors != [0; VECTORS] {
                return None;
            }
            let mut of_row = Powers { x: 0, ..powers };
            match powers.x {
                0 => {}
                1 => of_row.mean += 1,
                2 => of_row.square += 1,
                _ => return None,
            }
            mean = mean.plus(&Self::term(of_row, factor), 1.0)?;
        }
        Some(mean)
    }

    fn has_row(&self) -> bool {
        self.0.keys().any(|powers| powers.x != 0)
    }

    /// The coefficient of a term.
    pub(super) fn of(&self, powers: Powers) -> f64 {
        self.0.get(&powers).copied().unwrap_or(0.0)
    }
}

/// Evaluates values as polynomials in the rows of `x`, the last dimension.
pub(super) struct Evaluator<'i, 'g> {
    pub(super) index: &'i Index<'g>,
    pub(super) x: &'g str,
    /// The value whose square root is a variable of its own.
    pub(super) under: Option<&'i str>,
    /// Number of dimensions of `x`, where known; one at least.
    pub(super) rank: Option<usize>,
    /// Size of its last dimension, where known.
    pub(super) size: Option<usize>,
    /// Constant vectors met so far.
    pub(super) vectors: Vec<&'g Tensor>,
}

impl<'g> Evaluator<'_, 'g> {
    /// The polynomial that computes `value`; `None` where it is something else.
    pub(super) fn evaluate(&mut self, value: &str) -> Option<Polynomial> {
        self.step(value, &mut MOST_STEPS.clone())
    }

    fn step(&mut self, value: &str, steps: &mut u32) -> Option<Polynomial> {
        *steps = steps.checked_sub(1)?;
        if value == self.x {
            let row = Powers {
                x: 1,
                ..Powers::default()
            };
            return Some(Polynomial::term(row, 1.0));
        }
        if Some(value) == self.under {
            return Some(Polynomial::term(Powers::of_root(2), 1.0));
        }
        if let Some(tensor) = self.index.constant(value) {
            return self.constant(tensor);
        }
        let (_, node) = self.index.producer(value).filter(|(_, node)| node.domain.is_empty())?;
        let first = self.step(node.input(0)?, steps)?;
        match node.op_type.as_str() {
            "Identity" => Some(first),
            "Neg" => Polynomial::default().plus(&first, -1.0),
            "Sqrt" => first.square_root(),
            "Reciprocal" => first.inverse(),
            "Add" => first.plus(&self.step(node.input(1)?, steps)?, 1.0),
            "Sub" => first.plus(&self.step(node.input(1)?, steps)?, -1.0),
            "Mul" => first.times(&self.step(node.input(1)?, steps)?),
            "Div" => first.times(&self.step(node.input(1)?, steps)?.inverse()?),
            "Pow" => power(&first, self.index.constant(node.input(1)?)?),
            "ReduceMean" => self.reduces_rows(node).then(|| first.mean())?,
            "ReduceSum" => self.sum(node, &first),
            "ReduceSumSquare" => self.sum(node, &first.times(&first)?),
            _ => None,
        }
    }

    fn constant(&mut self, tensor: &'g Tensor) -> Option<Polynomial> {
        let fits = tensor.element == ElementType::Float && tensor.dims.len() <= self.rank.unwrap_or(1);
        if let Some(scalar) = tensor.to_scalar().filter(|value| fits && value.is_finite()) {
            return Some(Polynomial::constant(f64::from(scalar)));
        }
        let last = *tensor.dims.last().filter(|_| fits)?;
        if tensor.len() != last || self.size.is_some_and(|size| size != last) {
            return None;
        }
        let known = self.vectors.iter().position(|vector| vector.name == tensor.name);
        let at = known.unwrap_or(self.vectors.len());
        let mut powers = Powers::default();
        *powers.vectors.get_mut(at)? = 1;
        if known.is_none() {
            self.vectors.push(tensor);
        }
        Some(Polynomial::term(powers, 1.0))
    }

    /// A sum over the row: as many times the mean as the row is long, or the value itself where it is one already.
    fn sum(&self, node: &Node, summed: &Polynomial) -> Option<Polynomial> {
        if !self.reduces_rows(node) {
            return None;
        }
        let count = if summed.has_row() { self.size? } else { 1 };
        let count = f64::from(u32::try_from(count).ok()?);
        summed.mean()?.times(&Polynomial::constant(count))
    }

    /// Whether a reduction goes over the last dimension alone, and keeps it.
    fn reduces_rows(&self, node: &Node) -> bool {
        let axes = match (node.ints("axes"), node.input(1)) {
            (Some(axes), _) => Some(axes.to_vec()),
            (None, Some(axes)) => self.index.constant(axes).and_then(Tensor::to_ints),
            (None, None) => None,
        };
        let last = |axis: i64| match self.rank {
            Some(rank) => from_front(axis, rank) == Some(rank - 1),
            None => axis == -1,
        };
        node.int("keepdims", 1) == Some(1) && axes.is_some_and(|axes| matches!(axes[..], [only] if last(only)))
    }
}

/// A power with a constant exponent.
fn power(base: &Polynomial, exponent: &Tensor) -> Option<Polynomial> {
    let single = exponent.to_ints().filter(|ints| ints.len() == 1);
    let exponent = match single.as_deref() {
        Some([2]) => 2.0,
        Some(_) => return None,
        None => exponent.to_scalar().filter(|_| exponent.dims.len() <= 1)?,
    };
    match exponent {
        1.0 => Some(base.clone()),
        2.0 => base.times(base),
        0.5 => base.square_root(),
        -0.5 => base.square_root()?.inverse(),
        -1.0 => base.inverse(),
        _ => None,
    }
}
