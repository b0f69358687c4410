//! What tests share: small graphs written as expressions, reproducible numbers, and ONNX Runtime to compare with.

pub(crate) mod graphs;
mod spelled;

use crate::{
    onnx::{self, AttributeValue, Dim, ElementType, Graph, Limits, Model, Node, Opset, Tensor, ValueInfo},
    session::{Optimize, Options, Runtime, Session},
};
use std::path::PathBuf;

/// A graph under construction. Every method returns the name of the value that it made.
pub(crate) struct Build {
    model: Model,
    count: usize,
}

impl Build {
    pub(crate) fn opset(version: i64) -> Self {
        let graph = Graph {
            name: "test".to_owned(),
            ..Graph::default()
        };
        let opsets = vec![Opset {
            version,
            ..Opset::default()
        }];
        Self {
            model: Model {
                ir_version: 8,
                opsets,
                graph,
                ..Model::default()
            },
            count: 0,
        }
    }

    /// A body `level` levels deep, whose values have names that no graph around it has.
    pub(crate) fn inside(version: i64, level: usize) -> Self {
        Self {
            count: 1000 * level,
            ..Self::opset(version)
        }
    }

    pub(crate) fn input(&mut self, name: &str, dims: &[i64]) -> String {
        self.typed_input(name, ElementType::Float, dims)
    }

    /// A negative dimension is left open.
    pub(crate) fn typed_input(&mut self, name: &str, element: ElementType, dims: &[i64]) -> String {
        let dims: Vec<Dim> = dims
            .iter()
            .map(|&dim| {
                if dim < 0 {
                    Dim::Named("n".to_owned())
                } else {
                    Dim::Fixed(dim)
                }
            })
            .collect();
        self.model.graph.inputs.push(ValueInfo::tensor(name, element, &dims));
        name.to_owned()
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.count += 1;
        format!("{}{}", prefix.to_lowercase(), self.count)
    }

    pub(crate) fn floats(&mut self, dims: &[usize], values: &[f32]) -> String {
        let name = self.fresh("w");
        self.model
            .graph
            .initializers
            .push(Tensor::floats(&name, dims, values).unwrap());
        name
    }

    /// Weights under a name that bodies can capture.
    pub(crate) fn named(&mut self, name: &str, dims: &[usize]) {
        let made = self.weights(dims);
        let tensor = self
            .model
            .graph
            .initializers
            .iter_mut()
            .find(|tensor| tensor.name == made);
        name.clone_into(&mut tensor.unwrap().name);
    }

    /// Weights that look random and are always the same.
    pub(crate) fn weights(&mut self, dims: &[usize]) -> String {
        let count = dims.iter().product();
        let seed = self.count as u64 + 1;
        self.floats(dims, &noise(seed, count))
    }

    pub(crate) fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        let name = self.fresh("i");
        self.model
            .graph
            .initializers
            .push(Tensor::int64s(&name, &[values.len()], values).unwrap());
        name
    }

    pub(crate) fn int32s(&mut self, values: &[i32]) -> String {
        let name = self.fresh("i");
        let tensor = Tensor::int32s(&name, &[values.len()], values).unwrap();
        self.model.graph.initializers.push(tensor);
        name
    }

    pub(crate) fn node(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.node_with(op_type, inputs, &[])
    }

    pub(crate) fn node_with(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: &[(&str, AttributeValue)],
    ) -> String {
        let output = self.fresh(op_type);
        let node = Node::new(op_type, inputs, &[&output]);
        let node = attributes
            .iter()
            .fold(node, |node, (name, value)| node.with(name, value.clone()));
        self.model.graph.nodes.push(node);
        output
    }

    pub(crate) fn push(&mut self, node: Node) {
        self.model.graph.nodes.push(node);
    }

    /// The graph as the body of a control-flow node, which may read values of the graph around it.
    pub(crate) fn body(self, outputs: &[&str]) -> Graph {
        let mut graph = self.model.graph;
        graph.outputs = outputs.iter().map(|name| ValueInfo::untyped(name)).collect();
        graph
    }

    pub(crate) fn finish(self, outputs: &[&str]) -> Model {
        let model = self.unchecked(outputs);
        onnx::check(&model, &Limits::default()).unwrap();
        model
    }

    /// A model that may make no sense.
    pub(crate) fn unchecked(mut self, outputs: &[&str]) -> Model {
        self.model.graph.outputs = outputs.iter().map(|name| ValueInfo::untyped(name)).collect();
        self.model
    }
}

/// Numbers between -1 and 1, the same for the same seed (`SplitMix64`).
///
/// The seed is mixed before it becomes the state: multiples of the step would give one stream, shifted, for all seeds.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut state = mix(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1));
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        f32::from(u16::try_from(mix(state) >> 48).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A test without ONNX Runtime must fail with a message that says what to do, never pass.
fn required(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| {
        panic!("{variable} is not set: this test needs ONNX Runtime and a real model; run `cargo xtask test`, which provides both")
    }, PathBuf::from)
}

pub(crate) fn runtime() -> Runtime {
    Runtime::load(Some(&required("ASSAYER_ORT"))).unwrap()
}

/// Path of the real model.
pub(crate) fn magika() -> PathBuf {
    required("ASSAYER_MAGIKA")
}

/// Path of a real speech model.
pub(crate) fn silero() -> PathBuf {
    required("ASSAYER_SILERO")
}

/// Path of a real model that finds lines of text.
pub(crate) fn ocr_finder() -> PathBuf {
    required("ASSAYER_OCR").join("ch_PP-OCRv4_det_infer.onnx")
}

/// Path of a real model that reads a line of text.
pub(crate) fn ocr_reader() -> PathBuf {
    required("ASSAYER_OCR").join("ch_PP-OCRv4_rec_infer.onnx")
}

fn run_session(mut session: Session, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut outputs = Vec::new();
    session
        .run(inputs, |output| {
            outputs.push(output.to_tensor()?);
            Ok::<_, crate::session::Error>(())
        })
        .unwrap();
    outputs
}

/// Runs a model exactly as written.
pub(crate) fn run(model: &Model, inputs: &[Tensor]) -> Vec<Tensor> {
    let options = Options {
        optimize: Optimize::Nothing,
        ..Options::default()
    };
    run_session(runtime().open_bytes(&onnx::to_bytes(model), &options).unwrap(), inputs)
}

/// Runs a model with all of ONNX Runtime's optimizations, and gives the operators that were left.
pub(crate) fn run_optimized(model: &Model, inputs: &[Tensor]) -> (Vec<Tensor>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimized.onnx");
    let options = Options {
        optimized_model: Some(path.clone()),
        ..Options::default()
    };
    let outputs = run_session(runtime().open_bytes(&onnx::to_bytes(model), &options).unwrap(), inputs);
    let optimized = onnx::read(&path, &Limits::default()).unwrap();
    (
        outputs,
        optimized.graph.nodes.iter().map(|node| node.op_type.clone()).collect(),
    )
}

/// Largest difference between two lists of float tensors, relative to the largest magnitude of the first.
pub(crate) fn relative_difference(left: &[Tensor], right: &[Tensor]) -> f32 {
    assert_eq!(left.len(), right.len());
    let mut worst = 0.0_f32;
    for (left, right) in left.iter().zip(right) {
        assert_eq!((&left.name, &left.dims), (&right.name, &right.dims));
        let (left, right) = (left.to_floats().unwrap(), right.to_floats().unwrap());
        let largest = left.iter().fold(1e-6_f32, |largest, value| largest.max(value.abs()));
        for (left, right) in left.iter().zip(&right) {
            assert!(right.is_finite());
            worst = worst.max((left - right).abs() / largest);
        }
    }
    worst
}
