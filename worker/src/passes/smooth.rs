//! `SmoothQuant` (Xiao et al., 2022, arXiv:2211.10438): channels that are much larger than others leave few of 256 steps to the others;
//! dividing them at the input of a product and multiplying the weights instead changes nothing in floats and much in 8 bits.
//!
//! How far is searched for each input with its own exponent: the expected error of the product, from magnitudes alone. An input that gains
//! less than a tenth is left. The division goes into a scale that alone feeds the products where there is one, into a `Mul` otherwise.
#![allow(
    clippy::cast_possible_truncation,
    reason = "factors are computed in 64 bits and kept in 32"
)]

use super::{
    Error, Report,
    site::{Kind, Site, sites},
};
use crate::{
    calibrate::Channels,
    onnx::{ElementType, Index, Model, Names, Node, Patch, Tensor, apply as apply_patch, prune, rename},
};
use std::collections::BTreeMap;

const NAME: &str = "smooth";
/// Exponents that are tried: 0 only evens out the weights, 1 only the inputs.
const EXPONENTS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Error that must be left at most for a division to pay for itself.
const WORTH: f64 = 0.9;
/// A channel is never divided or multiplied by more.
const LARGEST_FACTOR: f64 = 1e4;

/// Evens out the inputs of all matrix products.
pub fn apply(model: &mut Model, observed: &BTreeMap<String, Channels>) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let mut groups: BTreeMap<&str, Vec<Site<'_>>> = BTreeMap::new();
        let sites = sites(&index, &mut report);
        let names: Vec<String> = sites.iter().map(|site| site.input().to_owned()).collect();
        for (site, name) in sites.into_iter().zip(&names) {
            if site.kind == Kind::Conv {
                report.leave(
                    site.node,
                    "the channels of a convolution's input are not its last dimension",
                );
            } else {
                groups.entry(name).or_default().push(site);
            }
        }
        let mut rewrite = Rewrite {
            index: &index,
            names: Names::new(&model.graph),
            patch: Patch::new(NAME),
        };
        for (input, group) in &groups {
            let matrices: Vec<Matrix> = group.iter().map(Matrix::of).collect();
            let channels = observed
                .get(*input)
                .filter(|seen| matrices.iter().all(|m| m.inputs == seen.largest.len()));
            match channels.and_then(|channels| factors(channels, &matrices)) {
                Some(factors) => {
                    rewrite.group(input, group, &factors)?;
                    report.changed += group.len();
                }
                None => group
                    .iter()
                    .for_each(|site| report.leave(site.node, "its input is even enough")),
            }
        }
        rewrite.patch
    };
    let report = super::require_effect(report)?;
    apply_patch(&mut model.graph, patch)?;
    prune(&mut model.graph);
    rename(model);
    Ok(report)
}

/// Magnitudes of a product's weights.
struct Matrix {
    inputs: usize,
    columns: usize,
    /// `[inputs, columns]`.
    magnitudes: Vec<f32>,
}

impl Matrix {
    fn of(site: &Site<'_>) -> Self {
        let axis = site.channel_axis();
        let (columns, inputs) = (site.weights.dims[axis], site.weights.dims[1 - axis]);
        let floats = site.weights.to_floats().unwrap_or_default();
        let mut magnitudes = vec![0.0; floats.len()];
        for (position, value) in floats.iter().enumerate() {
            let at = if axis == 1 {
                position
            } else {
                position % inputs * columns + position / inputs
            };
            magnitudes[at] = value.abs();
        }
        Self {
            inputs,
            columns,
            magnitudes,
        }
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.magnitudes.chunks_exact(self.columns)
    }
}

/// What each channel of the input is divided by; `None` where that does not pay.
fn factors(channels: &Channels, matrices: &[Matrix]) -> Option<Vec<f64>> {
    let size = channels.largest.len();
    let mut weights = vec![0.0_f64; size];
    for matrix in matrices {
        for (weight, row) in weights.iter_mut().zip(matrix.rows()) {
            *weight = row
                .iter()
                .fold(*weight, |largest, &value| largest.max(f64::from(value)));
        }
    }
    let factor = |exponent: f64, channel: usize| {
        let (input, weight) = (f64::from(channels.largest[channel]), weights[channel]);
        if input > 0.0 && weight > 0.0 {
            (input.powf(exponent) / weight.powf(1.0 - exponent)).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
        } else {
            1.0
        }
    };
    let plain = error(channels, matrices, &vec![1.0; size]);
    let best = EXPONENTS
        .iter()
        .map(|&exponent| {
            let factors: Vec<f64> = (0..size).map(|channel| factor(exponent, channel)).collect();
            (error(channels, matrices, &factors), factors)
        })
        .min_by(|(left, _), (right, _)| left.total_cmp(right))?;
    (best.0 < WORTH * plain).then_some(best.1)
}

/// Expected squared error of the products, up to a factor: steps of the input on the weights' squares, and steps of each column of weights
/// on the input's squares.
fn error(channels: &Channels, matrices: &[Matrix], factors: &[f64]) -> f64 {
    let size = factors.len();
    let range = (0..size)
        .map(|c| f64::from(channels.largest[c]) / factors[c])
        .fold(0.0, f64::max);
    let power: f64 = (0..size).map(|c| channels.mean_square(c) / factors[c].powi(2)).sum();
    // An input has twice its magnitude in 255 steps, a weight in 254: the same for both.
    matrices
        .iter()
        .map(|matrix| {
            let mut columns = vec![0.0_f64; matrix.columns];
            let mut squares = 0.0;
            for (row, factor) in matrix.rows().zip(factors) {
                let mut sum = 0.0;
                for (largest, value) in columns.iter_mut().zip(row) {
                    let value = f64::from(*value) * factor;
                    *largest = largest.max(value);
                    sum += value * value;
                }
                squares += sum;
            }
            range * range * squares + power * columns.iter().map(|largest| largest * largest).sum::<f64>()
        })
        .sum()
}

struct Rewrite<'i, 'g> {
    index: &'i Index<'g>,
    names: Names,
    patch: Patch,
}

impl Rewrite<'_, '_> {
    fn group(&mut self, input: &str, group: &[Site<'_>], factors: &[f64]) -> Result<(), Error> {
        let inverse: Vec<f32> = factors.iter().map(|factor| (1.0 / factor) as f32).collect();
        if !self.fold(input, group, &inverse)? {
            let (divisor, even) = (self.names.fresh(input, "/evening"), self.names.fresh(input, "/even"));
            self.patch
                .add_tensor(Tensor::floats(&divisor, &[inverse.len()], &inverse)?);
            let after = self.index.producer(input).map_or(0, |(position, _)| position + 1);
            self.patch
                .insert_before(after, [Node::new("Mul", &[input, &divisor], &[&even])]);
            for site in group {
                self.patch.rewire(site.position, 0, &even);
            }
        }
        for site in group {
            let axis = site.channel_axis();
            let mut floats = site.weights.to_floats().unwrap_or_default();
            let (outer, inner) = (site.weights.dims[0], site.weights.dims[1]);
            for (position, value) in floats.iter_mut().enumerate() {
                let channel = if axis == 1 { position / inner } else { position % inner };
                *value = (f64::from(*value) * factors[channel]) as f32;
            }
            let name = self.names.fresh(&site.weights.name, "/evened");
            self.patch.add_tensor(Tensor::floats(&name, &[outer, inner], &floats)?);
            self.patch.rewire(site.position, 1, &name);
        }
        Ok(())
    }

    /// Puts the division into the scale and bias of a normalization that alone feeds the products.
    fn fold(&mut self, input: &str, group: &[Site<'_>], inverse: &[f32]) -> Result<bool, Error> {
        let only_ours = !self.index.is_output(input) && self.index.uses(input).len() == group.len();
        let Some((position, node)) = self.index.producer(input).filter(|_| only_ours) else {
            return Ok(false);
        };
        let vector = |slot: usize| {
            let tensor = node.input(slot).and_then(|name| self.index.constant(name))?;
            (tensor.element == ElementType::Float && tensor.dims == [inverse.len()]).then_some((slot, tensor))
        };
        if !node.is("LayerNormalization") || node.int("axis", -1) != Some(-1) {
            return Ok(false);
        }
        let (Some(scale), bias) = (vector(1), vector(2)) else {
            return Ok(false);
        };
        if node.input(2).is_some() && bias.is_none() {
            return Ok(false);
        }
        for (slot, tensor) in std::iter::once(scale).chain(bias) {
            let floats = tensor.to_floats().unwrap_or_default();
            let even: Vec<f32> = floats
                .iter()
                .zip(inverse)
                .map(|(value, inverse)| value * inverse)
                .collect();
            let name = self.names.fresh(&tensor.name, "/evened");
            self.patch.add_tensor(Tensor::floats(&name, &[even.len()], &even)?);
            self.patch.rewire(position, slot, &name);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calibrate::Rows as _,
        onnx::{AttributeValue as A, Limits},
        passes::{Mode, Quantize, product_inputs, quantize_dynamic},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    /// Rows of which one channel is fifty times larger than the others, as encoders have.
    fn rows(seed: u64) -> Vec<Tensor> {
        let mut values = noise(seed, 20 * 64);
        values.iter_mut().skip(5).step_by(64).for_each(|value| *value *= 50.0);
        vec![Tensor::floats("x", &[20, 64], &values).unwrap()]
    }

    /// Two products of the same input, one of them with turned weights, as query and key are.
    fn products(norm: bool) -> Model {
        let mut b = Build::opset(17);
        let mut x = b.input("x", &[-1, 64]);
        if norm {
            let (scale, bias) = (b.weights(&[64]), b.weights(&[64]));
            x = b.node("LayerNormalization", &[&x, &scale, &bias]);
        }
        let (w1, w2) = (b.weights(&[64, 48]), b.weights(&[32, 64]));
        let first = b.node("MatMul", &[&x, &w1]);
        let second = b.node_with("Gemm", &[&x, &w2], &[("transB", A::Int(1))]);
        b.finish(&[&first, &second])
    }

    fn seen(model: &Model) -> BTreeMap<String, Channels> {
        let mut channels = Channels::new(64);
        let mut tapped = model.clone();
        let taps = product_inputs(model);
        tapped.graph.outputs = taps.iter().map(|name| crate::onnx::ValueInfo::untyped(name)).collect();
        for seed in 0..4 {
            let values = if taps == ["x"] {
                rows(seed)
            } else {
                run(&tapped, &rows(seed))
            };
            channels.add(&values[0].to_floats().unwrap());
        }
        BTreeMap::from([(taps[0].clone(), channels)])
    }

    #[test]
    fn floats_stay_and_eight_bits_get_closer() {
        let float = products(false);
        let mut even = float.clone();
        assert_eq!(apply(&mut even, &seen(&float)).unwrap().changed, 2);
        crate::onnx::check(&even, &Limits::default()).unwrap();
        let before = run(&float, &rows(9));
        assert!(relative_difference(&before, &run(&even, &rows(9))) < 1e-5);
        let settings = Quantize {
            mode: Mode::Dynamic,
            ..Quantize::default()
        };
        let lost = |model: &Model| {
            let mut model = model.clone();
            quantize_dynamic::apply(&mut model, &settings).unwrap();
            relative_difference(&before, &run_optimized(&model, &rows(9)).0)
        };
        let (plain, smoothed) = (lost(&float), lost(&even));
        assert!(smoothed < 0.5 * plain, "{smoothed} {plain}");
    }

    #[test]
    fn a_normalization_takes_the_division() {
        let float = products(true);
        let mut channels = seen(&float);
        let mut outlier = vec![0.1; 64];
        outlier[3] = 30.0;
        for channels in channels.values_mut() {
            channels.add(&outlier);
        }
        let mut even = float.clone();
        apply(&mut even, &channels).unwrap();
        assert!(
            !even.graph.nodes.iter().any(|node| node.is("Mul")),
            "the scale of the normalization has it"
        );
        let (before, after) = (run(&float, &rows(9)), run(&even, &rows(9)));
        assert!(relative_difference(&before, &after) < 1e-5);
    }

    #[test]
    fn even_inputs_are_left_and_that_is_no_success() {
        let model = products(false);
        let mut channels = Channels::new(64);
        channels.add(&[1.0; 64]);
        let error = apply(&mut model.clone(), &BTreeMap::from([("x".to_owned(), channels)])).unwrap_err();
        assert!(error.to_string().contains("even enough"), "{error}");
    }
}
