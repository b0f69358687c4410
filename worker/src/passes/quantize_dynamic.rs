//! Dynamic INT8: weights packed once, activations quantized at run time from the extremes of each input.
//!
//! The layout is the one that ONNX Runtime fuses: `DynamicQuantizeLinear`, an integer product, `Cast`, and one `Mul` by
//! the product of both scales. Matrix products gain from it; convolutions are smaller but have no fast kernel, which is
//! for a latency gate to find out, not for this pass.

use super::{
    Activations, Error, Granularity, Quantize, Report,
    layout::{Layout, Packed},
    site::{Kind, Site, sites},
    weights::{self, QuantizedWeights},
};
use crate::onnx::{
    AttributeValue, ElementType, Index, Model, Names, Node, Patch, Tensor, apply as apply_patch, prune, rename, shown,
};
use std::collections::HashMap;

const NAME: &str = "quantize-dynamic";

/// Quantizes every site.
pub fn apply(model: &mut Model, settings: &Quantize) -> Result<Report, Error> {
    if settings.activations != Activations::UInt8 {
        return Err(Error::Setting {
            pass: NAME,
            field: "activations",
            value: "Int8".to_owned(),
            hint: "DynamicQuantizeLinear gives UInt8; use UInt8, or mode Static",
        });
    }
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let sites = sites(&index, &mut report);
        let layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
        let mut rewrite = Rewrite {
            index,
            granularity: settings.granularity,
            layout,
            activations: HashMap::new(),
        };
        for site in &sites {
            rewrite.site(site)?;
            report.changed += 1;
        }
        rewrite.layout.patch
    };
    let report = super::require_effect(report)?;
    apply_patch(&mut model.graph, patch)?;
    prune(&mut model.graph);
    rename(model);
    Ok(report)
}

struct Rewrite<'g> {
    index: Index<'g>,
    granularity: Granularity,
    layout: Layout,
    activations: HashMap<String, Packed>,
}

impl Rewrite<'_> {
    fn activation(&mut self, value: &str) -> Packed {
        if let Some(known) = self.activations.get(value) {
            return known.clone();
        }
        let names = &mut self.layout.names;
        let packed = Packed {
            values: names.fresh(value, "/q"),
            scale: names.fresh(value, "/scale"),
            zero_point: names.fresh(value, "/zero_point"),
        };
        let outputs = [packed.values.as_str(), &packed.scale, &packed.zero_point];
        let node = Node::new("DynamicQuantizeLinear", &[value], &outputs);
        let after = self.index.producer(value).map_or(0, |(position, _)| position + 1);
        self.layout.patch.insert_before(after, [node]);
        self.activations.insert(value.to_owned(), packed.clone());
        packed
    }

    fn site(&mut self, site: &Site<'_>) -> Result<(), Error> {
        let activation = self.activation(site.input());
        let (weights, axis) = channels_as_run(site)?;
        let quantized =
            weights::quantize(&weights, axis, self.granularity, |_| 0.0).ok_or_else(|| Error::NotFinite {
                name: shown(&site.weights.name),
            })?;
        let packed = match site.kind {
            Kind::Conv => self.unsigned(&weights, &quantized)?,
            Kind::MatMul | Kind::Gemm { .. } => self.layout.weights(&weights, axis, quantized)?,
        };
        let output = site.node.output().to_owned();
        let fresh = |this: &mut Self, suffix: &str| this.layout.names.fresh(&output, suffix);
        let (sum, float, scale) = (fresh(self, "/int32"), fresh(self, "/float"), fresh(self, "/scales"));
        let inputs = [
            activation.values.as_str(),
            &packed.values,
            &activation.zero_point,
            &packed.zero_point,
        ];
        let product = match site.kind {
            Kind::Conv => {
                let node = Node::new("ConvInteger", &inputs, &[&sum]);
                Node {
                    attributes: site.node.attributes.clone(),
                    ..node
                }
            }
            Kind::MatMul | Kind::Gemm { .. } => Node::new("MatMulInteger", &inputs, &[&sum]),
        };
        let cast = Node::new("Cast", &[&sum], &[&float]).with("to", AttributeValue::Int(ElementType::Float.number()));
        let scales = Node::new("Mul", &[&activation.scale, &packed.scale], &[&scale]);
        let mut nodes = vec![product, cast, scales];
        match self.bias(site)? {
            None => nodes.push(Node::new("Mul", &[&float, &scale], &[&output])),
            Some(bias) => {
                let unbiased = fresh(self, "/scaled");
                nodes.push(Node::new("Mul", &[&float, &scale], &[&unbiased]));
                nodes.push(Node::new("Add", &[&unbiased, &bias], &[&output]));
            }
        }
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    /// ONNX Runtime's integer convolution takes unsigned weights: the same values, 128 higher, with zero point 128.
    fn unsigned(&mut self, weights: &Tensor, quantized: &QuantizedWeights) -> Result<Packed, Error> {
        let bytes: Vec<u8> = quantized
            .values
            .iter()
            .map(|value| value.cast_unsigned() ^ 0x80)
            .collect();
        let (base, names) = (&weights.name, &mut self.layout.names);
        let values = Tensor::new(&names.fresh(base, "/q"), ElementType::Uint8, &weights.dims, bytes)?;
        let zero_point = Tensor::new(&names.fresh(base, "/zero_point"), ElementType::Uint8, &[], vec![128])?;
        let mut dims = vec![1; weights.dims.len() - 1];
        dims[0] = quantized.scales.len();
        let dims: &[usize] = if quantized.scales.len() == 1 { &[] } else { &dims };
        let scale = Tensor::floats(&names.fresh(base, "/scale"), dims, &quantized.scales)?;
        let layout = &mut self.layout;
        Ok(Packed {
            values: layout.add(values),
            scale: layout.add(scale),
            zero_point: layout.add(zero_point),
        })
    }

    /// The bias, shaped to be added to the output.
    fn bias(&mut self, site: &Site<'_>) -> Result<Option<String>, Error> {
        let Some((bias, values)) = site.bias.and_then(|bias| Some((bias, bias.to_floats()?))) else {
            return Ok(None);
        };
        let mut dims = vec![values.len()];
        if site.kind == Kind::Conv {
            dims.resize(site.weights.dims.len() - 1, 1);
        }
        let name = self.layout.names.fresh(&bias.name, "/add");
        Ok(Some(self.layout.add(Tensor::floats(&name, &dims, &values)?)))
    }
}

/// The weights with the axis of their channels; a transposed matrix is turned to what `MatMulInteger` takes.
fn channels_as_run(site: &Site<'_>) -> Result<(Tensor, usize), Error> {
    if site.kind != (Kind::Gemm { transposed: true }) {
        return Ok((site.weights.clone(), site.channel_axis()));
    }
    let (rows, columns) = (site.weights.dims[0], site.weights.dims[1]);
    let floats = site.weights.to_floats().unwrap_or_default();
    let turned: Vec<f32> = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| (row, column)))
        .map(|(row, column)| floats[row * columns + column])
        .collect();
    Ok((Tensor::floats(&site.weights.name, &[columns, rows], &turned)?, 1))
}
