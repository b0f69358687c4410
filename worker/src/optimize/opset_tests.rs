//! One network as exporters of each operator set write it, through every method: faithful, and at operator set 17 or its own.

use super::{trial::made, *};
use crate::{
    onnx::{AttributeValue as A, Dim, ElementType, ValueInfo},
    passes::{Activations, Bits, Blocks, Choice, Format, Granularity, Mode, Quantize, Raise, Recovery, Smoothing},
    testing::{Build, noise, relative_difference, run, run_optimized},
};

const WIDTH: usize = 64;
const TOKENS: usize = 300;
const LENGTH: i64 = 6;

/// Spells operators as its operator set has them.
struct Exporter {
    b: Build,
    opset: i64,
}

impl Exporter {
    fn weights(&mut self, dims: &[usize], scale: f32) -> String {
        let seed = dims.iter().sum::<usize>() as u64 + u64::from(scale.to_bits());
        let values = noise(seed, dims.iter().product());
        let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
        self.b.floats(dims, &values)
    }

    fn product(&mut self, x: &str, from: usize, to: usize) -> String {
        let (w, bias) = (self.weights(&[from, to], 0.2), self.weights(&[to], 0.1));
        let product = self.b.node("MatMul", &[x, &w]);
        self.b.node("Add", &[&product, &bias])
    }

    fn norm(&mut self, x: &str) -> String {
        let mut scale = vec![1.0; WIDTH];
        scale[3] = 12.0;
        let (scale, bias) = (self.b.floats(&[WIDTH], &scale), self.weights(&[WIDTH], 0.3));
        self.b.spelled_norm(x, &scale, &bias)
    }

    fn softmax(&mut self, x: &str) -> String {
        let axis = if self.opset < 13 { 2 } else { -1 };
        self.b.node_with("Softmax", &[x], &[("axis", A::Int(axis))])
    }

    /// A transformer's layer over an embedding.
    fn rows(&mut self) -> String {
        let ids = self.b.typed_input("ids", ElementType::Int64, &[-1, LENGTH]);
        let table = self.weights(&[TOKENS, WIDTH], 1.0);
        let embedded = self.b.node("Gather", &[&table, &ids]);
        let x = self.norm(&embedded);
        let [query, key, value] = [(); 3].map(|()| self.product(&x, WIDTH, WIDTH));
        let turned = [("perm", A::Ints(vec![0, 2, 1]))];
        let key = self.b.node_with("Transpose", &[&key], &turned);
        let scores = self.b.node("MatMul", &[&query, &key]);
        let root = self.b.scalar(8.0);
        let scores = self.b.node("Div", &[&scores, &root]);
        let shares = self.softmax(&scores);
        let mixed = self.b.node("MatMul", &[&shares, &value]);
        let mixed = self.product(&mixed, WIDTH, WIDTH);
        let sum = self.b.node("Add", &[&x, &mixed]);
        let x = self.norm(&sum);
        let wide = self.product(&x, WIDTH, 2 * WIDTH);
        let wide = self.b.spelled_gelu(&wide);
        let narrow = self.product(&wide, 2 * WIDTH, WIDTH);
        let sum = self.b.node("Add", &[&x, &narrow]);
        let pooled = self.b.along("ReduceSum", 13, &sum, &[1]);
        let pooled = self.b.along("Squeeze", 13, &pooled, &[1]);
        let (w, bias) = (self.weights(&[32, WIDTH], 0.2), self.weights(&[32], 0.1));
        self.b
            .node_with("Gemm", &[&pooled, &w, &bias], &[("transB", A::Int(1))])
    }

    fn convolution(&mut self, x: &str, from: usize, to: usize) -> String {
        // One channel is larger than the others.
        let mut w = noise(from as u64, to * from * 9);
        w[..from * 9].iter_mut().for_each(|value| *value *= 8.0);
        let w = self.b.floats(&[to, from, 3, 3], &w);
        let conv = self.b.node_with("Conv", &[x, &w], &[("pads", A::Ints(vec![1; 4]))]);
        let vectors: Vec<String> = [1.25, 0.25, 0.5, 0.75]
            .map(|value| self.b.floats(&[to], &vec![value; to]))
            .into();
        let inputs: Vec<&str> = std::iter::once(&conv).chain(&vectors).map(String::as_str).collect();
        self.b.node("BatchNormalization", &inputs)
    }

    /// Convolutions with a larger image between them.
    fn image(&mut self) -> String {
        let x = self.b.input("image", &[-1, 8, 8, 8]);
        let x = self.convolution(&x, 8, 16);
        let x = if self.opset < 11 {
            let bounds = [("min", A::Float(0.0)), ("max", A::Float(6.0))];
            self.b.node_with("Clip", &[&x], &bounds)
        } else {
            let (least, most) = (self.b.scalar(0.0), self.b.scalar(6.0));
            self.b.node("Clip", &[&x, &least, &most])
        };
        let scales = self.b.floats(&[4], &[1.0, 1.0, 2.0, 2.0]);
        let x = match self.opset {
            9 => self.b.node("Upsample", &[&x, &scales]),
            10 => self.b.node("Resize", &[&x, &scales]),
            _ => {
                let roi = self.b.floats(&[0], &[]);
                let attributes = [
                    ("coordinate_transformation_mode", A::String("asymmetric".into())),
                    ("nearest_mode", A::String("floor".into())),
                ];
                self.b.node_with("Resize", &[&x, &roi, &scales], &attributes)
            }
        };
        let x = self.convolution(&x, 16, 16);
        let x = self.b.node("Relu", &[&x]);
        let x = self.convolution(&x, 16, 32);
        let x = self.b.node("Relu", &[&x]);
        self.b.node("GlobalAveragePool", &[&x])
    }
}

pub(super) fn model(opset: i64) -> Model {
    let b = Build::opset(opset);
    let mut exporter = Exporter { b, opset };
    let (rows, image) = (exporter.rows(), exporter.image());
    let mut model = exporter.b.finish(&[&rows, &image]);
    if opset == 9 {
        model.ir_version = 3;
        let listed = model.graph.initializers.iter().map(|tensor| {
            let dims = tensor.dims.iter().map(|dim| Dim::Fixed(i64::try_from(*dim).unwrap()));
            ValueInfo::tensor(&tensor.name, tensor.element, &dims.collect::<Vec<_>>())
        });
        model.graph.inputs.extend(listed);
    }
    if opset >= 21 {
        model.ir_version = 10;
    }
    model
}

pub(super) fn sample(seed: u64) -> Vec<Tensor> {
    let ids: Vec<i64> = (1..=LENGTH)
        .map(|at| at * (47 + i64::try_from(seed).unwrap()) % 300)
        .collect();
    vec![
        Tensor::int64s("ids", &[1, 6], &ids).unwrap(),
        Tensor::floats("image", &[1, 8, 8, 8], &noise(seed + 50, 512)).unwrap(),
    ]
}

/// Stages, and the largest error, relative to the largest output, that they may make.
fn methods() -> Vec<(Vec<Stage>, f32)> {
    let none = Recovery::default();
    // With a choice, nothing hangs on what is measured.
    let chosen = Stage::Choose(Choice {
        except: vec!["GlobalAveragePool".to_owned()],
        ..Choice::default()
    });
    let quantize = |settings| vec![chosen.clone(), Stage::Quantize(settings)];
    let plain = Quantize::default();
    let dynamic = Quantize {
        mode: Mode::Dynamic,
        ..plain.clone()
    };
    let gptq = Recovery {
        gptq: true,
        bias_correction: true,
        ..none.clone()
    };
    let raised = Recovery {
        raise: Some(Raise::Worst { share: 0.3, goal: None }),
        ..none.clone()
    };
    let blocks = |bits, recovery| {
        vec![Stage::QuantizeBlocks(Blocks {
            bits,
            size: 16,
            recovery,
        })]
    };
    let smooth = |mode, settings| {
        vec![
            Stage::Smooth(Smoothing {
                mode,
                gptq: false,
                four_bits: false,
            }),
            Stage::Quantize(settings),
        ]
    };
    let standard = |settings: &Quantize| Quantize {
        format: Format::Qdq,
        ..settings.clone()
    };
    let recovered = |settings: &Quantize, recovery: &Recovery| Quantize {
        recovery: recovery.clone(),
        ..settings.clone()
    };
    let tensor = Quantize {
        granularity: Granularity::PerTensor,
        ..plain.clone()
    };
    let signed = Quantize {
        activations: Activations::Int8,
        ..plain.clone()
    };
    vec![
        (vec![Stage::Simplify(Simplify::default())], 1e-5),
        (quantize(plain.clone()), 0.1),
        (quantize(signed), 0.1),
        (quantize(standard(&plain)), 0.1),
        (quantize(recovered(&plain, &gptq)), 0.1),
        (quantize(recovered(&plain, &raised)), 0.1),
        (quantize(dynamic.clone()), 0.1),
        (quantize(standard(&dynamic)), 0.1),
        (smooth(Mode::Dynamic, dynamic), 0.1),
        (smooth(Mode::Static, plain), 0.1),
        ([vec![Stage::Equalize], quantize(tensor)].concat(), 0.1),
        (blocks(Bits::Eight, none.clone()), 0.05),
        (blocks(Bits::Four, none), 0.4),
        (blocks(Bits::Four, gptq), 0.4),
        (vec![Stage::Float16], 0.01),
    ]
}

/// What the passes changed that know operators by their form, and those that quantize.
fn changed(report: &OptimizeReport) -> Vec<(&'static str, usize)> {
    let told = ["fuse-", "merge-", "fold-b", "smooth", "quantize-", "gptq"];
    let passes = report.passes.iter();
    let passes = passes.filter(|pass| told.iter().any(|start| pass.name.starts_with(start)));
    passes.map(|pass| (pass.name, pass.changed)).collect()
}

#[test]
fn every_operator_set_goes_through_every_method() {
    let mut of_seventeen = Vec::new();
    for opset in [17, 9, 10, 11, 13, 18, 21, 23] {
        let model = model(opset);
        let wanted = run(&model, &sample(90));
        for (method, (stages, bound)) in methods().into_iter().enumerate() {
            let samples = || Box::new((0..8).map(|seed| Ok(sample(seed)))) as Box<dyn Iterator<Item = _>>;
            let (bytes, report) = made(&model, &stages, Given::default(), &samples)
                .unwrap_or_else(|error| panic!("operator set {opset}, {stages:?}: {error}"));
            assert_eq!(
                (report.opset_before, report.opset_after),
                (opset, opset.max(onnx::TARGET_OPSET))
            );
            if opset == 17 {
                of_seventeen.push(changed(&report));
            }
            // Some products of signed values are left from there on, with the reason.
            let left = |pass: &Report| pass.left.iter().any(|left| left.why.contains("operator set 21"));
            if opset < 21 || !report.passes.iter().any(left) {
                assert_eq!(
                    changed(&report),
                    of_seventeen[method],
                    "operator set {opset}, {stages:?}"
                );
            }
            let candidate = onnx::from_bytes(&bytes.into(), &Limits::default()).unwrap();
            assert_eq!(candidate.opset(""), Some(opset.max(onnx::TARGET_OPSET)));
            let (given, _) = run_optimized(&candidate, &sample(90));
            let difference = relative_difference(&wanted, &given);
            assert!(difference < bound, "{difference}: operator set {opset}, {stages:?}");
        }
    }
}
