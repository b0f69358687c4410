//! Extremes of a stream of values, and the range that a quantizer gets from them.

/// Smallest and largest value seen so far; none seen yet is `min > max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    min: f32,
    max: f32,
}

impl Default for Extent {
    fn default() -> Self {
        Self {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        }
    }
}

impl Extent {
    /// Extremes of a slice. Errors with a value that is not finite, if there is one.
    pub fn of(values: &[f32]) -> Result<Self, f32> {
        const LANES: usize = 16;
        let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        // A finite value times zero is zero; anything else gives NaN, which survives the sum.
        let mut poison = [0.0_f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let value = chunk[lane];
                min[lane] = if value < min[lane] { value } else { min[lane] };
                max[lane] = if value > max[lane] { value } else { max[lane] };
                poison[lane] += value * 0.0;
            }
        }
        let bad = poison.iter().any(|sum| sum.is_nan()) || rest.iter().any(|value| !value.is_finite());
        if bad {
            return Err(values
                .iter()
                .copied()
                .find(|value| !value.is_finite())
                .unwrap_or(f32::NAN));
        }
        let (mut all_min, mut all_max) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in min.iter().chain(rest) {
            all_min = all_min.min(value);
        }
        for &value in max.iter().chain(rest) {
            all_max = all_max.max(value);
        }
        Ok(Self {
            min: all_min,
            max: all_max,
        })
    }

    /// Extremes of both.
    pub fn merge(&mut self, other: Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Largest magnitude; 0 where nothing was seen.
    pub fn magnitude(self) -> f32 {
        if self.min > self.max {
            0.0
        } else {
            self.min.abs().max(self.max.abs())
        }
    }

    /// Smallest and largest value; none where nothing was seen.
    pub(super) fn ends(self) -> Option<(f32, f32)> {
        (self.min <= self.max).then_some((self.min, self.max))
    }

    /// The range, widened to hold zero; none where nothing was seen.
    pub fn range(self) -> Option<Range> {
        self.ends().map(|(min, max)| Range {
            min: min.min(0.0),
            max: max.max(0.0),
        })
    }
}

/// The values that a quantizer keeps apart; zero is always inside, so that padding and rectified values stay exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// At most 0.
    pub min: f32,
    /// At least 0.
    pub max: f32,
}

impl Range {
    /// The part of this range inside `other`.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self {
            min: self.min.max(other.min).min(0.0),
            max: self.max.min(other.max).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extent_is_that_of_a_plain_loop(values in proptest::collection::vec(-1e30_f32..1e30, 1..100)) {
            let extent = Extent::of(&values).unwrap();
            prop_assert_eq!(extent.min.to_bits(), (values.iter().copied().fold(f32::INFINITY, f32::min)).to_bits());
            prop_assert_eq!(extent.max.to_bits(), (values.iter().copied().fold(f32::NEG_INFINITY, f32::max)).to_bits());
        }
    }
}
