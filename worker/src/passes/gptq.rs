//! Rounding that makes its errors good: GPTQ (Frantar et al., 2022, arXiv:2210.17323), with the order by activation and fixed steps.
//!
//! From the inputs that calibration has seen, `X`, only `H = X X^T` is needed. Weights are rounded one input at a time; what a weight was
//! rounded by moves the weights that are still to come, along the rows of `U` with `H^-1 = U^T U`. Knows numbers, never a graph.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts are small; codes are whole numbers of at most 8 bits; factors are kept in 32 bits on purpose"
)]

use super::blocks::Steps;
use crate::calibrate::{Gram, Rows as _};
use rayon::prelude::*;

/// Share of the mean diagonal that is added to every diagonal entry, so that inputs that always go together can be told apart.
const DAMPING: f64 = 0.01;
/// Damping is raised tenfold this often before the inputs are given up as not worth a factor.
const ATTEMPTS: i32 = 4;
/// Rows of the factorization that are finished together.
const PANEL: usize = 64;

/// What rounding must know of a product's inputs.
#[derive(Debug)]
pub(super) struct Factor {
    /// Inputs in the order of rounding: those that matter most first, while there is most left to make good with.
    order: Vec<usize>,
    /// `U`, row-major, rows and columns in that order; below the diagonal is zero.
    upper: Vec<f32>,
    /// Diagonal of `H` by input.
    importance: Vec<f32>,
}

impl Factor {
    /// `None` where the inputs hold nothing to go by: all zero, or not finite.
    pub(super) fn new(gram: &Gram) -> Option<Self> {
        let size = gram.size();
        let diagonal: Vec<f64> = (0..size).map(|input| gram.at(input, input)).collect();
        let mean = diagonal.iter().sum::<f64>() / size as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        // H with its inputs in reverse order is L L^T; then U is the inverse of L, turned around in both directions.
        let reversed = |index: usize| order[size - 1 - index];
        let lower = (0..ATTEMPTS).find_map(|attempt| {
            let damping = mean * DAMPING * 10_f64.powi(attempt);
            let mut matrix = vec![0.0; size * size];
            matrix.par_chunks_mut(size).enumerate().for_each(|(row, values)| {
                for (column, value) in values.iter_mut().enumerate().take(row + 1) {
                    *value = gram.at(reversed(row), reversed(column));
                }
                values[row] += damping;
            });
            cholesky(&mut matrix, size).then_some(matrix)
        })?;
        let inverse = invert_lower(&lower, size);
        let mut upper = vec![0.0_f32; size * size];
        upper.par_chunks_mut(size).enumerate().for_each(|(row, values)| {
            for (column, value) in values.iter_mut().enumerate().skip(row) {
                *value = inverse[(size - 1 - row) * size + size - 1 - column] as f32;
            }
        });
        Some(Self {
            order,
            upper,
            importance: diagonal.iter().map(|value| *value as f32).collect(),
        })
    }

    /// How much an error on each input weighs.
    pub(super) fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Codes of `values`, rows of one weight for each input, given the steps of each block of each row.
    pub(super) fn round(&self, values: &[f32], steps: &[Steps], block: usize) -> Vec<u8> {
        let size = self.order.len();
        let blocks = size.div_ceil(block);
        let mut work = vec![0.0; values.len()];
        for (work, values) in work.chunks_exact_mut(size).zip(values.chunks_exact(size)) {
            work.iter_mut()
                .zip(&self.order)
                .for_each(|(work, &input)| *work = values[input]);
        }
        let mut codes = vec![0; values.len()];
        for (at, &input) in self.order.iter().enumerate() {
            let along = &self.upper[at * size + at..(at + 1) * size];
            for (row, work) in work.chunks_exact_mut(size).enumerate() {
                let steps = steps[row * blocks + input / block];
                let code = steps.code(work[at]);
                codes[row * size + input] = code as u8;
                let error = (work[at] - steps.value(code)) / along[0];
                work[at + 1..]
                    .iter_mut()
                    .zip(&along[1..])
                    .for_each(|(work, along)| *work -= error * along);
            }
        }
        codes
    }
}

/// Replaces the lower half of a symmetric matrix by `L` with `L L^T` = the matrix; false where it is not positive definite.
fn cholesky(matrix: &mut [f64], size: usize) -> bool {
    for from in (0..size).step_by(PANEL) {
        let to = (from + PANEL).min(size);
        for row in from..to {
            let (done, rest) = matrix.split_at_mut(row * size);
            let current = &mut rest[..size];
            for column in from..row {
                let other = &done[column * size..];
                current[column] = (current[column] - dot(&current[from..column], &other[from..column])) / other[column];
            }
            let square = current[row] - dot(&current[from..row], &current[from..row]);
            if !(square.is_finite() && square > 0.0) {
                return false;
            }
            current[row] = square.sqrt();
        }
        let (done, rest) = matrix.split_at_mut(to * size);
        let panel = |row: usize| &done[row * size + from..=row * size + row];
        rest.par_chunks_mut(size).for_each(|current| {
            for column in from..to {
                let other = panel(column);
                let known = dot(&current[from..column], &other[..column - from]);
                current[column] = (current[column] - known) / other[column - from];
            }
        });
        let finished: Vec<f64> = rest
            .chunks_exact(size)
            .flat_map(|row| row[from..to].iter().copied())
            .collect();
        rest.par_chunks_mut(size).enumerate().for_each(|(row, current)| {
            let width = to - from;
            let own = &finished[row * width..(row + 1) * width];
            for (column, value) in current[to..=to + row].iter_mut().enumerate() {
                *value -= dot(own, &finished[column * width..(column + 1) * width]);
            }
        });
    }
    true
}

/// The inverse of a lower triangular matrix.
fn invert_lower(lower: &[f64], size: usize) -> Vec<f64> {
    let panels: Vec<usize> = (0..size).step_by(PANEL).collect();
    let inverted: Vec<Vec<f64>> = panels
        .par_iter()
        .map(|&from| {
            let width = PANEL.min(size - from);
            let mut columns = vec![0.0; (size - from) * width];
            for row in from..size {
                let (done, rest) = columns.split_at_mut((row - from) * width);
                let current = &mut rest[..width];
                if row - from < width {
                    current[row - from] = 1.0;
                }
                let factors = &lower[row * size + from..row * size + row];
                for (factor, above) in factors.iter().zip(done.chunks_exact(width)) {
                    for (value, above) in current.iter_mut().zip(above) {
                        *value -= factor * above;
                    }
                }
                let pivot = lower[row * size + row];
                for value in current {
                    *value /= pivot;
                }
            }
            columns
        })
        .collect();
    let mut inverse = vec![0.0; size * size];
    for (&from, columns) in panels.iter().zip(&inverted) {
        let width = PANEL.min(size - from);
        for (row, values) in columns.chunks_exact(width).enumerate() {
            let start = (from + row) * size + from;
            inverse[start..start + width].copy_from_slice(values);
        }
    }
    inverse
}

/// In eight partial sums, so that the compiler may use vectors; the order is always the same.
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (left_chunks, right_chunks) = (left.chunks_exact(8), right.chunks_exact(8));
    let rest: f64 = left_chunks
        .remainder()
        .iter()
        .zip(right_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (left, right) in left_chunks.zip(right_chunks) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        passes::blocks::{self, Bits, Order},
        testing::noise,
    };

    /// Inputs of which neighbours go together, as activations do.
    fn inputs(rows: usize, size: usize) -> Vec<f32> {
        let raw = noise(7, rows * size);
        let mut inputs = raw.clone();
        for (row, raw) in inputs.chunks_exact_mut(size).zip(raw.chunks_exact(size)) {
            for index in 1..size {
                row[index] = 0.9 * row[index - 1] + 0.4 * raw[index] * [1.0, 2.0, 3.0, 4.0, 5.0][index % 5];
            }
        }
        inputs
    }

    fn gram(inputs: &[f32], size: usize) -> Gram {
        let mut gram = Gram::new(size);
        inputs.chunks(size * 37).for_each(|part| gram.add(part));
        gram
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let size = 150;
        let gram = gram(&inputs(400, size), size);
        let factor = Factor::new(&gram).unwrap();
        let mean = (0..size).map(|i| gram.at(i, i)).sum::<f64>() / size as f64;
        // H U^T U is the identity, in the factor's order.
        let upper = |row: usize, column: usize| f64::from(factor.upper[row * size + column]);
        for row in (0..size).step_by(29) {
            for column in (0..size).step_by(31) {
                let mut sum = 0.0;
                for k in 0..size {
                    let inverse: f64 = (0..=k.min(column)).map(|i| upper(i, k) * upper(i, column)).sum();
                    let damped = if k == row { mean * DAMPING } else { 0.0 };
                    sum += (gram.at(factor.order[row], factor.order[k]) + damped) * inverse;
                }
                let wanted = if row == column { 1.0 } else { 0.0 };
                assert!((sum - wanted).abs() < 1e-3, "{row} {column}: {sum}");
            }
        }
    }

    #[test]
    fn outputs_are_closer_than_with_nearest_rounding() {
        let (size, columns) = (96, 24);
        let (inputs, weights) = (inputs(600, size), noise(3, size * columns));
        let factor = Factor::new(&gram(&inputs[..400 * size], size)).unwrap();
        let little: Vec<[u8; 4]> = weights.iter().map(|weight| weight.to_le_bytes()).collect();
        let error = |factor: Option<&Factor>| -> f64 {
            let blocked = blocks::quantize(&little, (columns, size), Order::Rows, Bits::Four, 32, factor).unwrap();
            let back: Vec<f32> = blocks::unpack(&blocked, (columns, size), Bits::Four, 32);
            // Judged on rows that the factor has not seen.
            let unseen = inputs[400 * size..].chunks_exact(size);
            unseen
                .flat_map(|x| {
                    weights
                        .chunks_exact(size)
                        .zip(back.chunks_exact(size))
                        .map(move |(w, b)| {
                            let difference: f32 = x.iter().zip(w).zip(b).map(|((x, w), b)| x * (w - b)).sum();
                            f64::from(difference).powi(2)
                        })
                })
                .sum()
        };
        let (nearest, gptq) = (error(None), error(Some(&factor)));
        assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
    }

    #[test]
    fn inputs_that_say_nothing_have_no_factor() {
        assert!(Factor::new(&gram(&[0.0; 64], 16)).is_none());
        // Always the same direction: damping makes a factor of it.
        assert!(Factor::new(&gram(&[1.0; 64], 16)).is_some());
    }
}
