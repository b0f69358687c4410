//! A convolution as a product of rows: a row for each output position, holding the 8-bit inputs under its window.
//!
//! ONNX Runtime's `ConvInteger` has no fast kernel; its integer product has. `y[p, o] = sum_{t, c} x[c, p s + t d] w[o, c, t]`
//! with position `p`, tap `t`, stride `s`, dilation `d`: inputs are padded with their zero point, turned to channels-last,
//! sliced once for each tap and put side by side, all in 8 bits.

use super::{
    Error,
    layout::{Layout, Packed},
};
use crate::onnx::{AttributeValue, Node, Tensor};

/// Most taps: each is one slice.
const MOST_TAPS: usize = 49;
/// Copying an input byte or turning an output float costs as much as so many products are faster in 8 bits.
const COPY_PRODUCTS: usize = 64;

/// Where the windows of a convolution lie.
#[derive(Debug)]
pub(super) struct Windows {
    channels: usize,
    kernel: Vec<usize>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    /// Before and after each spatial axis.
    pads: Vec<(i64, i64)>,
}

impl Windows {
    /// The windows of `node`; why not, where a product would not pay or can't say the same.
    pub(super) fn of(node: &Node, weights: &Tensor) -> Result<Self, &'static str> {
        if node.int("group", 1) != Some(1) {
            return Err("it is grouped, and ONNX Runtime has no fast dynamic kernel for that");
        }
        if !matches!(node.attribute("auto_pad"), None | Some(AttributeValue::String(_))) || automatic(node) {
            return Err("its padding depends on the size of the input");
        }
        let (outputs, channels, kernel) = (weights.dims[0], weights.dims[1], weights.dims[2..].to_vec());
        let spatial = kernel.len();
        let taps: usize = kernel.iter().product();
        let row = taps * channels;
        if taps > MOST_TAPS || row * outputs < COPY_PRODUCTS * (row + 2 * outputs) {
            return Err("its products are too few to pay for quantizing and turning its input and output");
        }
        let list = |name: &str, count: usize, default: i64| match node.ints(name) {
            None => Some(vec![default; count]),
            Some(values) => Some(values.to_vec()).filter(|values| values.len() == count),
        };
        let malformed = "its strides, dilations or pads do not fit its weights";
        let pads = list("pads", 2 * spatial, 0).ok_or(malformed)?;
        if pads.iter().any(|&pad| pad < 0) {
            return Err(malformed);
        }
        let (before, after) = pads.split_at(spatial);
        Ok(Self {
            channels,
            kernel,
            strides: list("strides", spatial, 1).ok_or(malformed)?,
            dilations: list("dilations", spatial, 1).ok_or(malformed)?,
            pads: before.iter().copied().zip(after.iter().copied()).collect(),
        })
    }

    /// The weights `[outputs, channels, taps...]` as `[taps * channels, outputs]`.
    pub(super) fn matrix(&self, weights: &Tensor) -> Result<Tensor, Error> {
        let floats = weights.to_floats().unwrap_or_default();
        let taps: usize = self.kernel.iter().product();
        let outputs = weights.dims[0];
        let mut matrix = Vec::with_capacity(floats.len());
        for tap in 0..taps {
            for channel in 0..self.channels {
                matrix.extend((0..outputs).map(|output| floats[(output * self.channels + channel) * taps + tap]));
            }
        }
        Ok(Tensor::floats(
            &weights.name,
            &[taps * self.channels, outputs],
            &matrix,
        )?)
    }

    /// Nodes that make the rows `[batch, positions..., taps * channels]` out of a quantized input, and the rows' name.
    pub(super) fn rows(&self, layout: &mut Layout, input: &Packed) -> Result<(Vec<Node>, String), Error> {
        let base = input.values.clone();
        let spatial = self.kernel.len();
        let mut nodes = Vec::new();
        let mut value = base.clone();
        if self.pads.iter().any(|pad| *pad != (0, 0)) {
            let around = |side: fn(&(i64, i64)) -> i64| [0, 0].into_iter().chain(self.pads.iter().map(side));
            let pads: Vec<i64> = around(|pad| pad.0).chain(around(|pad| pad.1)).collect();
            let pads = ints(layout, &base, "/pads", &pads)?;
            let padded = layout.names.fresh(&base, "/padded");
            nodes.push(Node::new("Pad", &[&value, &pads, &input.zero_point], &[&padded]));
            value = padded;
        }
        let last = layout.names.fresh(&base, "/channels_last");
        let perm = [0].into_iter().chain(2..spatial + 2).chain([1]);
        nodes.push(transpose(perm, &value, &last));
        if self.kernel.iter().all(|&size| size == 1) && self.strides.iter().all(|&stride| stride == 1) {
            return Ok((nodes, last));
        }
        let axes: Vec<i64> = (1..).take(spatial).collect();
        let axes = ints(layout, &base, "/axes", &axes)?;
        let steps = ints(layout, &base, "/steps", &self.strides)?;
        let mut parts = Vec::new();
        for tap in 0..self.kernel.iter().product() {
            let (starts, ends): (Vec<i64>, Vec<i64>) = self.tap(tap).into_iter().unzip();
            let (starts, ends) = (
                ints(layout, &base, "/starts", &starts)?,
                ints(layout, &base, "/ends", &ends)?,
            );
            let part = layout.names.fresh(&base, "/tap");
            nodes.push(Node::new("Slice", &[&last, &starts, &ends, &axes, &steps], &[&part]));
            parts.push(part);
        }
        let rows = layout.names.fresh(&base, "/rows");
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        nodes.push(Node::new("Concat", &parts, &[&rows]).with("axis", AttributeValue::Int(-1)));
        Ok((nodes, rows))
    }

    /// Start and end of a tap's slice along each spatial axis.
    fn tap(&self, tap: usize) -> Vec<(i64, i64)> {
        let mut rest = tap;
        let mut slices = vec![(0, 0); self.kernel.len()];
        for axis in (0..self.kernel.len()).rev() {
            let (size, dilation) = (self.kernel[axis], self.dilations[axis]);
            let [at, last] = [rest % size, size - 1].map(|index| i64::try_from(index).unwrap_or(0) * dilation);
            rest /= size;
            slices[axis] = (at, if at == last { i64::MAX } else { at - last });
        }
        slices
    }

    /// The node that brings `[batch, positions..., outputs]` back to channels-first.
    pub(super) fn back(&self, value: &str, output: &str) -> Node {
        let last = self.kernel.len() + 1;
        transpose([0, last].into_iter().chain(1..last), value, output)
    }
}

/// Whether the padding of a convolution depends on the size of its input.
pub(super) fn automatic(node: &Node) -> bool {
    matches!(node.attribute("auto_pad"), Some(AttributeValue::String(text)) if !text.is_empty() && &text[..] != b"NOTSET")
}

fn ints(layout: &mut Layout, base: &str, suffix: &str, values: &[i64]) -> Result<String, Error> {
    let name = layout.names.fresh(base, suffix);
    Ok(layout.add(Tensor::int64s(&name, &[values.len()], values)?))
}

fn transpose(perm: impl Iterator<Item = usize>, input: &str, output: &str) -> Node {
    let perm = perm.map(|axis| i64::try_from(axis).unwrap_or(0)).collect();
    Node::new("Transpose", &[input], &[output]).with("perm", AttributeValue::Ints(perm))
}
