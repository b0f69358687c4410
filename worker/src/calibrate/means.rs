//! What the channels of a convolution's input are on average. Two numbers a channel, whatever the number and the size of samples.

use super::Extent;

/// Values that are summed side by side.
const LANES: usize = 8;

/// Means of the channels of one tensor, `[samples, channels, ...]`: each sample counts as much as another, whatever its size.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Over samples, of a channel's mean and of the mean of its squares.
    sums: Vec<[f64; 2]>,
    samples: u64,
}

impl Means {
    /// Of `channels` channels, nothing seen yet.
    pub fn new(channels: usize) -> Self {
        Self {
            sums: vec![[0.0; 2]; channels],
            samples: 0,
        }
    }

    /// Adds the samples of one run, of shape `dims`; nothing where they have another number of channels, or no values. Errors with a value
    /// that is not finite, after which the sums are of no use.
    pub fn add(&mut self, dims: &[usize], values: &[f32]) -> Result<(), f32> {
        let channels = self.sums.len();
        let [samples, found, rest @ ..] = dims else {
            return Ok(());
        };
        let plane: usize = rest.iter().product();
        if *found != channels || values.is_empty() || values.len() != samples * channels * plane {
            return Ok(());
        }
        for sample in values.chunks_exact(channels * plane) {
            for (sums, plane) in self.sums.iter_mut().zip(sample.chunks_exact(plane)) {
                let moments = moments(plane);
                if !moments.iter().all(|moment| moment.is_finite()) {
                    // Squares of finite floats never leave the range of 64 bits.
                    Extent::of(plane)?;
                }
                sums.iter_mut().zip(moments).for_each(|(sum, moment)| *sum += moment);
            }
            self.samples += 1;
        }
        Ok(())
    }

    /// Mean of a channel; zero of one that there is not.
    pub fn mean(&self, channel: usize) -> f64 {
        self.moment(channel, 0)
    }

    /// Mean square of a channel; zero of one that there is not.
    pub fn mean_square(&self, channel: usize) -> f64 {
        self.moment(channel, 1)
    }

    #[allow(clippy::cast_precision_loss, reason = "samples are counted, and far fewer than 2^52")]
    fn moment(&self, channel: usize, power: usize) -> f64 {
        let sum = self.sums.get(channel).map_or(0.0, |sums| sums[power]);
        sum / self.samples.max(1) as f64
    }
}

/// Mean and mean square, summed in an order that only the number of values decides.
#[allow(clippy::cast_precision_loss, reason = "values in memory are far fewer than 2^52")]
fn moments(values: &[f32]) -> [f64; 2] {
    let (mut sums, mut squares) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    let mut add = |values: &[f32]| {
        for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(values) {
            let value = f64::from(*value);
            *sum += value;
            *square += value * value;
        }
    };
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        add(values);
    }
    add(rest);
    [sums, squares].map(|lanes| lanes.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn every_sample_counts_the_same_and_channels_are_kept_apart() {
        let mut means = Means::new(2);
        means
            .add(&[2, 2, 1, 2], &[1.0, 3.0, 10.0, 10.0, 5.0, 7.0, -10.0, -10.0])
            .unwrap();
        // A larger one, and what has other channels or no values.
        means.add(&[1, 2, 3], &[0.0, 0.0, 3.0, 6.0, 6.0, 6.0]).unwrap();
        means.add(&[1, 3], &[9.0; 3]).unwrap();
        means.add(&[0, 2, 4], &[]).unwrap();
        means.add(&[4], &[9.0; 4]).unwrap();
        let near = |left: f64, right: f64| assert!((left - right).abs() < 1e-12, "{left} {right}");
        near(means.mean(0), (2.0 + 6.0 + 1.0) / 3.0);
        near(means.mean(1), (10.0 - 10.0 + 6.0) / 3.0);
        near(means.mean_square(0), (5.0 + 37.0 + 3.0) / 3.0);
        near(means.mean(2), 0.0);
    }

    #[test]
    fn sums_hang_neither_on_threads_nor_on_batches() {
        let values = noise(3, 4 * 5 * 1_003);
        let of = |threads: usize, batch: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut means = Means::new(5);
            for run in values.chunks(batch * 5 * 1_003) {
                pool.install(|| means.add(&[batch, 5, 17, 59], run)).unwrap();
            }
            means
        };
        assert_eq!(of(1, 4), of(2, 1));
        let wanted = values
            .chunks(1_003)
            .step_by(5)
            .flatten()
            .map(|v| f64::from(*v))
            .sum::<f64>()
            / (4.0 * 1_003.0);
        assert!((of(1, 4).mean(0) - wanted).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_finite_is_told() {
        let mut means = Means::new(1);
        assert_eq!(means.add(&[1, 1, 3], &[1.0, f32::INFINITY, 2.0]), Err(f32::INFINITY));
        assert!(means.add(&[1, 1, 2], &[0.0, f32::NAN]).unwrap_err().is_nan());
        means.add(&[1, 1, 2], &[f32::MAX, f32::MIN]).unwrap();
        assert!(means.mean(0).abs() < 1e-9);
    }
}
