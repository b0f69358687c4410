//! Which operators between integer kernels compute with integers, too: what costs is a float island between two of them.
//!
//! A table says what ONNX Runtime fuses with the Quantize and Dequantize nodes around it; a test reads that from its optimized graph.
//! Among those, the set with the fewest conversions between float and integer is chosen, for whole regions rather than for single
//! operators. Never decides which convolutions and products are quantized.

use super::site::Site;
use crate::onnx::{AttributeValue, Index, Node, Tensor};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How the 8-bit result of an operator relates to its 8-bit input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    /// The same values, moved or picked: scale and zero point stay.
    Kept,
    /// Values of its own range, far fewer than it reads: one more rounding costs little.
    Fewer,
    /// Values of its own range.
    Own,
}

/// Operators that ONNX Runtime runs on 8-bit values between Dequantize and Quantize nodes, and how many of their inputs are values.
const FUSED: &[(&str, Rounding, usize)] = &[
    ("Add", Rounding::Own, 2),
    ("AveragePool", Rounding::Fewer, 1),
    ("Concat", Rounding::Own, usize::MAX),
    ("DepthToSpace", Rounding::Kept, 1),
    ("Flatten", Rounding::Kept, 1),
    ("GlobalAveragePool", Rounding::Fewer, 1),
    ("LeakyRelu", Rounding::Own, 1),
    ("MaxPool", Rounding::Kept, 1),
    ("Mul", Rounding::Own, 2),
    // Fuses with nothing, but takes bytes as it stands.
    ("Pad", Rounding::Kept, 1),
    ("Reshape", Rounding::Kept, 1),
    ("Resize", Rounding::Kept, 1),
    ("Sigmoid", Rounding::Own, 1),
    ("Slice", Rounding::Kept, 1),
    ("Split", Rounding::Kept, 1),
    ("Squeeze", Rounding::Kept, 1),
    ("Transpose", Rounding::Kept, 1),
    ("Unsqueeze", Rounding::Kept, 1),
];

/// An operator that can compute with integers where its neighbours do.
#[derive(Debug, Clone)]
pub(super) struct Member<'g> {
    /// Position of the node.
    pub(super) position: usize,
    /// The node.
    pub(super) node: &'g Node,
    /// What becomes of scales.
    pub(super) rounding: Rounding,
    /// Inputs that are values; those behind them are settings.
    pub(super) values: usize,
    /// A Relu that alone reads the output of a sum, and becomes part of it.
    pub(super) activation: Option<usize>,
}

impl<'g> Member<'g> {
    /// The member at `position`, if ONNX Runtime has an integer kernel for it.
    fn of(index: &Index<'g>, position: usize) -> Option<Self> {
        let node = &index.graph.nodes[position];
        let (_, rounding, values) = FUSED
            .iter()
            .find(|(op_type, ..)| node.is(op_type) && node.pinned.is_none())?;
        let member = Self {
            position,
            node,
            rounding: *rounding,
            values: (*values).min(node.inputs.len()),
            activation: None,
        };
        let computed = member
            .inputs()
            .all(|name| !name.is_empty() && index.constant(name).is_none());
        if !computed || !supported(index, node) {
            return None;
        }
        let relu = index
            .only_use(node.output())
            .filter(|(_, next)| node.is("Add") && next.is("Relu"));
        Some(Self {
            activation: relu.map(|(position, _)| position),
            ..member
        })
    }

    /// The values that it reads.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &'g str> + use<'g> {
        self.node.inputs.iter().take(self.values).map(String::as_str)
    }

    /// The values that it makes, behind its activation.
    pub(super) fn outputs(&self, index: &Index<'g>) -> impl Iterator<Item = &'g str> + use<'g> {
        let last = self
            .activation
            .map_or(self.node, |position| &index.graph.nodes[position]);
        last.outputs.iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// Whether the settings of `node` are among those that the integer kernel has.
fn supported(index: &Index<'_>, node: &Node) -> bool {
    let text = |name: &str| match node.attribute(name) {
        Some(AttributeValue::String(text)) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    };
    match node.op_type.as_str() {
        // Indices would count in another order.
        "MaxPool" => node.outputs.len() == 1,
        "Resize" => {
            let mode = text("mode").is_none_or(|mode| mode == "nearest");
            let cropped = text("coordinate_transformation_mode").is_some_and(|mode| mode == "tf_crop_and_resize");
            mode && !cropped
        }
        // What is added must be the zero that both sides have.
        "Pad" => {
            let reflected = text("mode").is_some_and(|mode| mode != "constant");
            let zero = |name: &str| {
                index
                    .constant(name)
                    .and_then(Tensor::to_scalar)
                    .is_some_and(|value| value == 0.0)
            };
            reflected || node.input(2).is_none_or(zero)
        }
        _ => true,
    }
}

/// All operators that are connected with a convolution of `sites` by values that could stay integers, in order.
pub(super) fn candidates<'g>(index: &Index<'g>, sites: &[Site<'g>]) -> Vec<Member<'g>> {
    let mut known: Vec<Option<Member<'g>>> = (0..index.graph.nodes.len()).map(|at| Member::of(index, at)).collect();
    let mut by_output: HashMap<&str, usize> = HashMap::new();
    for member in known.iter().flatten() {
        by_output.extend(member.outputs(index).map(|output| (output, member.position)));
    }
    let convolutions = sites.iter().filter(|site| site.is_convolution());
    let mut values: Vec<&str> = convolutions
        .flat_map(|site| [site.input(), site.result(index)])
        .collect();
    let mut seen: HashSet<&str> = values.iter().copied().collect();
    let mut chosen = BTreeMap::new();
    while let Some(value) = values.pop() {
        let readers = index.uses(value).iter().map(|usage| usage.node);
        for position in readers.chain(by_output.get(value).copied()) {
            let reads = |member: &Member<'g>| member.inputs().chain(member.outputs(index)).any(|name| name == value);
            if !known[position].as_ref().is_some_and(reads) {
                continue;
            }
            let Some(member) = known[position].take() else { continue };
            values.extend(
                member
                    .inputs()
                    .chain(member.outputs(index))
                    .filter(|name| seen.insert(name)),
            );
            chosen.insert(position, member);
        }
    }
    chosen.into_values().collect()
}

/// The members out of `candidates` with which the fewest values are converted; the others, in order, are given to `left`.
///
/// An operator at the rim of a region that saves nothing stays float, unless it works on the same values or on fewer: bytes are moved
/// four times as fast as floats. `ends`: what enters and leaves the model are integers, too.
pub(super) fn grow<'g>(
    index: &Index<'g>,
    sites: &[Site<'g>],
    candidates: Vec<Member<'g>>,
    ends: bool,
    mut left: impl FnMut(&Member<'g>),
) -> Vec<Member<'g>> {
    let mut labels = Labels::new(index, sites, &candidates, ends);
    let from_the_end: Vec<&Member<'g>> = candidates.iter().rev().collect();
    labels.settle(&from_the_end, false);
    let moving: Vec<&Member<'g>> = candidates
        .iter()
        .filter(|member| member.rounding != Rounding::Own)
        .collect();
    labels.settle(&moving, true);
    let (members, others): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|member| labels.members.contains(&member.position));
    others.iter().for_each(&mut left);
    members
}

/// Who makes and who reads integers.
struct Labels<'i, 'g> {
    index: &'i Index<'g>,
    /// Values that an integer kernel makes.
    made: HashSet<&'g str>,
    /// Sites by the value that they read.
    reading: HashSet<(usize, &'g str)>,
    /// Positions of members.
    members: HashSet<usize>,
    /// Whether callers give and take integers.
    ends: bool,
}

impl<'i, 'g> Labels<'i, 'g> {
    /// With all candidates as members.
    fn new(index: &'i Index<'g>, sites: &[Site<'g>], candidates: &[Member<'g>], ends: bool) -> Self {
        let convolutions = sites.iter().filter(|site| site.is_convolution());
        let mut labels = Self {
            index,
            made: convolutions.map(|site| site.result(index)).collect(),
            reading: sites.iter().map(|site| (site.position, site.input())).collect(),
            members: HashSet::new(),
            ends,
        };
        for member in candidates {
            labels.toggle(member);
        }
        labels
    }

    /// Lets those of `members` join, or leave, that add no conversion, until none is left.
    fn settle(&mut self, members: &[&Member<'g>], join: bool) {
        let mut changed = true;
        while changed {
            changed = false;
            for member in members {
                if self.members.contains(&member.position) == join {
                    continue;
                }
                let before = self.conversions(member);
                self.toggle(member);
                if self.conversions(member) <= before {
                    changed = true;
                } else {
                    self.toggle(member);
                }
            }
        }
    }

    /// Makes a member of what is none, and the other way round.
    fn toggle(&mut self, member: &Member<'g>) {
        let joins = self.members.insert(member.position);
        if !joins {
            self.members.remove(&member.position);
        }
        for output in member.outputs(self.index) {
            if joins {
                self.made.insert(output);
            } else {
                self.made.remove(output);
            }
        }
        for input in member.inputs() {
            if joins {
                self.reading.insert((member.position, input));
            } else {
                self.reading.remove(&(member.position, input));
            }
        }
    }

    /// Conversions of the values around a member.
    fn conversions(&self, member: &Member<'g>) -> usize {
        let values: HashSet<&str> = member.inputs().chain(member.outputs(self.index)).collect();
        values.into_iter().filter(|value| self.converted(value)).count()
    }

    /// Whether `value` is made in one form and read in the other.
    fn converted(&self, value: &'g str) -> bool {
        let uses = self.index.uses(value);
        let mut integers = uses.iter().map(|usage| self.reading.contains(&(usage.node, value)));
        if self.made.contains(value) {
            (self.index.is_output(value) && !self.ends) || !integers.all(|integer| integer)
        } else if self.ends && self.index.is_input(value) {
            false
        } else {
            integers.any(|integer| integer)
        }
    }
}
