//! Recipes as they are meant to be used: pasted where stages were, at another number of threads, they give the same bytes.

use assayer_crds::contract::MakePlan;
use assayer_crds::stages::Stage;
use serde_json::{Value, json};
use std::path::Path;

use super::{recipe, techniques};
use crate::calibrate::DataError;
use crate::onnx::{self, Limits, Model, Tensor};
use crate::optimize::{Error, Given, Request, optimize};
use crate::testing::{self, Build, noise};

/// Four products; the input of the second has one channel far larger than the others, which is where smoothing helps.
fn products() -> (Model, Vec<i64>) {
    let mut b = Build::opset(17);
    let mut x = b.input("x", &[-1, 64]);
    for layer in 0..4 {
        let mut weights = noise(layer, 64 * 64);
        if layer == 0 {
            weights
                .iter_mut()
                .skip(3)
                .step_by(64)
                .for_each(|weight| *weight *= 30.0);
        }
        let weights = b.floats(&[64, 64], &weights);
        let product = b.node("MatMul", &[&x, &weights]);
        x = b.node("Relu", &[&product]);
    }
    (b.finish(&[&x]), vec![4, 64])
}

/// Two convolutions and a product.
fn convolutions() -> (Model, Vec<i64>) {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 3, 8, 8]);
    let (first, second) = (b.weights(&[16, 3, 3, 3]), b.weights(&[16, 16, 3, 3]));
    let y = b.node("Conv", &[&x, &first]);
    let y = b.node("Relu", &[&y]);
    let y = b.node("Conv", &[&y, &second]);
    let y = b.node("Flatten", &[&y]);
    let head = b.weights(&[256, 8]);
    let y = b.node("MatMul", &[&y, &head]);
    (b.finish(&[&y]), vec![4, 3, 8, 8])
}

struct Bench {
    folder: tempfile::TempDir,
    dims: Vec<usize>,
}

impl Bench {
    fn of((model, dims): (Model, Vec<i64>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        onnx::write(&model, &folder.path().join("model.onnx")).unwrap();
        let dims = dims.into_iter().map(|dim| usize::try_from(dim).unwrap()).collect();
        Self { folder, dims }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The bytes that `stages` give, and their recipe.
    fn make(&self, stages: &[Stage], threads: usize) -> (Vec<u8>, Vec<Stage>) {
        self.of_batches(stages, threads, [self.dims[0]; 8]).unwrap()
    }

    /// The same from batches of so many rows.
    fn of_batches<const N: usize>(
        &self,
        stages: &[Stage],
        threads: usize,
        rows: [usize; N],
    ) -> Result<(Vec<u8>, Vec<Stage>), Error> {
        let plan = json!({"baseline": {"uri": "b"}, "candidate": "c", "stages": stages, "inputs": [], "output": "o"});
        let plan: MakePlan = serde_json::from_value(plan).unwrap();
        let (model, output) = (self.path("model.onnx"), self.path("candidate.onnx"));
        let request = Request {
            model: Path::new(&model),
            output: &output,
            stages: &techniques::of(&plan, "avx512_vnni").unwrap(),
            threads,
            limits: Limits::default(),
            given: Given::default(),
        };
        let batch = |(seed, rows)| {
            let dims = [&[rows], &self.dims[1..]].concat();
            let values = noise(seed, dims.iter().product());
            Ok::<_, DataError>(vec![Tensor::floats("x", &dims, &values).unwrap()])
        };
        let samples = || Box::new((0..).zip(rows).map(batch)) as Box<dyn Iterator<Item = _>>;
        // Both ONNX Runtime's threads and those that reduce what it gives.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let report = pool.install(|| optimize(&testing::runtime(), &request, &samples, &mut |_| {}))?;
        let recipe = recipe::spelled_out(stages, &report.chosen, "avx512_vnni");
        Ok((std::fs::read(output).unwrap(), recipe))
    }

    /// That a recipe of `stages` gives what they gave, whoever is asked; the recipe.
    fn replays(&self, stages: &Value) -> Vec<Stage> {
        let given: Vec<Stage> = serde_json::from_value(stages.clone()).unwrap();
        let (bytes, recipe) = self.make(&given, 1);
        let pasted: Vec<Stage> = serde_json::from_value(serde_json::to_value(&recipe).unwrap()).unwrap();
        for threads in [1, 2] {
            let (again, same) = self.make(&pasted, threads);
            assert!(again == bytes, "{threads} threads: other bytes from {pasted:?}");
            assert_eq!(same, recipe, "{threads} threads");
        }
        recipe
    }
}

/// Patterns of products in blocks, and of nodes in floats.
fn raised(recipe: &[Stage]) -> (usize, usize) {
    let recovers = recipe.iter().filter_map(|stage| stage.recover.as_ref());
    let quantizes = recipe.iter().filter_map(|stage| stage.quantize.as_ref());
    (
        recovers.map(|recover| recover.nodes.len()).sum(),
        quantizes.map(|quantize| quantize.except.len()).sum(),
    )
}

#[test]
fn products_that_a_goal_or_a_share_has_raised_are_raised_again() {
    let bench = Bench::of(products());
    let recover = |method: &str| json!({"recover": {"method": method}});
    let goal = |goal: &str| json!({"recover": {"method": "RaisePrecision", "share": "0.9", "goal": goal}});
    let static_ = json!({"quantize": {"mode": "Static", "calibration": {"method": "Percentile"}}});
    let dynamic = json!({"quantize": {"mode": "Dynamic"}});
    let four = json!({"quantize": {"mode": "WeightOnly", "weights": "Int4"}});
    let fast = json!({"quantize": {"mode": "Dynamic", "weights": "Int4", "block": 64}});
    let share = json!({"recover": {"method": "RaisePrecision", "share": "0.5"}});
    for (stages, count) in [
        (
            json!([
                recover("SmoothQuant"),
                static_,
                recover("GPTQ"),
                recover("BiasCorrection"),
                json!({"recover": {"method": "RaisePrecision", "share": "0.9"}})
            ]),
            (3, 0),
        ),
        (json!([recover("SmoothQuant"), dynamic, recover("GPTQ"), share]), (2, 0)),
        (json!([four, recover("GPTQ"), share]), (2, 0)),
        (json!([recover("SmoothQuant"), fast, recover("GPTQ"), share]), (2, 0)),
        (json!([dynamic, share]), (2, 0)),
        (json!([four, goal("0.5")]), (0, 0)),
        (json!([four, goal("0.9999")]), (0, 3)),
    ] {
        let recipe = bench.replays(&stages);
        assert_eq!(raised(&recipe), count, "{recipe:?}");
        let raises = recipe.iter().filter_map(|stage| stage.recover.as_ref());
        let searches = raises.filter(|recover| recover.goal.is_some() || recover.share.is_some());
        assert_eq!(searches.count(), 0, "nothing is left to choose: {recipe:?}");
    }
}

/// A model that says that its batch is free, and only runs on one row.
#[test]
fn rows_that_do_not_run_together_are_run_one_at_a_time() {
    let mut b = Build::opset(17);
    let x = b.input("x", &[-1, 64]);
    let (weights, row) = (b.weights(&[64, 32]), b.ints(&[1, 64]));
    let x = b.node("Reshape", &[&x, &row]);
    let y = b.node("MatMul", &[&x, &weights]);
    let bench = Bench::of((b.finish(&[&y]), vec![1, 64]));
    let mut tried = Vec::new();
    let bytes = super::optimize::together(crate::optimize::ROWS_AT_ONCE, |rows| {
        tried.push(rows);
        // The first row alone, as feeds give it.
        bench.of_batches(&static_stage(), 1, [1, rows])
    });
    assert!(!bytes.unwrap().0.is_empty());
    assert_eq!(tried, [crate::optimize::ROWS_AT_ONCE, 1]);
}

fn static_stage() -> Vec<Stage> {
    serde_json::from_value(json!([{"quantize": {"mode": "Static"}}])).unwrap()
}

#[test]
fn every_way_of_choosing_ranges_gives_the_same_bytes_again() {
    let bench = Bench::of(convolutions());
    for method in ["MinMax", "MovingAverage", "Entropy", "Percentile", "MeanSquaredError"] {
        let stages = json!([{"quantize": {"mode": "Static", "calibration": {"method": method}}}]);
        bench.replays(&stages);
    }
}
