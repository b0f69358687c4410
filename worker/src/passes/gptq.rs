//! Rounding that makes its errors good: GPTQ (Frantar et al., 2022, arXiv:2210.17323), with the order by activation and fixed steps.
//!
//! From the inputs that calibration has seen, `X`, only `H = X X^T` is needed. Weights are rounded one input at a time, each towards the
//! value that makes good what those before it were rounded by. It is done as Babai's nearest plane, which gives the same numbers (Chen et
//! al., 2025, arXiv:2507.18553): with `H = A^T A` and `A` lower triangular, input `k` aims at `w_k + sum_{j<k} A_kj e_j / A_kk`, where
//! `e_j` is what input `j` has lost. That spares the inverse of `H`. Knows numbers, never a graph.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts are small; codes are whole numbers of at most 8 bits; factors are kept in 32 bits on purpose"
)]

use super::blocks::Steps;
use crate::calibrate::{Gram, Rows as _};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Share of the mean diagonal that is added to every diagonal entry, so that inputs that always go together can be told apart.
const DAMPING: f64 = 0.01;
/// Damping is raised tenfold this often before the inputs are given up as not worth a factor.
const ATTEMPTS: i32 = 4;
/// Share of the squares that must be around the mean.
const SMALLEST_SHARE: f64 = 1e-6;
/// Rows of the factorization that are finished together.
const PANEL: usize = 64;
/// Rows that one task updates behind a finished panel.
const TALL: usize = 128;
/// Inputs that are rounded before their errors are carried to all the others by one product.
const WIDE: usize = 32;

/// What rounding must know of a product's inputs.
#[derive(Debug)]
pub(super) struct Factor {
    /// Inputs in the order of rounding: those that matter most first, while there is most left to make good with.
    order: Vec<usize>,
    /// `A_kj / A_kk`, row-major, rows and columns in that order; zero above the diagonal.
    lower: Vec<f32>,
    /// Diagonal of `H` by input.
    importance: Vec<f32>,
}

/// Which errors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    /// All of them: `H = X X^T`.
    All,
    /// Those around their mean, which a bias makes good: `H = X X^T - n m m^T`.
    AroundMean,
}

impl Factor {
    /// `None` where the inputs hold nothing to go by: all zero, or not finite.
    pub(super) fn new(gram: &Gram, errors: Errors) -> Option<Self> {
        let size = gram.size();
        let at = |left: usize, right: usize| match errors {
            Errors::All => gram.at(left, right),
            Errors::AroundMean => gram.at(left, right) - gram.rows() * gram.mean(left) * gram.mean(right),
        };
        let diagonal: Vec<f64> = (0..size).map(|input| at(input, input).max(0.0)).collect();
        let mean = diagonal.iter().sum::<f64>() / size as f64;
        // What sums in 32 bits leave of inputs that never vary is no variance.
        let all = (0..size).map(|input| gram.at(input, input)).sum::<f64>() / size as f64;
        if !(mean.is_finite() && mean > SMALLEST_SHARE * all) {
            return None;
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        // H with its inputs in reverse order is L L^T; then A is L turned around: A_kj = L_(n-1-j)(n-1-k).
        let reversed = |index: usize| order[size - 1 - index];
        let turned = (0..ATTEMPTS).find_map(|attempt| {
            let damping = mean * DAMPING * 10_f64.powi(attempt);
            let mut matrix = vec![0.0; size * size];
            matrix.par_chunks_mut(size).enumerate().for_each(|(row, values)| {
                for (column, value) in values.iter_mut().enumerate().take(row + 1) {
                    *value = at(reversed(row), reversed(column));
                }
                values[row] += damping;
            });
            cholesky(&mut matrix, size).then_some(matrix)
        })?;
        let mut lower = vec![0.0_f32; size * size];
        lower.par_chunks_mut(size).enumerate().for_each(|(row, values)| {
            let entry = |column: usize| turned[(size - 1 - column) * size + size - 1 - row];
            let pivot = entry(row);
            for (column, value) in values.iter_mut().enumerate().take(row) {
                *value = (entry(column) / pivot) as f32;
            }
        });
        Some(Self {
            order,
            lower,
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
        let (rows, blocks) = (values.len() / size, size.div_ceil(block));
        let mut codes = vec![0; values.len()];
        // Both by position in the order, then by row, so that neighbours are of one input.
        let mut errors = vec![0.0_f32; values.len()];
        let mut carried = vec![0.0_f32; WIDE * rows];
        for from in (0..size).step_by(WIDE) {
            let to = (from + WIDE).min(size);
            let (done, open) = errors.split_at_mut(from * rows);
            let carried = &mut carried[..(to - from) * rows];
            carry(&self.lower[from * size..to * size], size, done, carried, from, rows);
            for at in from..to {
                let input = self.order[at];
                let (current, later) = carried[(at - from) * rows..].split_at_mut(rows);
                let lost = &mut open[(at - from) * rows..][..rows];
                for (row, (carried, lost)) in current.iter().zip(lost.iter_mut()).enumerate() {
                    let steps = steps[row * blocks + input / block];
                    let value = values[row * size + input];
                    let code = steps.code(value + carried);
                    codes[row * size + input] = code as u8;
                    *lost = value - steps.value(code);
                }
                for (next, carried) in later.chunks_exact_mut(rows).enumerate() {
                    let factor = self.lower[(at + 1 + next) * size + at];
                    for (carried, lost) in carried.iter_mut().zip(&*lost) {
                        *carried += factor * lost;
                    }
                }
            }
        }
        codes
    }
}

/// `carried = factors[.., ..from] errors`, with `factors` rows of `size`, and `rows` values for each position of the other two.
fn carry(factors: &[f32], size: usize, errors: &[f32], carried: &mut [f32], from: usize, rows: usize) {
    let count = factors.len() / size;
    let factors = MatRef::from_row_major_slice(factors, count, size);
    let errors = MatRef::from_row_major_slice(errors, from, rows);
    let carried = MatMut::from_row_major_slice_mut(carried, count, rows);
    matmul(carried, Accum::Replace, factors.get(.., ..from), errors, 1.0, Par::Seq);
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
        let width = to - from;
        let finished: Vec<f64> = rest
            .chunks_exact(size)
            .flat_map(|row| row[from..to].iter().copied())
            .collect();
        let finished = MatRef::from_row_major_slice(&finished, size - to, width);
        rest.par_chunks_mut(TALL * size).enumerate().for_each(|(part, rows)| {
            let (first, count) = (part * TALL, rows.len() / size);
            let own = finished.get(first..first + count, ..);
            let others = finished.get(..first + count, ..);
            let rows = MatMut::from_row_major_slice_mut(rows, count, size);
            let below = rows.get_mut(.., to..to + first + count);
            matmul(below, Accum::Add, own, others.transpose(), -1.0, Par::Seq);
        });
    }
    true
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
        gram.finish();
        gram
    }

    #[test]
    fn the_factor_is_that_of_the_sums() {
        let size = 150;
        let gram = gram(&inputs(400, size), size);
        let factor = Factor::new(&gram, Errors::All).unwrap();
        let mean = (0..size).map(|i| gram.at(i, i)).sum::<f64>() / size as f64;
        let entry = |row: usize, column: usize| match row.cmp(&column) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => f64::from(factor.lower[row * size + column]),
        };
        // H = A^T D A with ones on the diagonal of A: its last row and column give D's last entry, and so on upwards.
        let sums = |row: usize, column: usize| {
            gram.at(factor.order[row], factor.order[column]) + if row == column { mean * DAMPING } else { 0.0 }
        };
        let mut squares = vec![0.0; size];
        for row in (0..size).rev() {
            let later: f64 = (row + 1..size).map(|k| entry(k, row).powi(2) * squares[k]).sum();
            squares[row] = sums(row, row) - later;
            assert!(squares[row] > 0.0);
        }
        for row in (0..size).step_by(29) {
            for column in (0..size).step_by(31) {
                let back: f64 = (0..size).map(|k| entry(k, row) * entry(k, column) * squares[k]).sum();
                assert!((back - sums(row, column)).abs() < 1e-3 * mean, "{row} {column}: {back}");
            }
        }
    }

    #[test]
    fn it_rounds_as_the_paper_does() {
        // One weight at a time, by the inverse of H, as in the paper: here with H = [[2, 1], [1, 1]] and steps of 1.
        let mut gram = Gram::new(2);
        gram.add(&[1.0, 1.0, 1.0, 0.0]);
        gram.finish();
        let factor = Factor::new(&gram, Errors::All).unwrap();
        let steps = Steps::symmetric(127.0, 127.0);
        let codes = factor.round(&[10.4, 3.3], &[steps], 2);
        // 10.4 -> 10 loses 0.4; the second makes good 0.4 * H_01 / H_11 = 0.4: 3.7 -> 4.
        assert_eq!(codes, [127 + 10, 127 + 4]);
    }

    #[test]
    fn outputs_are_closer_than_with_nearest_rounding() {
        let (size, columns) = (96, 24);
        let (inputs, weights) = (inputs(600, size), noise(3, size * columns));
        let factor = Factor::new(&gram(&inputs[..400 * size], size), Errors::All).unwrap();
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
        let factor = |value: f32, errors| Factor::new(&gram(&[value; 64], 16), errors);
        assert!(factor(0.0, Errors::All).is_none());
        // Always the same direction: damping makes a factor of it. A bias makes all of its errors good.
        assert!(factor(1.0, Errors::All).is_some());
        assert!(factor(1.0, Errors::AroundMean).is_none());
    }
}
