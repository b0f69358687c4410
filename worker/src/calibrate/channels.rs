//! How large each input of a product gets: the largest magnitude and the mean square of every channel of the last dimension.
//!
//! Two numbers a channel, whatever the number of samples.

use super::Rows;

/// Magnitudes of the channels of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    /// Largest magnitude seen.
    pub largest: Vec<f32>,
    squares: Vec<f64>,
    rows: u64,
}

impl Rows for Channels {
    fn new(size: usize) -> Self {
        Self {
            largest: vec![0.0; size],
            squares: vec![0.0; size],
            rows: 0,
        }
    }

    fn size(&self) -> usize {
        self.largest.len()
    }

    fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.largest.len().max(1)) {
            self.rows += 1;
            let sums = self.largest.iter_mut().zip(&mut self.squares);
            for ((largest, square), value) in sums.zip(row) {
                *largest = largest.max(value.abs());
                *square += f64::from(*value) * f64::from(*value);
            }
        }
    }
}

impl Channels {
    /// Mean square of a channel.
    #[allow(clippy::cast_precision_loss, reason = "rows are counted, and far fewer than 2^52")]
    pub fn mean_square(&self, channel: usize) -> f64 {
        self.squares[channel] / (self.rows.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_kept_apart() {
        let mut channels = Channels::new(2);
        channels.add(&[1.0, -5.0, 3.0, 1.0]);
        channels.add(&[-2.0, 0.0]);
        assert_eq!(channels.largest, [3.0, 5.0]);
        assert!((channels.mean_square(0) - 14.0 / 3.0).abs() < 1e-9);
        assert!((channels.mean_square(1) - 26.0 / 3.0).abs() < 1e-9);
    }
}
