//! How far the extremes of samples not yet seen will reach, from those that were.
//!
//! The extremes of runs follow nearly a Gumbel distribution (Fisher and Tippett 1928), fitted here by its first two
//! moments: scale `b = s sqrt(6) / pi`, location `m - 0.5772 b`. Nothing is kept per run.

use super::range::{Extent, Range};

/// One run in so many may reach further.
const RUNS: f64 = 1000.0;
const EULER: f64 = 0.577_215_664_9;

/// Running mean and sum of squared distances (Welford 1962).
#[derive(Debug, Default, Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.mean;
        self.mean += before / self.count;
        self.squares += before * (value - self.mean);
    }

    /// What one run in a thousand exceeds.
    fn reach(&self) -> f64 {
        let scale = (self.squares / (self.count - 1.0).max(1.0)).sqrt() * 6.0_f64.sqrt() / std::f64::consts::PI;
        self.mean + scale * (RUNS.ln() - EULER)
    }
}

/// Extremes of runs.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extremes {
    lowest: Moments,
    highest: Moments,
}

impl Extremes {
    pub(super) fn add(&mut self, extent: Extent) {
        if let Some(Range { min, max }) = extent.range() {
            self.lowest.add(-f64::from(min));
            self.highest.add(f64::from(max));
        }
    }

    /// `range`, and at least as far as runs to come will reach.
    #[allow(clippy::cast_possible_truncation, reason = "clamped to 32-bit floats")]
    pub(super) fn reach(&self, range: Range) -> Range {
        let bound = |moments: &Moments| moments.reach().clamp(0.0, f64::from(f32::MAX)) as f32;
        Range {
            min: range.min.min(-bound(&self.lowest)),
            max: range.max.max(bound(&self.highest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn later_samples_stay_inside_what_earlier_ones_let_expect() {
        let sample = |seed: u64| -> Vec<f32> {
            let parts: Vec<Vec<f32>> = (0..6).map(|part| noise(seed * 6 + part, 500)).collect();
            (0..500).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
        };
        let (mut extremes, mut seen) = (Extremes::default(), Extent::default());
        for seed in 0..8 {
            let extent = Extent::of(&sample(seed)).unwrap();
            extremes.add(extent);
            seen.merge(extent);
        }
        let seen = seen.range().unwrap();
        let reach = extremes.reach(seen);
        let later: Vec<f32> = (8..108).flat_map(sample).collect();
        let later = Extent::of(&later).unwrap().range().unwrap();
        assert!(later.max > seen.max, "eight samples do not show everything");
        assert!(reach.max >= later.max && reach.min <= later.min, "{reach:?} {later:?}");
        assert!(reach.max < 1.6 * seen.max, "{reach:?} {seen:?}");
    }

    #[test]
    fn one_run_and_equal_runs_add_nothing() {
        let mut extremes = Extremes::default();
        let range = Range { min: 0.0, max: 3.0 };
        for _ in 0..3 {
            extremes.add(Extent::of(&[0.5, 3.0]).unwrap());
            assert_eq!(extremes.reach(range), range);
        }
    }
}
