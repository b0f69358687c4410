//! Matrix products spelled as ONNX Runtime's own integer operators, which take their bias along.
//!
//! `MatMul` and `Add` between Quantize and Dequantize nodes become a `Gemm` at load, with a float bias and therefore no
//! integer kernel. `MatMulIntegerToFloat` (range known) and `DynamicQuantizeMatMul` (range found at run time) have one for
//! rows of any rank: `y = (q(x) - z) q(w) s_x s_w + b`, with float results that are not rounded.

use super::{
    Error, Granularity,
    layout::{Layout, Packed},
    recovery::{self, Recovering},
    site::{Kind, Site},
    weights::{self, QuantizedWeights},
};
use crate::onnx::{Index, Node, Tensor, shown};

/// Domain of the operators.
pub(super) const DOMAIN: &str = "com.microsoft";

/// A product whose weights and bias lie in the patch already.
pub(super) struct Product {
    weights: Packed,
    /// Empty where there is none.
    bias: String,
    output: String,
}

impl Product {
    /// The product of a site, and the sum behind it where one can be taken over. `rank` is that of the input, if known.
    pub(super) fn new(
        layout: &mut Layout,
        index: &Index<'_>,
        site: &Site<'_>,
        granularity: Granularity,
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
        let (quantized, correction) = recovering.weights(site, &matrix, 1, granularity, |_| 0.0)?;
        let vector = recovery::corrected(bias, correction)?;
        let vector = vector.map(|values| (bias.map_or(output, |bias| &bias.name), values));
        Self::of_rounded(layout, &matrix, quantized, vector, output)
    }

    /// The product with a matrix `[inputs, channels]` and a bias of one value for each channel.
    pub(super) fn of_matrix(
        layout: &mut Layout,
        matrix: &Tensor,
        bias: Option<&Tensor>,
        granularity: Granularity,
        output: &str,
    ) -> Result<Self, Error> {
        let quantized = weights::quantize(matrix, 1, granularity, |_| 0.0);
        let quantized = quantized.ok_or_else(|| Error::NotFinite {
            name: shown(&matrix.name),
        })?;
        let vector = recovery::corrected(bias, None)?;
        let vector = vector.zip(bias).map(|(values, bias)| (bias.name.as_str(), values));
        Self::of_rounded(layout, matrix, quantized, vector, output)
    }

    /// `bias`: a name to go by, and values.
    fn of_rounded(
        layout: &mut Layout,
        matrix: &Tensor,
        quantized: QuantizedWeights,
        bias: Option<(&str, Vec<f32>)>,
        output: &str,
    ) -> Result<Self, Error> {
        let weights = layout.weights(matrix, 1, quantized)?;
        let bias = match bias {
            None => String::new(),
            Some((of, values)) => {
                let name = layout.names.fresh(of, "/vector");
                layout.add(Tensor::floats(&name, &[values.len()], &values)?)
            }
        };
        Ok(Self {
            weights,
            bias,
            output: output.to_owned(),
        })
    }

    /// With an activation that is quantized already.
    pub(super) fn of_quantized(&self, activation: &Packed) -> Node {
        let inputs = [
            activation.values.as_str(),
            &self.weights.values,
            &activation.scale,
            &self.weights.scale,
            &activation.zero_point,
            &self.weights.zero_point,
            &self.bias,
        ];
        self.node("MatMulIntegerToFloat", &inputs)
    }

    /// With a float activation, quantized on the way.
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
    let (rows, columns) = (site.weights.dims[0], site.weights.dims[1]);
    let floats = site.weights.to_floats().unwrap_or_default();
    let turned: Vec<f32> = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| (row, column)))
        .map(|(row, column)| floats[row * columns + column])
        .collect();
    Ok(Tensor::floats(&site.weights.name, &[columns, rows], &turned)?)
}
