//! The range that keeps most of the information: minimal Kullback-Leibler divergence (Migacz, "8-bit Inference with
//! TensorRT", GTC 2017), on the histogram of magnitudes.
//!
//! For every threshold `t` the distribution `P` clipped at `t` (what lies beyond counts at the edge) is compared with
//! `Q`, the same without the clipped mass, merged to 128 levels and spread back over the bins that were not empty.
//! Changed from the paper: both sums run over the histogram's own bins of a power of two, `Q`'s empty bins that `P` has
//! filled get a small mass instead of an infinite divergence, and zero magnitudes take part.

use super::{histogram::Histogram, range::Range};

/// Levels on one side of zero of an 8-bit quantizer.
const LEVELS: usize = 128;
/// Mass given to a bin that `P` has and `Q` has not, as a share of all.
const SMOOTHING: f64 = 1e-7;

/// The range `[-t, t]` of the best threshold.
pub(super) fn range(histogram: &Histogram) -> Range {
    let counts = histogram.magnitudes();
    let used = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
    let mut best = (f64::INFINITY, used);
    // From the widest threshold down, so that among equals the widest wins. Steps of a 128th keep it linear in time.
    let step = (used / LEVELS).max(1);
    let mut threshold = used;
    while threshold >= LEVELS.min(used) && threshold > 0 {
        let divergence = divergence(&counts, threshold, used);
        if divergence < best.0 {
            best = (divergence, threshold);
        }
        threshold = threshold.saturating_sub(step);
    }
    let edge = i64::try_from(best.1).unwrap_or(i64::MAX);
    histogram.range_of(-edge, edge)
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn divergence(counts: &[u64], threshold: usize, used: usize) -> f64 {
    let inside = &counts[..threshold];
    let clipped: u64 = counts[threshold..used].iter().sum();
    let total = (inside.iter().sum::<u64>() + clipped) as f64;
    let kept = inside.iter().sum::<u64>() as f64;
    if kept == 0.0 {
        return f64::INFINITY;
    }
    let levels = LEVELS.min(threshold);
    let mut sum = 0.0;
    for level in 0..levels {
        let (from, to) = (level * threshold / levels, (level + 1) * threshold / levels);
        let bins = &inside[from..to];
        let mass = bins.iter().sum::<u64>() as f64;
        let filled = bins.iter().filter(|&&count| count > 0).count();
        for (index, &count) in bins.iter().enumerate() {
            let edge = if from + index + 1 == threshold { clipped } else { 0 };
            let p = (count + edge) as f64 / total;
            if p > 0.0 {
                let q = if count > 0 {
                    mass / filled as f64 / kept
                } else {
                    SMOOTHING
                };
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Extent;

    #[test]
    fn a_lone_outlier_is_clipped_and_a_flat_distribution_is_not() {
        let bell: Vec<f32> = (0..200_000_u32)
            .map(|i| {
                (0..6)
                    .map(|k| f32::from(u16::try_from(i.wrapping_mul(2_654_435_761 + k * 97) >> 16).unwrap()))
                    .sum()
            })
            .map(|sum: f32| sum / 65_536.0 - 3.0)
            .collect();
        let mut histogram = Histogram::default();
        histogram.add(&bell, Extent::of(&bell).unwrap());
        histogram.add(&[100.0], Extent::of(&[100.0]).unwrap());
        let clipped = range(&histogram);
        assert!(clipped.max < 20.0, "{clipped:?}");

        let flat: Vec<f32> = (0..40_960_u16).map(|i| f32::from(i) / 40_960.0).collect();
        let mut histogram = Histogram::default();
        histogram.add(&flat, Extent::of(&flat).unwrap());
        let whole = range(&histogram);
        assert!(whole.max > 0.97, "{whole:?}");
    }
}
