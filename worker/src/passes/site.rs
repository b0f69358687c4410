//! Which nodes have an integer kernel that pays, and what a quantizer must know of each.
//!
//! A site is a Conv, `ConvTranspose`, `MatMul` or Gemm with constant 32-bit float weights. Everything else stays float.

use super::{Report, transposed::Tiles};
use crate::onnx::{ElementType, Index, Model, Node, Tensor};
use std::collections::BTreeSet;

/// Products summed into one 32-bit accumulator: 255 * 127 * 32,768 stays below 2^30.
const MOST_PRODUCTS: usize = 32_768;
/// A matrix with fewer weights costs more to quantize its input for than its product saves.
const FEWEST_WEIGHTS: usize = 1024;

/// Why a method that goes by calibration data leaves a site.
pub(super) const IN_BODY: &str = "it is inside the body of a control-flow node, which calibration does not look into";

/// A node to quantize.
#[derive(Debug)]
pub(super) struct Site<'g> {
    /// Position of the node.
    pub(super) position: usize,
    /// The node.
    pub(super) node: &'g Node,
    /// What it is.
    pub(super) kind: Kind,
    /// Its weights.
    pub(super) weights: &'g Tensor,
    /// Its bias, one value for each output channel.
    pub(super) bias: Option<&'g Tensor>,
    /// Whether it is in the body of a control-flow node.
    pub(super) in_body: bool,
    /// The activation that belongs to it: a Relu or Clip that alone reads the output.
    pub(super) activation: Option<usize>,
    /// A sum that alone reads a matrix product and adds a constant vector: position and vector.
    pub(super) sum: Option<(usize, &'g Tensor)>,
}

/// Kind of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Weights `[channels, inputs / group, ...]`.
    Conv,
    /// Weights `[inputs, channels, ...]`, whose windows lie side by side.
    ConvTranspose,
    /// Weights `[inputs, channels]`.
    MatMul,
    /// Weights `[inputs, channels]`, or `[channels, inputs]` where transposed.
    Gemm {
        /// `transB`.
        transposed: bool,
    },
}

impl<'g> Site<'g> {
    /// The dimension of the weights that counts output channels.
    pub(super) fn channel_axis(&self) -> usize {
        match self.kind {
            Kind::Conv | Kind::Gemm { transposed: true } => 0,
            Kind::ConvTranspose | Kind::MatMul | Kind::Gemm { transposed: false } => 1,
        }
    }

    /// Whether it is no matrix product.
    pub(super) fn is_convolution(&self) -> bool {
        matches!(self.kind, Kind::Conv | Kind::ConvTranspose)
    }

    /// The weights of a product as `[inputs, channels]`, row by row.
    pub(super) fn matrix(&self) -> Vec<f32> {
        let floats = self.weights.to_floats().unwrap_or_default();
        if self.channel_axis() == 1 {
            return floats;
        }
        let (channels, inputs) = (self.weights.dims[0], self.weights.dims[1]);
        let places = (0..inputs).flat_map(|input| (0..channels).map(move |channel| channel * inputs + input));
        places.map(|at| floats[at]).collect()
    }

    /// The activation that the site reads.
    pub(super) fn input(&self) -> &'g str {
        self.node.input(0).unwrap_or("")
    }

    /// The value that the site makes, behind its activation.
    pub(super) fn result(&self, index: &Index<'g>) -> &'g str {
        index.graph.nodes[self.activation.unwrap_or(self.position)].output()
    }
}

/// All sites of a graph in order; why other candidates are none goes to `report`.
pub(super) fn sites<'g>(index: &Index<'g>, report: &mut Report) -> Vec<Site<'g>> {
    let mut sites = Vec::new();
    for (position, node) in index.graph.nodes.iter().enumerate() {
        if !["Conv", "MatMul", "Gemm", "ConvTranspose"]
            .iter()
            .any(|op_type| node.is(op_type))
        {
            continue;
        }
        if let Some(why) = node.pinned {
            report.leave(node, why);
            continue;
        }
        match site(index, position, node) {
            Ok(site) => sites.push(site),
            Err(why) => report.leave(node, why),
        }
    }
    sites
}

/// Reports that a method which goes by calibration data leaves all sites inside bodies of control flow.
pub(super) fn leave_bodies(model: &Model, report: &mut Report) {
    for index in Index::all(&model.graph).iter().skip(1) {
        for site in sites(index, &mut Report::new("site")) {
            report.leave(site.node, IN_BODY);
        }
    }
}

/// The inputs of all matrix products of the main graph: what smoothing and rounding by GPTQ must know of the calibration data.
pub fn product_inputs(model: &Model) -> Vec<String> {
    inputs(model, false)
}

/// The inputs of all convolutions of the main graph: what bias correction must know of the calibration data.
pub fn convolution_inputs(model: &Model) -> Vec<String> {
    inputs(model, true)
}

fn inputs(model: &Model, convolutions: bool) -> Vec<String> {
    let index = Index::new(&model.graph);
    let sites = sites(&index, &mut Report::new("site"));
    let wanted = sites.iter().filter(|site| site.is_convolution() == convolutions);
    let inputs: BTreeSet<&str> = wanted.map(Site::input).collect();
    inputs.into_iter().map(str::to_owned).collect()
}

fn site<'g>(index: &Index<'g>, position: usize, node: &'g Node) -> Result<Site<'g>, &'static str> {
    let activation = node.input(0).ok_or("no input")?;
    if index.constant(activation).is_some() {
        return Err("its input is constant");
    }
    let weights = node
        .input(1)
        .and_then(|name| index.constant(name))
        .ok_or("its weights are computed at run time")?;
    if weights.element != ElementType::Float {
        return Err("its weights are not 32-bit floats");
    }
    if weights.is_empty() {
        return Err("its weights are empty");
    }
    let (kind, bias) = if node.is("Conv") {
        (Kind::Conv, conv_bias(index, node, weights, 0)?)
    } else if node.is("ConvTranspose") {
        Tiles::of(node, weights)?;
        (Kind::ConvTranspose, conv_bias(index, node, weights, 1)?)
    } else if node.is("MatMul") {
        matrix(weights)?;
        (Kind::MatMul, None)
    } else {
        gemm(index, node, weights)?
    };
    let site = Site {
        position,
        node,
        kind,
        weights,
        bias,
        in_body: index.in_body(),
        activation: None,
        sum: None,
    };
    let products = match kind {
        Kind::ConvTranspose => weights.dims[0],
        _ => weights.len() / weights.dims[site.channel_axis()],
    };
    if products > MOST_PRODUCTS {
        return Err("it sums more products than a 32-bit accumulator can hold");
    }
    let activation = if site.is_convolution() {
        fused_activation(index, node)
    } else {
        None
    };
    let sum = if kind == Kind::MatMul {
        vector_sum(index, node, weights.dims[1])
    } else {
        None
    };
    Ok(Site {
        activation,
        sum,
        ..site
    })
}

fn conv_bias<'g>(
    index: &Index<'g>,
    node: &Node,
    weights: &Tensor,
    axis: usize,
) -> Result<Option<&'g Tensor>, &'static str> {
    if weights.dims.len() < 3 {
        return Err("its weights have no spatial dimension");
    }
    node.input(2)
        .map(|name| constant_bias(index, name, weights.dims[axis]))
        .transpose()
}

fn constant_bias<'g>(index: &Index<'g>, name: &str, channels: usize) -> Result<&'g Tensor, &'static str> {
    let bias = index.constant(name).ok_or("its bias is computed at run time")?;
    let vector = bias.dims.iter().all(|&dim| dim == 1 || dim == channels) && bias.len() == channels;
    if vector && bias.element == ElementType::Float {
        Ok(bias)
    } else {
        Err("its bias is no vector of 32-bit floats")
    }
}

fn matrix(weights: &Tensor) -> Result<(), &'static str> {
    if weights.dims.len() != 2 {
        return Err("its weights are no matrix");
    }
    if weights.len() < FEWEST_WEIGHTS {
        return Err("it is too small to pay for quantizing its input");
    }
    Ok(())
}

fn gemm<'g>(index: &Index<'g>, node: &Node, weights: &Tensor) -> Result<(Kind, Option<&'g Tensor>), &'static str> {
    matrix(weights)?;
    #[allow(clippy::float_cmp, reason = "only the exact factor one can be left out")]
    let plain = node.int("transA", 0) == Some(0) && node.float("alpha", 1.0) == Some(1.0);
    #[allow(clippy::float_cmp, reason = "only the exact factor one can be left out")]
    let plain_bias = node.input(2).is_none() || node.float("beta", 1.0) == Some(1.0);
    if !plain || !plain_bias {
        return Err("it scales or transposes its input");
    }
    let transposed = node.int("transB", 0) == Some(1);
    let channels = weights.dims[usize::from(!transposed)];
    let bias = node
        .input(2)
        .map(|name| constant_bias(index, name, channels))
        .transpose()?;
    Ok((Kind::Gemm { transposed }, bias))
}

/// A sum with one constant for each column.
fn vector_sum<'g>(index: &Index<'g>, node: &Node, columns: usize) -> Option<(usize, &'g Tensor)> {
    let (position, next) = index.only_use(node.output())?;
    let other = next
        .inputs
        .iter()
        .find(|name| *name != node.output())
        .filter(|_| next.is("Add"))?;
    let vector = index
        .constant(other)
        .filter(|tensor| tensor.element == ElementType::Float)?;
    let row = vector.dims.last() == Some(&columns) && vector.len() == columns;
    row.then_some((position, vector))
}

/// A Relu or a Clip with constant bounds: rounding to the quantized range does its work.
fn fused_activation(index: &Index<'_>, node: &Node) -> Option<usize> {
    let (position, next) = index.only_use(node.output())?;
    let bound = |slot| next.input(slot).is_none_or(|name| index.constant(name).is_some());
    let fused = next.is("Relu") || (next.is("Clip") && bound(1) && bound(2) && next.input(0) == Some(node.output()));
    fused.then_some(position)
}
