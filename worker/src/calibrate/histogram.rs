//! A histogram of a stream whose parts merge exactly.
//!
//! Bins are `2^exponent` wide and start at multiples of their width, so when a value falls outside, pairs of bins are
//! added and the width doubles: the result depends only on the values, not on their order or on how they were split.

use super::range::{Extent, Range};
use rayon::prelude::*;

/// Bins on each side of zero.
const HALF: i64 = 16_384;
const BINS: usize = 32_768; // twice HALF
/// Values that are looked at together. Zeros, of which rectified tensors are full, are counted in as many places, because what is counted
/// twice in a row at one place waits for itself.
const LANES: usize = 16;
/// Bits of a float's fraction.
const FRACTION: u32 = 23;
/// Values that are counted apart before they are merged: so many that counting costs far more than merging.
const PART: usize = 1 << 20;
/// Values that fit the cache next to a processor beside the counts (16 KiB).
const NEAR: usize = 1 << 12;
/// Narrowest bins: below the smallest normal float nothing needs to be told apart.
const MIN_EXPONENT: i32 = -126;

/// Counts of values in bins of one width. Bin `i` holds values from `(i - 16384) * 2^exponent` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    exponent: i32,
    counts: Vec<u64>,
    total: u64,
    /// Values that are exactly zero; they are in `counts` too.
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            exponent: MIN_EXPONENT,
            counts: no_counts(),
            total: 0,
            zeros: 0,
        }
    }
}

impl Histogram {
    /// Bytes of the counts.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<u64>()
    }

    /// Adds values and gives their extremes; many in parts side by side, which merge to the same counts. Errors with the first value that is
    /// not finite, after which the counts are of no use.
    pub(super) fn take_in(&mut self, values: &[f32]) -> Result<Extent, f32> {
        if values.len() <= PART {
            return self.take_in_part(values);
        }
        let exponent = self.exponent;
        let of_part = |values: &[f32]| {
            let mut part = Self {
                exponent,
                ..Self::default()
            };
            let extent = part.take_in_part(values)?;
            Ok((part, extent))
        };
        let parts: Vec<Result<(Self, Extent), f32>> = values.par_chunks(PART).map(of_part).collect();
        let mut all = Extent::default();
        for part in parts {
            let (part, extent) = part?;
            self.merge(part);
            all.merge(extent);
        }
        Ok(all)
    }

    /// The same for values that are counted while the search for extremes has left them in the cache.
    fn take_in_part(&mut self, values: &[f32]) -> Result<Extent, f32> {
        let mut all = Extent::default();
        for near in values.chunks(NEAR) {
            let extent = Extent::of(near)?;
            self.add(near, extent);
            all.merge(extent);
        }
        Ok(all)
    }

    /// Adds finite values whose extremes are `extent`.
    pub fn add(&mut self, values: &[f32], extent: Extent) {
        self.widen(exponent_for(extent.magnitude()));
        self.count(values);
    }

    /// Counts values that fall inside.
    fn count(&mut self, values: &[f32]) {
        self.counts.resize(BINS + LANES, 0);
        pulp::Arch::new().dispatch(Tally {
            values,
            exponent: self.exponent,
            counts: &mut self.counts,
        });
        let zeros: u64 = self.counts.drain(BINS..).sum();
        self.counts[BINS / 2] += zeros;
        self.zeros += zeros;
        self.total += values.len() as u64;
    }

    /// Adds everything that `other` has seen.
    pub fn merge(&mut self, mut other: Self) {
        self.widen(other.exponent);
        other.widen(self.exponent);
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(count, more)| *count += more);
        self.total += other.total;
        self.zeros += other.zeros;
    }

    fn widen(&mut self, exponent: i32) {
        while self.exponent < exponent {
            self.exponent += 1;
            let mut wider = no_counts();
            if self.total > 0 {
                for (index, &count) in self.counts.iter().enumerate() {
                    // floor(i / 2) counted from zero in the middle, which is an even index.
                    wider[index / 2 + BINS / 4] += count;
                }
            }
            self.counts = wider;
            if self.total == 0 {
                self.exponent = exponent;
            }
        }
    }

    /// Width of a bin.
    pub(super) fn width(&self) -> f64 {
        2_f64.powi(self.exponent)
    }

    /// Middle and count of every bin that holds something, in order; values that are exactly zero are left out.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(super) fn nonzero(&self) -> Vec<(f64, f64)> {
        let counts = self.counts.iter().zip(-HALF..);
        counts
            .map(|(&count, bin)| (bin, if bin == 0 { count - self.zeros } else { count }))
            .filter(|(_, count)| *count > 0)
            .map(|(bin, count)| ((bin as f64 + 0.5) * self.width(), count as f64))
            .collect()
    }

    /// The narrowest range of whole bins that leaves at most `(100 - percentile) / 2` percent outside on each side.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(super) fn percentile(&self, percentile: f64) -> Range {
        let outside = self.total as f64 * (100.0 - percentile) / 200.0;
        let edge = |mut bins: &mut dyn Iterator<Item = (usize, &u64)>| {
            let mut cut = 0.0;
            let found = (&mut bins).find(|(_, count)| {
                cut += **count as f64;
                cut > outside
            });
            found.map_or(0, |(index, _)| i64::try_from(index).map_or(0, |index| index - HALF))
        };
        let lowest = edge(&mut self.counts.iter().enumerate());
        let highest = edge(&mut self.counts.iter().enumerate().rev()) + 1;
        self.range_of(lowest, highest)
    }

    /// The range between the lower edges of two bins counted from zero, widened to hold zero.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "16,384 widths fit a float"
    )]
    pub(super) fn range_of(&self, lowest: i64, highest: i64) -> Range {
        let edge = |bin: i64| ((bin as f64 * self.width()) as f32).clamp(f32::MIN, f32::MAX);
        Range {
            min: edge(lowest).min(0.0),
            max: edge(highest).max(0.0),
        }
    }
}

/// Empty bins, with room for [`LANES`] more.
fn no_counts() -> Vec<u64> {
    let mut counts = Vec::with_capacity(BINS + LANES);
    counts.resize(BINS, 0);
    counts
}

/// Values to count in bins `2^exponent` wide, and zeros behind the bins.
struct Tally<'t> {
    values: &'t [f32],
    exponent: i32,
    counts: &'t mut [u64],
}

impl pulp::WithSimd for Tally<'_> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "to be compiled for the registers that were found")]
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _found: S) {
        // By so many bits is the fraction of a float with the exponent 0 too long to count bins: 24 or more, as exponents go from -126.
        let longest = 150_u32.wrapping_add_signed(self.exponent);
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        for chunk in chunks {
            let mut places = [0; LANES];
            for (lane, place) in places.iter_mut().enumerate() {
                *place = place_of(chunk[lane], longest, lane);
            }
            for place in places {
                if let Some(count) = self.counts.get_mut(place as usize) {
                    *count = count.wrapping_add(1);
                }
            }
        }
        for &value in rest {
            if let Some(count) = self.counts.get_mut(place_of(value, longest, 0) as usize) {
                *count = count.wrapping_add(1);
            }
        }
    }
}

/// The bin of a value that falls inside, exactly: `floor(value / 2^exponent)` from the middle on, in integers and without a branch.
#[allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    reason = "part of the loop around it; there are far fewer bins than 2^32"
)]
#[inline(always)]
fn place_of(value: f32, longest: u32, lane: usize) -> u32 {
    let bits = value.to_bits();
    let (negative, magnitude) = (bits >> 31, bits & (u32::MAX >> 1));
    // Subnormals get a leading one, too: in the narrowest bins they are less than one bin from zero with it and without.
    let fraction = magnitude & ((1 << FRACTION) - 1) | (1 << FRACTION);
    let shift = longest.wrapping_sub(magnitude >> FRACTION).min(31);
    let whole = fraction.wrapping_shr(shift);
    let more = u32::from(whole.wrapping_shl(shift) != fraction);
    // Below zero the next bin down, unless it starts there; and away from the middle the other way.
    let (distance, minus) = (whole.wrapping_add(more & negative), negative.wrapping_neg());
    let bin = (BINS as u32 / 2).wrapping_add((distance ^ minus).wrapping_sub(minus));
    let zero = u32::from(magnitude == 0).wrapping_neg();
    zero & (BINS + lane) as u32 | !zero & bin.min(BINS as u32 - 1)
}

/// The narrowest bins with which `magnitude`, which is finite, falls strictly inside: below `2^(exponent + 14)`.
fn exponent_for(magnitude: f32) -> i32 {
    // Of a float in [2^(e - 127), 2^(e - 126)) this is e.
    let biased = magnitude.to_bits() >> FRACTION;
    (-140_i32).saturating_add_unsigned(biased).max(MIN_EXPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values, Extent::of(values).unwrap());
        histogram
    }

    proptest! {
        #[test]
        fn parts_merge_exactly_in_any_order_and_grouping(
            values in proptest::collection::vec(prop_oneof![-1e-3_f32..1e-3, -10_f32..10.0, -1e6_f32..1e6], 1..200),
            cuts in proptest::collection::vec(0_usize..200, 0..8),
            picks in proptest::collection::vec(0_usize..8, 8),
        ) {
            let whole = of(&values);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(values.len())).collect();
            cuts.extend([0, values.len()]);
            cuts.sort_unstable();
            let ranges = cuts.windows(2).map(|pair| &values[pair[0]..pair[1]]);
            let mut streamed = Histogram::default();
            for part in ranges.clone() {
                streamed.add(part, Extent::of(part).unwrap());
            }
            prop_assert_eq!(&whole, &streamed);
            let mut taken = Histogram::default();
            let extent = values.chunks(NEAR + 1).try_fold(Extent::default(), |mut all, part| {
                all.merge(taken.take_in(part)?);
                Ok::<_, f32>(all)
            });
            prop_assert_eq!((&whole, Extent::of(&values)), (&taken, extent));
            // Whichever two are merged next, and whichever of them takes in the other.
            let mut parts: Vec<Histogram> = ranges.map(of).collect();
            for pick in picks.iter().cycle() {
                if parts.len() == 1 {
                    break;
                }
                let part = parts.swap_remove(pick % parts.len());
                let into = pick % parts.len();
                parts[into].merge(part);
            }
            prop_assert_eq!(&whole, &parts[0]);
            prop_assert_eq!(whole.counts.iter().sum::<u64>(), values.len() as u64);
            let full = Extent::of(&values).unwrap().range().unwrap();
            prop_assert_eq!(whole.percentile(99.0), parts[0].percentile(99.0));
            prop_assert_eq!(crate::calibrate::entropy::range(&whole, full), crate::calibrate::entropy::range(&parts[0], full));
        }
    }

    /// The bin of a value by plain arithmetic: 64 bits hold it and its quotient exactly.
    #[allow(clippy::cast_possible_truncation, reason = "there are few bins")]
    fn plain(value: f32, exponent: i32) -> i64 {
        (f64::from(value) * 2_f64.powi(-exponent)).floor() as i64 + HALF
    }

    #[test]
    fn bins_are_those_of_plain_arithmetic() {
        let noise = crate::testing::noise(3, 20_011);
        for scale in [1e-45_f32, 1e-38, 1e-20, 1.0, 3.0, 1e30, f32::MAX] {
            let mut values: Vec<f32> = noise.iter().map(|value| value * scale).collect();
            // Edges of bins, and what is next to them, on both sides; and all that is next to zero.
            let width = 2_f32.powi(exponent_for(scale));
            for bin in [0.0, 1.0, 2.0, 3.0, 4095.0, 8191.0] {
                let edge: f32 = bin * width;
                values.extend([
                    edge,
                    edge.next_up(),
                    edge.next_down(),
                    -edge,
                    -edge.next_up(),
                    -edge.next_down(),
                ]);
            }
            values.extend([
                0.0,
                -0.0,
                f32::from_bits(1),
                -f32::from_bits(1),
                f32::MIN_POSITIVE,
                -f32::MIN_POSITIVE,
            ]);
            let histogram = of(&values);
            let mut counts = vec![0; BINS];
            for value in &values {
                counts[usize::try_from(plain(*value, histogram.exponent)).unwrap()] += 1;
            }
            assert_eq!(histogram.counts, counts, "{scale}");
            let zeros = values.iter().filter(|value| **value == 0.0).count();
            assert_eq!(histogram.zeros, zeros as u64, "{scale}");
        }
    }

    #[test]
    fn bins_are_as_narrow_as_holds_the_magnitude() {
        let narrowest = f32::MIN_POSITIVE * 16_384.0;
        for magnitude in [0.0, 1e-45, narrowest, 1.0, 1.0_f32.next_down(), 3.0, 1e30, f32::MAX] {
            let exponent = exponent_for(magnitude);
            let holds = |exponent: i32| f64::from(magnitude) < 2_f64.powi(exponent + 14);
            assert!(holds(exponent), "{magnitude}");
            assert_eq!(holds(exponent - 1), magnitude < narrowest, "{magnitude}");
        }
    }

    #[test]
    fn many_values_are_counted_in_parts_as_one() {
        let values = crate::testing::noise(9, 2 * PART + 12_345);
        let mut pieces = of(&[3.0]);
        let mut whole = pieces.clone();
        for piece in values.chunks(PART / 3) {
            pieces.add(piece, Extent::of(piece).unwrap());
        }
        assert_eq!(whole.take_in(&values), Extent::of(&values));
        assert_eq!(whole, pieces);
        for count in [NEAR - 1, NEAR, 3 * NEAR + 7] {
            let mut taken = Histogram::default();
            assert_eq!(taken.take_in(&values[..count]), Extent::of(&values[..count]));
            assert_eq!(taken, of(&values[..count]), "{count}");
        }
    }

    #[test]
    fn percentile_leaves_the_tails_outside() {
        let mut values: Vec<f32> = (0..10_000_u16).map(|i| f32::from(i) / 10_000.0).collect();
        values.push(1000.0);
        let range = of(&values).percentile(99.9);
        assert!(range.min == 0.0 && range.max > 0.9 && range.max < 1.5, "{range:?}");
        let all = of(&values).percentile(100.0);
        assert!(all.max >= 1000.0);
    }

    #[test]
    fn bin_edges_are_where_they_should_be() {
        let histogram = of(&[-1.0, -0.5, 0.0, 0.5, 0.999]);
        assert!((histogram.width() - 2_f64.powi(-13)).abs() < f64::EPSILON * 2_f64.powi(-13));
        assert_eq!(histogram.counts[16_384], 1);
        assert_eq!(histogram.counts[16_384 + 4096], 1);
        assert_eq!(histogram.counts[16_384 - 8192], 1);
        assert_eq!((histogram.zeros, histogram.nonzero().len()), (1, 4));
    }
}
