//! Numbers of 8-bit quantization: weights to symmetric `int8`, ranges to scale and zero point, biases to `int32`.
//!
//! `real = scale * (quantized - zero_point)` (ONNX `QuantizeLinear`), rounding to nearest, ties to even as ONNX Runtime does, or by GPTQ.
#![allow(
    clippy::cast_possible_truncation,
    reason = "values are clamped to the target type before they are cast"
)]

use super::{
    Activations, Granularity, Grid,
    blocks::{self, Order, Steps, TILE},
    gptq::Factor,
    progressive::{self, Progressive},
};
use crate::{calibrate::Range, onnx::Tensor};
use rayon::prelude::*;

/// Largest magnitude of a quantized bias: as much again is left to the products that are added to it.
const BIAS_MAX: f32 = 1_073_741_824.0;
/// Weights that one task takes.
const PART: usize = 1 << 16;
/// Scales below this would make products of two scales denormal.
const SMALLEST_SCALE: f32 = 1e-18;

/// Weights in 8 bits, in the order and shape of the floats.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QuantizedWeights {
    pub(super) values: Vec<i8>,
    /// One for each channel, or one for all.
    pub(super) scales: Vec<f32>,
    /// The 4 bits that the values are unpacked from, where they are kept so.
    pub(super) kept: Option<Progressive>,
}

/// Quantizes `weights` with one scale for each index of `axis`, or one for all. `None` if a value is not finite.
///
/// `least` gives, for a channel, the smallest scale that it may have (so that its bias fits).
pub(super) fn quantize(
    weights: &Tensor,
    axis: usize,
    grid: Grid,
    least: impl Fn(usize) -> f32,
) -> Option<QuantizedWeights> {
    if let Some(size) = progressive::fitting(weights, axis, grid) {
        return progressive::quantize(weights, axis, size, grid, least, None);
    }
    let most = grid.weights.largest();
    let floats = weights.float_bytes()?;
    let channels = weights.dims[axis];
    let inner: usize = weights.dims[axis + 1..].iter().product();
    let slab = (channels * inner).max(1);
    let part = slab * (PART / slab).max(1);
    let largest = floats
        .par_chunks(part)
        .map(|part| largest(part, channels, inner))
        .try_reduce(
            || vec![0.0; channels],
            |left, right| Some(left.iter().zip(&right).map(|(left, right)| left.max(*right)).collect()),
        )?;
    let scales = scales(&largest, grid, least);
    let mut values = vec![0; floats.len()];
    values
        .par_chunks_mut(part)
        .zip(floats.par_chunks(part))
        .for_each(|(values, floats)| nearest(floats, &scales, inner, most, values));
    weights.release();
    Some(QuantizedWeights {
        values,
        scales,
        kept: None,
    })
}

/// The scales with which values as large as the `largest` of each channel fit `grid`; `least` as for [`quantize`].
pub(super) fn scales(largest: &[f32], grid: Grid, least: impl Fn(usize) -> f32) -> Vec<f32> {
    let scale = |(channel, &largest): (usize, &f32)| {
        let scale = (largest / grid.weights.largest()).max(least(channel));
        if scale > 0.0 { scale.max(SMALLEST_SCALE) } else { 0.0 }
    };
    let mut scales: Vec<f32> = largest.iter().enumerate().map(scale).collect();
    if grid.granularity == Granularity::PerTensor {
        scales = vec![scales.into_iter().fold(0.0, f32::max)];
    }
    // Nothing but zeros: any scale is exact.
    scales
        .iter_mut()
        .filter(|scale| **scale == 0.0)
        .for_each(|scale| *scale = 1.0);
    scales
}

/// Largest magnitude of each channel, in slabs of all channels with `inner` values each; `None` if a value is not finite.
fn largest(floats: &[[u8; 4]], channels: usize, inner: usize) -> Option<Vec<f32>> {
    let mut largest = vec![0.0_f32; channels];
    let mut finite = true;
    for slab in floats.chunks_exact((channels * inner).max(1)) {
        if inner == 1 {
            // Without an inner loop, so that neighbouring channels are compared at once.
            for (largest, value) in largest.iter_mut().zip(slab) {
                let value = f32::from_le_bytes(*value).abs();
                finite &= value < f32::INFINITY;
                *largest = if value > *largest { value } else { *largest };
            }
            continue;
        }
        for (largest, run) in largest.iter_mut().zip(slab.chunks_exact(inner.max(1))) {
            for value in run {
                let value = f32::from_le_bytes(*value).abs();
                finite &= value < f32::INFINITY;
                *largest = if value > *largest { value } else { *largest };
            }
        }
    }
    finite.then_some(largest)
}

/// The nearest steps, ties to even, of slabs of as many channels as there are `scales` (or of any number, where there is one) with `inner`
/// values each.
fn nearest(floats: &[[u8; 4]], scales: &[f32], inner: usize, most: f32, values: &mut [i8]) {
    let step = |value: [u8; 4], scale: f32| {
        let steps = (f32::from_le_bytes(value) / scale).clamp(-most, most);
        // What was added leaves the whole number in the lowest bits.
        (steps + blocks::WHOLE).to_bits().to_le_bytes()[0].cast_signed()
    };
    if let [scale] = *scales {
        let pairs = values.iter_mut().zip(floats);
        return pairs.for_each(|(value, float)| *value = step(*float, scale));
    }
    let slab = (scales.len() * inner).max(1);
    for (values, floats) in values.chunks_exact_mut(slab).zip(floats.chunks_exact(slab)) {
        if inner == 1 {
            for ((value, float), scale) in values.iter_mut().zip(floats).zip(scales) {
                *value = step(*float, *scale);
            }
            continue;
        }
        let runs = values
            .chunks_exact_mut(inner.max(1))
            .zip(floats.chunks_exact(inner.max(1)));
        for ((values, floats), scale) in runs.zip(scales) {
            for (value, float) in values.iter_mut().zip(floats) {
                *value = step(*float, *scale);
            }
        }
    }
}

/// Quantizes a matrix as [`quantize`] does, with each channel's step clipped where the inputs of `factor` say that it pays, and each weight
/// rounded so that the errors of a channel make each other good. One step for all is never clipped: each channel would want another.
pub(super) fn round(
    weights: &Tensor,
    axis: usize,
    grid: Grid,
    least: impl Fn(usize) -> f32 + Sync,
    factor: &Factor,
) -> Option<QuantizedWeights> {
    if let Some(size) = progressive::fitting(weights, axis, grid) {
        return progressive::quantize(weights, axis, size, grid, least, Some(factor));
    }
    let most = grid.weights.largest();
    let plain = quantize(weights, axis, grid, &least)?;
    let floats = weights.float_bytes()?;
    let (channels, inputs) = (weights.dims[axis], weights.dims[1 - axis]);
    let order = if axis == 0 { Order::Rows } else { Order::Columns };
    let tiles: Vec<(Vec<f32>, Vec<u8>)> = (0..channels)
        .step_by(TILE)
        .collect::<Vec<usize>>()
        .par_iter()
        .map(|&first| {
            let tall = TILE.min(channels - first);
            let values = blocks::gather(floats, (channels, inputs), order, first, tall);
            let rows = values.chunks_exact(inputs).enumerate();
            let steps: Vec<Steps> = rows
                .map(|(row, values)| match plain.scales[..] {
                    [scale] if grid.granularity == Granularity::PerTensor => Steps::symmetric(scale * most, most),
                    _ => {
                        let fitted = Steps::fit_symmetric(values, factor.importance(), most);
                        Steps::symmetric(fitted.scale.max(least(first + row)) * most, most)
                    }
                })
                .collect();
            let codes = factor.round(&values, &steps, inputs);
            (steps.iter().map(|steps| steps.scale).collect(), codes)
        })
        .collect();
    let mut quantized = plain;
    if grid.granularity == Granularity::PerChannel {
        quantized.scales = tiles.iter().flat_map(|(scales, _)| scales.iter().copied()).collect();
    }
    let value = |code: u8| (i16::from(code) - most as i16) as i8;
    let all: Vec<&[u8]> = tiles.iter().flat_map(|(_, codes)| codes.chunks_exact(inputs)).collect();
    if axis == 0 {
        let channels = quantized.values.par_chunks_mut(inputs).zip(&all);
        channels.for_each(|(values, codes)| {
            for (to, code) in values.iter_mut().zip(*codes) {
                *to = value(*code);
            }
        });
    } else {
        // So many inputs at once that each channel's codes are read in runs, and what is written stays near.
        let parts = quantized.values.par_chunks_mut(TILE * channels).enumerate();
        parts.for_each(|(part, values)| {
            for (channel, codes) in all.iter().enumerate() {
                let own = values.iter_mut().skip(channel).step_by(channels);
                for (to, code) in own.zip(&codes[part * TILE..]) {
                    *to = value(*code);
                }
            }
        });
    }
    Some(quantized)
}

impl QuantizedWeights {
    /// What the values stand for, with scales along `axis` of `dims`.
    pub(super) fn floats(&self, dims: &[usize], axis: usize) -> Vec<f32> {
        let inner: usize = dims[axis + 1..].iter().product();
        let scale = |position: usize| match self.scales[..] {
            [scale] => scale,
            _ => self.scales[position / inner % dims[axis]],
        };
        let values = self.values.iter().enumerate();
        values
            .map(|(position, value)| f32::from(*value) * scale(position))
            .collect()
    }
}

/// The smallest weight scale with which `bias` fits 32 bits, given the scale of the input.
pub(super) fn least_scale(bias: f32, input_scale: f32) -> f32 {
    bias.abs() / (input_scale * BIAS_MAX)
}

/// Bias in units of input scale times weight scale.
pub(super) fn quantize_bias(bias: &[f32], input_scale: f32, scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let unit = |channel: usize| input_scale * scales[if scales.len() == 1 { 0 } else { channel }];
    let values = bias
        .iter()
        .enumerate()
        .map(|(channel, &bias)| (f64::from(bias) / f64::from(unit(channel))).round_ties_even() as i32)
        .collect();
    (values, (0..scales.len()).map(unit).collect())
}

/// Scale and zero point of an activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    /// As the byte that ONNX stores, whatever its signedness.
    pub(super) zero_point: u8,
}

/// Scale and zero point that cover `range`; `None` where it is too narrow to tell 256 values apart.
#[allow(clippy::cast_sign_loss, reason = "the zero point is clamped to 0..=255")]
pub(super) fn affine(range: Range, activations: Activations) -> Option<Affine> {
    let scale = ((f64::from(range.max) - f64::from(range.min)) / 255.0) as f32;
    if scale < SMALLEST_SCALE {
        return None;
    }
    let steps = (-f64::from(range.min) / f64::from(scale))
        .round_ties_even()
        .clamp(0.0, 255.0) as u8;
    let zero_point = match activations {
        Activations::UInt8 => steps,
        Activations::Int8 => steps.wrapping_sub(128),
    };
    Some(Affine { scale, zero_point })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::Weights;
    use proptest::prelude::*;

    const PLAIN: Grid = Grid {
        granularity: Granularity::PerChannel,
        weights: Weights::Int8,
        four_bits: None,
    };

    proptest! {
        #[test]
        fn weights_come_back_within_half_a_step(
            values in proptest::collection::vec(-5.0_f32..5.0, 24),
            axis in 0_usize..3,
            per_channel: bool,
            seven: bool,
        ) {
            let tensor = Tensor::floats("w", &[2, 3, 4], &values).unwrap();
            let granularity = if per_channel { Granularity::PerChannel } else { Granularity::PerTensor };
            let weights = if seven { Weights::Int7 } else { Weights::Int8 };
            let quantized = quantize(&tensor, axis, Grid { granularity, weights, four_bits: None }, |_| 0.0).unwrap();
            prop_assert!(!seven || quantized.values.iter().all(|value| value.abs() < 64));
            let inner: usize = tensor.dims[axis + 1..].iter().product();
            for (i, value) in values.iter().enumerate() {
                let channel = (i / inner) % tensor.dims[axis];
                let scale = quantized.scales[if per_channel { channel } else { 0 }];
                let back = f32::from(quantized.values[i]) * scale;
                prop_assert!((back - value).abs() <= scale * 0.501, "{back} {value} {scale}");
            }
        }

        #[test]
        fn zero_is_exact_and_the_ends_are_covered(min in -100.0_f32..=0.0, max in 0.001_f32..100.0) {
            let affine = affine(Range { min, max }, Activations::UInt8).unwrap();
            let zero_point = f32::from(affine.zero_point);
            prop_assert!((min / affine.scale).round() + zero_point >= -0.5);
            prop_assert!((max / affine.scale).round() + zero_point <= 256.0);
            let signed = super::affine(Range { min, max }, Activations::Int8).unwrap();
            prop_assert_eq!(i16::from(signed.zero_point.cast_signed()) + 128, i16::from(affine.zero_point));
        }
    }

    #[test]
    fn zero_channels_and_large_biases_are_representable() {
        let tensor = Tensor::floats("w", &[3, 2], &[0.0, 0.0, 0.0, 0.0, 1e-12, 0.0]).unwrap();
        let (bias, input) = ([0.0_f32, 7.0, 1000.0], 0.01);
        let quantized = quantize(&tensor, 0, PLAIN, |c| least_scale(bias[c], input)).unwrap();
        let (values, units) = quantize_bias(&bias, input, &quantized.scales);
        for ((&value, unit), bias) in values.iter().zip(units).zip(bias) {
            let back = f64::from(value) * f64::from(unit);
            assert!(
                (back - f64::from(bias)).abs() <= 1e-6 * f64::from(bias).abs(),
                "{back} {bias}"
            );
        }
        let bad = Tensor::floats("w", &[1, 1], &[f32::NAN]).unwrap();
        assert!(quantize(&bad, 0, PLAIN, |_| 0.0).is_none());
    }
}
