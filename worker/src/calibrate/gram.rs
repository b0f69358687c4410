//! Which inputs of a product go together: the sum of the outer products of all rows seen, and nothing else of them.
//!
//! Panels are of a fixed size and each adds its rows in the order in which they come, so that the sums don't depend on threads.

use super::Rows;
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul, s};
use rayon::prelude::*;

/// Inputs whose products are summed by one task.
const PANEL: usize = 128;

/// `X^T X` of all rows `X` seen.
#[derive(Debug, Clone)]
pub struct Gram {
    size: usize,
    /// Panels of columns, each from the first input down to the panel's last: the rest is the same turned around.
    panels: Vec<Vec<f32>>,
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
        Self { size, panels }
    }

    fn size(&self) -> usize {
        self.size
    }

    fn add(&mut self, rows: &[f32]) {
        let count = rows.len() / self.size.max(1);
        let Ok(rows) = ArrayView2::from_shape((count, self.size), &rows[..count * self.size]) else {
            return;
        };
        self.panels.par_iter_mut().enumerate().for_each(|(panel, sums)| {
            let from = panel * PANEL;
            let to = (from + PANEL).min(self.size);
            if let Ok(mut sums) = ArrayViewMut2::from_shape((to, to - from), sums) {
                let (left, right) = (rows.slice(s![.., ..to]), rows.slice(s![.., from..to]));
                general_mat_mul(1.0, &left.t(), &right, 1.0, &mut sums);
            }
        });
    }
}

impl Gram {
    /// The sum for a pair of inputs.
    pub fn at(&self, left: usize, right: usize) -> f64 {
        let (low, high) = (left.min(right), left.max(right));
        let panel = high / PANEL;
        let from = panel * PANEL;
        let width = PANEL.min(self.size - from);
        f64::from(self.panels[panel][low * width + high - from])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn every_pair_is_summed_whatever_the_parts() {
        let (size, rows) = (150, noise(1, 150 * 40));
        let mut parts = Gram::new(size);
        rows.chunks(size * 7).for_each(|part| parts.add(part));
        for (left, right) in [(0, 0), (3, 140), (140, 3), (149, 149), (127, 128)] {
            let wanted: f64 = rows
                .chunks(size)
                .map(|row| f64::from(row[left]) * f64::from(row[right]))
                .sum();
            assert!((parts.at(left, right) - wanted).abs() < 1e-4);
        }
    }
}
