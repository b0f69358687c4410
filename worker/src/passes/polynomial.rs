//! Recognises a formula by what it computes, not by how it is spelled: subgraphs of sums and products are evaluated as
//! polynomials in two values, and compared by coefficients.

use crate::onnx::Index;

/// Highest power of the first variable.
const POWERS: usize = 4;
/// Highest power of the second variable, plus one.
const SECOND: usize = 2;
/// Nodes that one evaluation may look at.
const MOST_STEPS: u32 = 64;

/// Coefficients of `x^i * t^j`, `i` up to 3 and `j` up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Polynomial([[f64; SECOND]; POWERS]);

impl Polynomial {
    /// A polynomial from its terms `(i, j, coefficient)`.
    pub(super) fn of(terms: &[(usize, usize, f64)]) -> Self {
        let mut polynomial = Self::default();
        for &(x, t, coefficient) in terms {
            polynomial.0[x][t] += coefficient;
        }
        polynomial
    }

    fn combine(self, other: Self, sign: f64) -> Self {
        let mut sum = self;
        for (row, more) in sum.0.iter_mut().zip(other.0) {
            row.iter_mut()
                .zip(more)
                .for_each(|(coefficient, more)| *coefficient += sign * more);
        }
        sum
    }

    /// `None` where the product has a power that is not represented.
    fn times(self, other: Self) -> Option<Self> {
        let mut product = Self::default();
        for (i, row) in self.0.iter().enumerate() {
            for (j, &left) in row.iter().enumerate().filter(|(_, left)| **left != 0.0) {
                for (k, other_row) in other.0.iter().enumerate() {
                    for (l, &right) in other_row.iter().enumerate().filter(|(_, right)| **right != 0.0) {
                        *product.0.get_mut(i + k)?.get_mut(j + l)? += left * right;
                    }
                }
            }
        }
        Some(product)
    }

    fn constant(self) -> Option<f64> {
        let rest = self.combine(Self::of(&[(0, 0, self.0[0][0])]), -1.0);
        (rest == Self::default()).then_some(self.0[0][0])
    }

    /// Whether every coefficient is within `tolerance`, relative to the larger of the two.
    pub(super) fn is_close(&self, other: &Self, tolerance: f64) -> bool {
        self.0
            .iter()
            .flatten()
            .zip(other.0.iter().flatten())
            .all(|(&left, &right): (&f64, &f64)| (left - right).abs() <= tolerance * left.abs().max(right.abs()))
    }
}

/// Evaluates values as polynomials in `x` and `t`.
pub(super) struct Evaluator<'i, 'g> {
    pub(super) index: &'i Index<'g>,
    pub(super) x: &'i str,
    /// The second variable, where there is one.
    pub(super) t: Option<&'i str>,
    /// Highest rank of a constant that may take part: more would change the shape of the result.
    pub(super) rank: usize,
}

impl Evaluator<'_, '_> {
    /// The polynomial that computes `value`; `None` where it is something else.
    pub(super) fn evaluate(&self, value: &str) -> Option<Polynomial> {
        self.step(value, &mut MOST_STEPS.clone())
    }

    fn step(&self, value: &str, steps: &mut u32) -> Option<Polynomial> {
        *steps = steps.checked_sub(1)?;
        if value == self.x {
            return Some(Polynomial::of(&[(1, 0, 1.0)]));
        }
        if Some(value) == self.t {
            return Some(Polynomial::of(&[(0, 1, 1.0)]));
        }
        if let Some(tensor) = self.index.constant(value) {
            let scalar = tensor.to_scalar().filter(|_| tensor.dims.len() <= self.rank)?;
            return Some(Polynomial::of(&[(0, 0, f64::from(scalar))]));
        }
        let (_, node) = self.index.producer(value)?;
        if !node.domain.is_empty() {
            return None;
        }
        let mut operand = |slot: usize| self.step(node.input(slot)?, steps);
        match node.op_type.as_str() {
            "Add" => Some(operand(0)?.combine(operand(1)?, 1.0)),
            "Sub" => Some(operand(0)?.combine(operand(1)?, -1.0)),
            "Mul" => operand(0)?.times(operand(1)?),
            "Neg" => Some(Polynomial::default().combine(operand(0)?, -1.0)),
            "Identity" => operand(0),
            "Div" => {
                let (left, right) = (operand(0)?, operand(1)?.constant().filter(|&divisor| divisor != 0.0)?);
                left.times(Polynomial::of(&[(0, 0, 1.0 / right)]))
            }
            "Pow" => {
                let (base, exponent) = (operand(0)?, operand(1)?.constant()?);
                match exponent {
                    1.0 => Some(base),
                    2.0 => base.times(base),
                    3.0 => base.times(base)?.times(base),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}
