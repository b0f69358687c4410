//! `SmoothQuant` (Xiao et al., 2022, arXiv:2211.10438): channels that are much larger than others leave few of 256 steps to the others;
//! dividing them at the input of a product and multiplying the weights instead changes nothing in floats and much in 8 bits.
//!
//! How far is searched for each input, from magnitudes alone: the expected error of its products. An input that gains less than a tenth is
//! left. The division goes into a scale that alone feeds the products where there is one; into the weights that make what attention mixes,
//! where they feed nothing else; and into a `Mul` otherwise. Inputs whose products share weights are divided by the same factors, so that
//! these weights stay one.
#![allow(
    clippy::cast_possible_truncation,
    reason = "factors are computed in 64 bits and kept in 32"
)]

use super::{
    Error, Mode, Report,
    even::{self, Problem},
    shared::{self, Group, Matrix},
    site::{Site, leave_bodies, sites},
    value_path,
    vectors::Vectors,
};
use crate::{
    calibrate::{Channels, Rows as _},
    onnx::{ElementType, Index, Model, Names, Node, Patch, Shapes, Tensor, rewrite_main},
};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

const NAME: &str = "smooth";
/// Error that must be left at most for a division to pay for itself.
const WORTH: f64 = 0.9;
/// Share of the weights' squared error that GPTQ leaves, as measured on encoders.
const LEFT_BY_GPTQ: f64 = 0.4;
/// Squared error of weights in blocks of 4 bits, as a multiple of that in 8, for the sake of which inputs are evened out less. 15 to 40 do
/// alike on an encoder; ranges alone say (254 / 15)^2 / 4, with which its inputs lose more than its weights gain.
const FOUR_BITS: f64 = 20.0;
/// Why inputs are left.
const IN_BODY: &str = "a body of a control-flow node shares its weights, and calibration does not look into it";
const EVEN: &str = "its input is even enough";

/// What comes after smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smoothing {
    /// Whether ranges are fixed beforehand or found by each run.
    pub mode: Mode,
    /// Whether weights are rounded by GPTQ.
    pub gptq: bool,
    /// Whether weights are kept in blocks of 4 bits.
    pub four_bits: bool,
}

/// Evens out the inputs of all matrix products.
pub fn apply(model: &mut Model, settings: Smoothing, observed: &BTreeMap<String, Channels>) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let (convolutions, products): (Vec<_>, Vec<_>) =
            sites(&index, &mut report).into_iter().partition(Site::is_convolution);
        for site in &convolutions {
            report.leave(
                site.node,
                "the channels of a convolution's input are not its last dimension",
            );
        }
        leave_bodies(model, &mut report);
        let groups = shared::groups(products);
        let products = groups.iter().flat_map(BTreeMap::values).flatten();
        let mut rewrite = Rewrite {
            index: &index,
            shapes: Shapes::new(&index),
            products: products.map(|site| (site.position, Weights::of(site))).collect(),
            sums: BTreeMap::new(),
            folded: Folded::default(),
            names: Names::new(&model.graph),
            vectors: Vectors::default(),
            patch: Patch::new(NAME),
        };
        let products = groups.iter().map(|group| group.values().flatten());
        let in_bodies: Vec<bool> = products
            .map(|mut products| products.any(|site| shared::with_bodies(&index, site)))
            .collect();
        let searched: Vec<Result<Vec<f64>, &str>> = groups
            .par_iter()
            .zip(in_bodies)
            .map(|(group, in_bodies)| {
                if in_bodies {
                    return Err(IN_BODY);
                }
                factors(observed, group, settings)
            })
            .collect();
        for (group, found) in groups.iter().zip(searched) {
            let sites = group.values().flatten();
            match found {
                Ok(factors) => {
                    rewrite.group(group, &factors)?;
                    report.changed += sites.count();
                }
                Err(why) => sites.for_each(|site| report.leave(site.node, why)),
            }
        }
        report.tell(&rewrite.folded.told());
        rewrite.finish()?
    };
    let report = super::require_effect(report)?;
    rewrite_main(model, patch)?;
    Ok(report)
}

/// What each channel of the inputs of a group is divided by; why they are left otherwise.
fn factors(
    observed: &BTreeMap<String, Channels>,
    group: &Group<'_>,
    settings: Smoothing,
) -> Result<Vec<f64>, &'static str> {
    const UNSEEN: &str = "calibration data says nothing about its input";
    let mut inputs = group.keys().map(|input| observed.get(*input).ok_or(UNSEEN));
    let mut channels = inputs.next().ok_or(UNSEEN)??.clone();
    for other in inputs {
        channels.join(other?);
    }
    let size = channels.size();
    let mut matrices: BTreeMap<&str, &Site<'_>> = BTreeMap::new();
    let mut weights = Vec::new();
    for site in group.values().flatten() {
        if site.weights.dims[1 - site.channel_axis()] != size {
            return Err(UNSEEN);
        }
        match matrices.insert(&site.weights.name, site) {
            None => weights.push((site.matrix(), site.weights.dims[site.channel_axis()])),
            Some(other) if other.channel_axis() != site.channel_axis() => {
                return Err("others are multiplied with its weights turned around");
            }
            Some(_) => {}
        }
    }
    let ends = match settings.mode {
        Mode::Static => channels.ends().clone(),
        Mode::Dynamic => channels.usual_ends(),
    };
    let squares: Vec<f64> = (0..size).map(|channel| channels.mean_square(channel)).collect();
    let (factors, left) = even::factors(&Problem {
        ends: &ends,
        squares: &squares,
        weights: &even::Weights::new(size, &weights),
        left: [(settings.gptq, LEFT_BY_GPTQ), (settings.four_bits, FOUR_BITS)]
            .iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, share)| share)
            .product(),
    })
    .ok_or(EVEN)?;
    if left < WORTH { Ok(factors) } else { Err(EVEN) }
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

    /// Whether the same becomes of the same weights.
    fn is_multiplied_as(&self, other: &Self) -> bool {
        self.rows == other.rows && self.columns == other.columns
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
    vectors: Vectors,
    patch: Patch,
}

impl Rewrite<'_, '_> {
    fn group(&mut self, group: &Group<'_>, factors: &[f64]) -> Result<(), Error> {
        let inverse: Vec<f32> = factors.iter().map(|factor| (1.0 / factor) as f32).collect();
        let mut open = BTreeMap::new();
        for (input, sites) in group {
            if self.fold(input, sites, &inverse)? {
                self.folded.norms += 1;
            } else {
                open.insert(*input, sites.len());
            }
        }
        self.fold_into_values(&mut open, factors);
        let mut divisor = None;
        for input in open.into_keys() {
            let divisor = match &mut divisor {
                Some(divisor) => divisor,
                none => {
                    let name = self.names.fresh(input, "/evening");
                    self.patch
                        .add_tensor(Tensor::floats(&name, &[inverse.len()], &inverse)?);
                    none.insert(name)
                }
            };
            let even = self.names.fresh(input, "/even");
            let after = self.index.producer(input).map_or(0, |(position, _)| position + 1);
            self.patch
                .insert_before(after, [Node::new("Mul", &[input, divisor], &[&even])]);
            for site in &group[input] {
                self.patch.rewire(site.position, 0, &even);
            }
            self.folded.added += 1;
        }
        for site in group.values().flatten() {
            if let Some(weights) = self.products.get_mut(&site.position) {
                weights.rows = Some(factors.to_vec());
            }
        }
        Ok(())
    }

    /// Puts divisions of inputs, each with the number of products that read it, into the products that make what attention mixes, and into
    /// their biases; takes those inputs out. Weights that several products share are only multiplied if all of them are, in the same way.
    fn fold_into_values(&mut self, open: &mut BTreeMap<&str, usize>, factors: &[f64]) {
        let inverse: Vec<f64> = factors.iter().map(|factor| 1.0 / factor).collect();
        let columns = |position: usize| self.products.get(&position).map(Weights::columns);
        let mut origins = BTreeMap::new();
        let mut multiplied: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (input, readers) in &*open {
            let origin = value_path::origin(self.index, &self.shapes, input, *readers, &inverse, columns);
            if let Some(origin) = origin {
                let all = multiplied.entry(origin.product);
                multiply(all.or_insert_with(|| vec![1.0; origin.columns.len()]), &origin.columns);
                origins.insert(*input, origin);
            }
        }
        for (input, origin) in origins {
            let Some(site) = self.products.get(&origin.product).map(|weights| weights.site) else {
                continue;
            };
            let own = multiplied.get(&origin.product);
            let products = self.products.iter();
            let mut sharing = products.filter(|(_, other)| other.site.weights.name == site.weights.name);
            let alike = sharing.all(|(position, _)| multiplied.get(position) == own);
            if !alike || shared::with_bodies(self.index, site) {
                continue;
            }
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
            open.remove(input);
            self.folded.values += 1;
        }
    }

    /// Writes what was multiplied.
    fn finish(mut self) -> Result<Patch, Error> {
        let mut written: HashMap<Matrix, (&Weights<'_, '_>, String)> = HashMap::new();
        for weights in self.products.values() {
            let site = weights.site;
            let shared = written.get(&shared::matrix(site));
            if let Some((_, name)) = shared.filter(|(other, _)| other.is_multiplied_as(weights)) {
                self.patch.rewire(site.position, 1, name);
            } else if let Some(floats) = weights.multiplied() {
                let name = self.names.fresh(&site.weights.name, "/evened");
                self.patch
                    .add_tensor(Tensor::floats(&name, &site.weights.dims, &floats)?);
                self.patch.rewire(site.position, 1, &name);
                written.insert(shared::matrix(site), (weights, name));
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
            let even = Tensor::floats(&name, &vector.dims, &floats)?;
            let name = self.vectors.add(&vector.name, even, &mut self.patch);
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
            let even = Tensor::floats(&name, &[even.len()], &even)?;
            let name = self.vectors.add(&tensor.name, even, &mut self.patch);
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
        four_bits: false,
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
