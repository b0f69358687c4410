//! Matrix products spelled as ONNX Runtime's own integer operators, which take their bias along.
//!
//! `MatMul` and `Add` between Quantize and Dequantize nodes become a `Gemm` at load, with a float bias and therefore no
//! integer kernel. `MatMulIntegerToFloat` (range known) and `DynamicQuantizeMatMul` (range found at run time) have one for
//! rows of any rank: `y = (q(x) - z) q(w) s_x s_w + b`, with float results that are not rounded. In ONNX's own operators the same is
//! `MatMulInteger`, `Cast`, `Mul` and `Add`, of which ONNX Runtime makes its own at load.

use super::{
    Error, Format, Quantize,
    layout::{Layout, Packed},
    recovery::{self, Recovering},
    site::{Kind, Site},
    weights::QuantizedWeights,
};
use crate::onnx::{AttributeValue, ElementType, Graph, Index, Model, Node, Tensor, visit_graphs};

/// Domain of the operators.
pub(super) const DOMAIN: &str = "com.microsoft";

/// Imports the domain where a node needs it, here or in a body.
pub(super) fn import(model: &mut Model) {
    let mut needed = false;
    visit_graphs(&model.graph, &mut |graph: &Graph| {
        needed |= graph.nodes.iter().any(|node| node.domain == DOMAIN);
    });
    if needed {
        model.import(DOMAIN, 1);
    }
}

/// A product whose weights and bias lie in the patch already.
pub(super) struct Product {
    weights: Packed,
    /// Empty where there is none.
    bias: String,
    output: String,
    format: Format,
}

impl Product {
    /// The product of a site, and the sum behind it where one can be taken over. `rank` is that of the input, if known.
    pub(super) fn new(
        layout: &mut Layout,
        index: &Index<'_>,
        site: &Site<'_>,
        settings: &Quantize,
        rank: Option<usize>,
        recovering: &mut Recovering<'_>,
    ) -> Result<Self, Error> {
        // A vector with more dimensions than the product would lift the result's rank.
        let sum = site.sum.filter(|(_, vector)| vector.dims.len() <= rank.unwrap_or(1));
        let (output, bias) = match sum {
            None => (site.node.output(), site.bias),
            Some((position, vector)) => {
                layout.patch.remove(position);
                (index.graph.nodes[position].output(), Some(vector))
            }
        };
        let matrix = as_run(site)?;
        let (quantized, correction) = recovering.weights(site, &matrix, 1, settings.grid(), |_| 0.0)?;
        let vector = recovery::corrected(bias, correction)?;
        let vector = vector.map(|values| (bias.map_or(output, |bias| &bias.name), values));
        Self::of_rounded(layout, &matrix, quantized, vector, output, settings.format)
    }

    /// The product that computes a convolution, with its weights as `[taps * inputs, channels]`.
    pub(super) fn of_windows(
        layout: &mut Layout,
        site: &Site<'_>,
        matrix: &Tensor,
        settings: &Quantize,
        output: &str,
        recovering: &mut Recovering<'_>,
    ) -> Result<Self, Error> {
        let (quantized, correction) = recovering.weights(site, matrix, 1, settings.grid(), |_| 0.0)?;
        let vector = recovery::corrected(site.bias, correction)?;
        let vector = vector.map(|values| (site.bias.map_or(output, |bias| &bias.name), values));
        Self::of_rounded(layout, matrix, quantized, vector, output, settings.format)
    }

    /// `bias`: a name to go by, and values.
    fn of_rounded(
        layout: &mut Layout,
        matrix: &Tensor,
        quantized: QuantizedWeights,
        bias: Option<(&str, Vec<f32>)>,
        output: &str,
        format: Format,
    ) -> Result<Self, Error> {
        let weights = layout.weights(matrix, 1, quantized)?;
        let bias = match bias {
            None => String::new(),
            Some((of, values)) => {
                let name = layout.names.fresh(of, "/vector");
                layout.bias(&matrix.name, Tensor::floats(&name, &[values.len()], &values)?)
            }
        };
        Ok(Self {
            weights,
            bias,
            output: output.to_owned(),
            format,
        })
    }

    /// With an activation that is quantized already.
    pub(super) fn of_quantized(&self, layout: &mut Layout, activation: &Packed) -> Vec<Node> {
        if self.format == Format::Qdq {
            return self.in_standard_operators(layout, activation);
        }
        let inputs = [
            activation.values.as_str(),
            &self.weights.values,
            &activation.scale,
            &self.weights.scale,
            &activation.zero_point,
            &self.weights.zero_point,
            &self.bias,
        ];
        vec![self.node("MatMulIntegerToFloat", &inputs)]
    }

    /// With a float activation, quantized on the way. There is no such operator in ONNX itself.
    pub(super) fn of_float(&self, activation: &str) -> Node {
        let inputs = [
            activation,
            &self.weights.values,
            &self.weights.scale,
            &self.weights.zero_point,
            &self.bias,
        ];
        self.node("DynamicQuantizeMatMul", &inputs)
    }

    fn in_standard_operators(&self, layout: &mut Layout, activation: &Packed) -> Vec<Node> {
        let mut fresh = |suffix| layout.names.fresh(&self.output, suffix);
        let (sums, floats, unit) = (fresh("/sums"), fresh("/floats"), fresh("/unit"));
        let product = if self.bias.is_empty() {
            self.output.clone()
        } else {
            fresh("/product")
        };
        let inputs = [
            activation.values.as_str(),
            &self.weights.values,
            &activation.zero_point,
            &self.weights.zero_point,
        ];
        let float = AttributeValue::Int(ElementType::Float.number());
        let mut nodes = vec![
            Node::new("MatMulInteger", &inputs, &[&sums]),
            Node::new("Cast", &[&sums], &[&floats]).with("to", float),
            Node::new("Mul", &[&activation.scale, &self.weights.scale], &[&unit]),
            Node::new("Mul", &[&floats, &unit], &[&product]),
        ];
        if !self.bias.is_empty() {
            nodes.push(Node::new("Add", &[&product, &self.bias], &[&self.output]));
        }
        nodes
    }

    fn node(&self, op_type: &str, inputs: &[&str]) -> Node {
        let inputs = inputs.strip_suffix(&[""]).unwrap_or(inputs);
        Node::new(op_type, inputs, &[&self.output]).in_domain(DOMAIN)
    }
}

/// The weights as `[inputs, channels]`.
fn as_run(site: &Site<'_>) -> Result<Tensor, Error> {
    if site.kind != (Kind::Gemm { transposed: true }) {
        return Ok(site.weights.clone());
    }
    let [channels, inputs] = [site.weights.dims[0], site.weights.dims[1]];
    Ok(Tensor::floats(&site.weights.name, &[inputs, channels], &site.matrix())?)
}
