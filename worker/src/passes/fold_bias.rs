//! A constant added behind a convolution becomes its bias, also across operators that only move elements.
//!
//! Adding one value a channel commutes with slicing, squeezing and the like as long as the channels stay whole. The sum
//! is then free, and the integer kernel sees the value that the activation will see.

use super::{Error, Report};
use crate::onnx::{Index, Model, Names, Node, Patch, Tensor, rewrite};

pub(super) const NAME: &str = "fold-bias";
/// Operators between the convolution and the sum.
const MOST_STEPS: usize = 8;

/// Folds every such sum.
pub fn apply(model: &mut Model) -> Result<Report, Error> {
    let mut report = Report::new(NAME);
    let mut names = Names::new(&model.graph);
    rewrite(model, |index| -> Result<Patch, Error> {
        let mut patch = Patch::new(NAME);
        for (position, node) in index.graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Conv")) {
            let Some(fold) = find(index, position, node) else {
                continue;
            };
            fold.write(index, node, &mut names, &mut patch)?;
            report.changed += 1;
        }
        Ok(patch)
    })?;
    Ok(report)
}

struct Fold {
    convolution: usize,
    /// The node whose output is added to; it takes over the sum's name.
    last: usize,
    add: usize,
    bias: Vec<f32>,
}

/// Where the channels are in a tensor that is being moved about.
#[derive(Clone, Copy)]
struct Layout {
    rank: usize,
    channel: usize,
}

fn find(index: &Index<'_>, convolution: usize, node: &Node) -> Option<Fold> {
    let weights = index.constant(node.input(1)?)?;
    let channels = *weights.dims.first()?;
    let own = match node.input(2) {
        None => vec![0.0; channels],
        Some(name) => index
            .constant(name)?
            .to_floats()
            .filter(|bias| bias.len() == channels)?,
    };
    let mut layout = Layout {
        rank: weights.dims.len(),
        channel: 1,
    };
    let mut last = convolution;
    for _ in 0..MOST_STEPS {
        let value = index.graph.nodes[last].output();
        let (position, next) = index.only_use(value)?;
        if next.is("Add") {
            let other = next.inputs.iter().find(|name| *name != value)?;
            let added = per_channel(index.constant(other)?, layout, channels)?;
            let bias = own.iter().zip(added).map(|(own, added)| own + added).collect();
            return Some(Fold {
                convolution,
                last,
                add: position,
                bias,
            });
        }
        layout = moved(index, next, layout, channels)?;
        last = position;
    }
    None
}

/// One value a channel; none where the tensor varies along anything else.
fn per_channel(tensor: &Tensor, layout: Layout, channels: usize) -> Option<Vec<f32>> {
    let offset = layout.rank.checked_sub(tensor.dims.len())?;
    let whole = tensor
        .dims
        .iter()
        .enumerate()
        .all(|(axis, &dim)| dim == 1 || (axis + offset == layout.channel && dim == channels));
    if !whole {
        return None;
    }
    let values = tensor.to_floats()?;
    Some(if values.len() == 1 {
        vec![values[0]; channels]
    } else {
        values
    })
}

/// The layout behind an operator that moves elements and leaves the channels whole.
fn moved(index: &Index<'_>, node: &Node, layout: Layout, channels: usize) -> Option<Layout> {
    let Layout { rank, channel } = layout;
    let axes = |slot: usize, rank: usize| -> Option<Vec<usize>> {
        let axes = index.constant(node.input(slot)?)?.to_ints()?;
        axes.into_iter()
            .map(|axis| super::fold_constants::axis(axis, rank))
            .collect()
    };
    match node.op_type.as_str() {
        _ if !node.domain.is_empty() => None,
        "Identity" => Some(layout),
        "Slice" => keeps_whole(index, node, &axes(3, rank)?, channel, channels).then_some(layout),
        "Squeeze" => {
            let gone = axes(1, rank)?;
            let before = gone.iter().filter(|&&axis| axis < channel).count();
            (!gone.contains(&channel)).then(|| Layout {
                rank: rank - gone.len(),
                channel: channel - before,
            })
        }
        "Unsqueeze" => {
            let added = axes(1, rank + index.constant(node.input(1)?)?.len())?;
            let rank = rank + added.len();
            let channel = (0..rank).filter(|axis| !added.contains(axis)).nth(channel)?;
            Some(Layout { rank, channel })
        }
        _ => None,
    }
}

/// Whether a slice takes all channels, in order.
fn keeps_whole(index: &Index<'_>, node: &Node, axes: &[usize], channel: usize, channels: usize) -> bool {
    let Some(at) = axes.iter().position(|&axis| axis == channel) else {
        return true;
    };
    let value = |slot: usize| index.constant(node.input(slot)?)?.to_ints()?.get(at).copied();
    let step = if node.input(4).is_some() { value(4) } else { Some(1) };
    let end = value(2).and_then(|end| usize::try_from(end).ok());
    value(1) == Some(0) && end.is_some_and(|end| end >= channels) && step == Some(1)
}

impl Fold {
    fn write(&self, index: &Index<'_>, node: &Node, names: &mut Names, patch: &mut Patch) -> Result<(), Error> {
        let output = index.graph.nodes[self.add].output().to_owned();
        let bias = Tensor::floats(&names.fresh(node.output(), "/bias"), &[self.bias.len()], &self.bias)?;
        let mut convolution = node.clone();
        convolution.inputs.truncate(2);
        convolution.inputs.push(bias.name.clone());
        patch.add_tensor(bias);
        if self.last == self.convolution {
            convolution.outputs = vec![output];
        } else {
            let mut last = index.graph.nodes[self.last].clone();
            last.outputs = vec![output];
            patch.replace(self.last, vec![last]);
        }
        patch.replace(self.convolution, vec![convolution]);
        patch.remove(self.add);
        Ok(())
    }
}
