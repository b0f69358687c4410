//! The error that rounding is expected to give a matrix product, relative to the power of its output: `E|dy|^2 / E|y|^2`, from the sums
//! `H = X X^T` over the `n` rows seen. Ranks nothing, and runs nothing.
//!
//! With steps `s` small against what is rounded, an error has the variance `s^2 / 12` (Widrow and Kollár, 2008, chapter 4), and at most the
//! square of the value: weights lose `sum_ij H_ii / n s_ij^2 / 12`; an input in 8 bits, `sum_i min(s_x^2 / 12, H_ii / n) |W_i|^2`; the output
//! has the power `tr(W^T H W) / n`. It is HAWQ's idea (Dong et al., 2019, arXiv:1905.03696) with a product's own output in the place of the
//! loss, which a file without labels does not have.

use super::{Granularity, raise_precision::Otherwise, site::Site};
use crate::calibrate::{Gram, Rows as _};

/// Steps of an 8-bit range.
const STEPS: f64 = 255.0;
/// A rounding error is spread evenly over a step.
const UNIFORM: f64 = 12.0;

/// Expected squared error of the product `y = W^T x` relative to its power; `None` where there is no output to speak of.
pub(super) fn loss(site: &Site<'_>, gram: &Gram, otherwise: Otherwise) -> Option<f64> {
    let weights = site.matrix();
    let (inputs, columns) = (gram.size(), weights.len() / gram.size().max(1));
    let squares: Vec<f64> = (0..inputs).map(|input| gram.mean_square(input)).collect();
    let of_blocks = |block| {
        let step = |low: f64, high: f64| (high - low) / 15.0;
        of_weights(&weights, columns, &squares, block, step, Granularity::PerChannel)
    };
    let error = match otherwise {
        Otherwise::Integers(grid) => {
            let step = gram.square_range() / (STEPS * STEPS * UNIFORM);
            let of_input: f64 = weights
                .chunks_exact(columns)
                .zip(&squares)
                .map(|(row, square)| step.min(*square) * row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>())
                .sum();
            let of_weights = if let Some(block) = grid.four_bits {
                of_blocks(block)
            } else {
                let step = |low: f64, high: f64| high.max(-low) / f64::from(grid.weights.largest());
                of_weights(&weights, columns, &squares, inputs, step, grid.granularity)
            };
            of_input + of_weights
        }
        Otherwise::FourBits(block) => of_blocks(block),
    };
    let power = gram.power(&weights, columns);
    (power > 0.0 && error.is_finite()).then_some(error / power)
}

/// What rounding blocks of `size` inputs of each column loses: `step` gives the distance of two values from the block's range.
fn of_weights(
    weights: &[f32],
    columns: usize,
    squares: &[f64],
    size: usize,
    step: impl Fn(f64, f64) -> f64,
    granularity: Granularity,
) -> f64 {
    let mut sum = 0.0;
    for (rows, squares) in weights.chunks(size * columns).zip(squares.chunks(size)) {
        let (mut low, mut high) = (vec![0.0_f64; columns], vec![0.0_f64; columns]);
        for row in rows.chunks_exact(columns) {
            for ((low, high), value) in low.iter_mut().zip(&mut high).zip(row) {
                *low = low.min(f64::from(*value));
                *high = high.max(f64::from(*value));
            }
        }
        let steps = low.iter().zip(&high).map(|(low, high)| step(*low, *high).powi(2));
        #[allow(clippy::cast_precision_loss, reason = "columns of a matrix")]
        let steps: f64 = match granularity {
            Granularity::PerChannel => steps.sum(),
            Granularity::PerTensor => steps.fold(0.0, f64::max) * columns as f64,
        };
        sum += squares.iter().sum::<f64>() * steps / UNIFORM;
    }
    sum
}
