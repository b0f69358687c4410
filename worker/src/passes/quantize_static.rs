//! Static INT8 in the layout that ONNX Runtime really fuses to its integer kernels.
//!
//! Convolution fuses only as DQ(x), DQ(w), DQ(int32 bias) -> Conv (-> Relu | Clip) -> Q, so its output is quantized too;
//! a matrix product is written as the operator that takes its bias along and keeps float outputs, so it is not rounded.
//! Everything else is left float. `taps` chooses the tensors whose ranges are needed, `apply` rewrites once those are known.

use super::{
    Activations, Error, Granularity, Quantize, Report,
    layout::{self, Layout, Packed},
    product::{self, Product},
    recovery::{self, Recovering},
    saturation,
    site::{Kind, Site, sites},
    weights::{self, Affine},
};
use crate::{
    calibrate::{Observed, Range},
    onnx::{Index, Model, Names, Node, Patch, Tensor, apply as apply_patch, prune, rename, shown},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const NAME: &str = "quantize-static";

/// Tensors whose ranges [`apply`] needs: inputs of all sites, outputs of convolutions.
pub fn taps(model: &Model) -> Vec<String> {
    let index = Index::new(&model.graph);
    let mut taps = BTreeSet::new();
    for site in sites(&index, &mut Report::new(NAME)) {
        taps.insert(site.input().to_owned());
        taps.extend(fused_output(&index, &site).map(|(_, output)| output.to_owned()));
    }
    taps.into_iter().collect()
}

/// Position of the node whose output is quantized together with the site, and that output; none for matrix products.
fn fused_output<'g>(index: &Index<'g>, site: &Site<'g>) -> Option<(usize, &'g str)> {
    let position = site.activation.unwrap_or(site.position);
    (site.kind == Kind::Conv).then(|| (position, index.graph.nodes[position].output()))
}

/// Quantizes every site whose tensors have a usable range, weights to the nearest step.
pub fn apply(model: &mut Model, settings: &Quantize, observed: &BTreeMap<String, Observed>) -> Result<Report, Error> {
    apply_recovering(model, settings, observed, &mut Recovering::default())
}

/// The same with the help of `recovering`.
pub fn apply_recovering(
    model: &mut Model,
    settings: &Quantize,
    observed: &BTreeMap<String, Observed>,
    recovering: &mut Recovering<'_>,
) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let patch = {
        let index = Index::new(&model.graph);
        let mut sites = sites(&index, &mut report);
        let floors: BTreeMap<&str, f32> = sites
            .iter()
            .filter_map(|site| fused_output(&index, site))
            .map(|(_, output)| (output, saturation::floor(&index, output)))
            .collect();
        let answers: BTreeSet<&str> = index.graph.outputs.iter().map(|output| output.name.as_str()).collect();
        let peaks: BTreeSet<&str> = floors
            .keys()
            .copied()
            .filter(|output| saturation::feeds_maximum(&index, output))
            .collect();
        let affine = |name: &str| {
            let seen = observed.get(name)?;
            // What leaves the model is an answer: it is never cut where an answer may lie.
            let Range { min, max } = if answers.contains(name) { seen.reach } else { seen.range };
            let min = floors.get(name).map_or(min, |floor| min.max(*floor));
            let max = if peaks.contains(name) {
                max.max(seen.full.max)
            } else {
                max
            };
            weights::affine(Range { min, max }, settings.activations)
        };
        sites.retain(|site| {
            let narrow = std::iter::once(site.input())
                .chain(fused_output(&index, site).map(|(_, output)| output))
                .find(|name| affine(name).is_none());
            if let Some(name) = narrow {
                report.leave(
                    site.node,
                    format!("{} is zero or nearly so in all calibration data", shown(name)),
                );
            }
            narrow.is_none()
        });
        let layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
        let mut rewrite = Rewrite {
            index,
            settings,
            layout,
            activations: HashMap::new(),
            recovering,
        };
        rewrite.outputs(&sites, &affine)?;
        for site in &sites {
            let rank = observed.get(site.input()).and_then(|observed| observed.rank);
            if site.kind == Kind::Conv || settings.activations == Activations::Int8 {
                rewrite.between(site, rank == Some(2), &affine)?;
            } else {
                rewrite.product(site, rank, &affine)?;
            }
            report.changed += 1;
        }
        rewrite.layout.patch
    };
    let report = super::require_effect(report)?;
    apply_patch(&mut model.graph, patch)?;
    model.import(product::DOMAIN, 1);
    prune(&mut model.graph);
    rename(model);
    Ok(report)
}

/// A quantized activation.
#[derive(Debug, Clone)]
struct Activation {
    packed: Packed,
    scale: f32,
}

struct Rewrite<'g, 'r, 's> {
    index: Index<'g>,
    settings: &'g Quantize,
    layout: Layout,
    /// Value of the float graph to its quantized form.
    activations: HashMap<String, Activation>,
    recovering: &'r mut Recovering<'s>,
}

type Affines<'a> = &'a dyn Fn(&str) -> Option<Affine>;

impl Rewrite<'_, '_, '_> {
    /// Names the quantized form of every convolution's output before any site reads it.
    fn outputs(&mut self, sites: &[Site<'_>], affine: Affines<'_>) -> Result<(), Error> {
        for site in sites {
            let Some((position, output)) = fused_output(&self.index, site) else {
                continue;
            };
            let output = output.to_owned();
            self.name_activation(&output, affine)?;
            if position != site.position {
                let mut node = self.index.graph.nodes[position].clone();
                let nodes = self.requantize(&mut node, &output);
                self.layout.patch.replace(position, [vec![node], nodes].concat());
            }
        }
        Ok(())
    }

    fn name_activation(&mut self, value: &str, affine: Affines<'_>) -> Result<Activation, Error> {
        if let Some(known) = self.activations.get(value) {
            return Ok(known.clone());
        }
        let chosen = affine(value).ok_or_else(|| Error::NoEffect {
            pass: NAME,
            why: format!("{} has no range", shown(value)),
        })?;
        let (scale, zero_point) = self.layout.affine(value, chosen, self.settings.activations)?;
        let values = self.layout.names.fresh(value, "/q");
        let activation = Activation {
            packed: Packed {
                values,
                scale,
                zero_point,
            },
            scale: chosen.scale,
        };
        self.activations.insert(value.to_owned(), activation.clone());
        Ok(activation)
    }

    /// Lets `node` compute a float of another name, from which Q and DQ make the quantized and the old value.
    fn requantize(&mut self, node: &mut Node, output: &str) -> Vec<Node> {
        let float = self.layout.names.fresh(output, "/float");
        node.outputs[0].clone_from(&float);
        let packed = self.activations[output].packed.clone();
        vec![
            layout::quantize(&float, &packed.scale, &packed.zero_point, &packed.values),
            layout::dequantize(&packed, 0, Granularity::PerTensor, output),
        ]
    }

    /// The quantized form of a site's input, made here unless a convolution makes it.
    fn input(&mut self, site: &Site<'_>, affine: Affines<'_>) -> Result<Activation, Error> {
        let input = site.input().to_owned();
        let first = !self.activations.contains_key(&input);
        let activation = self.name_activation(&input, affine)?;
        if first {
            let packed = &activation.packed;
            let node = layout::quantize(&input, &packed.scale, &packed.zero_point, &packed.values);
            let after = self.index.producer(&input).map_or(0, |(position, _)| position + 1);
            self.layout.patch.insert_before(after, [node]);
        }
        Ok(activation)
    }

    /// A matrix product as one integer operator with its bias; `rank` is that of its input, if it never varies.
    fn product(&mut self, site: &Site<'_>, rank: Option<usize>, affine: Affines<'_>) -> Result<(), Error> {
        let activation = self.input(site, affine)?;
        let granularity = self.settings.granularity;
        let product = Product::new(&mut self.layout, &self.index, site, granularity, rank, self.recovering)?;
        self.layout
            .patch
            .replace(site.position, vec![product.of_quantized(&activation.packed)]);
        Ok(())
    }

    /// A float operator between Dequantize nodes, which ONNX Runtime fuses. `matrix`: the input has two dimensions.
    fn between(&mut self, site: &Site<'_>, matrix: bool, affine: Affines<'_>) -> Result<(), Error> {
        let activation = self.input(site, affine)?;
        let output = site.node.output().to_owned();
        let mut nodes = Vec::new();
        let mut node = site.node.clone();
        let mut bias = site.bias;
        if let Some((position, vector)) = site.sum.filter(|(_, vector)| matrix && vector.dims.len() <= 2) {
            // ONNX Runtime would make this a Gemm itself, but with a float bias, which has no integer kernel.
            "Gemm".clone_into(&mut node.op_type);
            node.outputs.clone_from(&self.index.graph.nodes[position].outputs);
            self.layout.patch.remove(position);
            bias = Some(vector);
        }
        node.inputs[0] = self.layout.names.fresh(&output, "/x");
        nodes.push(layout::dequantize(
            &activation.packed,
            0,
            Granularity::PerTensor,
            &node.inputs[0],
        ));
        self.weights_and_bias(site, bias, activation.scale, &mut node, &mut nodes)?;
        let own_output = fused_output(&self.index, site).is_some_and(|(position, _)| position == site.position);
        let behind = if own_output {
            self.requantize(&mut node, &output)
        } else {
            Vec::new()
        };
        nodes.push(node);
        nodes.extend(behind);
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    fn weights_and_bias(
        &mut self,
        site: &Site<'_>,
        bias_tensor: Option<&Tensor>,
        input_scale: f32,
        node: &mut Node,
        nodes: &mut Vec<Node>,
    ) -> Result<(), Error> {
        let (axis, granularity) = (site.channel_axis(), self.settings.granularity);
        let floats = recovery::corrected(bias_tensor, None)?;
        let least = |channel: usize| {
            floats
                .as_ref()
                .map_or(0.0, |bias| weights::least_scale(bias[channel], input_scale))
        };
        let (quantized, correction) = self.recovering.weights(site, site.weights, axis, granularity, least)?;
        let scales = quantized.scales.clone();
        let packed = self.layout.weights(site.weights, axis, quantized)?;
        node.inputs[1] = self.layout.names.fresh(site.node.output(), "/w");
        nodes.push(layout::dequantize(&packed, axis, granularity, &node.inputs[1]));
        let Some(bias) = recovery::corrected(bias_tensor, correction)? else {
            return Ok(());
        };
        let name = bias_tensor.map_or(site.node.output(), |tensor| &tensor.name);
        let (values, units) = weights::quantize_bias(&bias, input_scale, &scales);
        let dims: &[usize] = if units.len() == 1 { &[] } else { &[units.len()] };
        let values = Tensor::int32s(&self.layout.names.fresh(name, "/q"), &[values.len()], &values)?;
        let scale = Tensor::floats(&self.layout.names.fresh(name, "/scale"), dims, &units)?;
        let zeros = vec![0; units.len()];
        let zero_point = Tensor::int32s(&self.layout.names.fresh(name, "/zero_point"), dims, &zeros)?;
        let packed = Packed {
            values: self.layout.add(values),
            scale: self.layout.add(scale),
            zero_point: self.layout.add(zero_point),
        };
        node.inputs.resize(3, String::new());
        node.inputs[2] = self.layout.names.fresh(site.node.output(), "/b");
        nodes.push(layout::dequantize(&packed, 0, granularity, &node.inputs[2]));
        Ok(())
    }
}
