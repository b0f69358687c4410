//! Random graphs of the kinds that exporters write, tidy or not, for properties that must hold for any model.

use super::{Build, noise};
use crate::onnx::{AttributeValue as A, Dim, ElementType, Graph, Model, Node, Tensor, ValueInfo};
use proptest::prelude::*;

/// Rows of an embedding: with 64 columns, one that is worth quantizing.
const TABLE: usize = 300;

/// One thing that a graph does, to rows or to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the operators are")]
pub(crate) enum Step {
    Product,
    Gemm,
    Activation,
    Gelu,
    Norm,
    WrittenNorm,
    Residual,
    Embedding,
    Move,
    Softmax,
    Identity,
    Lstm,
    Branch,
    Repeat,
    Conv,
    Pointwise,
    Depthwise,
    BatchNorm,
    ImageActivation,
    Pool,
}

use Step as S;

const STEPS: [Step; 20] = [
    S::Product,
    S::Activation,
    S::Residual,
    S::Identity,
    S::Gemm,
    S::Norm,
    S::Move,
    S::Softmax,
    S::Embedding,
    S::Gelu,
    S::WrittenNorm,
    S::Branch,
    S::Conv,
    S::ImageActivation,
    S::Pool,
    S::BatchNorm,
    S::Pointwise,
    S::Depthwise,
    S::Lstm,
    S::Repeat,
];

/// How a graph comes about.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) opset: i64,
    /// What is done, and which of the ways to do it.
    pub(crate) steps: Vec<(Step, u8)>,
    pub(crate) seed: u16,
    /// Weights are `Constant` nodes, in bodies, too.
    pub(crate) constants: bool,
    /// Weights are listed as inputs.
    pub(crate) inputs: bool,
    /// The first node of every graph has the same name, the rest none.
    pub(crate) same_names: bool,
}

/// Recipes that shrink to few plain steps.
pub(crate) fn recipes() -> impl Strategy<Value = Recipe> {
    let steps = proptest::collection::vec((proptest::sample::select(&STEPS[..]), any::<u8>()), 1..9);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let opset = proptest::sample::select(&[17_i64, 18, 21][..]);
    (opset, steps, any::<u16>(), flags).prop_map(|(opset, steps, seed, (constants, inputs, same_names))| Recipe {
        opset,
        steps,
        seed,
        constants,
        inputs,
        same_names,
    })
}

impl Recipe {
    /// The graph: rows `x`, an image `image`, indices `ids` and a `choice` lead to the outputs.
    pub(crate) fn model(&self) -> Model {
        let mut b = Build::opset(self.opset);
        let x = b.input("x", &[2, 6, 32]);
        let image = b.input("image", &[1, 8, 8, 8]);
        b.typed_input("ids", ElementType::Int64, &[2, 6]);
        b.typed_input("choice", ElementType::Bool, &[]);
        let mut growing = Growing {
            b,
            opset: self.opset,
            seed: u64::from(self.seed) * 1000,
            rows: vec![(x, 32)],
            images: vec![(image, 8)],
        };
        for (step, way) in &self.steps {
            growing.step(*step, usize::from(*way));
        }
        let (rows, width) = growing.last_rows();
        let rows = growing.product(&rows, width, 32);
        let (image, _) = growing.last_image();
        let image = growing.b.node("GlobalAveragePool", &[&image]);
        let mut model = growing.b.finish(&[&rows, &image]);
        if self.same_names {
            same_names(&mut model.graph);
        }
        if self.constants {
            constants(&mut model.graph);
        } else if self.inputs {
            model.graph.inputs.extend(model.graph.initializers.iter().map(|tensor| {
                let dims = tensor.dims.iter().map(|dim| Dim::Fixed(i64::try_from(*dim).unwrap()));
                ValueInfo::tensor(&tensor.name, tensor.element, &dims.collect::<Vec<_>>())
            }));
        }
        model
    }

    /// What the graph is run on.
    pub(crate) fn inputs(&self, sample: u16) -> Vec<Tensor> {
        let seed = u64::from(self.seed) * 7 + u64::from(sample);
        let ids: Vec<i64> = (0..12).map(|at| i64::from(sample) * 31 % 289 + at).collect();
        vec![
            Tensor::floats("x", &[2, 6, 32], &noise(seed, 384)).unwrap(),
            Tensor::floats("image", &[1, 8, 8, 8], &noise(seed + 1, 512)).unwrap(),
            Tensor::int64s("ids", &[2, 6], &ids).unwrap(),
            Tensor::new(
                "choice",
                ElementType::Bool,
                &[],
                vec![u8::from(sample.is_multiple_of(2))],
            )
            .unwrap(),
        ]
    }
}

fn same_names(graph: &mut Graph) {
    for (position, node) in graph.nodes.iter_mut().enumerate() {
        if position == 0 {
            "same".clone_into(&mut node.name);
        }
        node.bodies_mut().for_each(same_names);
    }
}

/// Makes `Constant` nodes of initializers, in bodies as well.
pub(crate) fn constants(graph: &mut Graph) {
    for node in &mut graph.nodes {
        node.bodies_mut().for_each(constants);
    }
    let given: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    let lifted: Vec<Tensor> = graph
        .initializers
        .extract_if(.., |tensor| !given.contains(&tensor.name.as_str()))
        .collect();
    let nodes = lifted.into_iter().map(|mut tensor| {
        let name = std::mem::take(&mut tensor.name);
        Node::new("Constant", &[], &[&name]).with("value", A::Tensor(tensor))
    });
    graph.nodes.splice(0..0, nodes.collect::<Vec<_>>());
}

struct Growing {
    b: Build,
    opset: i64,
    seed: u64,
    /// Values `[2, 6, width]`.
    rows: Vec<(String, usize)>,
    /// Values `[1, channels, 8, 8]`.
    images: Vec<(String, usize)>,
}

impl Growing {
    fn last_rows(&self) -> (String, usize) {
        self.rows.last().unwrap().clone()
    }

    fn last_image(&self) -> (String, usize) {
        self.images.last().unwrap().clone()
    }

    /// Weights that keep the size of what they are multiplied with `inputs` of.
    fn weights(&mut self, dims: &[usize], inputs: usize) -> String {
        self.seed += 1;
        let scale = (3.0 / f32::from(u16::try_from(inputs).unwrap())).sqrt();
        let values: Vec<f32> = noise(self.seed, dims.iter().product())
            .iter()
            .map(|value| value * scale)
            .collect();
        self.b.floats(dims, &values)
    }

    /// Numbers about `middle`.
    fn about(&mut self, dims: &[usize], middle: f32) -> String {
        self.seed += 1;
        let values: Vec<f32> = noise(self.seed, dims.iter().product())
            .iter()
            .map(|value| middle + 0.3 * value)
            .collect();
        self.b.floats(dims, &values)
    }

    fn step(&mut self, step: Step, way: usize) {
        let (x, width) = self.last_rows();
        let grown = match step {
            S::Conv | S::Pointwise | S::Depthwise | S::BatchNorm | S::ImageActivation | S::Pool => {
                let image = self.image(step, way);
                self.images.push(image);
                return;
            }
            S::Product => {
                let to = [32, 48, 64][way % 3];
                (self.product(&x, width, to), to)
            }
            S::Gemm => (self.gemm(&x, width, way), width),
            S::Activation => (self.b.node(["Relu", "Tanh", "Sigmoid"][way % 3], &[&x]), width),
            S::Gelu => (self.b.spelled_gelu(&x), width),
            S::Norm => {
                let (scale, bias) = (self.about(&[width], 1.0), self.about(&[width], 0.0));
                (self.b.node("LayerNormalization", &[&x, &scale, &bias]), width)
            }
            S::WrittenNorm => (self.written_norm(&x, width), width),
            S::Residual => {
                let same: Vec<&String> = self
                    .rows
                    .iter()
                    .filter(|(_, other)| *other == width)
                    .map(|(x, _)| x)
                    .collect();
                let other = same[way % same.len()].clone();
                (self.b.node("Add", &[&x, &other]), width)
            }
            S::Embedding => {
                let table = self.about(&[TABLE, width], 0.0);
                let read = self.b.node("Gather", &[&table, "ids"]);
                (self.b.node("Add", &[&x, &read]), width)
            }
            S::Move => (self.moved(&x, width), width),
            S::Softmax => (self.b.node_with("Softmax", &[&x], &[("axis", A::Int(-1))]), width),
            S::Identity => (self.b.node(["Identity", "Dropout"][way % 2], &[&x]), width),
            S::Lstm => {
                let (w, r) = (self.weights(&[1, 128, width], width), self.weights(&[1, 128, 32], 32));
                let states = self.b.node_with("LSTM", &[&x, &w, &r], &[("hidden_size", A::Int(32))]);
                let axis = self.b.ints(&[1]);
                (self.b.node("Squeeze", &[&states, &axis]), 32)
            }
            S::Branch => (self.branch(&x, width, way), width),
            S::Repeat => (self.repeat(&x, width), width),
        };
        self.rows.push(grown);
    }

    fn product(&mut self, x: &str, from: usize, to: usize) -> String {
        let (w, bias) = (self.weights(&[from, to], from), self.about(&[to], 0.0));
        let product = self.b.node("MatMul", &[x, &w]);
        self.b.node("Add", &[&bias, &product])
    }

    fn gemm(&mut self, x: &str, width: usize, way: usize) -> String {
        let (w, bias) = (self.weights(&[width, width], width), self.about(&[width], 0.0));
        let size = i64::try_from(width).unwrap();
        let (flat, back) = (self.b.ints(&[12, size]), self.b.ints(&[2, 6, -1]));
        let flat = self.b.node("Reshape", &[x, &flat]);
        let turned = [("transB", A::Int(i64::from(way.is_multiple_of(2))))];
        let inputs = [flat.as_str(), &w, &bias];
        let y = self.b.node_with("Gemm", &inputs[..2 + way / 2 % 2], &turned);
        self.b.node("Reshape", &[&y, &back])
    }

    fn written_norm(&mut self, x: &str, width: usize) -> String {
        let (scale, bias) = (self.about(&[width], 1.0), self.about(&[width], 0.0));
        self.b.spelled_norm(x, &scale, &bias)
    }

    /// There and back again, with a target that is computed from the shape.
    fn moved(&mut self, x: &str, width: usize) -> String {
        let turned = self.b.node_with("Transpose", &[x], &[("perm", A::Ints(vec![0, 2, 1]))]);
        let shape = self.b.node("Shape", &[&turned]);
        let (first, rest) = (
            self.b.ints(&[0]),
            self.b.ints(&[i64::try_from(width / 2).unwrap(), 2, -1]),
        );
        let batch = self.b.node("Gather", &[&shape, &first]);
        let target = self.b.node_with("Concat", &[&batch, &rest], &[("axis", A::Int(0))]);
        let split = self.b.node("Reshape", &[&turned, &target]);
        let last = self.b.ints(&[2, i64::try_from(width).unwrap(), 6]);
        let joined = self.b.node("Reshape", &[&split, &last]);
        self.b
            .node_with("Transpose", &[&joined], &[("perm", A::Ints(vec![0, 2, 1]))])
    }

    /// A graph inside, which reads `x` of the one around it.
    fn inside(&self, x: &str, width: usize) -> Self {
        Self {
            // Siblings share names, and no outer value has them.
            b: Build::inside(self.opset, 1),
            opset: self.opset,
            seed: self.seed + 500,
            rows: vec![(x.to_owned(), width)],
            images: Vec::new(),
        }
    }

    /// Both ways read a matrix from outside, and have one of their own.
    fn branch(&mut self, x: &str, width: usize, way: usize) -> String {
        let shared = self.weights(&[width, width], width);
        let mut branches = Vec::new();
        for step in [S::Activation, [S::Gelu, S::WrittenNorm, S::Norm, S::Embedding][way % 4]] {
            let mut inner = self.inside(x, width);
            inner.seed += 50 * branches.len() as u64;
            let product = inner.b.node("MatMul", &[x, &shared]);
            inner.rows.push((product, width));
            inner.step(step, way);
            let (value, _) = inner.last_rows();
            let y = inner.product(&value, width, width);
            branches.push(A::Graph(Box::new(inner.b.body(&[&y]))));
        }
        let [then, other] = <[A; 2]>::try_from(branches).unwrap();
        self.b
            .node_with("If", &["choice"], &[("then_branch", then), ("else_branch", other)])
    }

    /// Twice the same product of what went before.
    fn repeat(&mut self, x: &str, width: usize) -> String {
        let mut inner = self.inside("state", width);
        inner.b.typed_input("iteration", ElementType::Int64, &[]);
        inner.b.typed_input("on", ElementType::Bool, &[]);
        let dims = [2, 6, i64::try_from(width).unwrap()];
        inner.b.input("state", &dims);
        inner.step(S::Product, [32, 48, 64].iter().position(|to| *to == width).unwrap_or(0));
        inner.step(S::Activation, 1);
        let (next, _) = inner.last_rows();
        let on = inner.b.node("Identity", &["on"]);
        let body = A::Graph(Box::new(inner.b.body(&[&on, &next])));
        let twice = self.b.ints(&[2]);
        self.b.node_with("Loop", &[&twice, "", x], &[("body", body)])
    }

    fn image(&mut self, step: Step, way: usize) -> (String, usize) {
        let (x, channels) = self.last_image();
        let same = |kernel: i64| vec![("pads", A::Ints(vec![kernel / 2; 4]))];
        match step {
            S::Conv => {
                let to = [8, 16, 32][way % 3];
                let (w, bias) = (
                    self.weights(&[to, channels, 3, 3], 9 * channels),
                    self.about(&[to], 0.0),
                );
                let inputs = [x.as_str(), &w, &bias];
                (self.b.node_with("Conv", &inputs[..2 + way / 3 % 2], &same(3)), to)
            }
            S::Pointwise => {
                let (w, bias) = (
                    self.weights(&[16, channels, 1, 1], channels),
                    self.about(&[1, 16, 1, 1], 0.0),
                );
                let conv = self.b.node("Conv", &[&x, &w]);
                (self.b.node("Add", &[&conv, &bias]), 16)
            }
            S::Depthwise => {
                let w = self.weights(&[channels, 1, 3, 3], 9);
                let group = ("group", A::Int(i64::try_from(channels).unwrap()));
                let attributes = [same(3), vec![group]].concat();
                (self.b.node_with("Conv", &[&x, &w], &attributes), channels)
            }
            S::BatchNorm => {
                let parameters: Vec<String> = [1.0, 0.0, 0.0, 1.0]
                    .iter()
                    .map(|middle| self.about(&[channels], *middle))
                    .collect();
                let inputs: Vec<&str> = std::iter::once(x.as_str())
                    .chain(parameters.iter().map(String::as_str))
                    .collect();
                (self.b.node("BatchNormalization", &inputs), channels)
            }
            S::Pool => {
                let attributes = [same(3), vec![("kernel_shape", A::Ints(vec![3, 3]))]].concat();
                (
                    self.b
                        .node_with(["MaxPool", "AveragePool"][way % 2], &[&x], &attributes),
                    channels,
                )
            }
            _ => (self.b.node(["Relu", "Sigmoid", "HardSwish"][way % 3], &[&x]), channels),
        }
    }
}
