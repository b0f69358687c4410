//! Cross-layer equalization (Nagel et al., 2019, arXiv:1906.04721, section 4.1): where one scale serves a whole weight, channels that are much
//! smaller than the largest are left with few steps; moving a factor from one layer's output channel to the next layer's input evens them out.
//!
//! `f(s x) = s f(x)` for `s > 0` and `f` a Relu, `LeakyRelu`, `PRelu` or nothing, so that `W1 / s`, `b1 / s` and `s W2` compute the same, with
//! `s_c = sqrt(r1_c / r2_c)` from the largest magnitudes `r1_c`, `r2_c` of channel `c` in both layers (equation 11). As in the paper, pairs of
//! a chain take turns until nothing moves. Unlike there, bounds of a Clip are not dropped, and a pair whose error falls by less than a tenth is left.
#![allow(
    clippy::cast_possible_truncation,
    reason = "factors are computed in 64 bits and kept in 32"
)]

use super::{Error, Report};
use crate::onnx::{ElementType, Index, Model, Names, Node, Patch, Tensor, rewrite_main, shown};
use std::collections::{BTreeMap, btree_map::Entry};

const NAME: &str = "equalize";
/// How many times smaller errors must become to be worth it.
const WORTH: f64 = 1.1;
/// Steps of a symmetric weight in each direction.
const STEPS: f64 = 127.0;
/// A channel is never multiplied or divided by more.
const LARGEST_FACTOR: f64 = 1e4;
/// Most turns of a chain of pairs.
const MOST_TURNS: usize = 20;
/// A factor nearer to one moves nothing any more.
const STILL: f64 = 1e-3;

/// Evens out every pair that gains.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let mut weights = BTreeMap::new();
        let mut pairs = Vec::new();
        for (position, node) in index.graph.nodes.iter().enumerate() {
            let Some(first) = Layer::of(&index, position) else {
                continue;
            };
            let pair = match Pair::behind(&index, first) {
                Ok(pair) => pair,
                Err(why) => {
                    report.leave(node, why);
                    continue;
                }
            };
            for layer in [&pair.first, &pair.second] {
                if let Entry::Vacant(vacant) = weights.entry(layer.position) {
                    vacant.insert(layer.floats()?);
                }
            }
            if pair.gain(&weights) < WORTH {
                report.leave(node, "its channels and those of the layer behind it are even enough");
                continue;
            }
            pairs.push(pair);
        }
        let mut factors: Vec<Vec<f64>> = pairs.iter().map(|pair| vec![1.0; pair.first.outputs]).collect();
        for _ in 0..MOST_TURNS {
            let mut largest = 0.0_f64;
            for (pair, factors) in pairs.iter().zip(&mut factors) {
                let turn = pair.factors(&weights);
                largest = turn
                    .iter()
                    .fold(largest, |largest, factor| largest.max(factor.ln().abs()));
                pair.scale(&mut weights, &turn);
                factors.iter_mut().zip(turn).for_each(|(all, turn)| *all *= turn);
            }
            if largest < STILL {
                break;
            }
        }
        report.changed = pairs.len();
        rewrite(&pairs, &factors, &weights, Names::new(&model.graph))?
    };
    let report = super::require_effect(report)?;
    rewrite_main(model, patch)?;
    Ok(report)
}

fn rewrite(
    pairs: &[Pair<'_>],
    factors: &[Vec<f64>],
    weights: &BTreeMap<usize, Vec<f32>>,
    mut names: Names,
) -> Result<Patch, Error> {
    let mut patch = Patch::new(NAME);
    let mut layers: BTreeMap<usize, &Layer<'_>> = BTreeMap::new();
    for (pair, factors) in pairs.iter().zip(factors) {
        layers.insert(pair.first.position, &pair.first);
        layers.insert(pair.second.position, &pair.second);
        let Some((position, slot, bias)) = pair.bias else {
            continue;
        };
        let values = bias.to_floats().unwrap_or_default();
        let even: Vec<f32> = values
            .iter()
            .zip(factors)
            .map(|(value, factor)| (f64::from(*value) / factor) as f32)
            .collect();
        let name = names.fresh(&bias.name, "/even");
        patch.add_tensor(Tensor::floats(&name, &bias.dims, &even)?);
        patch.rewire(position, slot, &name);
    }
    for (position, layer) in layers {
        let name = names.fresh(&layer.weights.name, "/even");
        patch.add_tensor(Tensor::floats(&name, &layer.weights.dims, &weights[&position])?);
        patch.rewire(position, 1, &name);
    }
    Ok(patch)
}

/// How channels lie in the weights of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `[outputs, inputs / groups, ...]`.
    Conv {
        /// Groups of channels.
        groups: usize,
    },
    /// `[inputs, outputs]`.
    Columns,
    /// `[outputs, inputs]`.
    Rows,
}

/// A linear node whose constant weights nothing else reads.
#[derive(Debug)]
struct Layer<'g> {
    position: usize,
    node: &'g Node,
    kind: Kind,
    weights: &'g Tensor,
    outputs: usize,
    inputs: usize,
}

impl<'g> Layer<'g> {
    fn of(index: &Index<'g>, position: usize) -> Option<Self> {
        let node = &index.graph.nodes[position];
        let name = node.input(1)?;
        let weights = index
            .constant(name)
            .filter(|weights| weights.element == ElementType::Float)?;
        let alone = index.uses(name).len() == 1 && !index.is_output(name) && !weights.is_empty();
        let rank = weights.dims.len();
        let (kind, outputs, inputs) = if node.is("Conv") && rank > 2 {
            let groups = usize::try_from(node.int("group", 1)?).ok()?;
            let fits = groups > 0 && weights.dims[0].is_multiple_of(groups);
            (
                Kind::Conv { groups },
                weights.dims[0],
                fits.then(|| weights.dims[1].checked_mul(groups))??,
            )
        } else if node.is("MatMul") && rank == 2 {
            (Kind::Columns, weights.dims[1], weights.dims[0])
        } else if node.is("Gemm") && rank == 2 && node.int("transA", 0) == Some(0) {
            match node.int("transB", 0)? {
                0 => (Kind::Columns, weights.dims[1], weights.dims[0]),
                _ => (Kind::Rows, weights.dims[0], weights.dims[1]),
            }
        } else {
            return None;
        };
        alone.then_some(Self {
            position,
            node,
            kind,
            weights,
            outputs,
            inputs,
        })
    }

    fn floats(&self) -> Result<Vec<f32>, Error> {
        let floats = self.weights.to_floats().unwrap_or_default();
        if floats.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                name: shown(&self.weights.name),
            });
        }
        Ok(floats)
    }

    /// Output and input channel of the weight at `at`.
    fn channels(&self, at: usize) -> (usize, usize) {
        match self.kind {
            Kind::Columns => (at % self.outputs, at / self.outputs),
            Kind::Rows => (at / self.inputs, at % self.inputs),
            Kind::Conv { groups } => {
                let taps: usize = self.weights.dims[2..].iter().product();
                let within = self.inputs / groups;
                let output = at / (taps * within);
                let group = output / (self.outputs / groups);
                (output, group * within + at / taps % within)
            }
        }
    }

    /// Whether channels are the second dimension of what it reads and gives, not the last.
    fn is_spatial(&self) -> bool {
        matches!(self.kind, Kind::Conv { .. })
    }
}

/// Two layers of which the second alone reads the first, directly or behind a function that factors pass through.
#[derive(Debug)]
struct Pair<'g> {
    first: Layer<'g>,
    second: Layer<'g>,
    /// Of the first: node, slot and values.
    bias: Option<(usize, usize, &'g Tensor)>,
}

impl<'g> Pair<'g> {
    /// The pair that `first` begins; why there is none.
    fn behind(index: &Index<'g>, first: Layer<'g>) -> Result<Self, &'static str> {
        const ALONE: &str = "no layer that could take its factors reads it alone";
        let mut bias = match first.node.input(2) {
            None => None,
            Some(name) => {
                let vector = vector(index, name, first.outputs)
                    .ok_or("its bias is no constant with a value for each channel")?;
                Some((first.position, 2, vector))
            }
        };
        let mut value = first.node.output();
        loop {
            let (position, next) = index.only_use(value).ok_or(ALONE)?;
            if next.is("Add") && bias.is_none() && !first.is_spatial() {
                let slot = usize::from(next.input(0) == Some(value));
                let added = next.input(slot).and_then(|name| vector(index, name, first.outputs));
                bias = Some((position, slot, added.ok_or(ALONE)?));
                value = next.output();
            } else if ["Relu", "LeakyRelu", "Identity"].iter().any(|op_type| next.is(op_type))
                || (next.is("PRelu")
                    && next.input(0) == Some(value)
                    && next.input(1).is_some_and(|name| index.constant(name).is_some()))
            {
                value = next.output();
            } else {
                let second = Layer::of(index, position)
                    .filter(|_| next.input(0) == Some(value))
                    .ok_or(ALONE)?;
                let fits = second.inputs == first.outputs && second.is_spatial() == first.is_spatial();
                return fits.then_some(Self { first, second, bias }).ok_or(ALONE);
            }
        }
    }

    /// The largest magnitude of each channel between the layers, in the first and in the second.
    fn magnitudes(&self, weights: &BTreeMap<usize, Vec<f32>>) -> (Vec<f64>, Vec<f64>) {
        let of = |layer: &Layer<'_>, is_output: bool| {
            let mut largest = vec![0.0_f64; self.first.outputs];
            for (at, value) in weights[&layer.position].iter().enumerate() {
                let (output, input) = layer.channels(at);
                let largest = &mut largest[if is_output { output } else { input }];
                *largest = largest.max(f64::from(value.abs()));
            }
            largest
        };
        (of(&self.first, true), of(&self.second, false))
    }

    /// How many times smaller the errors of both layers become, each channel's relative to its own power.
    fn gain(&self, weights: &BTreeMap<usize, Vec<f32>>) -> f64 {
        let (mut first, mut second) = self.magnitudes(weights);
        let before = lost(&first) + lost(&second);
        for ((first, second), factor) in first.iter_mut().zip(&mut second).zip(self.factors(weights)) {
            *first /= factor;
            *second *= factor;
        }
        let after = lost(&first) + lost(&second);
        if after > 0.0 { before / after } else { 0.0 }
    }

    /// What each channel of the first layer is divided by.
    fn factors(&self, weights: &BTreeMap<usize, Vec<f32>>) -> Vec<f64> {
        let (first, second) = self.magnitudes(weights);
        first
            .iter()
            .zip(&second)
            .map(|(&first, &second)| {
                if first > 0.0 && second > 0.0 {
                    (first / second).sqrt().clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
                } else {
                    1.0
                }
            })
            .collect()
    }

    fn scale(&self, weights: &mut BTreeMap<usize, Vec<f32>>, factors: &[f64]) {
        for (layer, is_output) in [(&self.first, true), (&self.second, false)] {
            let Some(values) = weights.get_mut(&layer.position) else {
                continue;
            };
            for (at, value) in values.iter_mut().enumerate() {
                let (output, input) = layer.channels(at);
                let scaled = if is_output {
                    f64::from(*value) / factors[output]
                } else {
                    f64::from(*value) * factors[input]
                };
                *value = scaled as f32;
            }
        }
    }
}

/// Sum of the expected squared errors of channels with one step for all, each relative to its own power: `(R / 127)^2 / 12` over `r^2 / 3` for
/// values spread evenly up to `r`, and never more than all of it.
fn lost(magnitudes: &[f64]) -> f64 {
    let largest = magnitudes.iter().copied().fold(0.0, f64::max);
    let shares = magnitudes
        .iter()
        .filter(|magnitude| **magnitude > 0.0)
        .map(|magnitude| largest / magnitude);
    shares.map(|share| ((share / STEPS).powi(2) / 4.0).min(1.0)).sum()
}

/// A constant with one value for each of `channels`, which are its last dimension.
fn vector<'g>(index: &Index<'g>, name: &str, channels: usize) -> Option<&'g Tensor> {
    let tensor = index.constant(name)?;
    let vector = tensor.dims.last() == Some(&channels) && tensor.len() == channels;
    (vector && tensor.element == ElementType::Float).then_some(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue as A, Limits},
        passes::{Granularity, Mode, Quantize, quantize_dynamic},
        testing::{Build, noise, relative_difference, run},
    };
    use proptest::prelude::*;

    /// Factors from a tenth to ten, one for each channel.
    fn uneven(seed: u64, channels: usize) -> Vec<f32> {
        noise(seed, channels)
            .iter()
            .map(|value| 10.0_f32.powf(*value))
            .collect()
    }

    /// Weights whose value at `at` is multiplied by `factor(at)`.
    fn scaled(b: &mut Build, seed: u64, dims: &[usize], factor: impl Fn(usize) -> f32) -> String {
        let values: Vec<f32> = noise(seed, dims.iter().product())
            .iter()
            .enumerate()
            .map(|(at, value)| value * factor(at))
            .collect();
        b.floats(dims, &values)
    }

    /// Convolutions in a chain, each whole, grouped or depthwise, behind one of the functions.
    fn convolutions(seed: u64, chain: &[(u8, u8)]) -> Model {
        let mut b = Build::opset(17);
        let mut x = b.input("x", &[1, 8, 6, 6]);
        for (step, (kind, function)) in chain.iter().enumerate() {
            let (groups, count) = [(1, 1), (2, 2), (8, 8)][usize::from(kind % 3)];
            let seed = seed + step as u64;
            let factors = uneven(seed + 50, 8);
            let w = scaled(&mut b, seed, &[8, 8 / groups, 3, 3], |at| {
                factors[at / (9 * 8 / groups)]
            });
            let bias = b.weights(&[8]);
            let attributes = [("group", A::Int(count)), ("pads", A::Ints(vec![1; 4]))];
            x = b.node_with("Conv", &[&x, &w, &bias], &attributes);
            x = match function % 4 {
                0 => b.node("Relu", &[&x]),
                1 => b.node_with("LeakyRelu", &[&x], &[("alpha", A::Float(0.2))]),
                2 => {
                    let slope = b.weights(&[8, 1, 1]);
                    b.node("PRelu", &[&x, &slope])
                }
                _ => x,
            };
        }
        b.finish(&[&x])
    }

    /// A product with a sum behind it, a Gemm with turned weights, and another product: what one makes small, the next makes large.
    fn products(seed: u64) -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[5, 32]);
        let (first, second) = (uneven(seed, 48), uneven(seed + 1, 40));
        let w1 = scaled(&mut b, seed + 2, &[32, 48], |at| first[at % 48]);
        let w2 = scaled(&mut b, seed + 3, &[40, 48], |at| second[at / 48] / first[at % 48]);
        let w3 = scaled(&mut b, seed + 4, &[40, 32], |at| 1.0 / second[at / 32]);
        let (b1, b2) = (b.floats(&[48], &first), b.floats(&[40], &second));
        let product = b.node("MatMul", &[&x, &w1]);
        let sum = b.node("Add", &[&b1, &product]);
        let relu = b.node("Relu", &[&sum]);
        let gemm = b.node_with("Gemm", &[&relu, &w2, &b2], &[("transB", A::Int(1))]);
        let relu = b.node("Relu", &[&gemm]);
        let y = b.node("MatMul", &[&relu, &w3]);
        b.finish(&[&y])
    }

    fn same(model: &Model, inputs: &[Tensor]) -> Option<Report> {
        let mut even = model.clone();
        let report = apply(&mut even).ok()?;
        crate::onnx::check(&even, &Limits::default()).unwrap();
        let difference = relative_difference(&run(model, inputs), &run(&even, inputs));
        assert!(difference < 1e-5, "{difference}");
        Some(report)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn floats_stay_whatever_stands_between_the_layers(
            seed in 0_u64..1000,
            chain in proptest::collection::vec((0_u8..3, 0_u8..4), 2..5),
        ) {
            let inputs = [Tensor::floats("x", &[1, 8, 6, 6], &noise(seed, 8 * 36)).unwrap()];
            let changed = same(&convolutions(seed, &chain), &inputs).map_or(0, |report| report.changed);
            prop_assert!(changed < chain.len());
            let rows = [Tensor::floats("x", &[5, 32], &noise(seed, 160)).unwrap()];
            prop_assert_eq!(same(&products(seed), &rows).unwrap().changed, 2);
        }
    }

    #[test]
    fn one_scale_for_all_then_loses_less() {
        let inputs = [Tensor::floats("x", &[5, 32], &noise(3, 160)).unwrap()];
        let float = products(3);
        let mut even = float.clone();
        apply(&mut even).unwrap();
        let settings = Quantize {
            mode: Mode::Dynamic,
            granularity: Granularity::PerTensor,
            ..Quantize::default()
        };
        let lost = |model: &Model| {
            let mut model = model.clone();
            quantize_dynamic::apply(&mut model, &settings).unwrap();
            relative_difference(&run(&float, &inputs), &run(&model, &inputs))
        };
        let (plain, evened) = (lost(&float), lost(&even));
        assert!(evened < 0.7 * plain, "{evened} {plain}");
    }

    #[test]
    fn pairs_that_gain_nothing_or_are_read_by_others_are_left_and_that_is_no_success() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[5, 32]);
        let (w1, w2) = (b.floats(&[32, 48], &[0.5; 32 * 48]), b.floats(&[48, 8], &[0.1; 48 * 8]));
        let first = b.node("MatMul", &[&x, &w1]);
        let y = b.node("MatMul", &[&first, &w2]);
        let error = apply(&mut b.finish(&[&y])).unwrap_err().to_string();
        assert!(error.contains("even enough"), "{error}");

        let mut read = products(3);
        let relu = read.graph.nodes[2].output().to_owned();
        read.graph.outputs.push(crate::onnx::ValueInfo::untyped(&relu));
        let report = apply(&mut read).unwrap();
        assert_eq!(report.changed, 1, "{report:?}");
        assert!(
            report.left.iter().any(|left| left.why.contains("reads it alone")),
            "{report:?}"
        );
    }
}
