//! The range that keeps most of the information: least Kullback-Leibler divergence (Migacz, "8-bit Inference with
//! TensorRT", GTC 2017) between a tensor's distribution `P` and what an 8-bit quantizer makes of it, `Q`.
//!
//! For every threshold `t` the values in `[-t, t]` are merged to the levels of the quantizer that would really run (step
//! `(max - min) / 255`, zero on the grid) and spread back over the bins that were not empty; what lies beyond counts at
//! the edge. Changed from the paper, where each of these made it clip far too much:
//! - exact zeros take no part: every quantizer here keeps them exactly, and rectified tensors are full of them;
//! - each level's divergence is lowered by what counting alone makes of it (Miller and Madow 1955: bins - 1, over twice
//!   the number of values): otherwise few samples, or bins as wide as a level, look best;
//! - where levels get nearly as narrow as bins, the shape inside a level can't be seen any more and is extrapolated with
//!   the square of the step;
//! - divergence does not know distance, so rare peaks cost it nothing, although they are what a maximum picks out and
//!   what a normalization passes on: a threshold counts only where the squares that it cuts off are a small share of the
//!   squared error that rounding the whole range makes anyway.

use super::{histogram::Histogram, range::Range};

/// Steps between neighbouring levels of an 8-bit quantizer.
const STEPS: f64 = 255.0;
/// Thresholds for each halving of the range, and halvings.
const PER_OCTAVE: i32 = 16;
const OCTAVES: i32 = 5;
/// Bins that a level needs for its shape to be seen.
const BINS_PER_LEVEL: f64 = 4.0;
/// Squares that may be cut off, as a share of those that rounding the whole range loses.
const CUT_SHARE: f64 = 1.0 / 16.0;
/// Values that an empty edge is taken to hold: half of one, so that its divergence stays finite.
const EMPTY_EDGE: f64 = 0.5;

/// The best range inside `full`, which is what was seen.
pub(super) fn range(histogram: &Histogram, full: Range) -> Range {
    let bins = histogram.nonzero();
    let cut = |threshold: f64| Cut {
        min: f64::from(full.min).max(-threshold),
        max: f64::from(full.max).min(threshold),
    };
    let widest = f64::from(full.max).max(-f64::from(full.min));
    let whole = cut(widest);
    if bins.is_empty() || whole.step() <= 0.0 {
        return full;
    }
    let allowed = CUT_SHARE * whole.squares(&bins, Cut::rounded);
    let mut visible = whole.rounding(&bins, histogram.width());
    let mut best = (visible.1 + whole.clipping(&bins), whole);
    for index in 1..=PER_OCTAVE * OCTAVES {
        let cut = cut(widest * (-f64::from(index) / f64::from(PER_OCTAVE)).exp2());
        if cut.step() >= BINS_PER_LEVEL * histogram.width() {
            visible = cut.rounding(&bins, histogram.width());
        }
        let rounding = visible.1 * (cut.step() / visible.0).powi(2);
        let divergence = rounding + cut.clipping(&bins);
        if divergence < best.0 && cut.squares(&bins, Cut::clipped) <= allowed {
            best = (divergence, cut);
        }
    }
    best.1.range()
}

/// A bin's middle and its count.
pub(super) type Bin = (f64, f64);

/// A range under trial.
#[derive(Debug, Clone, Copy)]
struct Cut {
    min: f64,
    max: f64,
}

impl Cut {
    fn step(self) -> f64 {
        (self.max - self.min) / STEPS
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "from the ends of a range of 32-bit floats"
    )]
    fn range(self) -> Range {
        Range {
            min: self.min as f32,
            max: self.max as f32,
        }
    }

    /// What clipping takes from a value.
    fn clipped(self, value: f64) -> f64 {
        value - value.clamp(self.min, self.max)
    }

    /// What rounding takes from a value.
    fn rounded(self, value: f64) -> f64 {
        value - (value / self.step()).round() * self.step()
    }

    fn squares(self, bins: &[Bin], lost: fn(Self, f64) -> f64) -> f64 {
        bins.iter()
            .map(|&(value, count)| count * lost(self, value).powi(2))
            .sum()
    }

    /// Divergence of what is clipped to the edges from what was there: `(1)` of the sums in the paper.
    fn clipping(self, bins: &[Bin]) -> f64 {
        let (mut edges, mut clipped, mut total) = ([0.0_f64; 2], [0.0_f64; 2], 0.0);
        let step = self.step();
        for &(value, count) in bins {
            total += count;
            for (side, outward) in [(0, self.min - value), (1, value - self.max)] {
                if outward > 0.0 {
                    clipped[side] += count;
                } else if outward > -step {
                    edges[side] += count;
                }
            }
        }
        let all = clipped[0] + clipped[1];
        if all == 0.0 {
            return 0.0;
        }
        let kept = total - all;
        if kept <= 0.0 {
            return f64::INFINITY;
        }
        let mut rest = 1.0;
        let mut sum = 0.0;
        for (edge, clipped) in edges.iter().zip(clipped) {
            let (p, q) = ((edge + clipped) / total, edge.max(EMPTY_EDGE) / kept);
            if p > 0.0 {
                sum += p * (p / q).ln();
                rest -= p;
            }
        }
        sum + rest.max(0.0) * (kept / total).ln()
    }

    /// The step, and the divergence of each level's shape from a flat one, over bins `width` wide.
    fn rounding(self, bins: &[Bin], width: f64) -> (f64, f64) {
        let step = self.step();
        let total: f64 = bins.iter().map(|(_, count)| count).sum();
        let inside = bins
            .iter()
            .filter(|(value, _)| *value >= self.min - width && *value <= self.max + width);
        let mut sum = 0.0;
        let mut level = Level::default();
        for &(value, count) in inside {
            let index = (value / step).round();
            if index.total_cmp(&level.index).is_ne() {
                sum += level.divergence();
                level = Level {
                    index,
                    ..Level::default()
                };
            }
            level.add(count);
        }
        sum += level.divergence();
        (step, (sum / total).max(0.0))
    }
}

/// One level of the quantizer while its bins pass by.
#[derive(Debug, Default, Clone, Copy)]
struct Level {
    index: f64,
    filled: f64,
    mass: f64,
    /// Sum of `n ln n` over the bins.
    information: f64,
}

impl Level {
    fn add(&mut self, count: f64) {
        self.filled += 1.0;
        self.mass += count;
        self.information += count * count.ln();
    }

    /// `sum n ln(n / (mass / filled))`, less what counting alone gives on average.
    fn divergence(&self) -> f64 {
        if self.filled < 2.0 {
            return 0.0;
        }
        self.information - self.mass * (self.mass / self.filled).ln() - (self.filled - 1.0) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{calibrate::Extent, testing::noise};

    fn chosen(parts: &[&[f32]]) -> (Range, Range) {
        let (mut histogram, mut extent) = (Histogram::default(), Extent::default());
        for part in parts {
            let seen = Extent::of(part).unwrap();
            histogram.add(part, seen);
            extent.merge(seen);
        }
        let full = extent.range().unwrap();
        (range(&histogram, full), full)
    }

    /// Sums of six uniform numbers: near a bell with standard deviation 1.41, between -6 and 6.
    fn bell(count: usize) -> Vec<f32> {
        let parts: Vec<Vec<f32>> = (0..6).map(|seed| noise(seed + 1, count)).collect();
        (0..count).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
    }

    #[test]
    fn a_lone_outlier_is_clipped_and_a_flat_distribution_is_not() {
        // One value of 100 among so many: it may lose some of itself, not most.
        let (clipped, full) = chosen(&[&bell(200_000), &[100.0]]);
        assert!(
            clipped.max < 0.92 * full.max && clipped.max > 0.5 * full.max,
            "{clipped:?}"
        );
        let (whole, full) = chosen(&[&noise(7, 40_960)]);
        assert!(whole.max > 0.97 * full.max && whole.min < 0.97 * full.min, "{whole:?}");
    }

    #[test]
    fn few_values_and_many_zeros_are_no_reason_to_clip() {
        for count in [300, 3_000, 30_000] {
            let values = bell(count);
            let rectified: Vec<f32> = values.iter().map(|value| value.max(0.0)).collect();
            for values in [values, rectified] {
                let (chosen, full) = chosen(&[&values]);
                assert!(chosen.max > 0.85 * full.max, "{count}: {chosen:?} of {full:?}");
                assert!(chosen.min <= 0.85 * full.min, "{count}: {chosen:?} of {full:?}");
            }
        }
    }

    #[test]
    fn rare_peaks_that_carry_the_squares_are_kept() {
        // Nearly nothing, and one value in two hundred that a maximum later on picks out.
        let values: Vec<f32> = noise(3, 20_000)
            .iter()
            .zip(noise(4, 20_000))
            .map(|(small, pick)| if pick > 0.99 { 5.0 + small } else { small * 0.05 })
            .collect();
        let (chosen, full) = chosen(&[&values]);
        assert!(chosen.max > 0.9 * full.max, "{chosen:?} of {full:?}");
    }
}
