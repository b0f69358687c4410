//! Static INT8 in the layout that ONNX Runtime really fuses to its integer kernels.
//!
//! Convolution fuses only as DQ(x), DQ(w), DQ(int32 bias) -> Conv (-> Relu | Clip) -> Q, so its output is quantized too, and so is what
//! lies between convolutions where that saves conversions; a matrix product is written as the operator that takes its bias along and
//! keeps float outputs, so it is not rounded; with [`Format::Qdq`] it is a float product between Dequantize nodes, too. Everything else is
//! left float. `taps` names the tensors whose ranges are needed, `apply` rewrites once those are known; [`static_plan`](super::static_plan)
//! says what is quantized, and this how it is written.

use super::{
    Activations, Error, Format, Granularity, Quantize, Report, convolution,
    layout::{self, Layout, Packed},
    product::{self, Product},
    progressive, quantize_dynamic, quantize_lstm,
    recovery::{self, Recovering},
    region::{Member, Rounding},
    site::{Kind, Site, sites},
    static_plan::Plan,
    transposed::Tiles,
    weights,
};
use crate::{
    calibrate::Observed,
    onnx::{Index, Model, Names, Node, Patch, Tensor, rewrite},
};
use std::collections::{BTreeMap, HashMap, HashSet};

pub use super::static_plan::taps;

/// Name in reports.
pub(crate) const NAME: &str = "quantize-static";

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
    let mut layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
    let opset = model.opset("").unwrap_or(0);
    rewrite(model, |index| {
        if index.in_body() {
            body(index, settings, &mut layout, recovering, &mut report)?;
        } else {
            let plan = Plan::new(index, settings, opset, observed, &mut report);
            plan.sites
                .iter()
                .for_each(|site| progressive::tell(site, settings.grid(), &mut report));
            report.changed += main(&plan, index, settings, &mut layout, recovering)?;
            lstms(index, settings, &mut layout, &mut report)?;
        }
        Ok::<_, Error>(layout.take_patch(NAME))
    })?;
    let mut report = super::require_effect(report)?;
    settings.note(&mut report);
    product::import(model);
    Ok(report)
}

/// What runs in a body of control flow was not seen: its products find the range of their input as they run.
fn body(
    index: &Index<'_>,
    settings: &Quantize,
    layout: &mut Layout,
    recovering: &mut Recovering<'_>,
    report: &mut Report,
) -> Result<(), Error> {
    if settings.activations == Activations::Int8 {
        for site in sites(index, report) {
            report.leave(
                site.node,
                "it is inside the body of a control-flow node, where ranges are found at run time and only as UInt8",
            );
        }
        return Ok(());
    }
    for position in quantize_dynamic::quantize(index, settings, layout, recovering, report)? {
        let node = &index.graph.nodes[position];
        report.raise(
            node,
            "it is inside the body of a control-flow node: the range of its input is found at run time",
        );
        report.changed += 1;
    }
    Ok(())
}

/// The integer kernel of an LSTM finds ranges as it runs, because nothing outside sees its states.
fn lstms(index: &Index<'_>, settings: &Quantize, layout: &mut Layout, report: &mut Report) -> Result<(), Error> {
    if settings.activations == Activations::Int8 {
        let nodes = index.graph.nodes.iter().filter(|node| quantize_lstm::recurrent(node));
        nodes.for_each(|node| report.leave(node, "a recurrent operator finds ranges at run time, and only as UInt8"));
        return Ok(());
    }
    for position in quantize_lstm::quantize(index, settings, layout, report)? {
        report.raise(
            &index.graph.nodes[position],
            "the range of its input is found at run time",
        );
        report.changed += 1;
    }
    Ok(())
}

/// Quantizes the main graph, as a patch of `layout`.
fn main(
    plan: &Plan<'_, '_>,
    index: &Index<'_>,
    settings: &Quantize,
    layout: &mut Layout,
    recovering: &mut Recovering<'_>,
) -> Result<usize, Error> {
    let mut rewrite = Rewrite {
        plan,
        index,
        settings,
        layout,
        activations: HashMap::new(),
        written: HashSet::new(),
        recovering,
    };
    rewrite.outputs()?;
    for member in &plan.members {
        rewrite.member(member)?;
    }
    for site in &plan.sites {
        let rank = plan.rank(site.input());
        if site.is_convolution() || settings.activations == Activations::Int8 || settings.format == Format::Qdq {
            rewrite.between(site, rank == Some(2))?;
        } else {
            rewrite.product(site, rank)?;
        }
    }
    Ok(plan.members.len() + plan.sites.len())
}

/// A quantized activation.
#[derive(Debug, Clone)]
struct Activation {
    packed: Packed,
    scale: f32,
}

struct Rewrite<'i, 'g, 'o, 's> {
    plan: &'i Plan<'g, 'o>,
    index: &'i Index<'g>,
    settings: &'i Quantize,
    layout: &'i mut Layout,
    /// Value of the float graph to its quantized form.
    activations: HashMap<String, Activation>,
    /// Values whose quantized form is the output of a node.
    written: HashSet<String>,
    recovering: &'i mut Recovering<'s>,
}

impl<'g> Rewrite<'_, 'g, '_, '_> {
    /// Names the quantized form of everything that integer kernels make, before anything reads it.
    fn outputs(&mut self) -> Result<(), Error> {
        let plan = self.plan;
        for site in plan.sites.iter().filter(|site| site.is_convolution()) {
            let output = site.result(self.index);
            self.name_activation(output)?;
            self.written.insert(output.to_owned());
            // What makes blocks moves them behind its activation.
            self.activation(site.activation.filter(|_| site.kind == Kind::Conv));
        }
        for member in &plan.members {
            for output in member.outputs(self.index) {
                match member.inputs().next().filter(|_| member.rounding == Rounding::Kept) {
                    None => drop(self.name_activation(output)?),
                    Some(input) => {
                        let mut kept = self.name_activation(input)?;
                        kept.packed.values = self.layout.names.fresh(output, "/q");
                        self.activations.insert(output.to_owned(), kept);
                    }
                }
                self.written.insert(output.to_owned());
            }
            self.activation(member.activation);
        }
        Ok(())
    }

    /// Lets the activation of a site or member make its quantized output.
    fn activation(&mut self, position: Option<usize>) {
        if let Some(position) = position {
            let mut node = self.index.graph.nodes[position].clone();
            let nodes = self.requantize(&mut node);
            self.layout.patch.replace(position, [vec![node], nodes].concat());
        }
    }

    fn name_activation(&mut self, value: &str) -> Result<Activation, Error> {
        if let Some(known) = self.activations.get(value) {
            return Ok(known.clone());
        }
        let affine = self.plan.affine(value)?;
        let activation = Activation {
            packed: self.layout.activation(value, affine, self.settings.activations)?,
            scale: affine.scale,
        };
        self.activations.insert(value.to_owned(), activation.clone());
        Ok(activation)
    }

    /// Lets `node` compute floats of other names, from which Q and DQ make the quantized and the old values.
    fn requantize(&mut self, node: &mut Node) -> Vec<Node> {
        let mut nodes = Vec::new();
        for output in node.outputs.iter_mut().filter(|name| !name.is_empty()) {
            let float = self.layout.names.fresh(output, "/float");
            let packed = self.activations[output.as_str()].packed.clone();
            nodes.push(layout::quantize(
                &float,
                &packed.scale,
                &packed.zero_point,
                &packed.values,
            ));
            nodes.push(layout::dequantize(&packed, 0, Granularity::PerTensor, output));
            *output = float;
        }
        nodes
    }

    /// The quantized form of a value that is read, made here unless an integer kernel makes it.
    fn input(&mut self, input: &str) -> Result<Activation, Error> {
        let activation = self.name_activation(input)?;
        if self.written.insert(input.to_owned()) {
            let packed = &activation.packed;
            let node = layout::quantize(input, &packed.scale, &packed.zero_point, &packed.values);
            let after = self.index.producer(input).map_or(0, |(position, _)| position + 1);
            self.layout.patch.insert_before(after, [node]);
        }
        Ok(activation)
    }

    /// An operator between integer kernels, which ONNX Runtime fuses with the nodes around it or which takes bytes itself.
    fn member(&mut self, member: &Member<'g>) -> Result<(), Error> {
        let mut node = member.node.clone();
        let mut nodes = Vec::new();
        for (slot, input) in member.inputs().enumerate() {
            let packed = self.input(input)?.packed;
            if node.is("Pad") {
                node.inputs[0] = packed.values;
                if node.inputs.len() > 2 || node.attribute("mode").is_none() {
                    node.inputs.resize(node.inputs.len().max(3), String::new());
                    node.inputs[2] = packed.zero_point;
                }
                continue;
            }
            node.inputs[slot] = self.layout.names.fresh(node.output(), "/x");
            nodes.push(layout::dequantize(
                &packed,
                0,
                Granularity::PerTensor,
                &node.inputs[slot],
            ));
        }
        let behind = if node.is("Pad") {
            let packed = self.activations[node.output()].packed.clone();
            let float = std::mem::replace(&mut node.outputs[0], packed.values.clone());
            vec![layout::dequantize(&packed, 0, Granularity::PerTensor, &float)]
        } else if member.activation.is_none() {
            self.requantize(&mut node)
        } else {
            Vec::new()
        };
        nodes.push(node);
        nodes.extend(behind);
        self.layout.patch.replace(member.position, nodes);
        Ok(())
    }

    /// A matrix product as one integer operator with its bias; `rank` is that of its input, if it never varies.
    fn product(&mut self, site: &Site<'_>, rank: Option<usize>) -> Result<(), Error> {
        let activation = self.input(site.input())?;
        let product = Product::new(self.layout, self.index, site, self.settings, rank, self.recovering)?;
        let nodes = product.of_quantized(self.layout, &activation.packed);
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    /// A float operator between Dequantize nodes, which ONNX Runtime fuses. `matrix`: the input has two dimensions.
    fn between(&mut self, site: &Site<'_>, matrix: bool) -> Result<(), Error> {
        let activation = self.input(site.input())?;
        if site.kind == Kind::ConvTranspose {
            return self.blocks(site, &activation);
        }
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
        let wide = match site.kind {
            // Filling up is a Pad of bytes, behind which ONNX Runtime fuses no convolution of signed values.
            Kind::Conv if self.settings.activations == Activations::UInt8 => convolution::widened(site)?,
            _ => None,
        };
        let mut packed = activation.packed;
        if let Some(wide) = &wide {
            let (pad, values) = convolution::widen(self.layout, &packed, site.weights, wide)?;
            nodes.push(pad);
            packed.values = values;
        }
        node.inputs[0] = self.layout.names.fresh(&output, "/x");
        nodes.push(layout::dequantize(&packed, 0, Granularity::PerTensor, &node.inputs[0]));
        let weights = wide.as_ref().unwrap_or(site.weights);
        let behind = self.weights_and_bias(site, weights, bias, activation.scale, &mut node, &mut nodes)?;
        let behind = if site.is_convolution() && site.activation.is_none() {
            self.requantize(&mut node)
        } else {
            behind
        };
        nodes.push(node);
        nodes.extend(behind);
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    /// A transposed convolution as a pointwise one, whose bytes are then moved.
    fn blocks(&mut self, site: &Site<'_>, activation: &Activation) -> Result<(), Error> {
        let tiles = Tiles::of(site.node, site.weights).map_err(|why| Error::NoEffect {
            pass: NAME,
            why: why.to_owned(),
        })?;
        let output = site.result(self.index);
        let packed = self.name_activation(output)?.packed;
        let mut node = Tiles::pointwise(site.node);
        node.inputs[0] = self.layout.names.fresh(site.node.output(), "/x");
        let mut nodes = vec![layout::dequantize(
            &activation.packed,
            0,
            Granularity::PerTensor,
            &node.inputs[0],
        )];
        let bias = site.bias.map(|bias| tiles.bias(bias)).transpose()?;
        let weights = tiles.weights(site.weights)?;
        self.weights_and_bias(site, &weights, bias.as_ref(), activation.scale, &mut node, &mut nodes)?;
        let mut float = self.layout.names.fresh(site.node.output(), "/blocks");
        node.outputs = vec![float.clone()];
        nodes.push(node);
        if let Some(position) = site.activation {
            let mut behind = self.index.graph.nodes[position].clone();
            behind.inputs[0] = float;
            float = self.layout.names.fresh(output, "/float");
            behind.outputs = vec![float.clone()];
            nodes.push(behind);
            self.layout.patch.remove(position);
        }
        let bytes = self.layout.names.fresh(output, "/blocks/q");
        nodes.push(layout::quantize(&float, &packed.scale, &packed.zero_point, &bytes));
        nodes.extend(tiles.spread(self.layout, &bytes, &packed.values)?);
        nodes.push(layout::dequantize(&packed, 0, Granularity::PerTensor, output));
        self.layout.patch.replace(site.position, nodes);
        Ok(())
    }

    /// Lets `node` read its weights and bias from Dequantize nodes, which go to `nodes`; what must follow it is returned.
    fn weights_and_bias(
        &mut self,
        site: &Site<'_>,
        weights: &Tensor,
        bias_tensor: Option<&Tensor>,
        input_scale: f32,
        node: &mut Node,
        nodes: &mut Vec<Node>,
    ) -> Result<Vec<Node>, Error> {
        let granularity = self.settings.granularity;
        let axis = if site.is_convolution() { 0 } else { site.channel_axis() };
        let grid = self.settings.grid();
        let floats = recovery::corrected(bias_tensor, None)?;
        let least = |channel: usize| {
            floats
                .as_ref()
                .map_or(0.0, |bias| weights::least_scale(bias[channel], input_scale))
        };
        let (quantized, correction) = self.recovering.weights(site, weights, axis, grid, least)?;
        let scales = quantized.scales.clone();
        let packed = self.layout.weights(weights, axis, quantized)?;
        node.inputs[1] = self.layout.names.fresh(site.node.output(), "/w");
        nodes.push(layout::dequantize(&packed, axis, granularity, &node.inputs[1]));
        if node.is("MatMul") {
            return self.sum(site, correction, node);
        }
        let Some(bias) = recovery::corrected(bias_tensor, correction)? else {
            return Ok(Vec::new());
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
        Ok(Vec::new())
    }

    /// A `MatMul` has no bias: `correction` goes into the sum behind it, or into one of its own, which is returned.
    fn sum(&mut self, site: &Site<'_>, correction: Option<Vec<f32>>, node: &mut Node) -> Result<Vec<Node>, Error> {
        if correction.is_none() {
            return Ok(Vec::new());
        }
        let vector = site.sum.map(|(_, vector)| vector);
        let values = recovery::corrected(vector, correction)?.unwrap_or_default();
        let output = site.node.output();
        let dims = vector.map_or(vec![values.len()], |vector| vector.dims.clone());
        let name = self.layout.names.fresh(output, "/vector");
        let bias = Tensor::floats(&name, &dims, &values)?;
        let name = self.layout.bias(&site.weights.name, bias);
        let Some((position, vector)) = site.sum else {
            node.outputs[0] = self.layout.names.fresh(output, "/product");
            return Ok(vec![Node::new("Add", &[&node.outputs[0], &name], &[output])]);
        };
        let inputs = &self.index.graph.nodes[position].inputs;
        if let Some(slot) = inputs.iter().position(|input| *input == vector.name) {
            self.layout.patch.rewire(position, slot, &name);
        }
        Ok(Vec::new())
    }
}
