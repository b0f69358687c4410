//! The average of the extremes of runs, older runs counting less. Nothing is kept per run.
//!
//! `a <- a + max(c, 1 / n) (x - a)` for the smallest and the largest value `x` of run `n`, from 1: the moving average of quantization-aware
//! training (Jacob et al., 2017, arXiv:1712.05877, section 3.1), with the constant that ONNX Runtime's and TensorFlow's calibrations use. There
//! it starts at the first run, of which 0.9 is left after ten more; calibration has few runs, and their mean until `1 / n` is below `c`.
//! The order of the samples, and which of them run together, are part of the definition.

use super::range::{Extent, Range};

/// A moving average of extremes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Average {
    constant: f64,
    runs: f64,
    ends: Option<(f64, f64)>,
}

impl Average {
    /// With the share of its distance by which a run moves the average at least.
    pub(super) fn new(constant: f64) -> Self {
        Self {
            constant,
            runs: 0.0,
            ends: None,
        }
    }

    pub(super) fn add(&mut self, extent: Extent) {
        let Some((min, max)) = extent.ends() else {
            return;
        };
        let (min, max) = (f64::from(min), f64::from(max));
        self.runs += 1.0;
        let share = self.constant.max(1.0 / self.runs);
        let moved = |from: f64, to: f64| from + share * (to - from);
        self.ends = Some(match self.ends {
            Some((low, high)) => (moved(low, min), moved(high, max)),
            None => (min, max),
        });
    }

    /// The average, widened to hold zero; none where nothing was seen.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "an average of 32-bit floats is no larger than they are"
    )]
    pub(super) fn range(&self) -> Option<Range> {
        self.ends.map(|(min, max)| Range {
            min: min.min(0.0) as f32,
            max: max.max(0.0) as f32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn average(constant: f64, runs: &[[f32; 2]]) -> Range {
        let mut average = Average::new(constant);
        for run in runs {
            average.add(Extent::of(run).unwrap());
            average.add(Extent::default());
        }
        average.range().unwrap()
    }

    #[test]
    fn each_run_moves_the_average_by_its_share() {
        let runs = [[-1.0, 2.0], [-3.0, 4.0], [-1.0, 10.0]];
        assert_eq!(average(0.5, &runs), Range { min: -1.5, max: 6.5 });
        assert_eq!(average(1.0, &runs), Range { min: -1.0, max: 10.0 });
        // n equal runs behind many of another range: what is left of those is (1 - c)^n.
        let many: Vec<[f32; 2]> = std::iter::repeat_n([0.0, 0.0], 1000)
            .chain(std::iter::repeat_n([0.0, 1.0], 100))
            .collect();
        let left = 1.0 - f64::from(average(0.01, &many).max);
        assert!((left - 0.99_f64.powi(100)).abs() < 1e-6, "{left}");
    }

    #[test]
    fn the_first_runs_count_alike() {
        let runs = [[0.0, 1.0], [0.0, 1.0], [-4.0, 6.0], [0.0, 8.0]];
        assert_eq!(average(0.01, &runs), Range { min: -1.0, max: 4.0 });
    }

    #[test]
    fn order_counts_and_zero_is_inside() {
        let (first, last) = ([[1.0, 2.0], [5.0, 8.0]], [[5.0, 8.0], [1.0, 2.0]]);
        let (rising, falling) = (average(0.9, &first), average(0.9, &last));
        assert!(rising.max > 7.3 && falling.max < 2.7);
        assert_eq!((rising.min.to_bits(), falling.min.to_bits()), (0, 0));
        assert_eq!(Average::new(0.01).range(), None);
    }
}
