//! The range with the least mean squared error of what an 8-bit quantizer makes of a tensor: what rounding and clipping take from a value.
//!
//! For a range `[a, b]`, with steps of `(b - a) / 255` and zero on the grid, the error is the sum over the histogram of
//! - `(x - a)^2` below and `(x - b)^2` above the range,
//! - `x^2` for what is rounded to zero, which is most of a softmax,
//! - `step^2 / 12` for everything else: values lie evenly between two levels (Bennett 1948).
//!
//! Both ends are searched together, each among fractions of what was seen at its side. Exact zeros are kept by every range.

use super::{histogram::Histogram, range::Range};

/// Steps between neighbouring levels of an 8-bit quantizer.
const STEPS: f64 = 255.0;
/// Ends that are tried for each halving of a side, and halvings.
const PER_OCTAVE: u32 = 16;
const OCTAVES: u32 = 5;

/// The best range inside `full`, which is what was seen.
pub(super) fn range(histogram: &Histogram, full: Range) -> Range {
    let sums = Sums::of(histogram);
    let ends = |end: f32| -> Vec<f64> {
        // A side on which nothing lies has one end.
        let tried = if end == 0.0 { 0 } else { PER_OCTAVE * OCTAVES };
        (0..=tried)
            .map(|index| f64::from(end) * (-f64::from(index) / f64::from(PER_OCTAVE)).exp2())
            .collect()
    };
    let (lower, upper): (Vec<_>, Vec<_>) = (
        ends(full.min).into_iter().map(|end| (end, sums.below(end))).collect(),
        ends(full.max).into_iter().map(|end| (end, sums.above(end))).collect(),
    );
    let pairs = lower.iter().flat_map(|low| upper.iter().map(move |high| (low, high)));
    pairs
        .map(|(&(min, below), &(max, above))| {
            let error = below + above + sums.rounding(min, max);
            (error, min, max)
        })
        .min_by(|(left, ..), (right, ..)| left.total_cmp(right))
        .map_or(full, |(_, min, max)| narrowed(min, max))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "fractions of the ends of a range of 32-bit floats"
)]
fn narrowed(min: f64, max: f64) -> Range {
    Range {
        min: min as f32,
        max: max as f32,
    }
}

/// Number, sum and sum of squares of some values.
#[derive(Debug, Default, Clone, Copy)]
struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn less(self, other: Self) -> Self {
        Self {
            count: self.count - other.count,
            sum: self.sum - other.sum,
            squares: self.squares - other.squares,
        }
    }

    /// Sum of squared distances from `end`.
    fn around(self, end: f64) -> f64 {
        (self.squares - 2.0 * end * self.sum + end * end * self.count).max(0.0)
    }
}

/// Moments of all bins before each bin, and of all bins.
struct Sums {
    middles: Vec<f64>,
    before: Vec<Moments>,
}

impl Sums {
    fn of(histogram: &Histogram) -> Self {
        let bins = histogram.nonzero();
        let mut seen = Moments::default();
        let mut before = vec![seen];
        for &(middle, count) in &bins {
            seen.count += count;
            seen.sum += count * middle;
            seen.squares += count * middle * middle;
            before.push(seen);
        }
        Self {
            middles: bins.into_iter().map(|(middle, _)| middle).collect(),
            before,
        }
    }

    /// Moments of what lies below `value`.
    fn before(&self, value: f64) -> Moments {
        self.before[self.middles.partition_point(|middle| *middle < value)]
    }

    fn all(&self) -> Moments {
        self.before.last().copied().unwrap_or_default()
    }

    /// What clipping to `end` takes from the values below it.
    fn below(&self, end: f64) -> f64 {
        self.before(end).around(end)
    }

    /// What clipping to `end` takes from the values above it.
    fn above(&self, end: f64) -> f64 {
        self.all().less(self.before(end)).around(end)
    }

    /// What rounding takes from the values inside.
    fn rounding(&self, min: f64, max: f64) -> f64 {
        let step = (max - min) / STEPS;
        let inside = self.before(max).less(self.before(min));
        let zeroed = self.before(max.min(step / 2.0)).less(self.before(min.max(-step / 2.0)));
        zeroed.squares + (inside.count - zeroed.count) * step * step / 12.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{calibrate::Extent, testing::noise};

    fn chosen(values: &[f32]) -> (Range, Range) {
        let (mut histogram, extent) = (Histogram::default(), Extent::of(values).unwrap());
        histogram.add(values, extent);
        let full = extent.range().unwrap();
        (range(&histogram, full), full)
    }

    /// Quantiles of a density, so that the tails are as long as theory has them.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "counts are small"
    )]
    fn quantiles(count: usize, density: impl Fn(f64) -> f64) -> Vec<f32> {
        let (mut values, mut mass, step) = (Vec::new(), 0.0, 2e-5);
        let mut at = -20.0;
        while at < 20.0 {
            mass += density(at) * step;
            while mass * count as f64 > values.len() as f64 + 0.5 {
                values.push(at as f32);
            }
            at += step;
        }
        values
    }

    #[test]
    fn ends_are_where_theory_puts_them() {
        // The best clipping for 8 bits: 3.92 standard deviations of a Gaussian, 9.89 scales of a Laplace distribution (Banner et al.,
        // 2018, arXiv:1810.05723, tables of the supplement).
        let gaussian = quantiles(1_000_000, |x| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt());
        let laplace = quantiles(1_000_000, |x| (-x.abs()).exp() / 2.0);
        for (values, wanted) in [(gaussian, 3.92), (laplace, 9.89)] {
            let (chosen, full) = chosen(&values);
            assert!(full.max > 1.2 * wanted, "there is something to clip: {full:?}");
            for end in [chosen.max, -chosen.min] {
                assert!((end / wanted - 1.0).abs() < 0.05, "{chosen:?}, {wanted}");
            }
        }
    }

    #[test]
    fn a_flat_distribution_is_not_clipped_and_a_lone_outlier_is() {
        let flat = noise(3, 100_000);
        let (chosen_range, full) = chosen(&flat);
        assert!(chosen_range.max > 0.95 * full.max && chosen_range.min < 0.95 * full.min);
        let with: Vec<f32> = flat.into_iter().chain([40.0]).collect();
        let (chosen_range, _) = chosen(&with);
        // (40 - b)^2 + n (b + 1)^2 / (12 * 255^2) is least where 40 - b = 0.128 (b + 1).
        assert!((chosen_range.max / 35.3 - 1.0).abs() < 0.05, "{chosen_range:?}");
        assert!(
            chosen_range.min < -0.95,
            "the other side keeps what it has: {chosen_range:?}"
        );
    }

    #[test]
    fn what_is_rounded_to_zero_anyway_is_no_reason_to_clip() {
        // A softmax: a thousand times next to nothing, and what attention is paid to.
        let values: Vec<f32> = noise(5, 40_000)
            .iter()
            .enumerate()
            .map(|(index, noise)| {
                if index % 1000 == 0 {
                    0.9 + noise / 10.0
                } else {
                    noise.abs() / 2000.0
                }
            })
            .collect();
        let (chosen, full) = chosen(&values);
        assert!(chosen.max > 0.9 * full.max, "{chosen:?} of {full:?}");
    }
}
