//! Which inputs of a product go together: sums over all rows seen, and nothing else of them.
//!
//! Rows are gathered to parts of a fixed number and panels are of a fixed size, each adding the parts in the order in which they come,
//! so that the sums depend neither on threads nor on how rows are batched.

use super::Rows;
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Inputs whose products are summed by one task.
const PANEL: usize = 128;
/// Rows that are added at once: a sum is read and written once for so many.
const PART: usize = 256;

/// `X^T X` of all rows `X` seen, their sum, and how far the values of one run lie apart.
#[derive(Debug, Clone)]
pub struct Gram {
    size: usize,
    /// Panels of columns, each from the first input down to the panel's last: the rest is the same turned around.
    panels: Vec<Vec<f32>>,
    /// Rows that are not in the panels yet.
    waiting: Vec<f32>,
    sums: Vec<f64>,
    rows: u64,
    /// Sum, over rows, of the squared distance from the smallest to the largest value (or zero) of their run.
    spread: f64,
}

impl Rows for Gram {
    fn new(size: usize) -> Self {
        let panels = (0..size)
            .step_by(PANEL)
            .map(|from| {
                let to = (from + PANEL).min(size);
                vec![0.0; to * (to - from)]
            })
            .collect();
        Self {
            size,
            panels,
            waiting: Vec::new(),
            sums: vec![0.0; size],
            rows: 0,
            spread: 0.0,
        }
    }

    fn size(&self) -> usize {
        self.size
    }

    fn add(&mut self, rows: &[f32]) {
        let (mut count, mut low, mut high) = (0_u32, 0.0_f32, 0.0_f32);
        for row in rows.chunks_exact(self.size.max(1)) {
            count += 1;
            for (sum, &value) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(value);
                low = low.min(value);
                high = high.max(value);
            }
        }
        self.rows += u64::from(count);
        self.spread += f64::from(count) * (f64::from(high) - f64::from(low)).powi(2);
        let mut rest = rows;
        while rest.len() >= self.size.max(1) {
            let room = PART * self.size - self.waiting.len();
            let (now, later) = rest.split_at(room.min(rest.len() / self.size * self.size));
            self.waiting.extend_from_slice(now);
            if self.waiting.len() == PART * self.size {
                self.finish();
            }
            rest = later;
        }
    }

    fn finish(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let size = self.size;
        let rows = MatRef::from_row_major_slice(&waiting, waiting.len() / size.max(1), size);
        self.panels.par_iter_mut().enumerate().for_each(|(panel, sums)| {
            let from = panel * PANEL;
            let to = (from + PANEL).min(size);
            let sums = MatMut::from_row_major_slice_mut(sums, to, to - from);
            let (left, right) = (rows.get(.., ..to), rows.get(.., from..to));
            matmul(sums, Accum::Add, left.transpose(), right, 1.0, Par::Seq);
        });
    }
}

impl Gram {
    /// Adds what another has seen of as many inputs; both have seen their last row.
    pub fn join(&mut self, other: &Self) {
        let panels = self.panels.iter_mut().flatten();
        for (sum, other) in panels.zip(other.panels.iter().flatten()) {
            *sum += other;
        }
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum += other;
        }
        self.rows += other.rows;
        self.spread += other.spread;
    }

    /// The sum for a pair of inputs.
    pub fn at(&self, left: usize, right: usize) -> f64 {
        let (low, high) = (left.min(right), left.max(right));
        let panel = high / PANEL;
        let from = panel * PANEL;
        let width = PANEL.min(self.size - from);
        f64::from(self.panels[panel][low * width + high - from])
    }

    /// Rows seen; at least one, so that it can be divided by.
    #[allow(clippy::cast_precision_loss, reason = "rows are counted, and far fewer than 2^52")]
    pub fn rows(&self) -> f64 {
        self.rows.max(1) as f64
    }

    /// Mean of an input.
    pub fn mean(&self, input: usize) -> f64 {
        self.sums[input] / self.rows()
    }

    /// Mean square of an input.
    pub fn mean_square(&self, input: usize) -> f64 {
        self.at(input, input) / self.rows()
    }

    /// Mean square of the range of a run, zero included.
    pub fn square_range(&self) -> f64 {
        self.spread / self.rows()
    }

    /// Mean, over rows, of the squared length of `x^T W`, with `W` of `columns` values for each input: `tr(W^T H W) / rows`.
    pub fn power(&self, flat: &[f32], columns: usize) -> f64 {
        if flat.len() != self.size * columns {
            return 0.0;
        }
        let weights = MatRef::from_row_major_slice(flat, self.size, columns);
        let sums: Vec<f64> = self
            .panels
            .par_iter()
            .enumerate()
            .map(|(panel, sums)| {
                let from = panel * PANEL;
                let to = (from + PANEL).min(self.size);
                let sums = MatRef::from_row_major_slice(sums, to, to - from);
                let mut products = vec![0.0_f32; to * columns];
                let all = MatMut::from_row_major_slice_mut(&mut products, to, columns);
                matmul(all, Accum::Replace, sums, weights.get(from..to, ..), 1.0, Par::Seq);
                let dot = |rows: std::ops::Range<usize>| -> f64 {
                    let left = &flat[rows.start * columns..rows.end * columns];
                    let right = &products[rows.start * columns..rows.end * columns];
                    left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum()
                };
                // What lies above the panel's square counts twice: it is the same below.
                2.0 * dot(0..from) + dot(from..to)
            })
            .collect();
        sums.iter().sum::<f64>() / self.rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn every_pair_is_summed_whatever_the_parts() {
        let (size, rows) = (150, noise(1, 150 * 600));
        let mut parts = Gram::new(size);
        rows.chunks(size * 7).for_each(|part| parts.add(part));
        parts.finish();
        for (left, right) in [(0, 0), (3, 140), (140, 3), (149, 149), (127, 128)] {
            let wanted: f64 = rows
                .chunks(size)
                .map(|row| f64::from(row[left]) * f64::from(row[right]))
                .sum();
            assert!((parts.at(left, right) - wanted).abs() < 1e-3);
        }
        let mean = rows
            .iter()
            .skip(5)
            .step_by(size)
            .map(|value| f64::from(*value))
            .sum::<f64>()
            / 600.0;
        assert!((parts.mean(5) - mean).abs() < 1e-9);
        let mut whole = Gram::new(size);
        whole.add(&rows);
        whole.finish();
        assert_eq!(whole.panels, parts.panels, "batches make no difference");
    }

    #[test]
    fn joined_is_what_was_seen_one_after_the_other() {
        let (size, rows) = (150, noise(4, 150 * 40));
        let mut parts = rows.chunks(size * 25).map(|part| {
            let mut gram = Gram::new(size);
            gram.add(part);
            gram.finish();
            gram
        });
        let (mut joined, other) = (parts.next().unwrap(), parts.next().unwrap());
        joined.join(&other);
        let mut both = Gram::new(size);
        rows.chunks(size * 25).for_each(|part| both.add(part));
        both.finish();
        for (left, right) in [(0, 0), (3, 140), (149, 149)] {
            assert!((joined.at(left, right) - both.at(left, right)).abs() < 1e-4);
        }
        assert!((joined.mean(7) - both.mean(7)).abs() < 1e-12);
        assert!((joined.square_range() - both.square_range()).abs() < 1e-12);
    }

    #[test]
    fn power_is_that_of_the_outputs() {
        let (size, columns) = (200, 7);
        let (rows, weights) = (noise(2, size * 90), noise(3, size * columns));
        let mut gram = Gram::new(size);
        gram.add(&rows);
        gram.finish();
        let mut wanted = 0.0;
        for row in rows.chunks(size) {
            for column in 0..columns {
                let output: f64 = row
                    .iter()
                    .enumerate()
                    .map(|(i, x)| f64::from(*x) * f64::from(weights[i * columns + column]))
                    .sum();
                wanted += output * output / 90.0;
            }
        }
        let power = gram.power(&weights, columns);
        assert!((power - wanted).abs() < 1e-4 * wanted, "{power} {wanted}");
    }

    #[test]
    fn ranges_are_of_runs_and_hold_zero() {
        let mut gram = Gram::new(2);
        gram.add(&[1.0, 3.0]);
        gram.add(&[-1.0, 1.0, 0.5, 0.0]);
        assert!((gram.square_range() - (9.0 + 2.0 * 4.0) / 3.0).abs() < 1e-9);
    }
}
