//! Spells quantized graphs: Quantize and Dequantize nodes, scales, zero points and packed weights, each shared where equal.

use super::{
    Activations, Granularity,
    vectors::Vectors,
    weights::{Affine, QuantizedWeights},
};
use crate::onnx::{AttributeValue, ElementType, Error, Names, Node, Patch, Tensor};
use std::collections::HashMap;

/// A patch under construction, with the names and tensors that it has made so far.
pub(super) struct Layout {
    pub(super) patch: Patch,
    pub(super) names: Names,
    packed: HashMap<(String, usize), (QuantizedWeights, Packed)>,
    vectors: Vectors,
    /// Weights of recurrent operators, which have a layout of their own, by name.
    pub(super) recurrent: HashMap<String, Packed>,
}

/// Names of packed weights.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) values: String,
    pub(super) scale: String,
    pub(super) zero_point: String,
}

impl Layout {
    pub(super) fn new(patch: Patch, names: Names) -> Self {
        Self {
            patch,
            names,
            packed: HashMap::new(),
            vectors: Vectors::default(),
            recurrent: HashMap::new(),
        }
    }

    /// The patch so far; the next one, for another graph, shares names and packed weights with it.
    pub(super) fn take_patch(&mut self, label: &'static str) -> Patch {
        std::mem::replace(&mut self.patch, Patch::new(label))
    }

    pub(super) fn add(&mut self, tensor: Tensor) -> String {
        let name = tensor.name.clone();
        self.patch.add_tensor(tensor);
        name
    }

    /// A bias of products with the weights `weights`; the same as before where it is equal.
    pub(super) fn bias(&mut self, weights: &str, bias: Tensor) -> String {
        self.vectors.add(weights, bias, &mut self.patch)
    }

    /// A small constant, written once for each `role` and value.
    pub(super) fn constant(
        &mut self,
        role: &str,
        element: ElementType,
        dims: &[usize],
        bytes: Vec<u8>,
    ) -> Result<String, Error> {
        let tensor = Tensor::new(&self.names.fresh(role, ""), element, dims, bytes)?;
        Ok(self.vectors.add(role, tensor, &mut self.patch))
    }

    /// Scale and zero point of an activation, as initializers.
    pub(super) fn affine(&mut self, of: &str, affine: Affine, kind: Activations) -> Result<(String, String), Error> {
        let element = match kind {
            Activations::UInt8 => ElementType::Uint8,
            Activations::Int8 => ElementType::Int8,
        };
        let scale = Tensor::floats(&self.names.fresh(of, "/scale"), &[], &[affine.scale])?;
        let zero_point = Tensor::new(
            &self.names.fresh(of, "/zero_point"),
            element,
            &[],
            vec![affine.zero_point],
        )?;
        Ok((self.add(scale), self.add(zero_point)))
    }

    /// Names of an activation in 8 bits, its scale and zero point as initializers.
    pub(super) fn activation(&mut self, of: &str, affine: Affine, kind: Activations) -> Result<Packed, Error> {
        let (scale, zero_point) = self.affine(of, affine, kind)?;
        Ok(Packed {
            values: self.names.fresh(of, "/q"),
            scale,
            zero_point,
        })
    }

    /// Nodes that leave of `made` what the 8 bits of the value `of` can hold, and the name of that.
    pub(super) fn rounded(
        &mut self,
        of: &str,
        made: &str,
        affine: Affine,
        kind: Activations,
    ) -> Result<([Node; 2], String), Error> {
        let packed = self.activation(of, affine, kind)?;
        let rounded = self.names.fresh(of, "/x");
        let nodes = [
            quantize(made, &packed.scale, &packed.zero_point, &packed.values),
            dequantize(&packed, 0, Granularity::PerTensor, &rounded),
        ];
        Ok((nodes, rounded))
    }

    /// Packed weights with scale and zero point; the same as before where a tensor is used twice in the same way.
    pub(super) fn weights(
        &mut self,
        weights: &Tensor,
        axis: usize,
        quantized: QuantizedWeights,
    ) -> Result<Packed, Error> {
        let key = (weights.name.clone(), axis);
        if let Some((before, packed)) = self.packed.get(&key)
            && *before == quantized
        {
            return Ok(packed.clone());
        }
        let dims: &[usize] = if quantized.scales.len() == 1 {
            &[]
        } else {
            &[quantized.scales.len()]
        };
        let zeros = vec![0_u8; quantized.scales.len()];
        let base = &weights.name;
        let values = self.names.fresh(base, "/q");
        if let Some(kept) = &quantized.kept {
            kept.unpack(self, (base, &weights.dims, axis), &values)?;
        } else {
            let bytes: Vec<u8> = quantized.values.iter().map(|value| value.cast_unsigned()).collect();
            self.add(Tensor::new(&values, ElementType::Int8, &weights.dims, bytes)?);
        }
        let scale = Tensor::floats(&self.names.fresh(base, "/scale"), dims, &quantized.scales)?;
        let zero_point = Tensor::new(&self.names.fresh(base, "/zero_point"), ElementType::Int8, dims, zeros)?;
        let packed = Packed {
            values,
            scale: self.add(scale),
            zero_point: self.add(zero_point),
        };
        self.packed.insert(key, (quantized, packed.clone()));
        Ok(packed)
    }
}

/// `QuantizeLinear` of a whole tensor.
pub(super) fn quantize(input: &str, scale: &str, zero_point: &str, output: &str) -> Node {
    Node::new("QuantizeLinear", &[input, scale, zero_point], &[output])
}

/// `DequantizeLinear` with one scale for each index of the last dimension.
pub(super) fn dequantize_last(packed: &Packed, output: &str) -> Node {
    let inputs = [packed.values.as_str(), &packed.scale, &packed.zero_point];
    Node::new("DequantizeLinear", &inputs, &[output]).with("axis", AttributeValue::Int(-1))
}

/// `DequantizeLinear`, along `axis` where there are several scales.
pub(super) fn dequantize(packed: &Packed, axis: usize, granularity: Granularity, output: &str) -> Node {
    let node = Node::new(
        "DequantizeLinear",
        &[&packed.values, &packed.scale, &packed.zero_point],
        &[output],
    );
    match granularity {
        Granularity::PerChannel => node.with("axis", AttributeValue::Int(i64::try_from(axis).unwrap_or(0))),
        Granularity::PerTensor => node,
    }
}
