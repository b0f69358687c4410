//! How far each input of a product reaches: ends and mean square of every channel of the last dimension.
//!
//! A few numbers a channel, whatever the number of samples.

use super::Rows;

/// Ends and squares of the channels of one tensor. Ends include zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    all: Ends,
    /// Sums, over runs, of the squares of each run's ends, times its rows.
    runs: Ends,
    squares: Vec<f64>,
    rows: u64,
}

/// Distances from zero: as far up, and as far down, as each channel goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ends {
    /// Of the largest value.
    pub up: Vec<f64>,
    /// Of the smallest value.
    pub down: Vec<f64>,
}

impl Ends {
    fn new(size: usize) -> Self {
        Self {
            up: vec![0.0; size],
            down: vec![0.0; size],
        }
    }

    fn extend(&mut self, channel: usize, value: f64) {
        self.up[channel] = self.up[channel].max(value);
        self.down[channel] = self.down[channel].max(-value);
    }
}

impl Rows for Channels {
    fn new(size: usize) -> Self {
        Self {
            all: Ends::new(size),
            runs: Ends::new(size),
            squares: vec![0.0; size],
            rows: 0,
        }
    }

    fn size(&self) -> usize {
        self.squares.len()
    }

    fn add(&mut self, rows: &[f32]) {
        let size = self.size();
        let (mut run, mut count) = (Ends::new(size), 0_u32);
        for row in rows.chunks_exact(size.max(1)) {
            count += 1;
            let ends = run.up.iter_mut().zip(&mut run.down);
            for (((up, down), square), value) in ends.zip(&mut self.squares).zip(row) {
                let value = f64::from(*value);
                *up = if value > *up { value } else { *up };
                *down = if -value > *down { -value } else { *down };
                *square += value * value;
            }
        }
        self.rows += u64::from(count);
        for channel in 0..size {
            let (up, down) = (run.up[channel], run.down[channel]);
            self.all.extend(channel, up);
            self.all.extend(channel, -down);
            self.runs.up[channel] += up * up * f64::from(count);
            self.runs.down[channel] += down * down * f64::from(count);
        }
    }
}

impl Channels {
    /// Adds what another has seen of as many channels.
    pub fn join(&mut self, other: &Self) {
        for channel in 0..self.size().min(other.size()) {
            self.squares[channel] += other.squares[channel];
            self.all.extend(channel, other.all.up[channel]);
            self.all.extend(channel, -other.all.down[channel]);
            self.runs.up[channel] += other.runs.up[channel];
            self.runs.down[channel] += other.runs.down[channel];
        }
        self.rows += other.rows;
    }

    /// As far as any value has gone: what a range that is fixed beforehand must hold.
    pub fn ends(&self) -> &Ends {
        &self.all
    }

    /// As far as the values of one run go, in the mean of squares: what a range that each run finds for itself holds.
    pub fn usual_ends(&self) -> Ends {
        let root = |sums: &[f64]| sums.iter().map(|sum| (sum / self.count()).sqrt()).collect();
        Ends {
            up: root(&self.runs.up),
            down: root(&self.runs.down),
        }
    }

    /// Mean square of a channel.
    pub fn mean_square(&self, channel: usize) -> f64 {
        self.squares[channel] / self.count()
    }

    #[allow(clippy::cast_precision_loss, reason = "rows are counted, and far fewer than 2^52")]
    fn count(&self) -> f64 {
        self.rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_is_what_was_seen_one_after_the_other() {
        let (mut joined, mut other, mut both) = (Channels::new(2), Channels::new(2), Channels::new(2));
        let (first, second) = ([1.0, -5.0, 3.0, 1.0], [-2.0, 0.5]);
        joined.add(&first);
        other.add(&second);
        joined.join(&other);
        both.add(&first);
        both.add(&second);
        assert_eq!(joined, both);
    }

    #[test]
    fn channels_are_kept_apart() {
        let mut channels = Channels::new(2);
        channels.add(&[1.0, -5.0, 3.0, 1.0]);
        channels.add(&[-2.0, 0.0]);
        assert_eq!(
            (channels.ends().up.as_slice(), channels.ends().down.as_slice()),
            (&[3.0, 1.0][..], &[2.0, 5.0][..])
        );
        let usual = channels.usual_ends();
        assert!((usual.up[0] - (2.0 * 9.0 / 3.0_f64).sqrt()).abs() < 1e-9);
        assert!((usual.down[0] - (4.0 / 3.0_f64).sqrt()).abs() < 1e-9);
        assert!((channels.mean_square(0) - 14.0 / 3.0).abs() < 1e-9);
        assert!((channels.mean_square(1) - 26.0 / 3.0).abs() < 1e-9);
    }
}
