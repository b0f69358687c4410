//! Bytes at the ends of a model that computes with integers throughout: its float inputs and outputs become unsigned bytes, with scale and
//! zero point in the file's metadata.
//!
//! Decides whether anything is left that computes with floats, and refuses with the names where something is. Never rounds an input
//! otherwise than the model did; an output that was float (a product, a `Softmax`) is rounded once, within its calibrated range.
//! Signed bytes are not offered: ONNX Runtime 1.32 computes with floats behind an input of these.

use super::{
    Activations, Error, Left, Report,
    layout::{self, Layout},
    weights,
};
use crate::{
    calibrate::Observed,
    onnx::{
        ElementType, Ends, Index, Model, Names, Node, Patch, Scale, ValueInfo, apply as apply_patch, prune, rename,
        set_ends, shown,
    },
};
use std::collections::{BTreeMap, HashSet};

const NAME: &str = "integer-inputs-outputs";

/// Operators that ONNX Runtime runs on bytes between Dequantize and Quantize nodes, and how many of their inputs are values.
const INTEGER: &[(&str, usize)] = &[
    ("Add", 2),
    ("AveragePool", 1),
    ("Clip", 1),
    ("Concat", usize::MAX),
    ("Conv", 3),
    ("DepthToSpace", 1),
    ("Flatten", 1),
    ("Gemm", 3),
    ("GlobalAveragePool", 1),
    ("LeakyRelu", 1),
    ("MatMul", 2),
    ("MaxPool", 1),
    ("Mul", 2),
    ("Relu", 1),
    ("Reshape", 1),
    ("Resize", 1),
    ("Sigmoid", 1),
    ("Slice", 1),
    ("Softmax", 1),
    ("Split", 1),
    ("Squeeze", 1),
    ("Transpose", 1),
    ("Unsqueeze", 1),
];
/// Operators that the quantizer lets move bytes as they are.
const MOVING: &[&str] = &["Pad", "Reshape", "Transpose"];
/// Operators that sizes are computed with.
const COUNTING: &[&str] = &[
    "Add",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
];
/// Operators that take the function behind them into their integer kernel.
const FUSING: &[&str] = &["Add", "Conv", "Gemm", "MatMul"];
const FUSED: &[&str] = &["Clip", "Relu"];

/// Tensors whose ranges [`apply`] needs besides those of the quantizer: outputs of the model that leave it as floats.
pub fn taps(model: &Model) -> Vec<String> {
    let index = Index::new(&model.graph);
    let outputs = model.graph.outputs.iter().map(|output| output.name.as_str());
    let float = |output: &&str| {
        let mut node = index.producer(output).map(|(_, node)| node);
        while let Some(behind) = node.filter(|node| node.is("Add") || node.is("Relu")) {
            node = behind
                .inputs
                .iter()
                .find_map(|input| index.producer(input))
                .map(|(_, node)| node);
        }
        node.is_some_and(|node| ["Gemm", "MatMul", "Softmax"].iter().any(|op_type| node.is(op_type)))
    };
    let floats = outputs.filter(float);
    let scores = scores(&index).map(|(_, scores)| scores);
    floats.chain(scores).map(str::to_owned).collect()
}

/// Each `Softmax` that a product feeds, by position, and what it reads: the quantizer leaves both as floats.
fn scores<'g>(index: &Index<'g>) -> impl Iterator<Item = (usize, &'g str)> {
    let softmax = index
        .graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.is("Softmax"));
    softmax.filter_map(|(position, node)| {
        let scores = node.input(0)?;
        let (_, producer) = index.producer(scores)?;
        (producer.is("Gemm") || producer.is("MatMul")).then_some((position, scores))
    })
}

/// Rounds what a `Softmax` reads, within its calibrated range.
fn round_scores(model: &mut Model, observed: &BTreeMap<String, Observed>) -> Result<(), Error> {
    let mut layout = Layout::new(Patch::new(NAME), Names::new(&model.graph));
    let index = Index::new(&model.graph);
    for (position, scores) in scores(&index) {
        let range = observed
            .get(scores)
            .and_then(|seen| weights::affine(seen.reach, Activations::UInt8));
        let Some(affine) = range else { continue };
        let (nodes, rounded) = layout.rounded(scores, scores, affine, Activations::UInt8)?;
        layout.patch.insert_before(position, nodes);
        layout.patch.rewire(position, 0, &rounded);
    }
    let patch = layout.take_patch(NAME);
    Ok(apply_patch(&mut model.graph, patch)?)
}

/// Turns the ends of a model that the static quantizer has written. `observed`: what was seen of the float model; `left`: nodes that the
/// quantizer left, and why.
pub fn apply(model: &mut Model, observed: &BTreeMap<String, Observed>, left: &[Left]) -> Result<Report, Error> {
    round_scores(model, observed)?;
    let (patch, ends) = {
        let index = Index::new(&model.graph);
        let mut turn = Turn {
            index: &index,
            observed,
            left,
            layout: Layout::new(Patch::new(NAME), Names::new(&model.graph)),
            ends: Ends::new(),
            floats: Vec::new(),
        };
        let mut constants = HashSet::new();
        for node in &model.graph.nodes {
            // What unpacks weights runs once, when the model is loaded.
            let constant = |name: &String| index.constant(name).is_some() || constants.contains(name.as_str());
            if !node.inputs.is_empty() && node.inputs.iter().all(constant) {
                constants.extend(node.outputs.iter().map(String::as_str));
            } else {
                turn.inside(node);
            }
        }
        for output in &model.graph.outputs {
            turn.output(&output.name)?;
        }
        for input in &model.graph.inputs {
            turn.input(input);
        }
        if !turn.floats.is_empty() {
            return Err(Error::Floats {
                count: turn.floats.len(),
                first: turn.floats.into_iter().take(MOST_NAMED).collect::<Vec<_>>().join("; "),
            });
        }
        (turn.layout.take_patch(NAME), turn.ends)
    };
    if ends.is_empty() {
        return Err(Error::NoEffect {
            pass: NAME,
            why: "no input and no output of the model is of floats".to_owned(),
        });
    }
    apply_patch(&mut model.graph, patch)?;
    let graph = &mut model.graph;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        if ends.contains_key(&info.name) {
            let shape = info.tensor_type().and_then(|declared| declared.shape);
            info.type_proto =
                shape.and_then(|dims| ValueInfo::tensor(&info.name, ElementType::Uint8, &dims).type_proto);
        }
    }
    prune(&mut model.graph);
    rename(model);
    set_ends(model, &ends)?;
    let mut report = Report::new(NAME);
    report.changed = ends.len();
    let words: Vec<String> = ends
        .iter()
        .map(|(name, scale)| format!("{} {scale}", shown(name)))
        .collect();
    report.tell(&format!("scale and zero point: {}", words.join(", ")));
    Ok(report)
}

/// Most nodes that a refusal names.
const MOST_NAMED: usize = 8;

struct Turn<'i, 'g> {
    index: &'i Index<'g>,
    observed: &'i BTreeMap<String, Observed>,
    left: &'i [Left],
    layout: Layout,
    ends: Ends,
    /// What is in the way, in words.
    floats: Vec<String>,
}

impl<'g> Turn<'_, 'g> {
    fn inside(&mut self, node: &Node) {
        if let Some(why) = self.computes_floats(node) {
            // The reason of the quantizer explains more.
            let label = shown(node.label());
            let why = self
                .left
                .iter()
                .find(|left| left.node == label)
                .map_or(why, |left| left.why.clone());
            self.floats
                .push(format!("{} ({}): {why}", shown(node.label()), shown(&node.op_type)));
        }
    }

    /// Why `node` computes with floats, if it does.
    fn computes_floats(&self, node: &Node) -> Option<String> {
        if is_quantize(node) || node.is("DequantizeLinear") || self.counts(node) {
            return None;
        }
        if MOVING.iter().any(|op_type| node.is(op_type)) && self.comes_from(node, MOVING, is_quantize) {
            return None;
        }
        if node.is("Pad") {
            return Some("it pads floats".to_owned());
        }
        let Some((_, values)) = INTEGER.iter().find(|(op_type, _)| node.is(op_type)) else {
            return Some("ONNX Runtime has no integer kernel for it".to_owned());
        };
        let given = node.inputs.iter().take(*values).filter(|name| !name.is_empty());
        let float = given.into_iter().find(|name| !self.is_bytes(node, name));
        if let Some(name) = float {
            return Some(format!("it reads {} as floats", shown(name)));
        }
        let kept = node
            .outputs
            .iter()
            .filter(|name| !name.is_empty())
            .find(|name| !self.becomes_bytes(name));
        kept.map(|name| format!("its output {} stays float: no Quantize node reads it", shown(name)))
    }

    /// Whether `node` computes sizes, which are no values.
    fn counts(&self, node: &Node) -> bool {
        let shape = |node: &Node| node.is("Shape");
        shape(node) || (COUNTING.iter().any(|op_type| node.is(op_type)) && self.comes_from(node, COUNTING, shape))
    }

    /// Whether the first input of `node` is made by what is a `source`, with nothing but operators of `types` between.
    fn comes_from(&self, node: &Node, types: &[&str], source: impl Fn(&Node) -> bool) -> bool {
        let before = |node: &Node| {
            node.input(0)
                .and_then(|name| self.index.producer(name))
                .map(|(_, node)| node)
        };
        let mut maker = before(node);
        while let Some(node) = maker.filter(|node| types.iter().any(|op_type| node.is(op_type))) {
            maker = before(node);
        }
        maker.is_some_and(source)
    }

    /// Whether `node` reads `name` from a Dequantize node, or from the operator whose kernel it becomes a part of.
    fn is_bytes(&self, node: &Node, name: &str) -> bool {
        let fused = FUSED.iter().any(|op_type| node.is(op_type)) && self.index.only_use(name).is_some();
        self.index.producer(name).is_some_and(|(_, producer)| {
            producer.is("DequantizeLinear") || (fused && FUSING.iter().any(|op_type| producer.is(op_type)))
        })
    }

    fn becomes_bytes(&self, name: &str) -> bool {
        let fused = self
            .index
            .only_use(name)
            .is_some_and(|(_, next)| FUSED.iter().any(|op_type| next.is(op_type)));
        fused
            || self
                .index
                .uses(name)
                .iter()
                .all(|usage| usage.slot == Some(0) && is_quantize(&self.index.graph.nodes[usage.node]))
    }

    /// Lets an output leave the model as it is before it is dequantized, or quantizes it.
    fn output(&mut self, name: &str) -> Result<(), Error> {
        let Some((position, node)) = self.index.producer(name) else {
            self.floats.push(format!("output {}: no node computes it", shown(name)));
            return Ok(());
        };
        if node.is("DequantizeLinear") {
            self.undone(name, node);
            return Ok(());
        }
        let range = self
            .observed
            .get(name)
            .and_then(|seen| weights::affine(seen.reach, Activations::UInt8));
        let Some(affine) = range else {
            self.floats.push(format!(
                "output {}: {} gives no floats of a calibrated range",
                shown(name),
                shown(&node.op_type)
            ));
            return Ok(());
        };
        let (scale, zero_point) = self.layout.affine(name, affine, Activations::UInt8)?;
        let float = self.layout.names.fresh(name, "/float");
        let mut renamed = node.clone();
        renamed
            .outputs
            .iter_mut()
            .filter(|output| *output == name)
            .for_each(|output| output.clone_from(&float));
        let quantize = layout::quantize(&float, &scale, &zero_point, name);
        self.layout.patch.replace(position, vec![renamed, quantize]);
        self.rewire(name, &float);
        let end = Scale {
            scale: affine.scale,
            zero_point: affine.zero_point,
        };
        self.ends.insert(name.to_owned(), end);
        Ok(())
    }

    /// The bytes from which `node`, a Dequantize node, makes the output `name`.
    fn undone(&mut self, name: &str, node: &'g Node) {
        let bytes = node.inputs.first().map_or("", String::as_str);
        let (Some(scale), Some((position, maker))) = (self.scale(node), self.index.producer(bytes)) else {
            self.floats.push(format!(
                "output {}: it is dequantized by more than one scale",
                shown(name)
            ));
            return;
        };
        if let Some(usage) = self.index.uses(name).first() {
            let reader = &self.index.graph.nodes[usage.node];
            self.floats.push(format!(
                "output {}: {} reads it as floats",
                shown(name),
                shown(reader.label())
            ));
        }
        let mut renamed = maker.clone();
        renamed
            .outputs
            .iter_mut()
            .filter(|output| *output == bytes)
            .for_each(|output| name.clone_into(output));
        self.layout.patch.replace(position, vec![renamed]);
        if let Some((position, _)) = self.index.producer(name) {
            self.layout.patch.remove(position);
        }
        let others = self
            .index
            .uses(bytes)
            .iter()
            .filter(|usage| self.index.graph.nodes[usage.node].output() != name);
        for usage in others {
            if let Some(slot) = usage.slot {
                self.layout.patch.rewire(usage.node, slot, name);
            }
        }
        self.ends.insert(name.to_owned(), scale);
    }

    /// Lets a float input come as the bytes that the model makes of it first.
    fn input(&mut self, input: &ValueInfo) {
        let weight = self
            .index
            .graph
            .initializers
            .iter()
            .any(|tensor| tensor.name == input.name);
        let float = input
            .tensor_type()
            .is_some_and(|declared| declared.element == ElementType::Float);
        if weight || !float {
            return;
        }
        let name = input.name.as_str();
        let uses = self.index.uses(name);
        let mut scales = Vec::new();
        for usage in uses {
            let reader = &self.index.graph.nodes[usage.node];
            match (usage.slot, self.scale(reader)) {
                (Some(0), Some(scale)) if is_quantize(reader) => scales.push(scale),
                _ => self.floats.push(format!(
                    "input {}: {} reads it as floats",
                    shown(name),
                    shown(reader.label())
                )),
            }
        }
        let declared = input.tensor_type().and_then(|declared| declared.shape).is_some();
        let Some(scale) = scales
            .first()
            .copied()
            .filter(|first| declared && scales.iter().all(|scale| scale == first))
        else {
            self.floats
                .push(format!("input {}: no one scale is for all that read it", shown(name)));
            return;
        };
        for usage in uses {
            self.layout.patch.remove(usage.node);
            let bytes = self.index.graph.nodes[usage.node].output();
            self.rewire(bytes, name);
        }
        self.ends.insert(name.to_owned(), scale);
    }

    fn rewire(&mut self, from: &str, to: &str) {
        for usage in self.index.uses(from) {
            if let Some(slot) = usage.slot {
                self.layout.patch.rewire(usage.node, slot, to);
            }
        }
    }

    /// The one scale of a Quantize or Dequantize node.
    fn scale(&self, node: &Node) -> Option<Scale> {
        let scale = self.index.constant(node.input(1)?)?.to_scalar()?;
        let zero = self
            .index
            .constant(node.input(2)?)
            .filter(|zero| zero.element == ElementType::Uint8)?;
        let zero_point = *zero.bytes().first()?;
        (scale > 0.0).then_some(Scale { scale, zero_point })
    }
}

fn is_quantize(node: &Node) -> bool {
    node.is("QuantizeLinear")
}
