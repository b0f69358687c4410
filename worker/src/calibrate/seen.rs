//! What is kept of one tensor while batches pass by, and the range that a method makes of it. Its size does not depend on their number.

use super::{Extent, Histogram, Method, Observed, Range, average::Average, entropy, extremes::Extremes, squared_error};

/// What is kept of one tensor.
pub(super) struct Seen {
    extent: Extent,
    extremes: Extremes,
    kept: Kept,
    rank: Option<usize>,
    rank_varies: bool,
}

/// What a method needs besides the extremes.
enum Kept {
    Nothing,
    Average(Average),
    Histogram(Histogram),
}

impl Seen {
    pub(super) fn new(method: Method) -> Self {
        let kept = match method {
            Method::MinMax => Kept::Nothing,
            Method::MovingAverage(constant) => Kept::Average(Average::new(constant)),
            Method::Entropy | Method::Percentile(_) | Method::MeanSquaredError => Kept::Histogram(Histogram::default()),
        };
        Self {
            extent: Extent::default(),
            extremes: Extremes::default(),
            kept,
            rank: None,
            rank_varies: false,
        }
    }

    /// Adds what one run gave, a tensor of `rank` dimensions. Errors with the first value that is not finite.
    pub(super) fn add(&mut self, rank: usize, values: &[f32]) -> Result<(), f32> {
        self.rank_varies |= self.rank.replace(rank).is_some_and(|before| before != rank);
        let extent = match &mut self.kept {
            Kept::Nothing => Extent::of(values)?,
            Kept::Average(average) => {
                let extent = Extent::of(values)?;
                average.add(extent);
                extent
            }
            Kept::Histogram(histogram) => histogram.take_in(values)?,
        };
        self.extent.merge(extent);
        self.extremes.add(extent);
        Ok(())
    }

    /// What `method` makes of it, the one that it was kept for; none where nothing was seen.
    pub(super) fn observed(&self, method: Method) -> Option<Observed> {
        let full = self.extent.range()?;
        let range = self.range(method, full).intersect(full);
        Some(Observed {
            range,
            full,
            reach: self.extremes.reach(range),
            rank: self.rank.filter(|_| !self.rank_varies),
        })
    }

    fn range(&self, method: Method, full: Range) -> Range {
        match (&self.kept, method) {
            (Kept::Average(average), _) => average.range().unwrap_or(full),
            (Kept::Histogram(histogram), Method::Percentile(percentile)) => histogram.percentile(percentile),
            (Kept::Histogram(histogram), Method::Entropy) => entropy::range(histogram, full),
            (Kept::Histogram(histogram), Method::MeanSquaredError) => squared_error::range(histogram, full),
            _ => full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [Method; 5] = [
        Method::MinMax,
        Method::MovingAverage(0.01),
        Method::Entropy,
        Method::Percentile(99.99),
        Method::MeanSquaredError,
    ];

    fn range(method: Method, parts: &[&[f32]]) -> Range {
        let mut seen = Seen::new(method);
        for part in parts {
            seen.add(1, part).unwrap();
        }
        seen.observed(method).unwrap().range
    }

    #[test]
    fn every_method_survives_degenerate_values() {
        for method in METHODS {
            assert_eq!(range(method, &[&[0.0; 100]]), Range { min: 0.0, max: 0.0 });
            for constant in [3.5, -3.5] {
                let of = range(method, &[&[constant; 100]]);
                let (near, far) = if constant > 0.0 {
                    (of.min, of.max)
                } else {
                    (of.max, of.min)
                };
                assert!(near == 0.0 && (far - constant).abs() < 0.01, "{method:?} {of:?}");
            }
            let tiny = range(method, &[&[1e-38, -1e-38]]);
            assert!(
                tiny.min < 0.0 && tiny.max > 0.0 && tiny.max <= 1e-38,
                "{method:?} {tiny:?}"
            );
            let subnormal = range(method, &[&[1e-44; 10]]);
            assert!(subnormal.min == 0.0 && subnormal.max >= 0.0 && subnormal.max <= 1e-44);
            let wide = range(method, &[&[f32::MAX, f32::MIN, 0.0]]);
            assert!(wide.min.is_finite() && wide.max.is_finite() && wide.max > 0.0 && wide.min < 0.0);
        }
    }

    /// Bytes that are kept of a tensor after so many runs.
    fn kept(method: Method, runs: u64) -> usize {
        fn inline<T: Copy>(_: &T) -> usize {
            0
        }
        let mut seen = Seen::new(method);
        for run in 0..runs {
            let values = crate::testing::noise(run, 200);
            seen.add(1, &values).unwrap();
        }
        let elsewhere = match &seen.kept {
            Kept::Nothing => 0,
            Kept::Average(average) => inline(average),
            Kept::Histogram(histogram) => histogram.bytes(),
        };
        size_of_val(&seen) + inline(&seen.extent) + inline(&seen.extremes) + elsewhere
    }

    #[test]
    fn as_much_is_kept_of_many_runs_as_of_one() {
        for method in METHODS {
            assert_eq!(kept(method, 300), kept(method, 1), "{method:?}");
        }
    }

    #[test]
    fn what_is_on_one_side_stays_there_and_nothing_leaves_what_was_seen() {
        let right: Vec<f32> = crate::testing::noise(1, 4096).iter().map(|value| 2.0 + value).collect();
        let left: Vec<f32> = right.iter().map(|value| -value).collect();
        for method in METHODS {
            let of = range(method, &[&right[..2048], &right[2048..]]);
            assert!(of.min == 0.0 && of.max > 2.5 && of.max <= 3.0, "{method:?} {of:?}");
            let of = range(method, &[&left[..2048], &left[2048..]]);
            assert!(of.max == 0.0 && of.min < -2.5 && of.min >= -3.0, "{method:?} {of:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 37];
            values[20] = bad;
            for method in METHODS {
                assert!(Seen::new(method).add(1, &values).is_err());
            }
        }
    }

    #[test]
    fn a_tensor_never_seen_has_no_range() {
        for method in METHODS {
            let mut seen = Seen::new(method);
            seen.add(1, &[]).unwrap();
            assert_eq!(seen.observed(method), None);
        }
    }
}
