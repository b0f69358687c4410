//! Raises a model to operator set 17 without changing what it computes, or says which operator stands in the way.
//!
//! Per-channel quantization needs operator set 13 and more; old files are common. An operator whose definition changed on
//! the way is either on the list of changes that keep its meaning for old models (wider types, new optional attributes),
//! or has a rewrite here, or is refused by name.

use super::{
    element::ElementType as T,
    error::{Error, shown},
    index::Index,
    model::{Attribute, AttributeValue, Graph, Model, Node, Tensor, ValueInfo, visit_graphs},
    ops,
    patch::Names,
    shapes::Shapes,
};
use std::collections::{HashMap, HashSet};

/// The operator set that passes work on.
pub const TARGET_OPSET: i64 = 17;
/// Oldest operator set that can be raised.
const OLDEST: i64 = 9;
/// Most elements of a vector with one element for each axis.
const MOST_AXES: usize = 16;
/// File format that goes with operator set 17.
const TARGET_IR: i64 = 8;

/// What raising the operator set did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgraded {
    /// Version in the file.
    pub before: i64,
    /// Version now.
    pub after: i64,
    /// Nodes that were rewritten, not only renumbered.
    pub rewritten: usize,
}

/// Operators that had a row of everything from `axis` on.
const SOFTMAX: [&str; 3] = ["Softmax", "LogSoftmax", "Hardmax"];

/// Changes between operator sets 10 and 17 that leave old models' meaning alone.
#[rustfmt::skip]
const UNCHANGED: &[(&[&str], &[u8])] = &[
    (&["Add", "Sub", "Mul", "Div", "Relu", "Reshape"], &[13, 14]),
    (&["Abs", "Ceil", "Erf", "Exp", "Expand", "Floor", "Greater", "IsNaN", "LRN", "Less", "Log", "MatMul", "Mean",
       "MeanVarianceNormalization", "Mod", "Neg", "NonZero", "Reciprocal", "Sigmoid", "Sign", "Size", "SpaceToDepth",
       "Sqrt", "Sum", "Tanh", "Tile", "Transpose", "Cast", "GatherElements", "Pad", "Resize", "Dropout",
       "QuantizeLinear", "DequantizeLinear"], &[13]),
    (&["Concat", "DepthToSpace", "Equal", "Flatten", "Gather", "Gemm", "ReduceL1", "ReduceL2", "ReduceLogSum",
       "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSumSquare", "Slice"], &[11, 13]),
    (&["ArgMax", "ArgMin", "ReduceMax", "ReduceMin", "Constant"], &[11, 12, 13]),
    (&["Clip"], &[12, 13]),
    (&["Max", "Min", "GatherND"], &[12, 13]),
    (&["AveragePool"], &[10, 11]),
    (&["MaxPool"], &[10, 11, 12]),
    (&["Conv", "ConvTranspose", "Compress", "Det", "MaxUnpool", "LpPool", "NonMaxSuppression", "OneHot", "Softmax", "LogSoftmax",
       "Hardmax", "Split", "Squeeze", "Unsqueeze", "ReduceSum", "TopK"], &[11]),
    (&["Pow"], &[12, 13, 15]),
    (&["Shape"], &[13, 15]),
    (&["Identity"], &[13, 14, 16]),
    (&["If", "Loop"], &[11, 13, 16]),
    (&["Scan"], &[11, 16]),
    (&["ScatterElements", "ScatterND"], &[13, 16]),
    (&["BatchNormalization"], &[14, 15]),
    (&["CumSum", "GRU", "LSTM", "RNN"], &[14]),
    (&["GreaterOrEqual", "LessOrEqual", "LeakyRelu", "PRelu", "Where"], &[16]),
    (&["Dropout"], &[10]),
];

/// Raises the model's operator set to [`TARGET_OPSET`]; newer ones stay.
pub fn upgrade(model: &mut Model) -> Result<Upgraded, Error> {
    let before = model.opset("").unwrap_or(0);
    if before >= TARGET_OPSET {
        return Ok(Upgraded {
            before,
            after: before,
            rewritten: 0,
        });
    }
    let refuse = |reason: String| Error::Opset {
        from: before,
        to: TARGET_OPSET,
        reason,
    };
    if before < OLDEST {
        return Err(refuse(format!(
            "operator sets before {OLDEST} are too old; export the model again"
        )));
    }
    if !model.functions.is_empty() {
        return Err(refuse("the model has local functions; inline them first".to_owned()));
    }
    let mut upgrade = Upgrade {
        before,
        names: Names::new(&model.graph),
        known: Known::of(&model.graph),
        tensors: Vec::new(),
        rewritten: 0,
    };
    upgrade.graph(&mut model.graph).map_err(refuse)?;
    let rewritten = upgrade.rewritten;
    model.graph.initializers.append(&mut upgrade.tensors);
    model.import("", TARGET_OPSET);
    model.ir_version = model.ir_version.max(TARGET_IR);
    Ok(Upgraded {
        before,
        after: TARGET_OPSET,
        rewritten,
    })
}

/// What rewrites must know of the whole model.
struct Known {
    /// Whether a float of another width is about: then bounds that become inputs may need that width.
    other_floats: bool,
    /// Short constant vectors of floats, as scales of a resize are.
    vectors: HashMap<String, Vec<f32>>,
    /// Values that some node reads or some graph gives back.
    read: HashSet<String>,
    /// Dimensions of values that an operator of the softmax family reads, where they are known.
    ranks: HashMap<String, usize>,
}

impl Known {
    fn of(graph: &Graph) -> Self {
        let other = |element| matches!(element, T::Float16 | T::Bfloat16 | T::Double);
        let mut known = Self {
            other_floats: false,
            vectors: HashMap::new(),
            read: HashSet::new(),
            ranks: ranks(graph),
        };
        visit_graphs(graph, &mut |graph: &Graph| {
            let declared = graph
                .inputs
                .iter()
                .chain(&graph.value_info)
                .filter_map(ValueInfo::tensor_type);
            known.other_floats |= graph.initializers.iter().any(|tensor| other(tensor.element))
                || declared.into_iter().any(|declared| other(declared.element))
                || graph.nodes.iter().any(|node| gives(node).is_some_and(other));
            let short = graph.initializers.iter().filter(|tensor| tensor.len() <= MOST_AXES);
            known
                .vectors
                .extend(short.filter_map(|tensor| Some((tensor.name.clone(), tensor.to_floats()?))));
            known
                .read
                .extend(graph.nodes.iter().flat_map(|node| node.inputs.iter().cloned()));
            known
                .read
                .extend(graph.outputs.iter().map(|output| output.name.clone()));
        });
        known
    }
}

/// Dimensions of what operators of the softmax family read in the main graph.
fn ranks(graph: &Graph) -> HashMap<String, usize> {
    let is_one = |node: &&Node| SOFTMAX.iter().any(|op_type| node.is(op_type));
    let mut inputs = graph
        .nodes
        .iter()
        .filter(is_one)
        .flat_map(|node| &node.inputs)
        .peekable();
    if inputs.peek().is_none() {
        return HashMap::new();
    }
    let index = Index::new(graph);
    let shapes = Shapes::new(&index);
    inputs
        .filter_map(|name| Some((name.clone(), shapes.rank(name)?)))
        .collect()
}

/// The type that a node itself says that it gives.
fn gives(node: &Node) -> Option<T> {
    match (node.attribute("to"), node.attribute("value")) {
        (Some(AttributeValue::Int(to)), _) => T::from_number(*to),
        (_, Some(AttributeValue::Tensor(tensor))) => Some(tensor.element),
        _ => None,
    }
}

struct Upgrade {
    before: i64,
    names: Names,
    known: Known,
    /// New constants; the main graph's, where every body can read them.
    tensors: Vec<Tensor>,
    rewritten: usize,
}

impl Upgrade {
    fn graph(&mut self, graph: &mut Graph) -> Result<(), String> {
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for mut node in std::mem::take(&mut graph.nodes) {
            node.bodies_mut().try_for_each(|body| self.graph(body))?;
            if node.domain.is_empty() {
                let label = node.label().to_owned();
                let op_type = node.op_type.clone();
                self.node(node, &mut nodes)
                    .map_err(|reason| format!("operator {op_type} of node {}: {reason}", shown(&label)))?;
            } else {
                nodes.push(node);
            }
        }
        graph.nodes = nodes;
        Ok(())
    }

    /// Takes one node through every change of its operator, in order.
    fn node(&mut self, mut node: Node, nodes: &mut Vec<Node>) -> Result<(), String> {
        let mut at = self.before;
        let mut rewritten = false;
        loop {
            let next = ops::versions(&node.op_type)
                .unwrap_or(&[])
                .iter()
                .map(|&version| i64::from(version));
            let Some(next) = next
                .into_iter()
                .find(|&version| version > at && version <= TARGET_OPSET)
            else {
                break;
            };
            at = next;
            if self.rewrite(&mut node, next, nodes)? {
                rewritten = true;
            } else if !unchanged(&node.op_type, next) {
                return Err(format!(
                    "its meaning changed in operator set {next} and no rewrite is known"
                ));
            }
        }
        self.rewritten += usize::from(rewritten);
        nodes.push(node);
        Ok(())
    }

    /// Rewrites what changed at `version`; false where nothing needs to. May put nodes in front.
    fn rewrite(&mut self, node: &mut Node, version: i64, nodes: &mut Vec<Node>) -> Result<bool, String> {
        match (node.op_type.as_str(), version) {
            ("Upsample", 10) => self.upsample(node)?,
            ("Resize", 11) if self.before == 10 => self.resize(node)?,
            // Was an Upsample, and has been written as version 11 already.
            ("Resize", 11) => {}
            ("Scatter", 11) => "ScatterElements".clone_into(&mut node.op_type),
            ("Slice", 10) => {
                self.list_to_input(node, "starts", 1)?;
                self.list_to_input(node, "ends", 2)?;
                self.list_to_input(node, "axes", 3)?;
            }
            ("TopK", 10) => {
                let k = node.int("k", -1).filter(|&k| k > 0).ok_or("k is missing")?;
                node.take_attribute("k");
                self.input(node, 1, |name| Tensor::int64s(name, &[1], &[k]))?;
            }
            ("Clip", 11) => {
                self.float_to_input(node, "min", 1, nodes)?;
                self.float_to_input(node, "max", 2, nodes)?;
            }
            ("Pad", 11) => {
                self.list_to_input(node, "pads", 1)?;
                self.float_to_input(node, "value", 2, nodes)?;
            }
            ("Dropout", 12) => {
                if node.outputs.iter().skip(1).any(|mask| self.known.read.contains(mask)) {
                    return Err("its mask is used; export the model for inference".to_owned());
                }
                node.outputs.truncate(1);
                node.take_attribute("ratio");
            }
            ("Squeeze" | "Unsqueeze" | "ReduceSum", 13) => self.list_to_input(node, "axes", 1)?,
            ("Split", 13) => self.list_to_input(node, "split", 1)?,
            (op_type, 13) if SOFTMAX.contains(&op_type) => self.softmax(node, nodes),
            ("BatchNormalization", 14) if node.outputs.iter().filter(|output| !output.is_empty()).count() > 1 => {
                return Err("it is in training form; export the model for inference".to_owned());
            }
            ("RoiAlign", 16) => {
                if node.attribute("coordinate_transformation_mode").is_none() {
                    set_text(node, "coordinate_transformation_mode", "output_half_pixel");
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn input(
        &mut self,
        node: &mut Node,
        slot: usize,
        tensor: impl FnOnce(&str) -> Result<Tensor, Error>,
    ) -> Result<(), String> {
        let name = self
            .names
            .fresh(node.output(), &format!("/{}_{slot}", node.op_type.to_lowercase()));
        self.tensors.push(tensor(&name).map_err(|error| error.to_string())?);
        node.inputs.resize(node.inputs.len().max(slot + 1), String::new());
        node.inputs[slot] = name;
        Ok(())
    }

    fn list_to_input(&mut self, node: &mut Node, name: &str, slot: usize) -> Result<(), String> {
        match node.take_attribute(name) {
            None => Ok(()),
            Some(AttributeValue::Ints(values)) => {
                self.input(node, slot, |name| Tensor::int64s(name, &[values.len()], &values))
            }
            Some(_) => Err(format!("attribute {name} is no list of integers")),
        }
    }

    /// Among floats of several widths, the new input takes that of the data.
    fn float_to_input(
        &mut self,
        node: &mut Node,
        name: &str,
        slot: usize,
        nodes: &mut Vec<Node>,
    ) -> Result<(), String> {
        match node.take_attribute(name) {
            None => Ok(()),
            Some(AttributeValue::Float(value)) => {
                self.input(node, slot, |name| Tensor::floats(name, &[], &[value]))?;
                if self.known.other_floats {
                    let like = self.names.fresh(&node.inputs[slot], "/like");
                    nodes.push(Node::new("CastLike", &[&node.inputs[slot], &node.inputs[0]], &[&like]));
                    node.inputs[slot] = like;
                }
                Ok(())
            }
            Some(_) => Err(format!("attribute {name} is no number")),
        }
    }

    /// `Upsample` 9 only enlarges, and takes the element at the floor of the coordinate.
    fn upsample(&mut self, node: &mut Node) -> Result<(), String> {
        match node.take_attribute("scales") {
            None => {}
            Some(AttributeValue::Floats(scales)) => {
                self.input(node, 1, |name| Tensor::floats(name, &[scales.len()], &scales))?;
            }
            Some(_) => return Err("attribute scales is no list of numbers".to_owned()),
        }
        to_resize(node, "floor")
    }

    /// `Resize` 10 takes the element at the floor of the coordinate along axes that it enlarges, and at the ceiling along others.
    fn resize(&self, node: &mut Node) -> Result<(), String> {
        let mode = match node.attribute("mode") {
            Some(AttributeValue::String(mode)) => mode.as_ref(),
            _ => b"nearest",
        };
        if mode != b"nearest" {
            return to_resize(node, "floor");
        }
        let scales = node.input(1).and_then(|name| self.known.vectors.get(name));
        let scales =
            scales.ok_or("its scales are computed at run time, and which element is nearest depends on them")?;
        // Divided by a power of two below 1, a coordinate has no fraction: both ways give the same.
        let reduces = |scale: &f32| *scale < 1.0 && scale.to_bits().trailing_zeros() < f32::MANTISSA_DIGITS - 1;
        match (scales.iter().any(|scale| *scale > 1.0), scales.iter().any(reduces)) {
            (true, true) => Err("it enlarges one axis and reduces another; export it with operator set 11".to_owned()),
            (_, true) => to_resize(node, "ceil"),
            (_, false) => to_resize(node, "floor"),
        }
    }

    /// Before 13, everything from `axis` on was one row. `Flatten`, the operator on the last axis, and the old shape back.
    fn softmax(&mut self, node: &mut Node, nodes: &mut Vec<Node>) {
        let axis = node.int("axis", 1).unwrap_or(1);
        node.take_attribute("axis");
        node.attributes.push(Attribute {
            name: "axis".to_owned(),
            value: AttributeValue::Int(-1),
            rest: Vec::new(),
        });
        let rank_two = |producer: &Node| producer.is("Gemm") || producer.is("Flatten");
        let input = node.inputs.first().cloned().unwrap_or_default();
        let rank = self.known.ranks.get(&input).and_then(|&rank| i64::try_from(rank).ok());
        let last_anyway = axis == -1
            || rank == Some(axis + 1)
            || (axis == 1
                && nodes
                    .iter()
                    .any(|other| rank_two(other) && other.output() == input.as_str()));
        if last_anyway {
            return;
        }
        let output = node.output().to_owned();
        let (shape, flat, rows) = (
            self.names.fresh(&output, "/shape"),
            self.names.fresh(&output, "/flat"),
            self.names.fresh(&output, "/rows"),
        );
        nodes.push(Node::new("Shape", &[&input], &[&shape]));
        nodes.push(Node::new("Flatten", &[&input], &[&flat]).with("axis", AttributeValue::Int(axis)));
        // A dimension of size 0 is meant as such.
        let back = Node::new("Reshape", &[&rows, &shape], &[&output]).with("allowzero", AttributeValue::Int(1));
        let mut inner = std::mem::replace(node, back);
        inner.inputs = vec![flat];
        inner.outputs = vec![rows];
        nodes.push(inner);
    }
}

fn unchanged(op_type: &str, version: i64) -> bool {
    UNCHANGED.iter().any(|(names, versions)| {
        names.contains(&op_type) && versions.iter().any(|&listed| i64::from(listed) == version)
    })
}

fn set_text(node: &mut Node, name: &str, text: &str) {
    node.take_attribute(name);
    let value = AttributeValue::String(text.to_owned().into());
    node.attributes.push(Attribute {
        name: name.to_owned(),
        value,
        rest: Vec::new(),
    });
}

/// The same with the coordinates of old operators and an omitted region of interest.
fn to_resize(node: &mut Node, nearest: &str) -> Result<(), String> {
    let [data, scales] = node.inputs.as_slice() else {
        return Err("its scales are missing".to_owned());
    };
    node.inputs = vec![data.clone(), String::new(), scales.clone()];
    "Resize".clone_into(&mut node.op_type);
    set_text(node, "coordinate_transformation_mode", "asymmetric");
    set_text(node, "nearest_mode", nearest);
    Ok(())
}
