//! Numbers of block-wise quantization: runs of weights to unsigned integers with a scale and a zero point of their own.
//!
//! `real = scale * (code - zero_point)`, as `MatMulNBits` and `GatherBlockQuantized` of ONNX Runtime's contributed operators read it.
//! Never touches a graph.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "values are clamped to the target type before they are cast"
)]

use super::gptq::Factor;
use rayon::prelude::*;

/// Scales below this would make products of two scales denormal.
const SMALLEST_SCALE: f32 = 1e-18;
/// Shares of a block's range that are tried with 4 bits: clipping its largest values may cost less than coarse steps for all.
const SHARES: [f32; 9] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72, 0.68];
/// Rows that one thread gathers and rounds at once, so that it reads whole cache lines of a matrix whose rows are its columns.
pub(super) const TILE: usize = 32;
/// Floats of this magnitude have no digits behind the point: adding it rounds to the nearest whole number, ties to even, and unlike a
/// call of the mathematical library for several values at once.
pub(super) const WHOLE: f32 = 12_582_912.0;
/// Values that are computed side by side.
const LANES: usize = 8;

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Two weights a byte, the first in the lower half.
    Four,
    /// One weight a byte.
    Eight,
}

impl Bits {
    /// As a number.
    pub fn number(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::Four => 15.0,
            Self::Eight => 255.0,
        }
    }

    /// Bytes of `count` packed values.
    pub(super) fn bytes(self, count: usize) -> usize {
        (count * self.number()).div_ceil(8)
    }

    /// The code at `index` of packed ones.
    pub(super) fn code(self, packed: &[u8], index: usize) -> u8 {
        match self {
            Self::Eight => packed[index],
            Self::Four => packed[index / 2] >> (4 * (index % 2)) & 15,
        }
    }

    pub(super) fn pack(self, codes: &[u8], packed: &mut [u8]) {
        match self {
            Self::Eight => packed[..codes.len()].copy_from_slice(codes),
            Self::Four => {
                for (pair, byte) in codes.chunks(2).zip(packed) {
                    *byte = pair[0] | pair.get(1).map_or(0, |second| second << 4);
                }
            }
        }
    }
}

/// Rows of weights, quantized in blocks; what a short last block lacks is the zero point, which is zero.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blocked {
    /// For each row its blocks, each of them packed.
    pub(super) codes: Vec<u8>,
    /// One for each block of each row.
    pub(super) scales: Vec<f32>,
    /// For each row its blocks' zero points, packed.
    pub(super) zero_points: Vec<u8>,
}

/// Where the values of a row lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// One after another.
    Rows,
    /// A whole row of the matrix apart: its columns are the rows that are meant.
    Columns,
}

/// Quantizes `rows` runs of `length` weights in blocks of `block`: each weight to the nearest step, or, where `factor` says which
/// inputs go together, so that what one weight is rounded by is made good by those after it. `None` if a value is not finite.
///
/// `weights` are little-endian floats, read where they lie: a copy of the largest would be as large as what is made of many.
pub(super) fn quantize(
    weights: &[[u8; 4]],
    (rows, length): (usize, usize),
    order: Order,
    bits: Bits,
    block: usize,
    factor: Option<&Factor>,
) -> Option<Blocked> {
    let blocks = length.div_ceil(block);
    let (row_bytes, zero_bytes) = (blocks * bits.bytes(block), bits.bytes(blocks));
    let mut blocked = Blocked {
        codes: vec![0; rows * row_bytes],
        scales: vec![0.0; rows * blocks],
        zero_points: vec![0; rows * zero_bytes],
    };
    let importance = factor.map(Factor::importance);
    blocked
        .codes
        .par_chunks_mut(TILE * row_bytes)
        .zip(blocked.scales.par_chunks_mut(TILE * blocks))
        .zip(blocked.zero_points.par_chunks_mut(TILE * zero_bytes))
        .enumerate()
        .try_for_each(|(tile, ((packed, scales), zeros))| {
            let tall = scales.len() / blocks;
            let values = gather(weights, (rows, length), order, tile * TILE, tall);
            let mut steps = Vec::with_capacity(tall * blocks);
            for row in values.chunks_exact(length) {
                for (index, values) in row.chunks(block).enumerate() {
                    let importance = importance.map(|all| &all[index * block..index * block + values.len()]);
                    steps.push(Steps::fit(values, importance, bits)?);
                }
            }
            let codes = match factor {
                Some(factor) => factor.round(&values, &steps, block),
                None => nearest(&values, length, &steps, block),
            };
            for (scale, steps) in scales.iter_mut().zip(&steps) {
                *scale = steps.scale;
            }
            let mut whole = vec![0; block];
            for row in 0..tall {
                let steps = &steps[row * blocks..(row + 1) * blocks];
                let points: Vec<u8> = steps.iter().map(|steps| steps.zero_point as u8).collect();
                bits.pack(&points, &mut zeros[row * zero_bytes..(row + 1) * zero_bytes]);
                for (index, codes) in codes[row * length..(row + 1) * length].chunks(block).enumerate() {
                    let from = row * row_bytes + index * bits.bytes(block);
                    whole[codes.len()..].fill(points[index]);
                    whole[..codes.len()].copy_from_slice(codes);
                    bits.pack(&whole, &mut packed[from..from + bits.bytes(block)]);
                }
            }
            Some(())
        })?;
    Some(blocked)
}

fn nearest(values: &[f32], length: usize, steps: &[Steps], block: usize) -> Vec<u8> {
    let mut codes = vec![0; values.len()];
    let rows = codes.chunks_exact_mut(length).zip(values.chunks_exact(length));
    for ((codes, values), steps) in rows.zip(steps.chunks_exact(length.div_ceil(block))) {
        for ((codes, values), steps) in codes.chunks_mut(block).zip(values.chunks(block)).zip(steps) {
            for (code, value) in codes.iter_mut().zip(values) {
                *code = steps.byte(*value);
            }
        }
    }
    codes
}

/// Rows `first..first + tall`, one after another.
pub(super) fn gather(
    weights: &[[u8; 4]],
    (rows, length): (usize, usize),
    order: Order,
    first: usize,
    tall: usize,
) -> Vec<f32> {
    match order {
        Order::Rows => weights[first * length..(first + tall) * length]
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
        Order::Columns => {
            let mut values = vec![0.0; tall * length];
            for (position, line) in weights.chunks_exact(rows).enumerate() {
                for (row, value) in line[first..first + tall].iter().enumerate() {
                    values[row * length + position] = f32::from_le_bytes(*value);
                }
            }
            values
        }
    }
}

/// The values that the weights of one block can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) scale: f32,
    pub(super) zero_point: f32,
    largest: f32,
}

impl Steps {
    /// Those with the least squared error, weighted by `importance`, among the shares of the block's range. Zero stays exact.
    fn fit(values: &[f32], importance: Option<&[f32]>, bits: Bits) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let (min, max) = values.iter().fold((0.0_f32, 0.0_f32), |(min, max), &value| {
            (min.min(value), max.max(value))
        });
        let shares = match bits {
            Bits::Four => &SHARES[..],
            Bits::Eight => &SHARES[..1],
        };
        let mut best: Option<(f32, Self)> = None;
        for share in shares {
            let steps = Self::over(min * share, max * share, bits);
            let error = steps.error(values, importance);
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, steps));
            }
        }
        best.map(|(_, steps)| steps)
    }

    /// Sum of the squares by which `values` are rounded, each weighed by its importance.
    fn error(self, values: &[f32], importance: Option<&[f32]>) -> f32 {
        let square = |value: f32| (self.value(self.code(value)) - value).powi(2);
        // A sum for each lane, so that all of them are computed at once.
        let mut sums = [0.0_f32; LANES];
        let mut add = |values: &[f32], importance: &[f32]| {
            for (sum, (value, weight)) in sums.iter_mut().zip(values.iter().zip(importance)) {
                *sum += weight * square(*value);
            }
        };
        match importance {
            None => values.chunks(LANES).for_each(|values| add(values, &[1.0; LANES])),
            Some(importance) => {
                let importance = importance.chunks(LANES);
                values
                    .chunks(LANES)
                    .zip(importance)
                    .for_each(|(values, weights)| add(values, weights));
            }
        }
        sums.iter().sum()
    }

    fn over(min: f32, max: f32, bits: Bits) -> Self {
        let largest = bits.largest();
        let scale = (max / largest - min / largest).max(SMALLEST_SCALE);
        let zero_point = (-min / scale).round_ties_even().clamp(0.0, largest);
        Self {
            scale,
            zero_point,
            largest,
        }
    }

    /// Symmetric values: `count` steps up to `largest` in both directions.
    pub(super) fn symmetric(largest: f32, count: f32) -> Self {
        Self {
            scale: (largest / count).max(SMALLEST_SCALE),
            zero_point: count,
            largest: 2.0 * count,
        }
    }

    /// The symmetric ones with the least squared error, weighted by `importance`, among shares of the largest magnitude.
    pub(super) fn fit_symmetric(values: &[f32], importance: &[f32], count: f32) -> Self {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let tried = SHARES.map(|share| Self::symmetric(largest * share, count));
        let errors = tried.map(|steps| steps.error(values, Some(importance)));
        let best = (0..tried.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b]));
        tried[best.unwrap_or(0)]
    }

    /// The code of `value`, a whole number: the nearest, ties to even.
    pub(super) fn code(self, value: f32) -> f32 {
        ((value / self.scale + self.zero_point).clamp(0.0, self.largest) + WHOLE) - WHOLE
    }

    /// The same as a byte.
    pub(super) fn byte(self, value: f32) -> u8 {
        // What was added leaves the whole number in the lowest bits.
        ((value / self.scale + self.zero_point).clamp(0.0, self.largest) + WHOLE)
            .to_bits()
            .to_le_bytes()[0]
    }

    /// The value of `code`.
    pub(super) fn value(self, code: f32) -> f32 {
        (code - self.zero_point) * self.scale
    }
}

/// What `blocked` stands for: rows of `length` values.
pub(super) fn unpack(blocked: &Blocked, (rows, length): (usize, usize), bits: Bits, block: usize) -> Vec<f32> {
    let blocks = length.div_ceil(block);
    let code = |packed: &[u8], index: usize| f32::from(bits.code(packed, index));
    let value = |row: usize, position: usize| {
        let at = row * blocks + position / block;
        let zeros = &blocked.zero_points[row * bits.bytes(blocks)..];
        let codes = &blocked.codes[at * bits.bytes(block)..];
        blocked.scales[at] * (code(codes, position % block) - code(zeros, position / block))
    };
    (0..rows)
        .flat_map(|row| (0..length).map(move |position| (row, position)))
        .map(|(r, p)| value(r, p))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn little(values: &[f32]) -> Vec<[u8; 4]> {
        values.iter().map(|value| value.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn weights_come_back_within_a_step_and_columns_are_rows_turned(
            values in proptest::collection::vec(-3.0_f32..3.0, 20 * 35),
            four: bool,
        ) {
            let (bits, block) = (if four { Bits::Four } else { Bits::Eight }, 16);
            let (rows, length, blocks) = (20, 35, 3);
            let blocked = quantize(&little(&values), (rows, length), Order::Rows, bits, block, None).unwrap();
            for (index, (back, value)) in unpack(&blocked, (rows, length), bits, block).iter().zip(&values).enumerate() {
                let scale = blocked.scales[index / length * blocks + index % length / block];
                // Clipping to 68 % of the range moves its ends by at most 0.32 * 15 steps of the new size.
                let steps = if four { 7.6 } else { 1.01 };
                prop_assert!((back - value).abs() <= steps * scale, "{} {} {}", back, value, scale);
            }
            let turned: Vec<f32> = (0..length).flat_map(|p| (0..rows).map(move |r| (r, p))).map(|(r, p)| values[r * length + p]).collect();
            prop_assert_eq!(quantize(&little(&turned), (rows, length), Order::Columns, bits, block, None).unwrap(), blocked);
        }
    }

    #[test]
    fn zeros_are_exact_and_what_is_not_finite_is_refused() {
        let blocked = quantize(&little(&[0.0; 16]), (1, 16), Order::Rows, Bits::Four, 16, None).unwrap();
        assert_eq!((blocked.codes, blocked.zero_points), (vec![0; 8], vec![0]));
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(quantize(&little(&[bad; 16]), (1, 16), Order::Rows, Bits::Eight, 16, None).is_none());
        }
    }

    #[test]
    fn an_outlier_is_clipped_where_that_costs_less() {
        let mut values: Vec<f32> = (0..64_u8)
            .map(|i| f32::from(i.wrapping_mul(37) % 64) / 32.0 - 1.0)
            .collect();
        values[5] = 1.4;
        let fitted = Steps::fit(&values, None, Bits::Four).unwrap();
        let plain = Steps::over(-1.0, 1.4, Bits::Four);
        let error = |steps: Steps| {
            let square = |&v: &f32| (steps.value(steps.code(v)) - v).powi(2);
            values.iter().map(square).sum::<f32>()
        };
        assert!(fitted.scale < plain.scale && error(fitted) < error(plain));
    }
}
