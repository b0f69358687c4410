//! `SmoothQuant` (Xiao et al., 2022, arXiv:2211.10438): channels that are much larger than others leave few of 256 steps to the others;
//! dividing them at the input of a product and multiplying the weights instead changes nothing in floats and much in 8 bits.
//!
//! How far is searched for each input, from magnitudes alone: the expected error of its products. An input that gains less than a tenth is
//! left. The division goes into a scale that alone feeds the products where there is one; into the weights that make what attention mixes,
//! where they feed nothing else; and into a `Mul` otherwise.
#![allow(
    clippy::cast_possible_truncation,
    reason = "factors are computed in 64 bits and kept in 32"
)]

use super::{
    Error, Mode, Report,
    even::{self, Problem},
    site::{Site, leave_bodies, sites},
    value_path,
};
use crate::{
    calibrate::{Channels, Rows as _},
    onnx::{ElementType, Index, Model, Names, Node, Patch, Shapes, Tensor, rewrite_main},
};
use rayon::prelude::*;
use std::collections::BTreeMap;

const NAME: &str = "smooth";
/// Error that must be left at most for a division to pay for itself.
const WORTH: f64 = 0.9;
/// Share of the weights' squared error that GPTQ leaves, as measured on encoders.
const LEFT_BY_GPTQ: f64 = 0.4;

/// What comes after smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smoothing {
    /// Whether ranges are fixed beforehand or found by each run.
    pub mode: Mode,
    /// Whether weights are rounded by GPTQ.
    pub gptq: bool,
}

/// Evens out the inputs of all matrix products.
pub fn apply(model: &mut Model, settings: Smoothing, observed: &BTreeMap<String, Channels>) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let mut groups: BTreeMap<&str, Vec<Site<'_>>> = BTreeMap::new();
        let sites = sites(&index, &mut report);
        let names: Vec<String> = sites.iter().map(|site| site.input().to_owned()).collect();
        for (site, name) in sites.into_iter().zip(&names) {
            if site.is_convolution() {
                report.leave(
                    site.node,
                    "the channels of a convolution's input are not its last dimension",
                );
            } else {
                groups.entry(name).or_default().push(site);
            }
        }
        leave_bodies(model, &mut report);
        let products = groups.values().flatten();
        let mut rewrite = Rewrite {
            index: &index,
            shapes: Shapes::new(&index),
            products: products.map(|site| (site.position, Weights::of(site))).collect(),
            sums: BTreeMap::new(),
            folded: Folded::default(),
            names: Names::new(&model.graph),
            patch: Patch::new(NAME),
        };
        let searched: Vec<Option<Vec<f64>>> = groups
            .par_iter()
            .map(|(input, group)| factors(observed.get(*input)?, group, settings))
            .collect();
        for ((input, group), found) in groups.iter().zip(searched) {
            match found {
                Some(factors) => {
                    rewrite.group(input, group, &factors)?;
                    report.changed += group.len();
                }
                None => group
                    .iter()
                    .for_each(|site| report.leave(site.node, "its input is even enough")),
            }
        }
        report.tell(&rewrite.folded.told());
        rewrite.finish()?
    };
    let report = super::require_effect(report)?;
    rewrite_main(model, patch)?;
    Ok(report)
}

/// What each channel of the input is divided by; `None` where that does not pay.
fn factors(channels: &Channels, group: &[Site<'_>], settings: Smoothing) -> Option<Vec<f64>> {
    let size = channels.size();
    if group
        .iter()
        .any(|site| site.weights.dims[1 - site.channel_axis()] != size)
    {
        return None;
    }
    let matrices: Vec<(Vec<f32>, usize)> = group
        .iter()
        .map(|site| (site.matrix(), site.weights.dims[site.channel_axis()]))
        .collect();
    let ends = match settings.mode {
        Mode::Static => channels.ends().clone(),
        Mode::Dynamic => channels.usual_ends(),
    };
    let squares: Vec<f64> = (0..size).map(|channel| channels.mean_square(channel)).collect();
    let (factors, left) = even::factors(&Problem {
        ends: &ends,
        squares: &squares,
        weights: &even::Weights::new(size, &matrices),
        left: if settings.gptq { LEFT_BY_GPTQ } else { 1.0 },
    })?;
    (left < WORTH).then_some(factors)
}

/// Weights and bias of a product, and what they are multiplied by.
struct Weights<'s, 'g> {
    site: &'s Site<'g>,
    /// One factor for each input.
    rows: Option<Vec<f64>>,
    /// One factor for each output.
    columns: Option<Vec<f64>>,
}

impl<'s, 'g> Weights<'s, 'g> {
    fn of(site: &'s Site<'g>) -> Self {
        Self {
            site,
            rows: None,
            columns: None,
        }
    }

    fn columns(&self) -> usize {
        self.site.weights.dims[self.site.channel_axis()]
    }

    /// The weights as they become; none where nothing changes.
    fn multiplied(&self) -> Option<Vec<f32>> {
        if self.rows.is_none() && self.columns.is_none() {
            return None;
        }
        let inner = self.site.weights.dims[1];
        let across = |factors: &Option<Vec<f64>>, at: usize| factors.as_ref().map_or(1.0, |factors| factors[at]);
        let mut floats = self.site.weights.to_floats().unwrap_or_default();
        for (position, value) in floats.iter_mut().enumerate() {
            let (mut row, mut column) = (position / inner, position % inner);
            if self.site.channel_axis() == 0 {
                std::mem::swap(&mut row, &mut column);
            }
            *value = (f64::from(*value) * across(&self.rows, row) * across(&self.columns, column)) as f32;
        }
        Some(floats)
    }
}

/// Where divisions went.
#[derive(Default)]
struct Folded {
    norms: usize,
    values: usize,
    added: usize,
}

impl Folded {
    fn told(&self) -> String {
        let Self { norms, values, added } = self;
        if norms + values + added == 0 {
            return String::new();
        }
        format!(
            "of {} divisions, {norms} are in normalizations, {values} in the weights of what attention mixes, {added} in a Mul",
            norms + values + added
        )
    }
}

struct Rewrite<'i, 'g> {
    index: &'i Index<'g>,
    shapes: Shapes<'g>,
    /// By position.
    products: BTreeMap<usize, Weights<'i, 'g>>,
    /// Vectors that sums add, by position and slot, and what they are multiplied by.
    sums: BTreeMap<(usize, usize), (&'g Tensor, Vec<f64>)>,
    folded: Folded,
    names: Names,
    patch: Patch,
}

impl Rewrite<'_, '_> {
    fn group(&mut self, input: &str, group: &[Site<'_>], factors: &[f64]) -> Result<(), Error> {
        let inverse: Vec<f32> = factors.iter().map(|factor| (1.0 / factor) as f32).collect();
        if self.fold(input, group, &inverse)? {
            self.folded.norms += 1;
        } else if self.fold_into_values(input, group, factors) {
            self.folded.values += 1;
        } else {
            let (divisor, even) = (self.names.fresh(input, "/evening"), self.names.fresh(input, "/even"));
            self.patch
                .add_tensor(Tensor::floats(&divisor, &[inverse.len()], &inverse)?);
            let after = self.index.producer(input).map_or(0, |(position, _)| position + 1);
            self.patch
                .insert_before(after, [Node::new("Mul", &[input, &divisor], &[&even])]);
            for site in group {
                self.patch.rewire(site.position, 0, &even);
            }
            self.folded.added += 1;
        }
        for site in group {
            if let Some(weights) = self.products.get_mut(&site.position) {
                weights.rows = Some(factors.to_vec());
            }
        }
        Ok(())
    }

    /// Puts the division into the product that makes what attention mixes, and into its bias.
    fn fold_into_values(&mut self, input: &str, group: &[Site<'_>], factors: &[f64]) -> bool {
        let inverse: Vec<f64> = factors.iter().map(|factor| 1.0 / factor).collect();
        let columns = |position: usize| self.products.get(&position).map(Weights::columns);
        let origin = value_path::origin(self.index, &self.shapes, input, group.len(), &inverse, columns);
        let Some(origin) = origin else {
            return false;
        };
        if let Some(weights) = self.products.get_mut(&origin.product) {
            multiply(
                weights.columns.get_or_insert_with(|| vec![1.0; origin.columns.len()]),
                &origin.columns,
            );
        }
        for added in origin.added {
            let one = || (added.vector, vec![1.0; added.factors.len()]);
            let (_, all) = self.sums.entry((added.sum, added.slot)).or_insert_with(one);
            multiply(all, &added.factors);
        }
        true
    }

    /// Writes what was multiplied.
    fn finish(mut self) -> Result<Patch, Error> {
        for weights in self.products.values() {
            let site = weights.site;
            if let Some(floats) = weights.multiplied() {
                let name = self.names.fresh(&site.weights.name, "/evened");
                self.patch
                    .add_tensor(Tensor::floats(&name, &site.weights.dims, &floats)?);
                self.patch.rewire(site.position, 1, &name);
            }
            if let (Some(bias), Some(columns)) = (site.bias, &weights.columns) {
                self.sums.insert((site.position, 2), (bias, columns.clone()));
            }
        }
        for ((position, slot), (vector, factors)) in &self.sums {
            let floats = vector.to_floats().unwrap_or_default();
            let floats = floats.iter().zip(factors);
            let floats: Vec<f32> = floats
                .map(|(value, factor)| (f64::from(*value) * factor) as f32)
                .collect();
            let name = self.names.fresh(&vector.name, "/evened");
            self.patch.add_tensor(Tensor::floats(&name, &vector.dims, &floats)?);
            self.patch.rewire(*position, *slot, &name);
        }
        Ok(self.patch)
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

fn multiply(all: &mut [f64], factors: &[f64]) {
    all.iter_mut().zip(factors).for_each(|(all, factor)| *all *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue as A, Limits},
        passes::{Quantize, product_inputs, quantize_dynamic},
        testing::{Build, noise, relative_difference, run, run_optimized},
    };

    const SETTINGS: Smoothing = Smoothing {
        mode: Mode::Dynamic,
        gptq: false,
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
        assert_eq!(apply(&mut even, SETTINGS, &seen(&float)).unwrap().changed, 2);
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
        apply(&mut even, SETTINGS, &channels).unwrap();
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
        let error = apply(
            &mut model.clone(),
            SETTINGS,
            &BTreeMap::from([("x".to_owned(), channels)]),
        )
        .unwrap_err();
        assert!(error.to_string().contains("even enough"), "{error}");
    }
}
