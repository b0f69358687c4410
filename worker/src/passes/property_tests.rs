//! Properties that hold for any model: what is only rewritten gives the same, what is quantized stays near, and nothing comes out invalid.

use super::*;
use crate::{
    calibrate::{self, Method},
    onnx::{Limits, Model, Tensor, normalize, upgrade, visit_graphs},
    testing::{
        self,
        graphs::{Recipe, recipes},
        relative_difference, run, run_optimized,
    },
};
use proptest::prelude::*;

/// Graphs a property is tried on: as many as take a few seconds.
const CASES: u32 = 40;

fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    }
}

/// Valid, and every value is named once over all scopes.
fn valid(model: &Model) {
    crate::onnx::check(model, &Limits::default()).unwrap();
    let mut names = std::collections::HashSet::new();
    visit_graphs(&model.graph, &mut |graph| {
        let outputs = graph.nodes.iter().flat_map(|node| &node.outputs);
        let inputs = graph.inputs.iter().map(|input| &input.name);
        let tensors = graph.initializers.iter().map(|tensor| &tensor.name);
        for name in outputs.chain(inputs).chain(tensors).filter(|name| !name.is_empty()) {
            assert!(names.insert(name.clone()), "{name} is defined twice");
        }
    });
}

fn simplified(recipe: &Recipe) -> Model {
    let mut model = recipe.model();
    normalize(&mut model).unwrap();
    upgrade(&mut model).unwrap();
    simplify(&mut model, &Simplify::default(), &Limits::default()).unwrap();
    model
}

/// Root of the squared error over that of the squares, over all outputs together.
fn relative_error(before: &[Tensor], after: &[Tensor]) -> f64 {
    let (mut lost, mut power) = (0.0, 0.0);
    for (before, after) in before.iter().zip(after) {
        assert_eq!((&before.name, &before.dims), (&after.name, &after.dims));
        for (before, after) in before.to_floats().unwrap().iter().zip(after.to_floats().unwrap()) {
            assert!(after.is_finite());
            lost += f64::from(before - after).powi(2);
            power += f64::from(*before).powi(2);
        }
    }
    (lost / power).sqrt()
}

/// Both branches of every `If`, in ONNX Runtime as it runs in production. Each site adds an error that is independent of the others' and at
/// most `each` of its output's power, which normalization and activations pass on and sums dilute.
fn near(recipe: &Recipe, float: &Model, quantized: &Model, changed: usize, each: f64) {
    valid(quantized);
    for sample in 0..2 {
        let inputs = recipe.inputs(sample);
        let error = relative_error(&run(float, &inputs), &run_optimized(quantized, &inputs).0);
        let sites = f64::from(u32::try_from(changed).unwrap());
        assert!(error <= each * sites.max(1.0), "{error} after {changed} sites");
    }
}

/// A pass either changes something, or says that there is nothing.
fn changed(result: Result<Report, Error>) -> usize {
    match result {
        Ok(report) => report.changed,
        Err(Error::NoEffect { .. }) => 0,
        Err(error) => panic!("{error}"),
    }
}

fn quantized_statically(recipe: &Recipe, model: &mut Model, settings: &Quantize) -> usize {
    let taps = quantize_static::taps(model);
    let mut batches = (0..4).map(|sample| Ok(recipe.inputs(sample)));
    let runtime = testing::runtime();
    let seen = calibrate::calibrate(&runtime, 1, model, &taps, Method::MinMax, &mut batches, &mut |_| {}).unwrap();
    changed(quantize_static::apply(model, settings, &seen))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_only_rewritten_gives_the_same(recipe in recipes()) {
        let before = recipe.model();
        crate::onnx::check(&before, &Limits::default()).unwrap();
        let mut model = before.clone();
        normalize(&mut model).unwrap();
        let opset = model.opset("");
        let normal = model.clone();
        upgrade(&mut model).unwrap();
        prop_assert_eq!(&model, &normal, "operator set 17 and newer stay");
        valid(&model);
        for sample in 0..2 {
            let inputs = recipe.inputs(sample);
            prop_assert_eq!(run(&model, &inputs), run(&before, &inputs));
        }
        simplify(&mut model, &Simplify::default(), &Limits::default()).unwrap();
        valid(&model);
        prop_assert_eq!(model.opset(""), opset);
        for sample in 0..2 {
            let inputs = recipe.inputs(sample);
            let difference = relative_difference(&run(&before, &inputs), &run(&model, &inputs));
            prop_assert!(difference < 1e-5, "{difference}");
        }
        let once = model.clone();
        let again = simplify(&mut model, &Simplify::default(), &Limits::default()).unwrap();
        prop_assert!(again.iter().all(|report| report.changed == 0), "{:?}", again);
        prop_assert_eq!(model, once);
    }

    #[test]
    fn dynamic_stays_near(recipe in recipes(), tensor: bool) {
        let float = simplified(&recipe);
        let granularity = if tensor { Granularity::PerTensor } else { Granularity::PerChannel };
        let settings = Quantize { mode: Mode::Dynamic, granularity, ..Quantize::default() };
        let mut model = float.clone();
        let tables = quantize_tables::apply(&mut model, None).unwrap().changed;
        let sites = changed(quantize_dynamic::apply(&mut model, &settings));
        near(&recipe, &float, &model, tables + sites, 0.03);
    }

    #[test]
    fn static_stays_near(recipe in recipes(), signed: bool) {
        let float = simplified(&recipe);
        let activations = if signed { Activations::Int8 } else { Activations::UInt8 };
        let settings = Quantize { activations, ..Quantize::default() };
        let mut model = float.clone();
        let tables = quantize_tables::apply(&mut model, None).unwrap().changed;
        let sites = quantized_statically(&recipe, &mut model, &settings);
        near(&recipe, &float, &model, tables + sites, 0.04);
    }

    #[test]
    fn four_bits_for_kernels_of_eight_stay_near(
        recipe in recipes(), fixed: bool, standard: bool, size in proptest::sample::select(&[16_usize, 32, 128][..]),
    ) {
        let float = simplified(&recipe);
        let settings = Quantize {
            mode: if fixed { Mode::Static } else { Mode::Dynamic },
            format: if standard { Format::Qdq } else { Format::QOperator },
            four_bits: Some(size),
            ..Quantize::default()
        };
        let mut model = float.clone();
        let tables = quantize_blocks::tables(&mut model, size).unwrap().changed;
        let sites = if fixed {
            quantized_statically(&recipe, &mut model, &settings)
        } else {
            changed(quantize_dynamic::apply(&mut model, &settings))
        };
        near(&recipe, &float, &model, tables + sites, 0.2);
    }

    #[test]
    fn blocks_stay_near(recipe in recipes(), four: bool, size in proptest::sample::select(&[16_usize, 32, 128][..])) {
        let float = simplified(&recipe);
        let (bits, each) = if four { (Bits::Four, 0.2) } else { (Bits::Eight, 0.03) };
        let settings = Blocks { bits, size, recovery: Recovery::default() };
        let mut model = float.clone();
        let sites = changed(quantize_blocks::apply(&mut model, &settings, &mut Recovering::default()));
        near(&recipe, &float, &model, sites, each);
    }
}
